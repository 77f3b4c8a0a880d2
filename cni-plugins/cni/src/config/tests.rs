//! Tables for configurations.

use serde_json::json;

use super::NetworkList;
use crate::Version;

fn parse(value: &serde_json::Value) -> Result<NetworkList, super::ConfigError> {
    NetworkList::parse(value.to_string().as_bytes())
}

#[test]
fn a_list_is_read_with_all_its_switches() {
    let list = parse(&json!({
        "cniVersion": "0.4.0", "cniVersions": ["1.0.0", "9.9.9", "1.1.0"], "name": "pods",
        "disableCheck": "TRUE", "disableGC": true, "loadOnlyInlinedPlugins": false,
        "plugins": [
            {"type": "bridge", "bridge": "cni0", "capabilities": {"ips": true, "mac": false}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    }))
    .expect("a list");
    assert_eq!((list.name.as_str(), list.version), ("pods", Version::V1_1_0));
    assert!(list.disable_check && list.disable_gc && !list.load_only_inlined_plugins);
    let types: Vec<_> = list.plugins.iter().map(|plugin| plugin.plugin_type.as_str()).collect();
    assert_eq!(types, ["bridge", "portmap"]);
    assert_eq!(list.plugins[0].capabilities, ["ips"]);
    assert_eq!(list.plugins[0].raw["bridge"], "cni0");
}

#[test]
fn a_newer_version_counts_for_nothing_where_another_is_offered() {
    let version = |versions: serde_json::Value| {
        let list = json!({"cniVersion": "9.9.9", "cniVersions": versions, "name": "a", "type": "x"});
        parse(&list).map(|list| list.version).map_err(|error| error.to_string())
    };
    assert_eq!(version(json!(["1.0.0", "9.9.9"])), Ok(Version::V1_0_0));
    assert!(
        version(json!(["9.9.9"])).is_err_and(|error| error.contains(r#"unsupported CNI version "9.9.9""#))
    );
}

#[test]
fn a_single_plugin_makes_a_list_of_one() {
    let list = parse(&json!({"cniVersion": "0.2.0", "name": "lo", "type": "loopback"})).expect("a list");
    assert_eq!((list.plugins.len(), list.version), (1, Version::V0_2_0));
    assert_eq!(list.plugins[0].plugin_type, "loopback");
}

#[test]
fn broken_lists_name_the_key() {
    for (document, message) in [
        (json!({"type": "bridge"}), r#"key "name": missing"#),
        (json!({"name": "", "type": "bridge"}), r#"key "name": missing"#),
        (json!({"name": "../x", "type": "bridge"}), r#"invalid network name "../x""#),
        (json!({"name": "a"}), r#"key "type": missing"#),
        (json!({"name": "a", "type": "/bin/sh"}), "expected the name of an executable"),
        (json!({"name": "a", "plugins": 1}), r#"key "plugins": expected an array, found 1"#),
        (json!({"name": "a", "plugins": [1]}), r#"key "plugins[0]": expected an object, found 1"#),
        (json!({"name": "a", "plugins": [{"type": "x"}, {}]}), r#"key "plugins[1].type": missing"#),
        (json!({"name": "a", "type": "x", "cniVersion": "2.0.0"}), r#"unsupported CNI version "2.0.0""#),
        (json!({"name": "a", "type": "x", "disableCheck": "maybe"}), r#"key "disableCheck""#),
        (json!({"name": "a", "type": "x", "capabilities": {"ips": "yes"}}), r#"key "capabilities.ips""#),
    ] {
        let error = parse(&document).expect_err(message).to_string();
        assert!(error.contains(message), "{error}");
    }
}
