//! Tables for the pure halves of the netlink module: parsing messages, and naming failures.

use std::{net::IpAddr, num::NonZeroI32, time::Duration};

use ipnetwork::IpNetwork;
use rtnetlink::packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressMessage},
    link::{
        InfoBridgePort, InfoKind, InfoPortData, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo,
        LinkMessage, State,
    },
    route::{RouteAttribute, RouteMessage, RouteMetric, RouteNextHop, RouteType},
    tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};

use super::{
    Classifiers, Direction, MacAddress, OperState, address, answer_within, classifier, failed, link, route,
};

#[test]
fn hardware_addresses_read_and_print() {
    for (text, expected) in [
        ("0a:58:0a:f4:00:05", Some([0x0a, 0x58, 0x0a, 0xf4, 0x00, 0x05])),
        ("0A-58-0A-F4-00-05", Some([0x0a, 0x58, 0x0a, 0xf4, 0x00, 0x05])),
        ("0a:58:0a:f4:00", None),
        ("0a:58:0a:f4:00:05:06", None),
        ("0a:58:0a:f4:00:5", None),
        ("0a:58:0a:f4:00:+5", None),
        ("", None),
    ] {
        assert_eq!(text.parse::<MacAddress>().ok(), expected.map(MacAddress), "{text:?}");
    }
    assert_eq!(MacAddress([0x0a, 0x58, 0, 1, 2, 255]).to_string(), "0a:58:00:01:02:ff");
}

#[test]
fn a_bridge_port_is_read_with_its_switches() {
    let mut message = LinkMessage::default();
    message.header.index = 7;
    message.header.flags = LinkFlags::Up;
    message.attributes = vec![
        LinkAttribute::IfName("veth01".to_owned()),
        LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
        LinkAttribute::Mtu(1400),
        LinkAttribute::OperState(State::LowerLayerDown),
        LinkAttribute::Controller(3),
        LinkAttribute::Link(2),
        LinkAttribute::LinkNetNsId(4),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![
                InfoBridgePort::HairpinMode(true),
                InfoBridgePort::Isolated(false),
            ])),
        ]),
    ];
    let link = link::parse(&message);
    assert_eq!((link.index, link.name.as_str(), link.mtu, link.up), (7, "veth01", 1400, true));
    assert_eq!(link.mac, Some(MacAddress([2, 0, 0, 0, 0, 1])));
    assert_eq!((link.master, link.peer, link.peer_netns), (Some(3), Some(2), Some(4)));
    assert_eq!(link.oper_state, OperState::LowerLayerDown);
    assert!(link.is_kind("veth"));
    let port = link.bridge_port.expect("port data was given");
    assert!(port.hairpin && !port.isolated);
}

#[test]
fn a_hardware_address_of_odd_length_is_no_mac() {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::Address(vec![1, 2, 3, 4])];
    assert_eq!(link::parse(&message).mac, None);
}

#[test]
fn the_local_address_wins_over_the_peer() {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 32;
    message.header.index = 5;
    let peer = "10.0.0.2".parse().expect("an address");
    let local = "10.0.0.1".parse().expect("an address");
    message.attributes = vec![AddressAttribute::Address(peer), AddressAttribute::Local(local)];
    let parsed = address::parse(&message).expect("it has an address");
    assert_eq!(parsed.network, "10.0.0.1/32".parse::<IpNetwork>().expect("a network"));
    message.attributes.clear();
    assert_eq!(address::parse(&message), None);
}

#[test]
fn routes_are_read_with_their_metrics() {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet6;
    message.header.kind = RouteType::Unicast;
    message.header.table = 254;
    message.attributes = vec![
        RouteAttribute::Oif(2),
        RouteAttribute::Priority(1024),
        RouteAttribute::Metrics(vec![RouteMetric::Mtu(1280), RouteMetric::Advmss(1220)]),
    ];
    let [parsed] = &route::parse(&message)[..] else { panic!("one hop") };
    assert_eq!(parsed.destination, "::/0".parse::<IpNetwork>().expect("a network"));
    assert_eq!((parsed.link, parsed.priority), (Some(2), Some(1024)));
    assert_eq!((parsed.mtu, parsed.advmss), (Some(1280), Some(1220)));
    message.header.kind = RouteType::Local;
    assert_eq!(route::parse(&message), []);
}

#[test]
fn each_hop_of_a_route_is_one() {
    for (family, gateways) in
        [(AddressFamily::Inet, ["10.0.0.2", "10.0.0.3"]), (AddressFamily::Inet6, ["fd00::2", "fd00::3"])]
    {
        let gateways = gateways.map(|text| text.parse::<IpAddr>().expect(text));
        let hop = |index: usize| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = 7 + index as u32;
            hop.attributes = vec![RouteAttribute::Gateway(gateways[index].into())];
            hop
        };
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.kind = RouteType::Unicast;
        message.attributes =
            vec![RouteAttribute::Priority(5), RouteAttribute::MultiPath(vec![hop(0), hop(1)])];
        let parsed = route::parse(&message);
        let seen: Vec<_> = parsed.iter().map(|route| (route.link, route.gateway, route.priority)).collect();
        let expected = [0, 1].map(|index| (Some(7 + index as u32), Some(gateways[index]), Some(5)));
        assert_eq!(seen, expected);
        // The hops of IPv6 are routes that stand beside each other, those of IPv4 are one route.
        let inseparable = family == AddressFamily::Inet;
        assert!(parsed.iter().all(|route| route.inseparable == inseparable));
    }
}

#[test]
fn a_failure_names_operation_object_and_reason() {
    let mut refusal = rtnetlink::packet_core::ErrorMessage::default();
    refusal.code = NonZeroI32::new(-libc::EEXIST);
    let error = failed("add veth", format!("{:?}", "veth0123abcd"))(rtnetlink::Error::NetlinkError(refusal));
    assert_eq!(error.to_string(), r#"add veth "veth0123abcd": File exists (os error 17)"#);
    assert!(error.is_exists() && !error.is_gone());
}

#[test]
fn a_reply_that_does_not_come_is_an_error_that_says_whose() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let never = std::future::pending::<Result<(), rtnetlink::Error>>();
    let answer =
        async { answer_within(Duration::ZERO, "find link", "\"veth0123abcd\"".to_owned(), never).await };
    let error = runtime.block_on(answer).expect_err("no reply");
    assert_eq!(error.to_string(), "find link \"veth0123abcd\": no reply from the kernel within 0 s");
    assert!(!error.is_gone());
}

#[test]
fn a_bpf_filter_is_read_with_its_place_and_program() {
    let mut message = TcMessage::with_index(3);
    message.header.info = 1000 << 16 | 0x0300;
    message.header.handle = TcHandle::from(2);
    message.attributes = vec![
        TcAttribute::Kind("bpf".to_owned()),
        TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgName("own:/a".to_owned())),
            TcOption::Bpf(TcFilterBpfOption::ProgId(77)),
        ]),
    ];
    let filter = classifier::parse_filter(&message, Direction::Egress);
    assert_eq!(
        (filter.link, filter.direction, filter.priority, filter.handle),
        (3, Direction::Egress, 1000, 2)
    );
    assert_eq!((filter.name.as_deref(), filter.program), (Some("own:/a"), Some(77)));
}

#[test]
fn only_the_qdisc_at_the_place_of_classifiers_counts() {
    let at = |handle: u32, kind: &str| {
        let mut message = TcMessage::with_index(3);
        message.header.handle = TcHandle::from(handle);
        message.attributes = vec![TcAttribute::Kind(kind.to_owned())];
        classifier::parse_qdisc(&message)
    };
    assert_eq!(at(0xffff_0000, "clsact"), Some((3, Classifiers::Clsact)));
    assert_eq!(at(0xffff_0000, "ingress"), Some((3, Classifiers::Ingress)));
    assert_eq!(at(0, "noqueue"), None);
    assert_eq!(at(0x0001_0000, "htb"), None);
}
