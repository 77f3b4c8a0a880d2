use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use dataplane::policy::{Isolation, Ports, Protocol, RulesetId};
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::Pod as ApiPod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::oracle::{Namespaces, Peer, allows_egress, allows_ingress};
use super::super::{convert, selector::Labels};
use super::{Change, Key, Planner, Pod, Selecting, Uid};

mod documentation;

fn planner() -> Planner {
    Planner::new(NonZeroU32::new(7).expect("not 0"))
}

fn key(namespace: &str, name: &str) -> Key {
    Key { namespace: namespace.to_owned(), name: name.to_owned() }
}

fn labels(labels: Value) -> Arc<Labels> {
    Arc::new(serde_json::from_value(labels).expect("labels"))
}

fn api_policy(namespace: &str, name: &str, spec: Value) -> NetworkPolicy {
    let object = json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec});
    serde_json::from_value(object).expect("a policy")
}

fn api_pod(namespace: &str, name: &str, uid: &str, labels: Value, ips: &[&str]) -> ApiPod {
    let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    serde_json::from_value(json!({
        "metadata": {"namespace": namespace, "name": name, "uid": uid, "labels": labels},
        "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "name": "http"}]}]},
        "status": {"podIPs": ips},
    }))
    .expect("a pod")
}

fn pod(namespace: &str, name: &str, labels: Value, ip: &str) -> (Key, Pod) {
    convert::pod(&api_pod(namespace, name, name, labels, &[ip])).expect("a pod")
}

impl Planner {
    fn policy(&mut self, name: &str, spec: Value) {
        let object = api_policy("a", name, spec);
        let (policy, problems) = convert::policy(&object);
        assert_eq!(problems, [""; 0]);
        self.set_policy(key("a", name), policy);
    }

    fn pod(&mut self, (key, pod): (Key, Pod)) {
        self.set_pod(key, pod);
    }

    fn endpoint(&mut self, (key, pod): (Key, Pod)) {
        self.set_endpoint(key, pod);
    }
}

/// As a person would write them down.
fn shown(changes: &[Change]) -> Vec<String> {
    let ports = |ports: &Ports| match ports {
        Ports::All => "all".to_owned(),
        Ports::Ranges(ranges) => {
            let ranges: Vec<String> = ranges
                .iter()
                .map(|range| {
                    let protocol = protocol_name(range.protocol);
                    if range.first == range.last {
                        format!("{protocol} {}", range.first)
                    } else {
                        format!("{protocol} {}-{}", range.first, range.last)
                    }
                })
                .collect();
            if ranges.is_empty() { "nothing".to_owned() } else { ranges.join(", ") }
        }
    };
    let ruleset =
        |id: Option<RulesetId>| id.map_or_else(|| "open".to_owned(), |RulesetId(id)| id.to_string());
    let one = |change: &Change| match change {
        Change::Allow { ruleset, network, ports: allowed } => {
            format!("{}: {network} {}", ruleset.0, ports(allowed))
        }
        Change::Forget { ruleset, network } => format!("{}: forget {network}", ruleset.0),
        Change::Isolate { endpoint, isolation } => {
            format!("{endpoint}: in {}, out {}", ruleset(isolation.ingress), ruleset(isolation.egress))
        }
        Change::Drop { ruleset } => format!("drop {}", ruleset.0),
    };
    changes.iter().map(one).collect()
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

fn take(planner: &mut Planner) -> Vec<String> {
    shown(&planner.take_changes())
}

#[test]
fn an_endpoint_is_told_once_and_again_when_it_is_set() {
    let mut planner = planner();
    planner.endpoint(pod("a", "web", json!({}), "10.0.0.1"));
    assert_eq!(take(&mut planner), ["web: in open, out open"]);
    assert_eq!(take(&mut planner), [""; 0]);
    planner.endpoint(pod("a", "web", json!({}), "10.0.0.1"));
    assert_eq!(take(&mut planner), ["web: in open, out open"]);
    planner.policy("deny", json!({"policyTypes": ["Ingress", "Egress"]}));
    assert_eq!(take(&mut planner), ["web: in 7, out 7"]);
    planner.remove_policy(&key("a", "deny"));
    assert_eq!(take(&mut planner), ["web: in open, out open", "drop 7"]);
}

#[test]
fn pods_share_a_ruleset_and_an_edit_makes_another() {
    let mut planner = planner();
    let app = json!({"matchLabels": {"app": "web"}});
    planner.policy("one", json!({"podSelector": app, "ingress": [{"from": [{"podSelector": app}]}]}));
    planner.endpoint(pod("a", "w1", json!({"app": "web"}), "10.0.0.1"));
    planner.endpoint(pod("a", "w2", json!({"app": "web"}), "10.0.0.2"));
    planner.endpoint(pod("a", "db", json!({"app": "db"}), "10.0.0.3"));
    let first = [
        "7: 10.0.0.1/32 all",
        "7: 10.0.0.2/32 all",
        "db: in open, out open",
        "w1: in 7, out open",
        "w2: in 7, out open",
    ];
    assert_eq!(take(&mut planner), first);
    // Pods and labels change it in place.
    planner.pod(pod("a", "w3", json!({"app": "web"}), "10.0.0.4"));
    planner.pod(pod("a", "w1", json!({"app": "old"}), "10.0.0.1"));
    assert_eq!(take(&mut planner), ["w1: in open, out open", "7: forget 10.0.0.1/32", "7: 10.0.0.4/32 all"]);
    // The same in other words is no change.
    let other = json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["web"]}]});
    planner.policy("one", json!({"podSelector": app, "ingress": [{"from": [{"podSelector": other}]}]}));
    assert_eq!(take(&mut planner), [""; 0]);
    planner.policy(
        "one",
        json!({"podSelector": app, "ingress": [{"from": [{"podSelector": app}], "ports": [{"port": 80}]}]}),
    );
    assert_eq!(
        take(&mut planner),
        ["8: 10.0.0.2/32 TCP 80", "8: 10.0.0.4/32 TCP 80", "w2: in 8, out open", "drop 7"]
    );
}

#[test]
fn networks_hold_what_is_allowed_to_all_of_them() {
    let mut planner = planner();
    planner.endpoint(pod("a", "web", json!({}), "10.9.0.1"));
    planner.pod(pod("a", "near", json!({"app": "db"}), "10.1.1.1"));
    planner.pod(pod("a", "node", json!({"app": "db"}), "10.1.2.9"));
    planner.pod(pod("a", "far", json!({"app": "db"}), "172.17.0.1"));
    // Its network says as much of it.
    planner.pod(pod("a", "open", json!({"app": "db"}), "10.1.2.3"));
    planner.pod(pod("a", "other", json!({}), "10.1.1.2"));
    planner.take_changes();
    planner.policy(
        "blocks",
        json!({"ingress": [
            {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "10.2.0.0/16"]}}],
             "ports": [{"port": 80}]},
            {"from": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"port": 81, "protocol": "UDP"}]},
            {"from": [{"ipBlock": {"cidr": "10.1.2.0/24", "except": ["10.1.2.9/32"]}}]},
            {"from": [{"ipBlock": {"cidr": "fd00::/64", "except": ["fd00::1/128"]}}]},
            {"from": [{"podSelector": {"matchLabels": {"app": "db"}}}], "ports": [{"port": 82}]},
        ]}),
    );
    let entries = [
        "7: 10.0.0.0/8 TCP 80",
        "7: 10.1.0.0/16 UDP 81",
        "7: 10.1.1.1/32 TCP 82, UDP 81",
        "7: 10.1.2.0/24 all",
        "7: 10.1.2.9/32 TCP 82, UDP 81",
        "7: 10.2.0.0/16 nothing",
        "7: 172.17.0.1/32 TCP 82",
        "7: fd00::/64 all",
        "7: fd00::1/128 nothing",
        "web: in 7, out open",
    ];
    assert_eq!(take(&mut planner), entries);
    // What the network says of an address stays when its pod goes.
    planner.remove_pod(&key("a", "node"));
    planner.remove_pod(&key("a", "near"));
    assert_eq!(take(&mut planner), ["7: forget 10.1.1.1/32", "7: 10.1.2.9/32 UDP 81"]);
}

#[test]
fn everybody() {
    let mut planner = planner();
    planner.endpoint(pod("a", "web", json!({}), "10.9.0.1"));
    planner.take_changes();
    let blocks = json!([{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]);
    planner.policy("all", json!({"ingress": [{"ports": [{"port": 80}]}, {"from": blocks}]}));
    let some = [
        "7: 0.0.0.0/0 TCP 80",
        "7: 10.0.0.0/8 all",
        "7: 10.1.0.0/16 TCP 80",
        "7: ::/0 TCP 80",
        "web: in 7, out open",
    ];
    assert_eq!(take(&mut planner), some);
    // Whatever else is said.
    planner.policy("all", json!({"ingress": [{}, {"from": blocks}, {"from": [{"podSelector": {}}]}]}));
    assert_eq!(take(&mut planner), ["8: 0.0.0.0/0 all", "8: ::/0 all", "web: in 8, out open", "drop 7"]);
    // Ports by name are those of pods, wherever they are.
    planner.policy("all", json!({"policyTypes": ["Egress"], "egress": [{"ports": [{"port": "http"}]}]}));
    planner.pod(pod("b", "far", json!({}), "10.9.0.2"));
    let named = ["9: 10.9.0.1/32 TCP 80", "9: 10.9.0.2/32 TCP 80", "web: in open, out 9", "drop 8"];
    assert_eq!(take(&mut planner), named);
}

#[test]
fn all_ports_of_each_protocol_are_not_everything() {
    let mut planner = planner();
    planner.endpoint(pod("a", "web", json!({}), "10.9.0.1"));
    let ports = ["TCP", "UDP", "SCTP"].map(|protocol| json!({"protocol": protocol}));
    planner.policy("all", json!({"ingress": [{"ports": ports}]}));
    assert_eq!(take(&mut planner)[0], "7: 0.0.0.0/0 TCP 0-65535, UDP 0-65535, SCTP 0-65535");
}

#[test]
fn named_ports_of_ingress_are_the_selected_pods() {
    let mut planner = planner();
    planner.policy("named", json!({"ingress": [{"ports": [{"port": "http"}, {"port": "none"}]}]}));
    let (web, mut other) = (pod("a", "web", json!({}), "10.0.0.1"), pod("a", "web8", json!({}), "10.0.0.2"));
    let mut ports = other.1.ports.to_vec();
    ports[0].number = 8080;
    other.1.ports = ports.into();
    planner.endpoint(web);
    planner.endpoint(other);
    let expected = [
        "7: 0.0.0.0/0 TCP 80",
        "7: ::/0 TCP 80",
        "8: 0.0.0.0/0 TCP 8080",
        "8: ::/0 TCP 8080",
        "web: in 7, out open",
        "web8: in 8, out open",
    ];
    assert_eq!(take(&mut planner), expected);
}

#[test]
fn labels_of_namespaces_count_and_one_that_is_unknown_has_none() {
    let mut planner = planner();
    planner.endpoint(pod("a", "web", json!({}), "10.0.0.1"));
    planner.pod(pod("b", "far", json!({}), "10.0.0.2"));
    let not_in = json!({"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["x"]}]});
    planner.policy("not-x", json!({"ingress": [{"from": [{"namespaceSelector": not_in}]}]}));
    assert_eq!(take(&mut planner), ["web: in 7, out open"]);
    planner.set_namespace("b", labels(json!({})));
    assert_eq!(take(&mut planner), ["7: 10.0.0.2/32 all"]);
    // Two changes between two calls count as one.
    planner.set_namespace("b", labels(json!({"team": "x"})));
    planner.set_namespace("b", labels(json!({"team": "y"})));
    assert_eq!(take(&mut planner), [""; 0]);
    planner.set_namespace("b", labels(json!({"team": "x"})));
    assert_eq!(take(&mut planner), ["7: forget 10.0.0.2/32"]);
    planner.set_namespace("b", labels(json!({})));
    planner.take_changes();
    planner.retain_namespaces(&HashSet::new());
    assert_eq!(take(&mut planner), ["7: forget 10.0.0.2/32"]);
}

#[test]
fn a_pod_that_starts_here_is_known_before_the_api_shows_it() {
    let mut planner = planner();
    let from_web = json!({"ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}]});
    planner.policy("web", from_web);
    planner.endpoint(pod("a", "p", json!({"app": "web"}), "10.0.0.1"));
    assert_eq!(take(&mut planner), ["7: 10.0.0.1/32 all", "p: in 7, out open"]);
    // Without an address yet: that is no change.
    let (key, shown) = pod("a", "p", json!({"app": "web"}), "10.0.0.1");
    planner.set_pod(key.clone(), Pod { ips: vec![], ..shown.clone() });
    assert_eq!(take(&mut planner), [""; 0]);
    // Labels of the API count more, also when the pod is set again, and when the API shows it no more.
    let (_, relabelled) = pod("a", "p", json!({}), "10.0.0.1");
    planner.set_pod(key.clone(), relabelled);
    assert_eq!(take(&mut planner), ["7: forget 10.0.0.1/32"]);
    planner.set_endpoint(key.clone(), shown.clone());
    assert_eq!(take(&mut planner), ["p: in 7, out open"]);
    planner.remove_pod(&key);
    assert_eq!(take(&mut planner), [""; 0]);
    // Its successor of the same name brings its own.
    let successor = Pod { uid: "p2".into(), ips: vec!["10.0.0.2".parse().expect("an address")], ..shown };
    planner.set_endpoint(key, successor);
    assert_eq!(take(&mut planner), ["p2: in 7, out open", "7: 10.0.0.2/32 all"]);
    planner.remove_endpoint("p2");
    assert_eq!(take(&mut planner), ["7: forget 10.0.0.2/32"]);
    planner.remove_endpoint("p");
    assert_eq!(take(&mut planner), ["drop 7"]);
}

#[test]
fn an_address_that_two_pods_have_for_a_moment() {
    let mut planner = planner();
    let from_web = json!({"ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}]});
    planner.policy("web", from_web);
    planner.endpoint(pod("a", "p", json!({}), "10.0.0.9"));
    planner.pod(pod("a", "old", json!({"app": "web"}), "10.0.0.1"));
    assert_eq!(take(&mut planner), ["7: 10.0.0.1/32 all", "p: in 7, out open"]);
    planner.pod(pod("a", "new", json!({}), "10.0.0.1"));
    assert_eq!(take(&mut planner), [""; 0]);
    let (key, old) = pod("a", "old", json!({"app": "web"}), "10.0.0.1");
    planner.set_pod(key, Pod { is_peer: false, ..old });
    assert_eq!(take(&mut planner), ["7: forget 10.0.0.1/32"]);
}

#[test]
fn says_which_policies_select_a_pod() {
    let mut planner = planner();
    let app = json!({"matchLabels": {"app": "web"}});
    planner.endpoint(pod("a", "p", json!({"app": "web"}), "10.0.0.9"));
    planner.policy("in", json!({"podSelector": app}));
    planner.policy("out", json!({"policyTypes": ["Egress"]}));
    planner.policy("other", json!({"podSelector": {"matchLabels": {"app": "db"}}}));
    let expected = Selecting { ingress: vec![key("a", "in")], egress: vec![key("a", "out")] };
    assert_eq!((planner.explain("p"), planner.explain("q")), (Some(expected), None));
}

/// What the dataplane would hold.
#[derive(Debug, Default)]
struct Image {
    rulesets: BTreeMap<RulesetId, HashMap<IpNetwork, Ports>>,
    dropped: BTreeSet<RulesetId>,
    endpoints: HashMap<Uid, Isolation>,
}

impl Image {
    fn execute(&mut self, changes: Vec<Change>) {
        let before: BTreeSet<RulesetId> = self.rulesets.keys().copied().collect();
        let mut in_use = HashSet::new();
        for change in changes {
            match change {
                Change::Allow { ruleset, network, ports } => {
                    assert!(!self.dropped.contains(&ruleset), "{ruleset:?} was dropped");
                    assert!(before.contains(&ruleset) || !in_use.contains(&ruleset), "written while in use");
                    let entries = self.rulesets.entry(ruleset).or_default();
                    assert_ne!(entries.insert(network, ports.clone()), Some(ports), "written in vain");
                }
                Change::Forget { ruleset, network } => {
                    assert!(before.contains(&ruleset));
                    let entries = self.rulesets.get_mut(&ruleset).expect("a ruleset that is there");
                    entries.remove(&network).expect("an entry that is there");
                }
                Change::Isolate { endpoint, isolation } => {
                    for ruleset in [isolation.ingress, isolation.egress].into_iter().flatten() {
                        assert!(!self.dropped.contains(&ruleset), "{ruleset:?} was dropped");
                        self.rulesets.entry(ruleset).or_default();
                        in_use.insert(ruleset);
                    }
                    let isolated = self.endpoints.get_mut(&endpoint).expect("an endpoint that is there");
                    *isolated = isolation;
                }
                Change::Drop { ruleset } => {
                    assert!(!self.used().contains(&ruleset), "{ruleset:?} is in use");
                    self.rulesets.remove(&ruleset).expect("a ruleset that is there");
                    self.dropped.insert(ruleset);
                }
            }
        }
        let there: BTreeSet<RulesetId> = self.rulesets.keys().copied().collect();
        assert_eq!(there, self.used(), "each is in use");
    }

    fn used(&self) -> BTreeSet<RulesetId> {
        let isolations = self.endpoints.values();
        isolations.flat_map(|isolation| [isolation.ingress, isolation.egress]).flatten().collect()
    }

    fn allows(&self, ruleset: Option<RulesetId>, address: IpAddr, protocol: Protocol, port: u16) -> bool {
        let Some(ruleset) = ruleset else { return true };
        let holding = self.rulesets[&ruleset].iter().filter(|(network, _)| network.contains(address));
        let Some((_, ports)) = holding.max_by_key(|(network, _)| network.prefix()) else { return false };
        match ports {
            Ports::All => true,
            Ports::Ranges(ranges) => ranges
                .iter()
                .any(|range| range.protocol == protocol && (range.first..=range.last).contains(&port)),
        }
    }
}

/// What the API and the node's runtime say.
#[derive(Debug, Default)]
struct World {
    policies: BTreeMap<Key, NetworkPolicy>,
    namespaces: Namespaces,
    pods: BTreeMap<Key, ApiPod>,
    endpoints: BTreeMap<String, ApiPod>,
}

fn uid(pod: &ApiPod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

/// What the API shows of a pod that runs here, with the addresses that it has anyway.
fn learnt(endpoint: &ApiPod, shown: &ApiPod) -> ApiPod {
    let mut pod = shown.clone();
    let ips = |pod: &ApiPod| pod.status.as_ref().and_then(|status| status.pod_ips.clone());
    if ips(shown).unwrap_or_default().is_empty() {
        let mut status = pod.status.unwrap_or_default();
        status.pod_ips = ips(endpoint);
        pod.status = Some(status);
    }
    pod
}

impl World {
    fn compare(&self, image: &Image) {
        let policies: Vec<NetworkPolicy> = self.policies.values().cloned().collect();
        let elsewhere = self.pods.values().filter(|pod| !self.endpoints.contains_key(&uid(pod)));
        let pods: Vec<&ApiPod> = self.endpoints.values().chain(elsewhere).collect();
        let mut holders: BTreeMap<IpAddr, Vec<&ApiPod>> = BTreeMap::new();
        for pod in &pods {
            let ips = pod.status.as_ref().and_then(|status| status.pod_ips.clone()).unwrap_or_default();
            for ip in ips {
                holders.entry(ip.ip.parse().expect("an address")).or_default().push(pod);
            }
        }
        for outside in OUTSIDE {
            holders.entry(outside.parse().expect("an address")).or_default();
        }
        for (uid, pod) in &self.endpoints {
            let isolation = image.endpoints[uid.as_str()];
            let own = Peer { address: [0, 0, 0, 0].into(), pod: Some(pod), is_own_node: false };
            for (address, holders) in &holders {
                if holders.iter().any(|holder| self::uid(holder) == *uid) {
                    // A pod's packets to itself do not leave it.
                    continue;
                }
                let nobody = Peer { address: *address, pod: None, is_own_node: false };
                let peers: Vec<Peer<'_>> = match holders.len() {
                    0 => vec![nobody],
                    _ => holders.iter().map(|holder| Peer { pod: Some(holder), ..nobody }).collect(),
                };
                for (protocol, port) in PROBES {
                    let name = protocol_name(protocol);
                    let egress = peers
                        .iter()
                        .any(|peer| allows_egress(&policies, &self.namespaces, &own, peer, name, port));
                    let seen = image.allows(isolation.egress, *address, protocol, port);
                    assert_eq!(seen, egress, "{uid} to {address} {protocol:?} {port}");
                    let ingress = peers
                        .iter()
                        .any(|peer| allows_ingress(&policies, &self.namespaces, peer, &own, name, port));
                    let seen = image.allows(isolation.ingress, *address, protocol, port);
                    assert_eq!(seen, ingress, "{address} to {uid} {protocol:?} {port}");
                }
            }
        }
    }
}

/// Besides the addresses of pods.
const OUTSIDE: [&str; 9] = [
    "172.16.0.1",
    "10.0.0.3",
    "10.0.0.7",
    "10.0.0.12",
    "10.0.1.1",
    "192.0.2.1",
    "fd00::5",
    "fd00::1:5",
    "2001:db8::1",
];
const CIDRS: [&str; 15] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/28",
    "10.0.0.0/29",
    "10.0.0.4/30",
    "10.0.0.1/32",
    "10.0.0.2/32",
    "10.0.0.6/32",
    "10.0.0.9/32",
    "172.16.0.0/16",
    "::/0",
    "fd00::/64",
    "fd00::/126",
    "fd00::1/128",
    "fd00::3/128",
];
const PROBES: [(Protocol, u16); 12] = [
    (Protocol::Tcp, 80),
    (Protocol::Tcp, 81),
    (Protocol::Tcp, 8080),
    (Protocol::Tcp, 8083),
    (Protocol::Tcp, 65535),
    (Protocol::Udp, 53),
    (Protocol::Udp, 80),
    (Protocol::Udp, 54),
    (Protocol::Udp, 8080),
    (Protocol::Sctp, 80),
    (Protocol::Sctp, 53),
    (Protocol::Tcp, 53),
];

fn namespace() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c"]).prop_map(str::to_owned)
}

fn some_labels() -> impl Strategy<Value = Value> {
    let value = || prop::sample::select(vec![None, Some("x"), Some("y")]);
    (value(), value()).prop_map(|(app, team)| {
        let pairs = [("app", app), ("team", team)];
        pairs.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    })
}

fn some_selector() -> impl Strategy<Value = Value> {
    let key = || prop::sample::select(vec!["app", "team"]);
    let value = || prop::sample::select(vec!["x", "y"]);
    let with_values =
        (key(), prop::sample::select(vec!["In", "NotIn"]), prop::collection::vec(value(), 1..3))
            .prop_map(|(key, operator, values)| json!({"key": key, "operator": operator, "values": values}));
    let without = (key(), prop::sample::select(vec!["Exists", "DoesNotExist"]))
        .prop_map(|(key, operator)| json!({"key": key, "operator": operator}));
    let expressions = prop::collection::vec(prop_oneof![with_values, without], 1..3);
    prop_oneof![
        2 => Just(json!({})),
        3 => some_labels().prop_map(|labels| json!({"matchLabels": labels})),
        2 => expressions.prop_map(|expressions| json!({"matchExpressions": expressions})),
    ]
}

fn some_peer() -> impl Strategy<Value = Value> {
    let cidr = || prop::sample::select(CIDRS.to_vec());
    let block = (cidr(), prop::collection::vec(cidr(), 0..4)).prop_map(|(cidr, except)| {
        // Those that the API would take.
        let whole: IpNetwork = cidr.parse().expect("a network");
        let part = |text: &&str| {
            let part: IpNetwork = text.parse().expect("a network");
            whole.contains(part.ip()) && whole.prefix() < part.prefix()
        };
        let except: Vec<&str> = except.into_iter().filter(part).collect();
        json!({"ipBlock": {"cidr": cidr, "except": except}})
    });
    let broken = prop::sample::select(vec![
        json!({}),
        json!({"ipBlock": {"cidr": "10.0.0.0/40"}}),
        json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["all"]}}),
        json!({"ipBlock": {"cidr": "0.0.0.0/0"}, "podSelector": {}}),
        json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": "Is", "values": ["x"]}]}}),
        json!({"namespaceSelector": {"matchExpressions": [{"key": "app", "operator": "NotIn"}]}}),
    ]);
    prop_oneof![
        3 => some_selector().prop_map(|pods| json!({"podSelector": pods})),
        3 => some_selector().prop_map(|namespaces| json!({"namespaceSelector": namespaces})),
        3 => (some_selector(), some_selector())
            .prop_map(|(pods, namespaces)| json!({"podSelector": pods, "namespaceSelector": namespaces})),
        5 => block,
        1 => broken,
    ]
}

fn some_port() -> impl Strategy<Value = Value> {
    let protocol = prop::sample::select(vec![None, Some("TCP"), Some("UDP"), Some("SCTP")]);
    let port = prop::sample::select(vec![
        json!({}),
        json!({"port": 80}),
        json!({"port": 53}),
        json!({"port": 80, "endPort": 8080}),
        json!({"port": 8081, "endPort": 65535}),
        json!({"port": "http"}),
        json!({"port": "dns"}),
        json!({"port": "http"}),
        json!({"port": "dns"}),
        json!({"port": 90, "endPort": 80}),
        json!({"port": 0}),
    ]);
    (protocol, port).prop_map(|(protocol, mut port)| {
        if let Some(protocol) = protocol {
            port["protocol"] = json!(protocol);
        }
        port
    })
}

fn some_policy() -> impl Strategy<Value = Value> {
    let rules = |peers: &'static str| {
        let rule = (prop::collection::vec(some_peer(), 0..3), prop::collection::vec(some_port(), 0..3));
        let rule = rule.prop_map(move |(list, ports)| json!({peers: list, "ports": ports}));
        prop::option::of(prop::collection::vec(rule, 0..3))
    };
    let types = prop::sample::select(vec![
        json!([]),
        json!(["Ingress"]),
        json!(["Egress"]),
        json!(["Ingress", "Egress"]),
    ]);
    (some_selector(), rules("from"), rules("to"), types).prop_map(|(selector, ingress, egress, types)| {
        json!({"podSelector": selector, "ingress": ingress, "egress": egress, "policyTypes": types})
    })
}

fn some_pod() -> impl Strategy<Value = ApiPod> {
    let ip = (0u8..10, any::<bool>(), any::<bool>()).prop_map(|(last, v4, v6)| {
        let both = [v4.then(|| format!("10.0.0.{last}")), v6.then(|| format!("fd00::{last:x}"))];
        both.into_iter().flatten().map(|ip| json!({"ip": ip})).collect::<Vec<_>>()
    });
    let container = prop::sample::select(vec![
        json!({"name": "c"}),
        json!({"name": "c", "ports": [{"name": "http", "containerPort": 80}]}),
        json!({"name": "c", "ports": [{"name": "http", "containerPort": 8083},
            {"name": "dns", "containerPort": 53, "protocol": "UDP"}, {"name": "dns", "containerPort": 54, "protocol": "UDP"}]}),
        json!({"name": "c", "restartPolicy": "Always", "ports": [{"name": "dns", "containerPort": 53}]}),
    ]);
    let containers = prop::collection::vec(container, 2);
    let on_host = prop::bool::weighted(0.1);
    let phase =
        prop::sample::select(vec!["Pending", "Running", "Running", "Running", "Running", "Succeeded"]);
    // Three names in three namespaces, and two pods one after the other of each.
    let name = (namespace(), 0..3, 0..2);
    (name, some_labels(), ip, containers, on_host, phase).prop_map(
        |((namespace, name, generation), labels, ips, containers, on_host, phase)| {
            serde_json::from_value(json!({
                "metadata": {"namespace": namespace, "name": format!("p{name}"),
                    "uid": format!("{namespace}-{name}-{generation}"), "labels": labels},
                "spec": {"hostNetwork": on_host, "containers": [containers[0]], "initContainers": [containers[1]]},
                "status": {"phase": phase, "podIPs": ips},
            }))
            .expect("a pod")
        },
    )
}

#[derive(Debug, Clone)]
enum Step {
    SetPolicy {
        namespace: String,
        name: String,
        spec: Value,
    },
    RemovePolicy {
        namespace: String,
        name: String,
    },
    SetNamespace {
        name: String,
        labels: Value,
    },
    RemoveNamespace {
        name: String,
    },
    SetPod(Box<ApiPod>),
    Relabel {
        pod: prop::sample::Index,
        labels: Value,
    },
    RemovePod(prop::sample::Index),
    SetEndpoint(Box<ApiPod>),
    /// A pod that the API shows.
    Start(prop::sample::Index),
    RemoveEndpoint(prop::sample::Index),
    /// Full lists show nothing of it any more.
    Retain {
        namespace: String,
    },
    Take,
}

fn set_policy() -> impl Strategy<Value = Step> {
    let name = prop::sample::select(vec!["p", "q"]).prop_map(str::to_owned);
    (namespace(), name, some_policy()).prop_map(|(namespace, name, spec)| Step::SetPolicy {
        namespace,
        name,
        spec,
    })
}

fn set_namespace() -> impl Strategy<Value = Step> {
    (namespace(), some_labels()).prop_map(|(name, labels)| Step::SetNamespace { name, labels })
}

fn set_pod() -> impl Strategy<Value = Step> {
    some_pod().prop_map(|pod| Step::SetPod(pod.into()))
}

fn start() -> impl Strategy<Value = Step> {
    any::<prop::sample::Index>().prop_map(Step::Start)
}

/// A cluster in which there is something to change.
fn beginning() -> impl Strategy<Value = Vec<Step>> {
    let namespaces = prop::collection::vec(set_namespace(), 4);
    let pods = prop::collection::vec(set_pod(), 10);
    let starts = prop::collection::vec(start(), 5);
    let policies = prop::collection::vec(set_policy(), 5);
    (namespaces, pods, starts, policies).prop_map(|steps| [steps.0, steps.1, steps.2, steps.3].concat())
}

fn step() -> impl Strategy<Value = Step> {
    let name = || prop::sample::select(vec!["p", "q"]).prop_map(str::to_owned);
    let index = any::<prop::sample::Index>;
    prop_oneof![
        2 => set_policy(),
        1 => (namespace(), name()).prop_map(|(namespace, name)| Step::RemovePolicy { namespace, name }),
        4 => set_namespace(),
        1 => namespace().prop_map(|name| Step::RemoveNamespace { name }),
        4 => set_pod(),
        2 => (index(), some_labels()).prop_map(|(pod, labels)| Step::Relabel { pod, labels }),
        3 => index().prop_map(Step::RemovePod),
        1 => some_pod().prop_map(|pod| Step::SetEndpoint(pod.into())),
        2 => start(),
        1 => index().prop_map(Step::RemoveEndpoint),
        1 => namespace().prop_map(|namespace| Step::Retain { namespace }),
        10 => Just(Step::Take),
    ]
}

/// Both sides of a comparison.
struct Scene {
    planner: Planner,
    image: Image,
    world: World,
}

impl Scene {
    fn execute(&mut self, step: Step) {
        let Self { planner, image, world } = self;
        match step {
            Step::SetPolicy { namespace, name, spec } => {
                let object = api_policy(&namespace, &name, spec);
                planner.set_policy(key(&namespace, &name), convert::policy(&object).0);
                world.policies.insert(key(&namespace, &name), object);
            }
            Step::RemovePolicy { namespace, name } => {
                planner.remove_policy(&key(&namespace, &name));
                world.policies.remove(&key(&namespace, &name));
            }
            Step::SetNamespace { name, labels } => {
                planner.set_namespace(&name, self::labels(labels.clone()));
                world.namespaces.insert(name, serde_json::from_value(labels).expect("labels"));
            }
            Step::RemoveNamespace { name } => {
                planner.remove_namespace(&name);
                world.namespaces.remove(&name);
            }
            Step::SetPod(pod) => self.set_pod(*pod),
            Step::Relabel { pod, labels } => {
                if let Some(mut pod) = self.shown(&pod) {
                    pod.metadata.labels = serde_json::from_value(labels).expect("labels");
                    self.set_pod(pod);
                }
            }
            Step::RemovePod(index) => {
                if let Some(pod) = self.shown(&index) {
                    let key = convert::key(&pod.metadata).expect("a key");
                    self.planner.remove_pod(&key);
                    self.world.pods.remove(&key);
                }
            }
            Step::SetEndpoint(pod) => self.set_endpoint(*pod),
            Step::Start(index) => {
                if let Some(pod) = self.shown(&index) {
                    self.set_endpoint(pod);
                }
            }
            Step::RemoveEndpoint(index) => {
                if !world.endpoints.is_empty() {
                    let uid = index.get(&world.endpoints.keys().cloned().collect::<Vec<_>>()).clone();
                    planner.remove_endpoint(&uid);
                    world.endpoints.remove(&uid);
                    image.endpoints.remove(uid.as_str());
                }
            }
            Step::Retain { namespace } => {
                world.policies.retain(|key, _| key.namespace != namespace);
                world.pods.retain(|key, _| key.namespace != namespace);
                world.namespaces.retain(|name, _| *name != namespace);
                planner.retain_policies(&world.policies.keys().cloned().collect());
                planner.retain_pods(&world.pods.keys().cloned().collect());
                planner.retain_namespaces(&world.namespaces.keys().cloned().collect());
            }
            Step::Take => {
                image.execute(planner.take_changes());
                world.compare(image);
                for (id, entries) in &image.rulesets {
                    let expected: HashMap<IpNetwork, Ports> =
                        planner.entries(*id).map(|(network, ports)| (network, ports.clone())).collect();
                    assert_eq!(*entries, expected);
                }
            }
        }
    }

    fn shown(&self, index: &prop::sample::Index) -> Option<ApiPod> {
        let pods: Vec<&ApiPod> = self.world.pods.values().collect();
        (!pods.is_empty()).then(|| (*index.get(&pods)).clone())
    }

    fn set_pod(&mut self, pod: ApiPod) {
        let (key, converted) = convert::pod(&pod).expect("a pod");
        self.planner.set_pod(key.clone(), converted);
        if let Some(endpoint) = self.world.endpoints.get_mut(&uid(&pod)) {
            *endpoint = learnt(endpoint, &pod);
        }
        self.world.pods.insert(key, pod);
    }

    fn set_endpoint(&mut self, pod: ApiPod) {
        let (key, converted) = convert::pod(&pod).expect("a pod");
        self.image.endpoints.entry(converted.uid.clone()).or_default();
        self.planner.set_endpoint(key.clone(), converted);
        let shown = self.world.pods.get(&key).filter(|shown| uid(shown) == uid(&pod));
        let known = shown.map_or_else(|| pod.clone(), |shown| learnt(&pod, shown));
        self.world.endpoints.insert(uid(&pod), known);
    }
}

proptest! {
    #[test]
    fn changes_add_up_to_what_the_documentation_says(
        beginning in beginning(), steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut scene = Scene { planner: planner(), image: Image::default(), world: World::default() };
        for step in beginning.into_iter().chain([Step::Take]).chain(steps).chain([Step::Take]) {
            scene.execute(step);
        }
    }
}
