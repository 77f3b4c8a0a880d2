use k8s_openapi::api::core::v1::{NodeAddress, NodeSpec, NodeStatus};

use super::*;

const VXLAN: Way = Way::Vxlan { link: 9 };
const WIREGUARD: Way = Way::Wireguard { link: 9 };

fn net(text: &str) -> IpNetwork {
    text.parse().expect("a network")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn peer_of(addresses: &[&str], pods: &[&str]) -> Peer {
    Peer {
        created: None,
        addresses: addresses.iter().map(|address| ip(address)).collect(),
        pods: pods.iter().map(|pods| net(pods)).collect(),
        lease: Lease::default(),
    }
}

fn mac(last: u8) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, last])
}

fn key(last: u8) -> PublicKey {
    let text =
        format!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA{}=", ["A", "E", "I", "M"][usize::from(last)]);
    text.parse().expect("a key")
}

struct Case {
    way: Way,
    cluster: Vec<IpNetwork>,
    own: Vec<IpNetwork>,
    peers: BTreeMap<String, Peer>,
    networks: Vec<(u32, IpNetwork)>,
    foreign: BTreeSet<IpNetwork>,
    state: State,
}

impl Case {
    /// Two other nodes, with pods of IPv4.
    fn new(way: Way) -> Self {
        let mut peers = BTreeMap::from([
            ("node-2".to_owned(), peer_of(&["10.85.0.12"], &["10.244.1.0/24"])),
            ("node-3".to_owned(), peer_of(&["10.85.0.13"], &["10.244.2.0/24"])),
        ]);
        for (number, peer) in (2..).zip(peers.values_mut()) {
            let end = match way {
                Way::Plain => None,
                Way::Vxlan { .. } => Some(End::Vxlan(mac(number))),
                Way::Wireguard { .. } => Some(End::Wireguard(key(number))),
            };
            peer.lease = Lease { backend: Some(way.name().to_owned()), end };
        }
        Self {
            way,
            cluster: vec![net("10.244.0.0/16"), net("fd00:244::/48")],
            own: vec![net("10.244.0.0/24")],
            peers,
            networks: vec![(1, net("127.0.0.1/8")), (2, net("10.85.0.11/24")), (3, net("10.244.0.1/24"))],
            foreign: BTreeSet::new(),
            state: State::default(),
        }
    }

    /// With pods of IPv6 too.
    fn dual(way: Way) -> Self {
        let mut case = Self::new(way);
        case.own.push(net("fd00:244::/64"));
        case.networks.push((2, net("fd00:85::11/64")));
        for (number, peer) in (2..).zip(case.peers.values_mut()) {
            peer.addresses.push(ip(&format!("fd00:85::1{number}")));
            peer.pods.push(net(&format!("fd00:244:0:{number}::/64")));
        }
        case
    }

    fn plan(&self) -> Plan {
        plan(&View {
            way: self.way,
            node: "node-1",
            own: &self.own,
            peers: &self.peers,
            cluster: &self.cluster,
            networks: &self.networks,
            foreign: &self.foreign,
            state: &self.state,
        })
    }

    /// What the plan does, as it is logged.
    fn lines(&self) -> Vec<String> {
        let plan = self.plan();
        let problems = plan.problems.iter().map(|problem| format!("{}: {problem}", problem.node()));
        plan.actions.iter().map(ToString::to_string).chain(problems).collect()
    }

    /// Does what is planned, as far as the kernel's part is concerned.
    fn settle(mut self) -> Self {
        for action in self.plan().actions {
            self.state.note(&action);
        }
        self
    }
}

#[test]
fn every_other_node_gets_a_route() {
    let lines = Case::new(Way::Plain).lines();
    let expected = ["set route 10.244.1.0/24 via 10.85.0.12", "set route 10.244.2.0/24 via 10.85.0.13"];
    assert_eq!(lines, expected);
}

#[test]
fn a_vxlan_gets_who_is_where_before_what_leads_there() {
    let lines = Case::new(VXLAN).lines();
    let expected = [
        "set neighbour 10.244.1.0 at 02:00:00:00:00:02",
        "set neighbour 10.244.2.0 at 02:00:00:00:00:03",
        "set forwarding of 02:00:00:00:00:02 to 10.85.0.12",
        "set forwarding of 02:00:00:00:00:03 to 10.85.0.13",
        "set address 10.244.0.0/32",
        "set route 10.244.1.0/24 via 10.244.1.0",
        "set route 10.244.2.0/24 via 10.244.2.0",
    ];
    assert_eq!(lines, expected);
    let settled = Case::new(VXLAN).settle();
    let hop = Hop { gateway: Some(ip("10.244.1.0")), link: 9, onlink: true };
    assert_eq!(settled.state.routes[&net("10.244.1.0/24")], hop);
}

#[test]
fn wireguard_gets_peers_before_what_leads_to_them() {
    let lines = Case::new(WIREGUARD).lines();
    let expected = [
        format!("set peer {}", key(2)),
        format!("set peer {}", key(3)),
        "set address 10.244.0.0/32".to_owned(),
        "set route 10.244.1.0/24 by link 9".to_owned(),
        "set route 10.244.2.0/24 by link 9".to_owned(),
    ];
    assert_eq!(lines, expected);
    let settled = Case::dual(WIREGUARD).settle();
    let tunnel = Tunnel {
        endpoint: Some("10.85.0.12:51820".parse().unwrap()),
        networks: [net("10.244.1.0/24"), net("fd00:244:0:2::/64")].into(),
    };
    assert_eq!(settled.state.tunnels[&key(2)], tunnel);
}

#[test]
fn both_families_go_the_same_way() {
    let lines = Case::dual(VXLAN).lines();
    for line in [
        "set neighbour fd00:244:0:2:: at 02:00:00:00:00:02",
        "set address fd00:244::/128",
        "set route fd00:244:0:2::/64 via fd00:244:0:2::",
    ] {
        assert!(lines.contains(&line.to_owned()), "{lines:?}");
    }
    let lines = Case::dual(Way::Plain).lines();
    assert!(lines.contains(&"set route fd00:244:0:2::/64 via fd00:85::12".to_owned()), "{lines:?}");
    let mut case = Case::dual(Way::Plain);
    case.peers.get_mut("node-2").unwrap().addresses.truncate(1);
    let expected =
        "node-2: podCIDR fd00:244:0:2::/64: the node has no IPv6 InternalIP to route to".to_owned();
    assert_eq!(case.lines().last(), Some(&expected));
}

#[test]
fn a_second_pass_does_nothing() {
    for way in [Way::Plain, VXLAN, WIREGUARD] {
        assert_eq!(Case::dual(way).settle().plan(), Plan::default(), "{way:?}");
    }
}

#[test]
fn a_node_that_went_takes_its_part_along() {
    let gone = |way| {
        let mut case = Case::new(way).settle();
        case.peers.remove("node-3");
        case.lines()
    };
    assert_eq!(gone(Way::Plain), ["remove route 10.244.2.0/24 via 10.85.0.13"]);
    let expected = [
        "remove route 10.244.2.0/24 via 10.244.2.0",
        "remove neighbour 10.244.2.0 at 02:00:00:00:00:03",
        "remove forwarding of 02:00:00:00:00:03 to 10.85.0.13",
    ];
    assert_eq!(gone(VXLAN), expected);
    let expected = ["remove route 10.244.2.0/24 by link 9".to_owned(), format!("remove peer {}", key(3))];
    assert_eq!(gone(WIREGUARD), expected);
}

#[test]
fn a_node_that_moved_changes_only_where_it_is() {
    let moved = |way| {
        let mut case = Case::new(way).settle();
        case.peers.get_mut("node-2").unwrap().addresses = vec![ip("10.85.0.99")];
        case.lines()
    };
    assert_eq!(moved(Way::Plain), ["set route 10.244.1.0/24 via 10.85.0.99"]);
    assert_eq!(moved(VXLAN), ["set forwarding of 02:00:00:00:00:02 to 10.85.0.99"]);
    assert_eq!(moved(WIREGUARD), [format!("set peer {}", key(2))]);
}

#[test]
fn a_node_with_a_new_key_is_a_new_peer() {
    let mut case = Case::new(WIREGUARD).settle();
    case.peers.get_mut("node-2").unwrap().lease.end = Some(End::Wireguard(key(1)));
    assert_eq!(case.lines(), [format!("remove peer {}", key(2)), format!("set peer {}", key(1))]);
}

#[test]
fn a_node_of_another_network_is_told_and_its_old_route_removed() {
    let mut case = Case::new(Way::Plain).settle();
    case.peers.insert("node-2".to_owned(), peer_of(&["192.0.2.7"], &["10.244.1.0/24"]));
    let expected = [
        "remove route 10.244.1.0/24 via 10.85.0.12",
        "node-2: no link of this node is on the network of 192.0.2.7: routes between nodes need a network that \
         they share, or the network backend vxlan or wireguard",
    ];
    assert_eq!(case.lines(), expected);
    // Wrapped packets go by the node's own routes.
    let mut case = Case::new(VXLAN);
    case.peers.get_mut("node-2").unwrap().addresses = vec![ip("192.0.2.7")];
    assert_eq!(case.plan().problems, BTreeSet::new());
}

#[test]
fn nodes_of_two_backends_are_told() {
    let mut case = Case::new(VXLAN);
    case.peers.get_mut("node-2").unwrap().lease = Lease { backend: Some("host-gw".into()), end: None };
    case.peers.get_mut("node-3").unwrap().lease = Lease { backend: Some("vxlan".into()), end: None };
    let expected = [
        "set address 10.244.0.0/32",
        "node-2: its network backend is host-gw, this node's is vxlan: they have to be the same",
        "node-3: annotation flannel.alpha.coreos.com/backend-data has no end of the network backend vxlan",
    ];
    assert_eq!(case.lines(), expected);
    // A node that says nothing is taken for a neighbour.
    let mut case = Case::new(Way::Plain);
    case.peers.get_mut("node-2").unwrap().lease = Lease::default();
    assert_eq!(case.plan().problems, BTreeSet::new());
}

#[test]
fn a_node_cannot_claim_what_is_not_its_own() {
    for way in [Way::Plain, VXLAN] {
        let mut case = Case::new(way);
        let lease = |last| Lease { backend: Some(way.name().into()), end: Some(End::Vxlan(mac(last))) };
        for (number, address, pods) in [
            (4, "10.85.0.14", "10.85.0.0/24"),
            (5, "10.85.0.15", "10.244.1.128/25"),
            // As a Node that was copied would have it.
            (6, "10.85.0.11", "10.244.6.0/24"),
            (7, "10.85.0.17", "10.244.0.0/24"),
        ] {
            let peer = Peer { lease: lease(number), ..peer_of(&[address], &[pods]) };
            case.peers.insert(format!("node-{number}"), peer);
        }
        let problems = case.plan().problems.into_iter();
        let problems: Vec<String> =
            problems.map(|problem| format!("{}: {problem}", problem.node())).collect();
        let expected = [
            "node-6: its InternalIP 10.85.0.11 is this node's own",
            "node-4: podCIDR 10.85.0.0/24 is not within the cluster's 10.244.0.0/16",
            "node-5: podCIDR 10.244.1.128/25 overlaps with that of node node-2",
            "node-7: podCIDR 10.244.0.0/24 overlaps with that of node node-1",
        ];
        assert_eq!(problems, expected);
        assert_eq!(case.settle().state.routes.len(), 2);
    }
}

#[test]
fn a_route_that_is_not_ours_stays_and_is_told() {
    for way in [Way::Plain, VXLAN, WIREGUARD] {
        let mut case = Case::new(way);
        case.foreign = BTreeSet::from([net("10.244.1.0/24")]);
        let told = "node-2: podCIDR 10.244.1.0/24 has a route that is not this agent's: see `ip route show \
                    10.244.1.0/24`, and delete it";
        assert_eq!(case.lines().last().map(String::as_str), Some(told));
        assert_eq!(case.settle().state.routes.keys().copied().collect::<Vec<_>>(), [net("10.244.2.0/24")]);
    }
}

#[test]
fn of_two_nodes_with_one_end_the_older_has_it() {
    for way in [VXLAN, WIREGUARD] {
        let mut case = Case::new(way);
        let lease = case.peers["node-3"].lease.clone();
        let created = |seconds: i64| Some(Timestamp::from_second(seconds).unwrap());
        case.peers.get_mut("node-3").unwrap().created = created(10);
        case.peers.get_mut("node-2").unwrap().created = created(10);
        let copy = Peer { created: created(20), lease, ..peer_of(&["10.85.0.19"], &["10.244.9.0/24"]) };
        // First by its name.
        case.peers.insert("a".to_owned(), copy);
        let problems: Vec<String> = case.plan().problems.iter().map(ToString::to_string).collect();
        let expected =
            "annotation flannel.alpha.coreos.com/backend-data is that of node node-3 too, which is older";
        assert_eq!(problems, [expected]);
        let settled = case.settle();
        assert_eq!(settled.state.routes.len(), 2);
        assert!(!settled.state.routes.contains_key(&net("10.244.9.0/24")));
    }
}

#[test]
fn a_family_that_is_not_the_clusters_is_nobodys() {
    let mut case = Case::dual(VXLAN);
    case.cluster = vec![net("10.244.0.0/16")];
    case.peers.get_mut("node-2").unwrap().pods[1] = net("::/1");
    let settled = case.settle();
    assert!(settled.state.routes.keys().all(IpNetwork::is_ipv4));
    assert_eq!(settled.plan().problems.len(), 2);
    // Where nobody said what is pods', at least this node's own addresses are not.
    let mut case = Case::dual(VXLAN);
    case.cluster.clear();
    case.peers.get_mut("node-2").unwrap().pods[1] = net("fd00::/16");
    let problems: Vec<String> = case.plan().problems.iter().map(ToString::to_string).collect();
    assert_eq!(problems, ["podCIDR fd00::/16 overlaps with that of node node-1"]);
}

#[test]
fn a_node_without_an_address_of_ipv4_is_told() {
    let mut case = Case::dual(VXLAN);
    case.peers.get_mut("node-2").unwrap().addresses.remove(0);
    let problems: Vec<String> = case.plan().problems.iter().map(ToString::to_string).collect();
    assert_eq!(problems, ["the node has no IPv4 InternalIP to wrap packets for"]);
}

#[test]
fn what_a_node_says_is_read_from_spec_and_status() {
    let address = |kind: &str, address: &str| NodeAddress { type_: kind.into(), address: address.into() };
    let node = Node {
        spec: Some(NodeSpec {
            pod_cidr: Some("10.244.1.0/24".into()),
            pod_cidrs: Some(vec!["10.244.1.7/24".into(), "fd00::/64".into(), "10.244.7.0/24".into()]),
            ..NodeSpec::default()
        }),
        status: Some(NodeStatus {
            addresses: Some(vec![
                address("Hostname", "node-2"),
                address("InternalIP", "fd00::2"),
                address("InternalIP", "10.85.0.12"),
                address("InternalIP", "10.85.0.13"),
            ]),
            ..NodeStatus::default()
        }),
        ..Node::default()
    };
    assert_eq!(peer(&node), peer_of(&["10.85.0.12", "fd00::2"], &["10.244.1.0/24", "fd00::/64"]));
    assert_eq!(peer(&Node::default()), Peer::default());
}
