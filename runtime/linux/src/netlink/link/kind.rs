//! Links of one message each: dummy, macvlan, ipvlan, vlan, VRF, VXLAN, WireGuard.
//!
//! Owns [`LinkKind`], what such links are made with and report, and [`NewLink`]. A link that stands on a parent in another
//! namespace is made through a socket of the namespace that it is to be in, which knows the parent's by number
//! ([`Netlink::netns_id`]), and ends nowhere else. Kernels before 6.15 want its name to be free beside the parent, too.

use std::net::Ipv4Addr;

pub use rtnetlink::packet_route::link::{IpVlanMode, MacVlanMode};
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec,
    packet_route::link::{
        InfoData, InfoIpVlan, InfoKind, InfoMacVlan, InfoVlan, InfoVrf, InfoVxlan, LinkAttribute,
    },
};

use super::{Error, MacAddress, Netlink, answer};

/// A kind, with what is particular to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    Dummy,
    Macvlan {
        mode: MacVlanMode,
        /// Packets for everyone that may wait (`IFLA_MACVLAN_BC_QUEUE_LEN`); none leaves it to the kernel.
        broadcast_queue: Option<u32>,
    },
    Ipvlan {
        mode: IpVlanMode,
    },
    Vlan {
        id: u16,
    },
    Vrf {
        table: u32,
    },
    Vxlan(Vxlan),
    /// Keys and peers are `wireguard`'s.
    Wireguard,
}

/// A VXLAN link, which sends only where forwarding entries say: it neither learns nor floods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vxlan {
    /// The network identifier (VNI).
    pub id: u32,
    /// UDP port, here and at the other ends.
    pub port: u16,
    /// This end's address.
    pub local: Ipv4Addr,
    /// Index of the link that carries the packets.
    pub carrier: u32,
}

/// The link that another one stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    pub index: u32,
    /// Its namespace as this socket's numbers it; none for the socket's own.
    pub netns: Option<i32>,
}

/// A link to create in the socket's namespace.
#[derive(Debug, Clone)]
pub struct NewLink {
    pub name: String,
    pub kind: LinkKind,
    /// Macvlan, ipvlan and vlan have one.
    pub parent: Option<Parent>,
    pub mtu: Option<u32>,
    pub mac: Option<MacAddress>,
    pub up: bool,
}

impl NewLink {
    /// Down, with the kernel's choice of everything else.
    pub fn new(name: impl Into<String>, kind: LinkKind) -> Self {
        Self { name: name.into(), kind, parent: None, mtu: None, mac: None, up: false }
    }
}

impl LinkKind {
    /// None for kinds that are not read.
    pub(super) fn read(data: &InfoData) -> Option<Self> {
        match data {
            InfoData::MacVlan(all) => {
                let mode = all.iter().find_map(|info| match info {
                    InfoMacVlan::Mode(mode) => Some(*mode),
                    _ => None,
                })?;
                let broadcast_queue = all.iter().find_map(|info| match info {
                    InfoMacVlan::BcQueueLen(length) => Some(*length),
                    _ => None,
                });
                Some(Self::Macvlan { mode, broadcast_queue })
            }
            InfoData::IpVlan(all) => all.iter().find_map(|info| match info {
                InfoIpVlan::Mode(mode) => Some(Self::Ipvlan { mode: *mode }),
                _ => None,
            }),
            InfoData::Vlan(all) => all.iter().find_map(|info| match info {
                InfoVlan::Id(id) => Some(Self::Vlan { id: *id }),
                _ => None,
            }),
            InfoData::Vrf(all) => all.iter().find_map(|info| match info {
                InfoVrf::TableId(table) => Some(Self::Vrf { table: *table }),
                _ => None,
            }),
            InfoData::Vxlan(all) => Vxlan::read(all).map(Self::Vxlan),
            _ => None,
        }
    }

    fn info(self) -> (InfoKind, Option<InfoData>) {
        match self {
            Self::Dummy => (InfoKind::Dummy, None),
            Self::Macvlan { mode, broadcast_queue } => {
                let mut data = vec![InfoMacVlan::Mode(mode)];
                data.extend(broadcast_queue.map(InfoMacVlan::BcQueueLen));
                (InfoKind::MacVlan, Some(InfoData::MacVlan(data)))
            }
            Self::Ipvlan { mode } => (InfoKind::IpVlan, Some(InfoData::IpVlan(vec![InfoIpVlan::Mode(mode)]))),
            Self::Vlan { id } => (InfoKind::Vlan, Some(InfoData::Vlan(vec![InfoVlan::Id(id)]))),
            Self::Vrf { table } => (InfoKind::Vrf, Some(InfoData::Vrf(vec![InfoVrf::TableId(table)]))),
            Self::Vxlan(vxlan) => (InfoKind::Vxlan, Some(InfoData::Vxlan(vxlan.info()))),
            Self::Wireguard => (InfoKind::Wireguard, None),
        }
    }
}

impl Vxlan {
    /// None for a link that learns, floods, or has its other ends elsewhere than in IPv4.
    fn read(all: &[InfoVxlan]) -> Option<Self> {
        let mut read = Self { id: 0, port: 0, local: Ipv4Addr::UNSPECIFIED, carrier: 0 };
        for info in all {
            match info {
                InfoVxlan::Id(id) => read.id = *id,
                InfoVxlan::Port(port) => read.port = *port,
                InfoVxlan::Local(local) => read.local = *local,
                InfoVxlan::Link(carrier) => read.carrier = *carrier,
                InfoVxlan::Learning(true) | InfoVxlan::Group(_) | InfoVxlan::Group6(_) => return None,
                _ => {}
            }
        }
        (!read.local.is_unspecified()).then_some(read)
    }

    fn info(self) -> Vec<InfoVxlan> {
        vec![
            InfoVxlan::Id(self.id),
            InfoVxlan::Link(self.carrier),
            InfoVxlan::Local(self.local),
            InfoVxlan::Learning(false),
            InfoVxlan::Port(self.port),
        ]
    }
}

impl Netlink {
    /// Creates a link.
    ///
    /// # Errors
    /// `EEXIST` when the name is taken; `EOPNOTSUPP` when the kernel does not have the kind; `EBUSY` when the parent is
    /// a port, or already carries a kind that does not go together with it.
    pub async fn add_link(&self, new: &NewLink) -> Result<(), Error> {
        let (kind, data) = new.kind.info();
        let object = format!("{kind} {:?}", new.name);
        let mut message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(kind).name(new.name.clone());
        if let Some(data) = data {
            message = message.set_info_data(data);
        }
        if let Some(parent) = new.parent {
            message = message.link(parent.index);
            if let Some(netns) = parent.netns {
                message = message.append_extra_attribute(LinkAttribute::LinkNetNsId(netns));
            }
        }
        if let Some(mtu) = new.mtu {
            message = message.mtu(mtu);
        }
        if let Some(mac) = new.mac {
            message = message.address(mac.0.to_vec());
        }
        if new.up {
            message = message.up();
        }
        answer("add", object, self.handle.link().add(message.build()).execute()).await
    }
}
