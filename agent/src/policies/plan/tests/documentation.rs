//! That the oracle says what the documentation does: it is tested here because other tests take the file in by its path.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};

use crate::policies::oracle::{Namespaces, Peer, allows};

fn pod(namespace: &str, labels: Value) -> Pod {
    let metadata = json!({"namespace": namespace, "uid": labels.to_string(), "labels": labels});
    serde_json::from_value(json!({"metadata": metadata})).expect("a pod")
}

/// The documentation's own example, with what it says of it.
#[test]
fn the_example_of_the_documentation() {
    let policy: NetworkPolicy = serde_json::from_value(json!({
        "metadata": {"name": "test-network-policy", "namespace": "default"},
        "spec": {
            "podSelector": {"matchLabels": {"role": "db"}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{
                "from": [
                    {"ipBlock": {"cidr": "172.17.0.0/16", "except": ["172.17.1.0/24"]}},
                    {"namespaceSelector": {"matchLabels": {"project": "myproject"}}},
                    {"podSelector": {"matchLabels": {"role": "frontend"}}},
                ],
                "ports": [{"protocol": "TCP", "port": 6379}],
            }],
            "egress": [
                {"to": [{"ipBlock": {"cidr": "10.0.0.0/24"}}], "ports": [{"protocol": "TCP", "port": 5978}]},
            ],
        },
    }))
    .expect("a policy");
    let namespaces = Namespaces::from([
        ("default".to_owned(), [].into()),
        ("mine".to_owned(), [("project".to_owned(), "myproject".to_owned())].into()),
    ]);
    let db = pod("default", json!({"role": "db"}));
    let [frontend, other, elsewhere, mine] = [
        pod("default", json!({"role": "frontend"})),
        pod("default", json!({"role": "other"})),
        pod("other", json!({"role": "frontend"})),
        pod("mine", json!({})),
    ];
    let at = |address: &str, pod| Peer {
        address: address.parse::<IpAddr>().expect("an address"),
        pod,
        is_own_node: false,
    };
    let db = at("192.168.0.1", Some(&db));
    let node = Peer { is_own_node: true, ..at("192.168.0.250", None) };
    // Whether the database takes a connection, and may begin one, at the ports that the policy names.
    let cases = [
        (at("192.168.0.2", Some(&frontend)), true, false),
        (at("192.168.0.3", Some(&other)), false, false),
        (at("192.168.0.4", Some(&elsewhere)), false, false),
        (at("192.168.0.5", Some(&mine)), true, false),
        (at("172.17.0.9", None), true, false),
        (at("172.17.0.9", Some(&other)), true, false),
        (at("172.17.1.9", None), false, false),
        (at("10.0.0.9", None), false, true),
        (at("10.0.1.9", None), false, false),
        (at("fd00::1", None), false, false),
        (node, true, true),
        (db, true, true),
    ];
    let allows = |from: &Peer<'_>, to: &Peer<'_>, protocol: &str, port: u16| {
        allows(std::slice::from_ref(&policy), &namespaces, from, to, protocol, port)
    };
    for (peer, may_ask, may_be_asked) in cases {
        assert_eq!(allows(&peer, &db, "TCP", 6379), may_ask, "{peer:?}");
        assert_eq!(allows(&db, &peer, "TCP", 5978), may_be_asked, "{peer:?}");
        if !peer.is_own_node && peer.address != db.address {
            assert!(!allows(&peer, &db, "UDP", 6379) && !allows(&peer, &db, "TCP", 6378));
            assert!(!allows(&db, &peer, "TCP", 6379));
        }
    }
    // What no policy selects is open.
    assert!(allows(&cases[1].0, &cases[2].0, "SCTP", 1));
}
