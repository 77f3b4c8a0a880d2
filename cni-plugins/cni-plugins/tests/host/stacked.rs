//! `ipvlan`, `vlan` and `dummy` with `host-local`, where the kernel has these links.

use std::net::IpAddr;

use linux::netlink::{IpVlanMode, LinkChange, LinkKind, Netlink};
use serde_json::{Value, json};

use super::node::{Call, Change, Container, Node, Wire, block_on, has_kind, host_state};

fn config(node: &Node, plugin: &str) -> Value {
    let mut config = node.config("1.1.0");
    config["type"] = json!(plugin);
    config["master"] = json!(Wire::MASTER);
    config
}

fn run(verb: &str, config: &Value, container: &Container) -> Result<Value, Value> {
    let plugin = config["type"].as_str().expect("a type");
    Call::new(verb, config, container).run(plugin)
}

fn add(config: &Value, container: &Container) -> Value {
    run("ADD", config, container).expect("an attachment")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect(text)
}

#[test]
fn containers_on_an_ipvlan_reach_each_other_and_the_wire() {
    let node = Node::new();
    if !has_kind(LinkKind::Ipvlan { mode: IpVlanMode::L2 }) {
        return;
    }
    for (text, mode) in [("", IpVlanMode::L2), ("l3", IpVlanMode::L3), ("l3s", IpVlanMode::L3S)] {
        let _wire = Wire::new();
        let (a, b) = (Container::new("a"), Container::new("b"));
        let before = (host_state(), a.state(), b.state());
        let mut config = config(&node, "ipvlan");
        config["mode"] = json!(text);
        config["mtu"] = json!(1400);
        let result = add(&config, &a);
        add(&config, &b);
        assert_eq!(result["ips"][0]["interface"], 0);
        let link = a.link("eth0").expect("the link");
        assert_eq!((link.settings, link.mtu), (Some(LinkKind::Ipvlan { mode }), 1400));
        let address = |index: usize| {
            let text = result["ips"][index]["address"].as_str().expect("an address");
            text.split('/').next().map(ip).expect("an address")
        };
        b.talks_to(Some(&a), address(0));
        b.talks_to(Some(&a), address(1));
        if mode == IpVlanMode::L2 {
            a.talks_to(None, ip("10.97.0.1"));
        }
        config["prevResult"] = result;
        assert_eq!(run("CHECK", &config, &a), Ok(Value::Null));
        config["mode"] = json!(if text.is_empty() { "l3" } else { "l2" });
        let error = run("CHECK", &config, &a).expect_err("another mode");
        assert!(
            error["msg"].as_str().is_some_and(|msg| msg.starts_with("Container IPVlan mode l")),
            "{error}"
        );
        for container in [&a, &b, &a] {
            assert_eq!(run("DEL", &config, container), Ok(Value::Null));
        }
        assert_eq!(
            (host_state(), a.state(), b.state(), node.leases().len()),
            (before.0, before.1, before.2, 0)
        );
    }
}

#[test]
fn an_ipvlan_takes_link_and_addresses_of_the_plugins_before_it() {
    let node = Node::new();
    if !has_kind(LinkKind::Ipvlan { mode: IpVlanMode::L2 }) {
        return;
    }
    let _wire = Wire::new();
    let a = Container::new("a");
    let mut config = config(&node, "ipvlan");
    config.as_object_mut().expect("an object").remove("master");
    config["ipam"] = json!({});
    config["prevResult"] = json!({
        "cniVersion": "1.1.0", "interfaces": [{"name": Wire::MASTER}],
        "ips": [{"address": "10.97.0.9/24", "gateway": "10.97.0.1", "interface": 0}],
        "routes": [{"dst": "0.0.0.0/0"}],
    });
    let result = add(&config, &a);
    assert_eq!(result["ips"][0], json!({"address": "10.97.0.9/24", "gateway": "10.97.0.1", "interface": 0}));
    assert_eq!(result["interfaces"][0]["name"], "eth0");
    a.talks_to(None, ip("10.97.0.1"));
    assert_eq!(run("DEL", &config, &a), Ok(Value::Null));
}

#[test]
fn a_vlan_carries_what_is_tagged_with_its_number() {
    let node = Node::new();
    if !has_kind(LinkKind::Vlan { id: 1 }) {
        return;
    }
    let _wire = Wire::new();
    let (a, far) = (Container::new("a"), Container::new("far"));
    let before = (host_state(), a.state());
    let mut config = config(&node, "vlan");
    config["vlanId"] = json!(7);
    config["mtu"] = json!(1400);
    let result = add(&config, &a);
    let link = a.link("eth0").expect("the link");
    assert_eq!((link.settings, link.mtu), (Some(LinkKind::Vlan { id: 7 }), 1400));
    // The same VLAN at the other end of the wire.
    let mut other = config.clone();
    other["master"] = json!("up1");
    add(&other, &far);
    far.talks_to(Some(&a), ip("10.97.0.2"));
    assert_eq!(run("DEL", &other, &far), Ok(Value::Null));
    config["prevResult"] = result;
    assert_eq!(run("CHECK", &config, &a), Ok(Value::Null));
    for (key, message) in
        [("vlanId", "VLAN ID of eth0 is configured as 8"), ("mtu", "configured MTU of eth0 is 8")]
    {
        let mut changed = config.clone();
        changed[key] = json!(8);
        let error = run("CHECK", &changed, &a).expect_err(message);
        assert!(error["msg"].as_str().is_some_and(|msg| msg.starts_with(message)), "{error}");
    }
    for _ in 0..2 {
        assert_eq!(run("DEL", &config, &a), Ok(Value::Null));
    }
    assert_eq!((host_state(), a.state(), node.leases().len()), (before.0, before.1, 0));
}

#[test]
fn a_dummy_carries_addresses() {
    let node = Node::new();
    if !has_kind(LinkKind::Dummy) {
        return;
    }
    let a = Container::new("a");
    let before = a.state();
    let mut config = config(&node, "dummy");
    let result = add(&config, &a);
    assert_eq!(result["interfaces"][0]["name"], "eth0");
    assert!(a.state().contains(&"address 10.97.0.2/24 on eth0".to_owned()));
    config["prevResult"] = result;
    assert_eq!(run("CHECK", &config, &a), Ok(Value::Null));
    block_on(async {
        let inside = Netlink::open_in(&a.netns).expect("a socket");
        let index = inside.link("eth0").await.expect("the link").index;
        let down = LinkChange { up: Some(false), ..LinkChange::default() };
        inside.change_link(index, &down).await.expect("it goes down");
    });
    assert_eq!(run("CHECK", &config, &a).expect_err("it is down")["msg"], "Interface eth0 is down");
    for _ in 0..2 {
        assert_eq!(run("DEL", &config, &a), Ok(Value::Null));
    }
    assert_eq!((a.state(), node.leases().len()), (before, 0));
}

#[test]
fn impossible_configurations_say_why() {
    let node = Node::new();
    let _wire = Wire::new();
    let a = Container::new("a");
    let before = (host_state(), a.state());
    let table: [(&str, Change, u32, &str); 10] = [
        ("ipvlan", |c| c["mode"] = json!("l4"), 7, "unknown ipvlan mode: \"l4\""),
        (
            "ipvlan",
            |c| c["ipam"] = json!({}),
            7,
            "key \"ipam\": missing, and the previous result has no addresses",
        ),
        (
            "ipvlan",
            |c| {
                c["master"] = json!("");
                c["prevResult"] =
                    json!({"cniVersion": "1.1.0", "interfaces": [{"name": "a"}, {"name": "b"}]});
            },
            7,
            "chained master failure. PrevResult lacks a single named interface",
        ),
        ("ipvlan", |c| c["prevResult"] = json!({"ips": 1}), 6, "prevResult"),
        ("vlan", |c| c["master"] = json!(""), 7, "\"master\" field is required"),
        ("vlan", |c| c["vlanId"] = json!(4095), 7, "invalid VLAN ID 4095 (must be between 0 and 4094"),
        ("vlan", |c| c["vlanId"] = json!(-1), 7, "invalid VLAN ID -1"),
        ("vlan", |c| c["ipam"] = json!({}), 7, "key \"ipam.type\": missing"),
        ("vlan", |c| c["mtu"] = json!(1501), 7, "invalid MTU 1501, must be [0, master MTU(1500)]"),
        ("dummy", |c| c["ipam"] = json!({}), 7, "dummy interface requires an IPAM configuration"),
    ];
    for (plugin, change, code, message) in table {
        let mut config = config(&node, plugin);
        change(&mut config);
        let error = run("ADD", &config, &a).expect_err(message);
        assert_eq!(error["code"], code, "{error}");
        assert!(error["msg"].as_str().is_some_and(|text| text.contains(message)), "{error}");
        assert_eq!((host_state(), a.state(), node.leases().len()), (before.0.clone(), before.1.clone(), 0));
        // The same cannot be undone any less.
        let del = run("DEL", &config, &a);
        assert!(del == Ok(Value::Null), "{message}: {del:?}");
    }
}
