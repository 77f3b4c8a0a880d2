//! `macvlan` with `host-local`: packets between containers and to the wire, modes, addresses, CHECK, failures.

use std::{net::IpAddr, time::Duration};

use cni_plugins::pair::port_name;
use linux::netlink::{BridgeOptions, LinkChange, LinkKind, MacVlanMode, Netlink, NewAddress, Route};
use serde_json::{Value, json};

use super::node::{Call, Container, Node, Wire, block_on, host_state};

fn config(node: &Node, version: &str) -> Value {
    let mut config = node.config(version);
    config["type"] = json!("macvlan");
    config["master"] = json!(Wire::MASTER);
    config
}

fn run(verb: &str, config: &Value, container: &Container) -> Result<Value, Value> {
    Call::new(verb, config, container).run("macvlan")
}

fn add(config: &Value, container: &Container) -> Value {
    run("ADD", config, container).expect("an attachment")
}

fn settings(container: &Container) -> Option<LinkKind> {
    container.link("eth0").and_then(|link| link.settings)
}

#[test]
fn containers_reach_each_other_and_what_is_on_the_wire() {
    let node = Node::new();
    let _wire = Wire::new();
    let mut config = config(&node, "1.1.0");
    config["dns"] = json!({"nameservers": ["9.9.9.9"]});
    let (a, b) = (Container::new("a"), Container::new("b"));
    let before = (host_state(), a.state(), b.state());
    let of_a = add(&config, &a);
    add(&config, &b);
    let inside = a.link("eth0").expect("the link");
    assert_eq!(
        of_a["interfaces"],
        json!([{"name": "eth0", "mac": inside.mac.expect("an address").to_string(), "sandbox": a.path()}])
    );
    assert_eq!(of_a["ips"][0], json!({"interface": 0, "address": "10.97.0.2/24", "gateway": "10.97.0.1"}));
    assert_eq!(of_a["dns"], json!({"nameservers": ["9.9.9.9"]}));
    assert!(matches!(inside.settings, Some(LinkKind::Macvlan { mode: MacVlanMode::Bridge, .. })));
    let ip = |text: &str| text.parse::<IpAddr>().expect(text);
    a.talks_to(Some(&b), ip("10.97.0.3"));
    a.talks_to(Some(&b), ip("fd97::3"));
    a.talks_to(None, ip("10.97.0.1"));
    a.talks_to(None, ip("fd97::1"));
    // Nothing of it is on the host.
    assert_eq!(host_state(), before.0);
    for container in [&a, &b, &a] {
        assert_eq!(run("DEL", &config, container), Ok(Value::Null));
    }
    assert_eq!(node.leases(), Vec::<String>::new());
    assert_eq!((host_state(), a.state(), b.state()), before);
}

#[test]
fn modes_keep_containers_apart_or_together() {
    let node = Node::new();
    let _wire = Wire::new();
    for (text, expected) in [
        ("private", MacVlanMode::Private),
        ("vepa", MacVlanMode::Vepa),
        ("bridge", MacVlanMode::Bridge),
        ("passthru", MacVlanMode::Passthrough),
    ] {
        let a = Container::new("a");
        let mut config = config(&node, "1.0.0");
        config["mode"] = json!(text);
        config["bcqueuelen"] = json!(700);
        config["mtu"] = json!(1300);
        config["ipam"] = json!({});
        let result = add(&config, &a);
        let kind = LinkKind::Macvlan { mode: expected, broadcast_queue: Some(700) };
        assert_eq!(settings(&a), Some(kind), "{text}");
        assert!(a.link("eth0").is_some_and(|link| link.mtu == 1300 && link.up));
        config["prevResult"] = result;
        assert_eq!(run("CHECK", &config, &a), Ok(Value::Null), "{text}");
        config["mode"] = json!(if text == "vepa" { "bridge" } else { "vepa" });
        let error = run("CHECK", &config, &a).expect_err("another mode");
        let message = format!("container macvlan mode {text} does not match expected value");
        assert!(error["msg"].as_str().is_some_and(|msg| msg.starts_with(&message)), "{error}");
        assert_eq!(run("DEL", &config, &a), Ok(Value::Null));
    }
}

#[test]
fn the_hardware_address_is_the_runtimes_or_the_arguments_or_the_configurations() {
    let node = Node::new();
    let _wire = Wire::new();
    let a = Container::new("a");
    let mut config = config(&node, "1.0.0");
    let mut added = |key: &str, value: Value, args: &str, expected: &str| {
        config[key] = value;
        let call = Call { args, ..Call::new("ADD", &config, &a) };
        let result = call.run("macvlan").expect("an attachment");
        assert_eq!(result["interfaces"][0]["mac"], expected);
        assert_eq!(
            a.link("eth0").and_then(|link| link.mac).map(|mac| mac.to_string()).as_deref(),
            Some(expected)
        );
        assert_eq!(run("DEL", &config, &a), Ok(Value::Null));
    };
    added("mac", json!("02:00:00:00:00:01"), "", "02:00:00:00:00:01");
    added("x", json!(0), "IgnoreUnknown=1;MAC=02:00:00:00:00:02", "02:00:00:00:00:02");
    let runtime = json!({"mac": "02:00:00:00:00:03"});
    added("runtimeConfig", runtime, "IgnoreUnknown=1;MAC=02:00:00:00:00:02", "02:00:00:00:00:03");
}

#[test]
fn the_master_is_that_of_the_default_route_or_in_the_container() {
    let node = Node::new();
    let _wire = Wire::new();
    let (a, b) = (Container::new("a"), Container::new("b"));
    let mut config = config(&node, "1.1.0");
    config.as_object_mut().expect("an object").remove("master");
    let error = run("ADD", &config, &a).expect_err("no master");
    assert_eq!(error["msg"], "no default route interface found");
    let status = run("STATUS", &config, &a).expect_err("no master");
    assert_eq!((&status["code"], &status["msg"]), (&json!(50), &json!("no default route interface found")));
    let index = block_on(async {
        let host = Netlink::open().expect("a socket");
        let index = host.link(Wire::MASTER).await.expect("the wire").index;
        let network = "192.0.2.1/24".parse().expect("a network");
        host.add_address(&NewAddress::new(index, network)).await.expect("an address");
        let gateway = Some("192.0.2.2".parse().expect("an address"));
        let default =
            Route { gateway, link: Some(index), ..Route::to("0.0.0.0/0".parse().expect("a network")) };
        host.add_route(&default).await.expect("a default route");
        index
    });
    assert_eq!(run("STATUS", &config, &a), Ok(Value::Null));
    add(&config, &a);
    assert_eq!(a.link("eth0").and_then(|link| link.peer), Some(index));

    // One that stands on the first, which is in its own container.
    config["linkInContainer"] = json!(true);
    config["master"] = json!("eth0");
    config["ipam"]["ranges"] = json!([[{"subnet": "10.98.0.0/24"}]]);
    let second = Call { ifname: "net1", ..Call::new("ADD", &config, &a) };
    second.run("macvlan").expect("an attachment");
    let (first, second) = (a.link("eth0").expect("the link"), a.link("net1").expect("the link"));
    // The kernel puts a macvlan of a macvlan on the link below both.
    assert!(second.is_kind("macvlan") && second.peer == first.peer);
    let missing = run("ADD", &config, &b).expect_err("b has no eth0");
    assert!(missing["msg"].as_str().is_some_and(|text| text.starts_with("failed to lookup master \"eth0\"")));
    for ifname in ["net1", "eth0"] {
        let del = Call { ifname, ..Call::new("DEL", &config, &a) };
        assert_eq!(del.run("macvlan"), Ok(Value::Null));
    }
    assert!(a.link("eth0").is_none() && a.link("net1").is_none());
}

#[test]
fn a_link_that_a_kill_left_without_its_name_is_found() {
    let node = Node::new();
    let _wire = Wire::new();
    let a = Container::new("a");
    let before = a.state();
    block_on(async {
        let inside = Netlink::open_in(&a.netns).expect("a socket");
        let name = port_name("pods", "a", "eth0");
        inside.add_bridge(&BridgeOptions { name, ..BridgeOptions::default() }).await.expect("a link");
    });
    assert_eq!(run("DEL", &config(&node, "1.0.0"), &a), Ok(Value::Null));
    assert_eq!(a.state(), before);
}

#[test]
fn addresses_on_a_dead_wire_settle_when_it_lives() {
    let node = Node::new();
    let _wire = Wire::new();
    let a = Container::new("a");
    let config = config(&node, "1.0.0");
    let switch = |up: bool| {
        block_on(async {
            let host = Netlink::open().expect("a socket");
            let far = host.link("up1").await.expect("the wire").index;
            let change = LinkChange { up: Some(up), ..LinkChange::default() };
            host.change_link(far, &change).await.expect("a change");
        });
    };
    let is_tentative = || {
        block_on(async {
            let inside = Netlink::open_in(&a.netns).expect("a socket");
            let all = inside.addresses(None).await.expect("the addresses");
            all.iter().any(|address| address.is_tentative() && address.network.prefix() == 64)
        })
    };
    switch(false);
    add(&config, &a);
    assert!(is_tentative());
    switch(true);
    harness::wait::until("the addresses to settle", Duration::from_secs(10), || {
        if is_tentative() { Err("tentative".to_owned()) } else { Ok(()) }
    });
    assert_eq!(run("DEL", &config, &a), Ok(Value::Null));
}

#[test]
fn a_failed_add_leaves_nothing() {
    let node = Node::new();
    let _wire = Wire::new();
    let a = Container::new("a");
    let before = (host_state(), a.state());
    let refused = |change: &dyn Fn(&mut Value), code: u32, message: &str| {
        let mut config = config(&node, "1.0.0");
        change(&mut config);
        let error = run("ADD", &config, &a).expect_err(message);
        assert_eq!(error["code"], code, "{error}");
        assert!(error["msg"].as_str().is_some_and(|text| text.contains(message)), "{error}");
        assert_eq!((host_state(), a.state(), node.leases().len()), (before.0.clone(), before.1.clone(), 0));
    };
    refused(&|c| c["master"] = json!("none0"), 999, "failed to lookup master \"none0\"");
    refused(&|c| c["master"] = json!("a/b"), 7, "key \"master\": invalid interface name \"a/b\"");
    refused(&|c| c["mode"] = json!("loud"), 7, "unknown macvlan mode: \"loud\"");
    refused(&|c| c["mtu"] = json!(9000), 7, "invalid MTU 9000, must be [0, master MTU(1500)]");
    refused(&|c| c["mtu"] = json!(-1), 7, "invalid MTU -1, must be [0, master MTU(1500)]");
    refused(&|c| c["mac"] = json!("zz"), 7, "invalid hardware address \"zz\"");
    refused(&|c| c["bcqueuelen"] = json!(-1), 6, "key \"bcqueuelen\": -1 is out of range");
    refused(&|c| c["linkInContainer"] = json!(1), 6, "key \"linkInContainer\": expected true or false");
    refused(&|c| c["ipam"]["type"] = json!("none"), 999, "failed to find plugin \"none\"");
    refused(
        &|c| c["ipam"]["routes"] = json!([{"dst": "10.5.0.0/16", "gw": "192.0.2.1"}]),
        999,
        "failed to add route",
    );
    // A link of the host may have the name that the container's is to have, which older kernels do not like.
    let config = config(&node, "1.0.0");
    let del = Call { ifname: Wire::MASTER, ..Call::new("DEL", &config, &a) };
    let same = Call { verb: "ADD", ..del };
    same.run("macvlan").expect("an attachment");
    let error = same.run("macvlan").expect_err("the name is taken");
    assert!(error["msg"].as_str().is_some_and(|text| text.contains("File exists")), "{error}");
    assert_eq!(node.leases().len(), 2);
    assert_eq!(del.run("macvlan"), Ok(Value::Null));
    assert_eq!((host_state(), a.state(), node.leases().len()), (before.0.clone(), before.1.clone(), 0));
}
