//! VLANs of a bridge's ports.
//!
//! The kernel keeps them of every port; they count where the bridge filters. A port comes with the bridge's default VLAN.

use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, LinkAttribute, LinkMessage},
};

use super::{Error, Netlink, answer};

const FIRST: u16 = 1;
const LAST: u16 = 4094;

/// A VLAN that a port is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortVlan {
    /// 1 to 4094.
    pub id: u16,
    /// Frames without a tag are of this VLAN, and its frames leave without one. A port has at most one such.
    pub untagged: bool,
}

impl Netlink {
    /// Adds the port to VLANs, in one message; one that it is in gets what is said of it here.
    ///
    /// # Errors
    /// `EOPNOTSUPP` when the link is no bridge's port, or the kernel has no VLAN filtering; `ENODEV` when it is gone.
    pub async fn add_port_vlans(&self, port: u32, vlans: &[PortVlan]) -> Result<(), Error> {
        let message = RouteNetlinkMessage::SetLink(message(port, vlans.iter().map(info)));
        answer("add VLANs of bridge port", format!("index {port}"), self.acknowledged(message, 0)).await
    }

    /// Takes the port out of all VLANs, its bridge's default one included.
    ///
    /// # Errors
    /// As [`Netlink::add_port_vlans`].
    pub async fn clear_port_vlans(&self, port: u32) -> Result<(), Error> {
        // Of a range the kernel deletes what is there.
        let range = [(FIRST, BridgeVlanInfoFlags::RangeBegin), (LAST, BridgeVlanInfoFlags::RangeEnd)];
        let range = range.map(|(vid, flags)| BridgeVlanInfo { flags, vid });
        let message = RouteNetlinkMessage::DelLink(message(port, range.into_iter()));
        answer("clear VLANs of bridge port", format!("index {port}"), self.acknowledged(message, 0)).await
    }
}

fn info(vlan: &PortVlan) -> BridgeVlanInfo {
    let flags = match vlan.untagged {
        true => BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged,
        false => BridgeVlanInfoFlags::empty(),
    };
    BridgeVlanInfo { flags, vid: vlan.id }
}

fn message(port: u32, vlans: impl Iterator<Item = BridgeVlanInfo>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = port;
    message.attributes = vec![LinkAttribute::AfSpecBridge(vlans.map(AfSpecBridge::VlanInfo).collect())];
    message
}

#[cfg(test)]
mod tests;
