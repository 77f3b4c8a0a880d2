//! Link messages, read.

use rtnetlink::packet_route::link::{
    InfoBridgePort, InfoKind, InfoPortData, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};

use super::{BridgePortOptions, Link, LinkKind, MacAddress, OperState};

pub(in crate::netlink) fn parse(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        all_multicast: message.header.flags.contains(LinkFlags::Allmulti),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(octets) => link.mac = octets.as_slice().try_into().ok().map(MacAddress),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::OperState(state) => link.oper_state = oper_state(*state),
            LinkAttribute::Controller(master) => link.master = Some(*master).filter(|index| *index != 0),
            LinkAttribute::Link(peer) => link.peer = Some(*peer),
            LinkAttribute::LinkNetNsId(id) => link.peer_netns = Some(*id),
            LinkAttribute::Promiscuity(users) => link.promiscuity = *users,
            LinkAttribute::Group(group) => link.group = *group,
            LinkAttribute::TxQueueLen(length) => link.tx_queue_len = *length,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::LinkInfo(infos) => parse_info(infos, &mut link),
            _ => {}
        }
    }
    link
}

fn parse_info(infos: &[LinkInfo], link: &mut Link) {
    for info in infos {
        match info {
            LinkInfo::Kind(kind) => {
                link.kind = Some(kind.to_string());
                // The kernel has nothing more to say of it here.
                link.settings = (*kind == InfoKind::Wireguard).then_some(LinkKind::Wireguard);
            }
            LinkInfo::Data(data) => link.settings = LinkKind::read(data),
            LinkInfo::PortData(InfoPortData::BridgePort(port)) => {
                let mut options = BridgePortOptions::default();
                for switch in port {
                    match switch {
                        InfoBridgePort::HairpinMode(on) => options.hairpin = *on,
                        InfoBridgePort::Isolated(on) => options.isolated = *on,
                        _ => {}
                    }
                }
                link.bridge_port = Some(options);
            }
            _ => {}
        }
    }
}

fn oper_state(state: State) -> OperState {
    match state {
        State::NotPresent => OperState::NotPresent,
        State::Down => OperState::Down,
        State::LowerLayerDown => OperState::LowerLayerDown,
        State::Testing => OperState::Testing,
        State::Dormant => OperState::Dormant,
        State::Up => OperState::Up,
        _ => OperState::Unknown,
    }
}
