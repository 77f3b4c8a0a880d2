//! Tables for VLANs.

use cni::json::{Object, parse_object};
use serde_json::{Value, json};

use super::Vlans;

fn read(config: &Value) -> Result<Vlans, cni::ErrorReply> {
    let document = parse_object(config.to_string().as_bytes()).expect("an object");
    Vlans::read(&Object::root(&document))
}

#[test]
fn a_port_is_in_its_own_vlan_without_tags_and_in_those_of_the_trunk_with_tags() {
    for (config, expected) in [
        (json!({}), &[][..]),
        (json!({"vlan": 0, "vlanTrunk": []}), &[]),
        (json!({"vlan": 100}), &[(100, true)]),
        (
            json!({"vlanTrunk": [{"id": 42}, {"minID": 100, "maxID": 102}, {"id": 101}]}),
            &[(1, true), (42, false), (100, false), (101, false), (102, false)],
        ),
        (
            json!({"vlan": 7, "vlanTrunk": [{"minID": 6, "maxID": 8, "id": 9}]}),
            &[(7, true), (6, false), (8, false), (9, false)],
        ),
        (json!({"vlanTrunk": [{"id": 1}]}), &[(1, true)]),
    ] {
        let vlans = read(&config).expect("VLANs").of_port();
        let found: Vec<(u16, bool)> = vlans.iter().map(|vlan| (vlan.id, vlan.untagged)).collect();
        assert_eq!(found, expected, "{config}");
    }
}

#[test]
fn any_of_the_keys_asks_for_a_bridge_that_filters() {
    for (config, expected) in [
        (json!({}), false),
        (json!({"vlan": 0, "vlanTrunk": null, "preserveDefaultVlan": true}), false),
        (json!({"vlan": 1}), true),
        (json!({"vlanTrunk": []}), true),
    ] {
        assert_eq!(read(&config).expect("VLANs").need_filtering(), expected, "{config}");
    }
}

#[test]
fn only_a_vlan_of_the_gateway_has_a_link_of_its_own() {
    let name = |config: Value| read(&config).expect("VLANs").gateway_name("cni0");
    assert_eq!(name(json!({"vlan": 100})), Some("cni0.100".to_owned()));
    assert_eq!(name(json!({"vlanTrunk": [{"id": 100}]})), None);
}

#[test]
fn trunks_that_are_none_say_why() {
    for (config, code, message) in [
        (json!({"vlan": -1}), 7, "invalid VLAN ID -1"),
        (json!({"vlan": 4095}), 7, "invalid VLAN ID 4095"),
        (json!({"vlanTrunk": [{"id": 0}]}), 7, r#"incorrect trunk id parameter: key "vlanTrunk[0].id": 0"#),
        (json!({"vlanTrunk": [{"minID": 1, "maxID": 4095}]}), 7, "incorrect trunk maxID parameter"),
        (json!({"vlanTrunk": [{"minID": 9, "maxID": 5}]}), 7, "minID is greater than maxID"),
        (json!({"vlanTrunk": [{"minID": 9}]}), 7, "maxID is missing"),
        (json!({"vlanTrunk": [{"maxID": 9}]}), 7, "minID is missing"),
        (json!({"vlanTrunk": [7]}), 6, r#"key "vlanTrunk[0]""#),
        (json!({"vlanTrunk": [{"id": "7"}]}), 6, r#"key "vlanTrunk[0].id""#),
        (json!({"preserveDefaultVlan": 1}), 6, r#"key "preserveDefaultVlan""#),
    ] {
        let error = read(&config).expect_err(message);
        assert_eq!(error.code, code, "{error}");
        assert!(error.to_string().contains(message), "{error}");
    }
}
