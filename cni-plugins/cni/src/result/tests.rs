//! Tables for results in every version.

use serde_json::{Value, json};

use super::{AddResult, Dns, Interface, IpConfig, ResultError, Route};
use crate::Version;

fn object(value: Value) -> serde_json::Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("expected an object, found {other}"),
    }
}

fn full() -> AddResult {
    AddResult {
        interfaces: vec![
            Interface {
                name: "cni0".to_owned(),
                mac: Some("00:11:22:33:44:55".to_owned()),
                ..Interface::default()
            },
            Interface {
                name: "eth0".to_owned(),
                mac: Some("99:88:77:66:55:44".to_owned()),
                mtu: Some(1500),
                sandbox: Some("/var/run/netns/blue".to_owned()),
                ..Interface::default()
            },
        ],
        ips: vec![
            IpConfig {
                interface: Some(1),
                address: "10.1.0.5/16".parse().expect("a network"),
                gateway: Some("10.1.0.1".parse().expect("an address")),
            },
            IpConfig { interface: Some(1), address: "fd00::5/64".parse().expect("a network"), gateway: None },
        ],
        routes: vec![Route {
            mtu: Some(1400),
            table: Some(0),
            ..Route::new(
                "0.0.0.0/0".parse().expect("a network"),
                Some("10.1.0.1".parse().expect("an address")),
            )
        }],
        dns: Dns {
            nameservers: vec!["10.1.0.1".to_owned()],
            domain: Some("example.org".to_owned()),
            ..Dns::default()
        },
    }
}

#[test]
fn the_newest_version_carries_everything() {
    let document = full().to_json(Version::V1_1_0).expect("a result");
    assert_eq!(
        document,
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "cni0", "mac": "00:11:22:33:44:55"},
                {"name": "eth0", "mac": "99:88:77:66:55:44", "mtu": 1500, "sandbox": "/var/run/netns/blue"},
            ],
            "ips": [
                {"interface": 1, "address": "10.1.0.5/16", "gateway": "10.1.0.1"},
                {"interface": 1, "address": "fd00::5/64"},
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400, "table": 0}],
            "dns": {"nameservers": ["10.1.0.1"], "domain": "example.org"},
        })
    );
    assert_eq!(AddResult::from_json(&object(document)), Ok(full()));
}

#[test]
fn versions_before_1_0_name_the_family() {
    let document = full().to_json(Version::V0_4_0).expect("a result");
    assert_eq!(
        document["ips"][0],
        json!({"version": "4", "interface": 1, "address": "10.1.0.5/16", "gateway": "10.1.0.1"})
    );
    assert_eq!(document["ips"][1]["version"], "6");
    assert_eq!(document["interfaces"][1].get("mtu"), None);
}

#[test]
fn the_oldest_versions_have_one_address_per_family() {
    let document = full().to_json(Version::V0_2_0).expect("a result");
    assert_eq!(
        document,
        json!({
            "cniVersion": "0.2.0",
            "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]},
            "ip6": {"ip": "fd00::5/64"},
            "dns": {"nameservers": ["10.1.0.1"], "domain": "example.org"},
        })
    );
    let back = AddResult::from_json(&object(document)).expect("a result");
    assert_eq!(back.ips.len(), 2);
    assert_eq!(back.routes, [Route::new(full().routes[0].dst, full().routes[0].gw)]);
    let empty = AddResult::default();
    assert_eq!(empty.to_json(Version::V0_1_0), Err(ResultError::NoAddress { version: Version::V0_1_0 }));
}

#[test]
fn reading_back_is_lossless_where_the_version_has_room() {
    for version in Version::ALL.into_iter().filter(|version| *version >= Version::V1_0_0) {
        let document = full().to_json(version).expect("a result");
        assert_eq!(AddResult::from_json(&object(document)), Ok(full()), "{version}");
    }
}

#[test]
fn broken_results_name_the_key() {
    for (document, message) in [
        (json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1"}]}), r#"key "ips[0].address""#),
        (json!({"cniVersion": "1.0.0", "ips": {}}), r#"key "ips": expected an array"#),
        (json!({"cniVersion": "0.4.0", "interfaces": [{}]}), r#"key "interfaces[0].name": missing"#),
        (json!({"cniVersion": "0.2.0", "ip4": {"ip": "fd00::1/64"}}), "of the other family"),
        (json!({"cniVersion": "1.0.0", "routes": [{"dst": 5}]}), r#"key "routes[0].dst": expected a string"#),
        (json!({"cniVersion": "7"}), r#"unsupported CNI version "7""#),
    ] {
        let error = AddResult::from_json(&object(document)).expect_err(message).to_string();
        assert!(error.contains(message), "{error}");
    }
}
