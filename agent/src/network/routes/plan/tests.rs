use k8s_openapi::api::core::v1::{NodeAddress, NodeSpec, NodeStatus};

use super::*;

fn net(text: &str) -> Ipv4Network {
    text.parse().expect("a network")
}

fn peer_of(address: &str, pods: &str) -> Peer {
    Peer { address: address.parse().ok(), pods: vec![net(pods)] }
}

fn hop(gateway: &str) -> Hop {
    Hop { gateway: gateway.parse().expect("an address"), link: 2 }
}

struct Case {
    peers: BTreeMap<String, Peer>,
    networks: Vec<(u32, Ipv4Network)>,
    routes: BTreeMap<Ipv4Network, Hop>,
}

impl Case {
    fn new() -> Self {
        let peers = [
            ("node-2".to_owned(), peer_of("10.85.0.12", "10.244.1.0/24")),
            ("node-3".to_owned(), peer_of("10.85.0.13", "10.244.2.0/24")),
        ];
        Self {
            peers: peers.into(),
            networks: vec![(1, net("127.0.0.1/8")), (2, net("10.85.0.11/24")), (3, net("10.244.0.1/24"))],
            routes: BTreeMap::new(),
        }
    }

    fn plan(&self) -> Plan {
        let cluster = Some(net("10.244.0.0/16"));
        plan(&View { peers: &self.peers, cluster, networks: &self.networks, routes: &self.routes })
    }

    /// What the plan does, as it is logged.
    fn lines(&self) -> Vec<String> {
        let plan = self.plan();
        let problems = plan.problems.iter().map(|problem| format!("{}: {problem}", problem.node()));
        plan.actions.iter().map(ToString::to_string).chain(problems).collect()
    }
}

#[test]
fn every_other_node_gets_a_route_and_a_second_pass_does_nothing() {
    let mut case = Case::new();
    assert_eq!(
        case.lines(),
        ["set 10.244.1.0/24 via 10.85.0.12 (node-2)", "set 10.244.2.0/24 via 10.85.0.13 (node-3)"]
    );
    case.routes =
        [(net("10.244.1.0/24"), hop("10.85.0.12")), (net("10.244.2.0/24"), hop("10.85.0.13"))].into();
    assert_eq!(case.plan(), Plan::default());
}

#[test]
fn a_node_that_went_or_moved_takes_its_route_along() {
    let mut case = Case::new();
    case.routes =
        [(net("10.244.1.0/24"), hop("10.85.0.99")), (net("10.244.9.0/24"), hop("10.85.0.19"))].into();
    case.peers.remove("node-3");
    assert_eq!(
        case.lines(),
        ["remove 10.244.9.0/24 via 10.85.0.19", "set 10.244.1.0/24 via 10.85.0.12 (node-2)"]
    );
}

#[test]
fn a_node_of_another_network_is_told_and_its_old_route_removed() {
    let mut case = Case::new();
    case.peers.insert("node-2".to_owned(), peer_of("192.0.2.7", "10.244.1.0/24"));
    case.routes =
        [(net("10.244.1.0/24"), hop("10.85.0.12")), (net("10.244.2.0/24"), hop("10.85.0.13"))].into();
    assert_eq!(
        case.lines(),
        [
            "remove 10.244.1.0/24 via 10.85.0.12",
            "node-2: no link of this node is on the network of 192.0.2.7: routes between nodes need a network that \
             they share",
        ]
    );
}

#[test]
fn a_node_cannot_claim_what_is_not_its_own() {
    let mut case = Case::new();
    case.peers.insert("node-4".to_owned(), peer_of("10.85.0.14", "10.85.0.0/24"));
    case.peers.insert("node-5".to_owned(), peer_of("10.85.0.15", "10.244.1.128/25"));
    // The own address, as a Node that was copied would have it.
    case.peers.insert("node-6".to_owned(), peer_of("10.85.0.11", "10.244.6.0/24"));
    let lines = case.lines();
    assert_eq!(lines.len(), 5, "{lines:?}");
    assert!(
        lines.contains(&"node-4: podCIDR 10.85.0.0/24 is not within the cluster's 10.244.0.0/16".to_owned())
    );
    assert!(lines.contains(&"node-5: podCIDR 10.244.1.128/25 overlaps with that of node node-2".to_owned()));
    assert!(lines.iter().any(|line| line.starts_with("node-6: no link")), "{lines:?}");
}

#[test]
fn what_a_node_says_is_read_from_spec_and_status() {
    let address = |kind: &str, address: &str| NodeAddress { type_: kind.into(), address: address.into() };
    let node = Node {
        spec: Some(NodeSpec {
            pod_cidr: Some("10.244.1.0/24".into()),
            pod_cidrs: Some(vec!["10.244.1.7/24".into(), "fd00::/64".into(), "0.0.0.0/0".into()]),
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
    assert_eq!(peer(&node), peer_of("10.85.0.12", "10.244.1.0/24"));
    assert_eq!(peer(&Node::default()), Peer::default());
}
