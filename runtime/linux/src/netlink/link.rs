//! Links: look up, list, create (bridge, veth, and the kinds of [`LinkKind`]), change, delete.
//!
//! Owns the translation between link messages and [`Link`]. A change of several properties is one message, which the
//! kernel applies under one hold of its lock; it is not a transaction: properties before a refused one stay changed.

mod kind;
mod read;

use std::os::fd::{AsRawFd, BorrowedFd};

use futures::TryStreamExt;
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec, LinkVeth,
    packet_core::{DefaultNla, Emitable},
    packet_route::{
        RouteNetlinkMessage,
        link::{
            AfSpecUnspec, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind,
            InfoVeth, LinkAttribute, LinkMessage,
        },
    },
};

pub use self::kind::{IpVlanMode, LinkKind, MacVlanMode, NewLink, Parent, Vxlan};
pub(super) use self::read::parse;
use super::{Error, MacAddress, Netlink, answer};

/// `linux/if_link.h`, `linux/ip.h`.
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_ARP_NOTIFY: u16 = 22;

/// Operational state by RFC 2863.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OperState {
    #[default]
    Unknown,
    NotPresent,
    Down,
    LowerLayerDown,
    Testing,
    Dormant,
    Up,
}

impl std::fmt::Display for OperState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::NotPresent => "not-present",
            Self::Down => "down",
            Self::LowerLayerDown => "lower-layer-down",
            Self::Testing => "testing",
            Self::Dormant => "dormant",
            Self::Up => "up",
        })
    }
}

/// Link groups from here on are made by this project for links that go together.
pub const OWN_GROUPS: u32 = 1 << 31;

/// A link as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// `bridge`, `veth`, `vxlan`, …; none for hardware and for the loopback.
    pub kind: Option<String>,
    /// What is particular to its kind, for the kinds that are read.
    pub settings: Option<LinkKind>,
    pub mac: Option<MacAddress>,
    /// Bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    pub oper_state: OperState,
    /// Index of the bridge (bond, VRF) that this link is a port of.
    pub master: Option<u32>,
    /// Index of the veth's other end, or of the link that this one stands on; in the namespace of `peer_netns`.
    pub peer: Option<u32>,
    /// The peer's namespace as this namespace numbers it; none when it is the same.
    pub peer_netns: Option<i32>,
    /// Number of users that asked for promiscuous mode.
    pub promiscuity: u32,
    /// Takes every multicast packet.
    pub all_multicast: bool,
    /// Packets that may wait to be sent.
    pub tx_queue_len: u32,
    /// `IFLA_GROUP`; 0 for most.
    pub group: u32,
    pub alias: Option<String>,
    /// Set on ports of a bridge only.
    pub bridge_port: Option<BridgePortOptions>,
}

impl Link {
    /// True when the kernel says that it is of this kind.
    pub fn is_kind(&self, kind: &str) -> bool {
        self.kind.as_deref() == Some(kind)
    }
}

/// A bridge to create.
#[derive(Debug, Clone, Default)]
pub struct BridgeOptions {
    pub name: String,
    /// None leaves it to the kernel, which then follows the smallest port.
    pub mtu: Option<u32>,
    pub mac: Option<MacAddress>,
    /// Frames go only to ports of their VLAN.
    pub vlan_filtering: bool,
}

/// A veth pair to create: this end here, the peer anywhere.
#[derive(Debug)]
pub struct VethOptions<'a> {
    pub name: String,
    pub mtu: Option<u32>,
    pub mac: Option<MacAddress>,
    /// Bridge to join at birth.
    pub master: Option<u32>,
    /// Set from birth, unlike an alias, which the kernel takes only for links that exist.
    pub group: Option<u32>,
    pub up: bool,
    pub peer: VethPeer<'a>,
}

/// The other end of a new veth pair.
#[derive(Debug)]
pub struct VethPeer<'a> {
    pub name: String,
    pub mtu: Option<u32>,
    pub mac: Option<MacAddress>,
    /// Born in this namespace, so that it is never seen here; none for the same namespace.
    pub netns: Option<BorrowedFd<'a>>,
}

/// Properties to change; none leaves a property as it is.
#[derive(Debug, Clone, Default)]
pub struct LinkChange<'a> {
    pub up: Option<bool>,
    pub promiscuous: Option<bool>,
    pub all_multicast: Option<bool>,
    pub tx_queue_len: Option<u32>,
    pub name: Option<String>,
    pub mtu: Option<u32>,
    pub mac: Option<MacAddress>,
    /// `Some(None)` takes it out of its bridge.
    pub master: Option<Option<u32>>,
    pub group: Option<u32>,
    pub alias: Option<String>,
    /// Announces IPv4 addresses when the link comes up, or is given its hardware address; after the other changes.
    pub arp_notify: Option<bool>,
    /// Both switches of a bridge's port, which it must be.
    pub bridge_port: Option<BridgePortOptions>,
    /// Moved before anything else is changed, which sets it down. Where its name is taken there, it arrives by `name`.
    pub netns: Option<BorrowedFd<'a>>,
}

/// Switches of a bridge port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BridgePortOptions {
    pub hairpin: bool,
    pub isolated: bool,
}

impl Netlink {
    /// Looks a link up by its name.
    ///
    /// # Errors
    /// [`Error::NoLink`] when there is none.
    pub async fn link(&self, name: &str) -> Result<Link, Error> {
        self.find_link(name).await?.ok_or_else(|| Error::NoLink { object: format!("{name:?}") })
    }

    /// Looks a link up by its name; none when there is none.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn find_link(&self, name: &str) -> Result<Option<Link>, Error> {
        let request = self.handle.link().get().match_name(name);
        single(request, format!("{name:?}")).await
    }

    /// Looks a link up by its name in another namespace, without entering it.
    ///
    /// # Errors
    /// When the namespace may not be named, or the kernel refuses the question (`CAP_NET_ADMIN` there).
    pub async fn find_link_in(&self, netns: BorrowedFd<'_>, name: &str) -> Result<Option<Link>, Error> {
        let netns = self.netns_id(netns).await?;
        let mut request = self.handle.link().get().match_name(name);
        request.message_mut().attributes.push(LinkAttribute::IfNetnsId(netns));
        single(request, format!("{name:?}")).await
    }

    /// Looks a link up by its index; none when there is none.
    ///
    /// # Errors
    /// When the kernel refuses the question.
    pub async fn find_link_by_index(&self, index: u32) -> Result<Option<Link>, Error> {
        single(self.handle.link().get().match_index(index), format!("index {index}")).await
    }

    /// All links of the namespace.
    ///
    /// # Errors
    /// When the dump fails.
    pub async fn links(&self) -> Result<Vec<Link>, Error> {
        let links = self.handle.link().get().execute().map_ok(|message| parse(&message));
        answer("list", "links", links.try_collect()).await
    }

    /// Creates a bridge, down.
    ///
    /// # Errors
    /// `EEXIST` when the name is taken.
    pub async fn add_bridge(&self, bridge: &BridgeOptions) -> Result<(), Error> {
        let mut message =
            LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Bridge).name(bridge.name.clone());
        if let Some(mtu) = bridge.mtu {
            message = message.mtu(mtu);
        }
        if let Some(mac) = bridge.mac {
            message = message.address(mac.0.to_vec());
        }
        if bridge.vlan_filtering {
            message = message.set_info_data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(true)]));
        }
        let request = self.handle.link().add(message.build());
        answer("add bridge", format!("{:?}", bridge.name), request.execute()).await
    }

    /// Creates a veth pair in one message.
    ///
    /// # Errors
    /// `EEXIST` when either name is taken, each in its own namespace.
    pub async fn add_veth(&self, veth: &VethOptions<'_>) -> Result<(), Error> {
        let request = self.handle.link().add(veth_message(veth));
        answer("add veth", format!("{:?}", veth.name), request.execute()).await
    }

    /// Changes properties of the link, in one message.
    ///
    /// # Errors
    /// `ENODEV` when it is gone; `EOPNOTSUPP` when it is no bridge's port and should be; what the kernel says of the first property that
    /// it refuses.
    pub async fn change_link(&self, index: u32, change: &LinkChange<'_>) -> Result<(), Error> {
        let request = self.handle.link().change(change_message(index, change));
        answer("change link", format!("index {index}"), request.execute()).await
    }

    /// Sets the link up.
    ///
    /// # Errors
    /// As [`Netlink::change_link`].
    pub async fn set_link_up(&self, index: u32) -> Result<(), Error> {
        self.change_link(index, &LinkChange { up: Some(true), ..LinkChange::default() }).await
    }

    /// Sets the link down.
    ///
    /// # Errors
    /// As [`Netlink::change_link`].
    pub async fn set_link_down(&self, index: u32) -> Result<(), Error> {
        self.change_link(index, &LinkChange { up: Some(false), ..LinkChange::default() }).await
    }

    /// Deletes all links of a group at once, which takes the kernel as long as deleting one. Groups below [`OWN_GROUPS`] are
    /// for administrators, and 0 is where links are by default: these are refused.
    ///
    /// # Errors
    /// `ENODEV` when there are none: see [`Error::is_gone`].
    pub async fn del_group(&self, group: u32) -> Result<(), Error> {
        let (operation, object) = ("delete links of group", group.to_string());
        if group < OWN_GROUPS {
            let detail = "not a group of our own".to_owned();
            return Err(Error::Protocol { operation, object, detail });
        }
        let message = LinkMessageBuilder::<LinkUnspec>::new().link_group(group).build();
        answer(operation, object, self.acknowledged(RouteNetlinkMessage::DelLink(message), 0)).await
    }

    /// Deletes the link. For a veth the kernel takes 13–34 ms (it waits for RCU), and deletes the peer too.
    ///
    /// # Errors
    /// `ENODEV` when it is gone: see [`Error::is_gone`].
    pub async fn del_link(&self, index: u32) -> Result<(), Error> {
        let request = self.handle.link().del(index);
        answer("delete link", format!("index {index}"), request.execute()).await
    }

    /// As [`Netlink::del_link`], of a link whose index is not known.
    ///
    /// # Errors
    /// `ENODEV` when there is none of this name: see [`Error::is_gone`].
    pub async fn del_link_named(&self, name: &str) -> Result<(), Error> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().name(name.to_owned()).build();
        let deleted = self.acknowledged(RouteNetlinkMessage::DelLink(message), 0);
        answer("delete link", format!("{name:?}"), deleted).await
    }
}

async fn single(request: rtnetlink::LinkGetRequest, object: String) -> Result<Option<Link>, Error> {
    let mut found = std::pin::pin!(request.execute());
    match answer("find link", object, found.try_next()).await {
        Ok(message) => Ok(message.map(|message| parse(&message))),
        Err(error) if error.is_gone() => Ok(None),
        Err(error) => Err(error),
    }
}

fn veth_message(veth: &VethOptions<'_>) -> LinkMessage {
    let mut peer = LinkMessageBuilder::<LinkUnspec>::new().name(veth.peer.name.clone());
    if let Some(mtu) = veth.peer.mtu {
        peer = peer.mtu(mtu);
    }
    if let Some(mac) = veth.peer.mac {
        peer = peer.address(mac.0.to_vec());
    }
    if let Some(netns) = veth.peer.netns {
        peer = peer.setns_by_fd(netns.as_raw_fd());
    }
    let mut message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(veth.name.clone())
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())));
    if let Some(mtu) = veth.mtu {
        message = message.mtu(mtu);
    }
    if let Some(mac) = veth.mac {
        message = message.address(mac.0.to_vec());
    }
    if let Some(master) = veth.master {
        message = message.controller(master);
    }
    if let Some(group) = veth.group {
        message = message.link_group(group);
    }
    if veth.up {
        message = message.up();
    }
    message.build()
}

fn change_message(index: u32, change: &LinkChange<'_>) -> LinkMessage {
    let mut message = LinkMessageBuilder::<LinkUnspec>::new().index(index);
    message = match change.up {
        Some(true) => message.up(),
        Some(false) => message.down(),
        None => message,
    };
    if let Some(promiscuous) = change.promiscuous {
        message = message.promiscuous(promiscuous);
    }
    if let Some(all) = change.all_multicast {
        message = message.allmulticast(all);
    }
    if let Some(length) = change.tx_queue_len {
        message = message.txqueuelen(length);
    }
    if let Some(name) = &change.name {
        message = message.name(name.clone());
    }
    if let Some(mtu) = change.mtu {
        message = message.mtu(mtu);
    }
    if let Some(mac) = change.mac {
        message = message.address(mac.0.to_vec());
    }
    message = match change.master {
        Some(Some(master)) => message.controller(master),
        Some(None) => message.nocontroller(),
        None => message,
    };
    if let Some(group) = change.group {
        message = message.link_group(group);
    }
    if let Some(alias) = &change.alias {
        message = message.alias(alias.clone());
    }
    if let Some(port) = change.bridge_port {
        message = message.set_port_kind(InfoPortKind::Bridge).set_port_data(InfoPortData::BridgePort(vec![
            InfoBridgePort::HairpinMode(port.hairpin),
            InfoBridgePort::Isolated(port.isolated),
        ]));
    }
    if let Some(notify) = change.arp_notify {
        let switch = ipv4_switch(IPV4_DEVCONF_ARP_NOTIFY, notify.into());
        message = message.append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![switch]));
    }
    if let Some(netns) = change.netns {
        message = message.setns_by_fd(netns.as_raw_fd());
    }
    message.build()
}

/// A switch of `/proc/sys/net/ipv4/conf`. It is set as an attribute of its own number, unlike the array that is read, which is
/// all that the crate knows.
fn ipv4_switch(number: u16, value: u32) -> AfSpecUnspec {
    let switch = DefaultNla::new(number, value.to_ne_bytes().to_vec());
    let conf = DefaultNla::new(IFLA_INET_CONF, emitted(&switch));
    AfSpecUnspec::Other(DefaultNla::new(libc::AF_INET as u16, emitted(&conf)))
}

fn emitted(attribute: &DefaultNla) -> Vec<u8> {
    let mut bytes = vec![0; attribute.buffer_len()];
    attribute.emit(&mut bytes);
    bytes
}
