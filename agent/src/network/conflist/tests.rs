use super::{Options, render};

#[test]
fn the_list_has_one_plugin_with_the_nodes_ranges() {
    let options = Options {
        pods: ["10.244.3.0/24", "fd00:244:0:3::/64"].map(|pods| pods.parse().expect("network")).into(),
        mtu: 1450,
        data_dir: "/run/orlop/cni/networks".into(),
    };
    let list: serde_json::Value = serde_json::from_str(&render(&options)).expect("JSON");
    assert_eq!((list["cniVersion"].as_str(), list["name"].as_str()), (Some("1.0.0"), Some("orlop")));
    let plugins = list["plugins"].as_array().expect("plugins");
    assert_eq!(plugins.len(), 1);
    let expected = serde_json::json!({
        "type": "bridge", "bridge": "orlop0", "isDefaultGateway": true, "hairpinMode": true, "mtu": 1450,
        "ipam": {
            "type": "host-local", "ranges": [[{"subnet": "10.244.3.0/24"}], [{"subnet": "fd00:244:0:3::/64"}]],
            "dataDir": "/run/orlop/cni/networks",
        },
    });
    assert_eq!(plugins[0], expected);
}
