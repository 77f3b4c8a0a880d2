//! Neighbours (ARP and NDP entries) and forwarding entries of bridges and VXLAN links.
//!
//! Owns the translation between neighbour messages and [`Neighbour`] and [`FdbEntry`].

use std::net::IpAddr;

use futures::TryStreamExt;
use rtnetlink::packet_route::{
    AddressFamily,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
};

use super::{Error, MacAddress, Netlink, answer};

/// Who has which address on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    pub link: u32,
    pub address: IpAddr,
    pub mac: Option<MacAddress>,
    pub permanent: bool,
}

/// Where a bridge or a VXLAN link sends a hardware address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FdbEntry {
    pub link: u32,
    pub mac: MacAddress,
    /// VXLAN only: the tunnel's other end.
    pub remote: Option<IpAddr>,
}

impl Netlink {
    /// The neighbour entries of both families.
    ///
    /// # Errors
    /// When the dump fails.
    pub async fn neighbours(&self) -> Result<Vec<Neighbour>, Error> {
        let request = self.handle.neighbours().get();
        let found = request.execute().try_filter_map(|message| async move { Ok(parse(&message)) });
        answer("list", "neighbours", found.try_collect()).await
    }

    /// Adds a permanent neighbour entry, in place of what is there.
    ///
    /// # Errors
    /// `ENODEV` when the link is gone.
    pub async fn replace_neighbour(&self, link: u32, address: IpAddr, mac: MacAddress) -> Result<(), Error> {
        let request = self.handle.neighbours().add(link, address).link_layer_address(&mac.0).replace();
        let object = format!("{address} on link index {link}");
        answer("replace neighbour", object, request.execute()).await
    }

    /// Deletes a neighbour entry, permanent or learnt.
    ///
    /// # Errors
    /// `ENOENT` when there is none: see [`Error::is_gone`].
    pub async fn del_neighbour(&self, link: u32, address: IpAddr) -> Result<(), Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = match address {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        message.header.ifindex = link;
        message.attributes.push(NeighbourAttribute::Destination(address.into()));
        let object = format!("{address} on link index {link}");
        answer("delete neighbour", object, self.handle.neighbours().del(message).execute()).await
    }

    /// The forwarding entries of a link itself.
    ///
    /// # Errors
    /// When the dump fails.
    pub async fn forwarding_entries(&self, link: u32) -> Result<Vec<FdbEntry>, Error> {
        let request = self.handle.neighbours().get().set_address_family(AddressFamily::Bridge);
        let found = request.execute().try_filter_map(|message| async move {
            let own = message.header.ifindex == link && message.header.flags.contains(NeighbourFlags::Own);
            Ok(if own { parse_fdb(&message) } else { None })
        });
        answer("list", "forwarding entries", found.try_collect()).await
    }

    /// Adds a forwarding entry of the link itself (`bridge fdb replace … self permanent`).
    ///
    /// # Errors
    /// `EOPNOTSUPP` when the link keeps no forwarding entries.
    pub async fn replace_fdb(&self, entry: &FdbEntry) -> Result<(), Error> {
        let mut request = self
            .handle
            .neighbours()
            .add_bridge(entry.link, &entry.mac.0)
            .flags(NeighbourFlags::Own)
            .replace();
        if let Some(remote) = entry.remote {
            request.message_mut().attributes.push(NeighbourAttribute::Destination(remote.into()));
        }
        let object = format!("{} on link index {}", entry.mac, entry.link);
        answer("replace forwarding entry", object, request.execute()).await
    }

    /// Deletes a forwarding entry of the link itself.
    ///
    /// # Errors
    /// `ENOENT` when there is none: see [`Error::is_gone`].
    pub async fn del_fdb(&self, entry: &FdbEntry) -> Result<(), Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = entry.link;
        message.header.flags = NeighbourFlags::Own;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()));
        if let Some(remote) = entry.remote {
            message.attributes.push(NeighbourAttribute::Destination(remote.into()));
        }
        let object = format!("{} on link index {}", entry.mac, entry.link);
        let request = self.handle.neighbours().del(message);
        answer("delete forwarding entry", object, request.execute()).await
    }
}

fn parse_fdb(message: &NeighbourMessage) -> Option<FdbEntry> {
    let (remote, mac) = addresses(message);
    Some(FdbEntry { link: message.header.ifindex, mac: mac?, remote })
}

/// Where and which hardware address.
fn addresses(message: &NeighbourMessage) -> (Option<IpAddr>, Option<MacAddress>) {
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(IpAddr::V4(*ip)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some(IpAddr::V6(*ip)),
            // Forwarding entries are of the bridges' family, so the length tells.
            NeighbourAttribute::Destination(NeighbourAddress::Other(octets)) => {
                let ipv4 = <[u8; 4]>::try_from(octets.as_slice()).map(IpAddr::from);
                address = ipv4.or_else(|_| <[u8; 16]>::try_from(octets.as_slice()).map(IpAddr::from)).ok();
            }
            NeighbourAttribute::LinkLayerAddress(octets) => {
                mac = octets.as_slice().try_into().ok().map(MacAddress);
            }
            _ => {}
        }
    }
    (address, mac)
}

fn parse(message: &NeighbourMessage) -> Option<Neighbour> {
    let (address, mac) = addresses(message);
    let permanent = message.header.state == NeighbourState::Permanent;
    Some(Neighbour { link: message.header.ifindex, address: address?, mac, permanent })
}
