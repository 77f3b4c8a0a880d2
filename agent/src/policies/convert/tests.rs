use std::collections::BTreeSet;
use std::sync::Arc;

use dataplane::policy::{PortRange, Ports, Protocol};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};

use super::super::plan::{Allowed, Key, NamedPort, Namespaces, Peer, Policy, PortName};
use super::{Selector, pod, policy};

fn read(spec: Value) -> (Policy, Vec<String>) {
    let object = json!({"metadata": {"name": "p", "namespace": "a"}, "spec": spec});
    policy(&serde_json::from_value::<NetworkPolicy>(object).expect("a policy"))
}

fn selector(selector: Value) -> Selector {
    Selector::read(&serde_json::from_value(selector).expect("a selector")).0
}

fn range(protocol: Protocol, first: u16, last: u16) -> PortRange {
    PortRange { protocol, first, last }
}

fn port_name(protocol: Protocol, name: &str) -> PortName {
    PortName { protocol, name: name.into() }
}

/// The peers and ports of the only rule, and the problems.
fn only_rule(from: Value, ports: Value) -> (Vec<Peer>, Allowed, Vec<String>) {
    let (policy, problems) = read(json!({"ingress": [{"from": from, "ports": ports}]}));
    let mut rules = policy.ingress.expect("isolated");
    assert_eq!((rules.len(), policy.egress), (1, None));
    let rule = rules.remove(0);
    (rule.peers, rule.allowed, problems)
}

#[test]
fn types_of_policies() {
    // How many rules there are for ingress and egress; none: the policy is not about the direction.
    let cases = [
        (json!({}), [Some(0), None]),
        (json!({"egress": []}), [Some(0), None]),
        (json!({"egress": [{}]}), [Some(0), Some(1)]),
        (json!({"policyTypes": [], "ingress": [{}, {}]}), [Some(2), None]),
        (json!({"policyTypes": ["Egress"], "ingress": [{}]}), [None, Some(0)]),
        (json!({"policyTypes": ["Ingress"], "egress": [{}]}), [Some(0), None]),
        (json!({"policyTypes": ["Egress", "Ingress"], "ingress": [{}], "egress": [{}]}), [Some(1), Some(1)]),
    ];
    for (spec, expected) in cases {
        let (policy, problems) = read(spec.clone());
        let counts = [policy.ingress, policy.egress].map(|rules| rules.map(|rules| rules.len()));
        assert_eq!((counts, problems), (expected, vec![]), "{spec}");
    }
    // The API has a policy without a spec be one that selects all.
    let (policy, _) = policy(&NetworkPolicy::default());
    assert_eq!(policy, Policy { ingress: Some(vec![]), ..Policy::default() });
}

#[test]
fn peers() {
    let app = || json!({"matchLabels": {"app": "web"}});
    let pods = |namespaces: Namespaces, pods: Value| Peer::Pods { namespaces, pods: selector(pods) };
    let own = || Namespaces::One("a".into());
    let matching = |labels: Value| Namespaces::Matching(selector(labels));
    let cases = [
        (json!({"podSelector": app()}), pods(own(), app())),
        (json!({"podSelector": {}}), pods(own(), json!({}))),
        (json!({"namespaceSelector": app()}), pods(matching(app()), json!({}))),
        (json!({"namespaceSelector": {}, "podSelector": app()}), pods(matching(json!({})), app())),
    ];
    for (given, expected) in cases {
        let (peers, allowed, problems) = only_rule(json!([given]), json!([]));
        assert_eq!((peers, problems), (vec![expected], vec![]), "{given}");
        assert_eq!(allowed.ports, Ports::All);
    }
    for nobody in [json!(null), json!([])] {
        assert_eq!(only_rule(nobody, json!([])).0, [Peer::Everybody]);
    }
}

#[test]
fn blocks() {
    let given = json!([{"ipBlock": {"cidr": "10.1.2.3/8", "except": ["10.2.0.0/16", "10.1.0.9/24", "10.2.0.0/16"]}},
        {"ipBlock": {"cidr": "fd00::1/64"}}]);
    let (peers, _, problems) = only_rule(given, json!([]));
    let shown: Vec<String> = peers
        .iter()
        .map(|peer| {
            let Peer::Block(block) = peer else { panic!("{peer:?}") };
            let except: Vec<String> = block.except.iter().map(ToString::to_string).collect();
            format!("{} but {}", block.network, except.join(" "))
        })
        .collect();
    assert_eq!(shown, ["10.0.0.0/8 but 10.1.0.0/24 10.2.0.0/16", "fd00::/64 but "]);
    assert_eq!(problems, [""; 0]);
}

#[test]
fn ports() {
    use Protocol::{Sctp, Tcp, Udp};
    let (_, allowed, problems) = only_rule(
        json!([]),
        json!([{"port": 80}, {"port": 8000, "endPort": 8010, "protocol": "UDP"}, {"protocol": "SCTP"}, {"port": "http"},
            {"port": "http", "protocol": "UDP"}, {"port": 81, "endPort": 81}]),
    );
    let ranges = [range(Tcp, 80, 81), range(Udp, 8000, 8010), range(Sctp, 0, 65535)];
    let named = BTreeSet::from([port_name(Tcp, "http"), port_name(Udp, "http")]);
    assert_eq!((allowed, problems), (Allowed { ports: Ports::new(ranges), named }, vec![]));
}

#[test]
fn peers_that_cannot_be_used_are_nobody() {
    let expression = json!({"matchExpressions": [{"key": "a", "operator": "Equals", "values": ["b"]}]});
    let operator = "operator: \"Equals\" is none of In, NotIn, Exists, DoesNotExist";
    let cases = [
        (json!({}), ": names nobody, a selector or an ipBlock is needed".to_owned()),
        (json!({"podSelector": expression}), format!(".podSelector.matchExpressions[0].{operator}")),
        (
            json!({"namespaceSelector": expression}),
            format!(".namespaceSelector.matchExpressions[0].{operator}"),
        ),
        (
            json!({"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}),
            ".ipBlock: may not stand beside selectors".to_owned(),
        ),
        (json!({"ipBlock": {"cidr": "10.0.0.1"}}), ".ipBlock.cidr: \"10.0.0.1\" is not a network".to_owned()),
        (
            json!({"ipBlock": {"cidr": "::ffff:10.0.0.0/104"}}),
            ".ipBlock.cidr: \"::ffff:10.0.0.0/104\" is not a network".to_owned(),
        ),
        (
            json!({"ipBlock": {"cidr": "10.0.0.0/33"}}),
            ".ipBlock.cidr: \"10.0.0.0/33\" is not a network".to_owned(),
        ),
        (
            json!({"ipBlock": {"cidr": "10.0.0.0/255.0.0.0"}}),
            ".ipBlock.cidr: \"10.0.0.0/255.0.0.0\" is not a network".to_owned(),
        ),
        (
            json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/16", "x"]}}),
            ".ipBlock.except[1]: \"x\" is not a network".to_owned(),
        ),
        (
            json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}),
            ".ipBlock.except[0]: 10.0.0.0/8 is not a part of 10.0.0.0/8".to_owned(),
        ),
        (
            json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["fd00::/16"]}}),
            ".ipBlock.except[0]: fd00::/16 is not a part of 10.0.0.0/8".to_owned(),
        ),
    ];
    for (given, problem) in cases {
        let (peers, _, problems) = only_rule(json!([{"podSelector": {}}, given]), json!([]));
        assert_eq!(problems, [format!("spec.ingress[0].from[1]{problem}")]);
        // The other one is as it was.
        assert_eq!(peers.len(), 1);
        // Nobody is not everybody.
        assert_eq!(only_rule(json!([given]), json!([])).0, []);
    }
}

#[test]
fn ports_that_cannot_be_used_are_none() {
    let cases = [
        (json!({"port": 0}), "port: 0 is not a port"),
        (json!({"port": 65536}), "port: 65536 is not a port"),
        (json!({"port": 80, "endPort": 65536}), "endPort: 65536 is not a port"),
        (json!({"port": 80, "endPort": 79}), "endPort: 79 is less than the port 80"),
        (json!({"endPort": 79}), "endPort: needs a port to begin at"),
        (json!({"port": "http", "endPort": 79}), "endPort: needs a port that is a number"),
        (json!({"port": "80"}), "port: \"80\" is neither a number nor the name of a port"),
        (json!({"port": ""}), "port: \"\" is neither a number nor the name of a port"),
        (json!({"port": "a--b"}), "port: \"a--b\" is neither a number nor the name of a port"),
        (json!({"port": "Http"}), "port: \"Http\" is neither a number nor the name of a port"),
        (
            json!({"port": "a123456789012345"}),
            "port: \"a123456789012345\" is neither a number nor the name of a port",
        ),
        (json!({"port": 80, "protocol": "tcp"}), "protocol: \"tcp\" is none of TCP, UDP, SCTP"),
    ];
    for (given, problem) in cases {
        let (_, allowed, problems) = only_rule(json!([]), json!([given]));
        assert_eq!(problems, [format!("spec.ingress[0].ports[0].{problem}")]);
        assert_eq!(allowed, Allowed::default());
    }
}

#[test]
fn rules_for_egress_name_their_own_fields() {
    let (policy, problems) = read(json!({"egress": [{}, {"to": [{}], "ports": [{"port": 0}]}]}));
    let peers: Vec<usize> = policy.egress.iter().flatten().map(|rule| rule.peers.len()).collect();
    assert_eq!(peers, [1, 0]);
    assert_eq!(
        problems,
        [
            "spec.egress[1].to[0]: names nobody, a selector or an ipBlock is needed",
            "spec.egress[1].ports[0].port: 0 is not a port",
        ]
    );
}

#[test]
fn a_policy_that_may_mean_a_pod_isolates_it_and_opens_nothing() {
    let (policy, problems) = read(json!({
        "podSelector": {"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "a", "operator": "in"}]},
        "ingress": [{}], "policyTypes": ["Ingress"],
    }));
    let app = selector(json!({"matchLabels": {"app": "web"}}));
    assert_eq!(policy, Policy { selector: app, ingress: Some(vec![]), egress: None });
    assert_eq!(
        problems,
        ["spec.podSelector.matchExpressions[0].operator: \"in\" is none of In, NotIn, Exists, DoesNotExist"]
    );
    let (policy, problems) = read(json!({
        "ingress": [{}], "egress": [{}], "policyTypes": ["Egress", "ingress"],
    }));
    assert_eq!(policy.ingress, Some(vec![]));
    assert_eq!(policy.egress.map(|rules| rules.len()), Some(1));
    assert_eq!(problems, ["spec.policyTypes[1]: \"ingress\" is neither Ingress nor Egress"]);
}

#[test]
fn pods() {
    let mut object = json!({
        "metadata": {"name": "p", "namespace": "a", "uid": "u", "labels": {"app": "web"}},
        "spec": {
            "containers": [
                {"name": "x", "ports": [{"containerPort": 80, "name": "http"}, {"containerPort": 81}]},
                {"name": "y", "ports": [
                    {"containerPort": 53, "name": "dns", "protocol": "UDP"}, {"containerPort": 8080, "name": "http"},
                    {"containerPort": 9, "name": "odd", "protocol": "DCCP"}, {"containerPort": 0, "name": "no"}]},
            ],
            "initContainers": [
                {"name": "i", "ports": [{"containerPort": 1, "name": "init"}]},
                {"name": "s", "restartPolicy": "Always", "ports": [{"containerPort": 2, "name": "side"}]},
            ],
        },
        "status": {"phase": "Running", "podIP": "10.0.0.1",
            "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}, {"ip": "::ffff:10.0.0.1"}, {"ip": "x"}]},
    });
    let read = |object: &Value| pod(&serde_json::from_value(object.clone()).expect("a pod"));
    let (key, pod) = read(&object).expect("a pod");
    assert_eq!((key, &*pod.uid), (Key { namespace: "a".into(), name: "p".into() }, "u"));
    assert_eq!(*pod.labels, [("app".to_owned(), "web".to_owned())].into());
    assert_eq!(pod.ips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.1", "fd00::1"]);
    let named =
        |protocol: Protocol, name: &str, number: u16| NamedPort { name: port_name(protocol, name), number };
    let ports = [
        named(Protocol::Tcp, "http", 80),
        named(Protocol::Tcp, "http", 8080),
        named(Protocol::Tcp, "side", 2),
        named(Protocol::Udp, "dns", 53),
    ];
    assert_eq!(pod.ports, Arc::from(ports));
    assert!(pod.is_peer);
    object["spec"]["hostNetwork"] = json!(true);
    assert!(!read(&object).expect("a pod").1.is_peer);
    object["spec"]["hostNetwork"] = json!(false);
    for (phase, is_peer) in [("Pending", true), ("Succeeded", false), ("Failed", false), ("Unknown", true)] {
        object["status"]["phase"] = json!(phase);
        assert_eq!(read(&object).expect("a pod").1.is_peer, is_peer, "{phase}");
    }
    object["metadata"]["uid"] = json!(null);
    assert_eq!(read(&object), None);
}
