//! `ptp` with `host-local`: packets, routes, CHECK, failures, GC.

use std::net::IpAddr;

use cni_plugins::pair::{port_name, unfinished_group};
use linux::netlink::{LinkChange, Netlink};
use serde_json::{Value, json};

use super::node::{Call, Container, Node, block_on, host_links, host_state};

fn config(node: &Node, version: &str) -> Value {
    let mut config = node.config(version);
    config["type"] = json!("ptp");
    config["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
    config
}

fn add(config: &Value, container: &Container) -> Value {
    Call::new("ADD", config, container).run("ptp").expect("an attachment")
}

fn del(config: &Value, container: &Container) {
    assert_eq!(Call::new("DEL", config, container).run("ptp"), Ok(Value::Null));
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect(text)
}

#[test]
fn containers_reach_each_other_through_the_host() {
    let node = Node::new();
    let config = config(&node, "1.1.0");
    let (a, b) = (Container::new("a"), Container::new("b"));
    let before = (host_state(), a.state(), b.state());
    let of_a = add(&config, &a);
    add(&config, &b);

    let inside = a.link("eth0").expect("the link");
    let port = host_links().into_iter().find(|link| link.name == port_name("pods", "a", "eth0"));
    let port = port.expect("the host's end");
    let mac = |link: &linux::netlink::Link| link.mac.expect("an address").to_string();
    assert_eq!(
        of_a["interfaces"],
        json!([
            {"name": port.name, "mac": mac(&port)},
            {"name": "eth0", "mac": mac(&inside), "sandbox": a.path()},
        ])
    );
    assert_eq!(of_a["ips"][0], json!({"interface": 1, "address": "10.97.0.2/24", "gateway": "10.97.0.1"}));
    assert_eq!(of_a["ips"][1], json!({"interface": 1, "address": "fd97::2/64", "gateway": "fd97::1"}));
    assert_eq!(port.alias.as_deref(), Some("cni:pods:a:eth0"));

    for (to, address) in [(&b, "10.97.0.3"), (&b, "fd97::3")] {
        a.talks_to(Some(to), ip(address));
    }
    a.talks_to(None, ip("10.97.0.1"));
    a.talks_to(None, ip("fd97::1"));
    let switch = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/{name}")).expect(name);
    assert_eq!(switch("ipv4/ip_forward").trim(), "1");
    assert_eq!(switch("ipv6/conf/all/forwarding").trim(), "1");
    assert_eq!(switch(&format!("ipv6/conf/{}/accept_ra", port.name)).trim(), "0");

    for container in [&a, &b, &a] {
        del(&config, container);
    }
    assert_eq!(node.leases(), Vec::<String>::new());
    assert_eq!((host_state(), a.state(), b.state()), before);
}

#[test]
fn only_the_gateway_is_on_the_link() {
    let node = Node::new();
    let a = Container::new("a");
    let config = config(&node, "1.0.0");
    add(&config, &a);
    let lines = |state: Vec<String>, start: &str| {
        state.into_iter().filter(|line| line.starts_with(start)).collect::<Vec<_>>()
    };
    let via = |gateway: &str| format!("via Some({gateway}) on eth0 table 254");
    assert_eq!(
        lines(a.state(), "route "),
        [
            format!("route 0.0.0.0/0 {}", via("10.97.0.1")),
            format!("route 10.97.0.0/24 {}", via("10.97.0.1")),
            "route 10.97.0.1/32 via None on eth0 table 254".to_owned(),
            format!("route ::/0 {}", via("fd97::1")),
            format!("route fd97::/64 {}", via("fd97::1")),
            "route fd97::1/128 via None on eth0 table 254".to_owned(),
        ]
    );
    let port = port_name("pods", "a", "eth0");
    let host = host_state();
    for wanted in [
        format!("address 10.97.0.1/32 on {port}"),
        format!("address fd97::1/128 on {port}"),
        format!("route 10.97.0.2/32 via None on {port} table 254"),
        format!("route fd97::2/128 via None on {port} table 254"),
    ] {
        assert!(host.contains(&wanted), "{wanted}: {host:#?}");
    }
    del(&config, &a);
}

#[test]
fn mtu_and_dns_are_the_configurations() {
    let node = Node::new();
    let a = Container::new("a");
    let mut config = config(&node, "1.0.0");
    std::fs::write(node.path("resolv.conf"), "nameserver 9.9.9.9\n").expect("a file");
    config["ipam"]["resolvConf"] = json!(node.path("resolv.conf"));
    config["mtu"] = json!(1400);
    assert_eq!(add(&config, &a)["dns"], json!({"nameservers": ["9.9.9.9"]}));
    assert_eq!(a.link("eth0").map(|link| link.mtu), Some(1400));
    assert!(host_links().iter().filter(|link| link.is_kind("veth")).all(|link| link.mtu == 1400));
    del(&config, &a);
    config["dns"] = json!({"search": ["example.org"]});
    assert_eq!(add(&config, &a)["dns"], json!({"search": ["example.org"]}));
    del(&config, &a);
}

#[test]
fn check_notices_what_was_changed() {
    let node = Node::new();
    let a = Container::new("a");
    let mut config = config(&node, "1.0.0");
    let missing = Call::new("CHECK", &config, &a).run("ptp").expect_err("nothing is there");
    assert!(missing["msg"].as_str().is_some_and(|text| text.contains("host-local")), "{missing}");
    config["prevResult"] = add(&config, &a);
    assert_eq!(Call::new("CHECK", &config, &a).run("ptp"), Ok(Value::Null));
    block_on(async {
        let inside = Netlink::open_in(&a.netns).expect("a socket");
        let routes = inside.routes().await.expect("the routes");
        let default = routes.iter().find(|r| r.destination.prefix() == 0 && r.destination.is_ipv4());
        inside.del_route(default.expect("a default route")).await.expect("it is deleted");
    });
    let error = Call::new("CHECK", &config, &a).run("ptp").expect_err("a difference");
    assert_eq!(error["msg"], "Expected Route 0.0.0.0/0 not found in routing table");
    del(&config, &a);
}

#[test]
fn a_failed_add_leaves_nothing() {
    let node = Node::new();
    let (a, b) = (Container::new("a"), Container::new("b"));
    let mut narrow = config(&node, "1.0.0");
    narrow["ipam"]["ranges"] = json!([[{"subnet": "10.97.0.0/30"}]]);
    narrow["ipam"]["routes"] = json!([]);
    add(&narrow, &a);
    let before = (host_state(), b.state(), node.leases());
    let refused = |config: &Value, code: u32, message: &str| {
        let error = Call::new("ADD", config, &b).run("ptp").expect_err(message);
        assert_eq!(error["code"], code, "{error}");
        assert!(error["msg"].as_str().is_some_and(|text| text.contains(message)), "{error}");
        assert_eq!((host_state(), b.state(), node.leases()), before, "{message}");
    };
    refused(&narrow, 999, "no IP addresses available in range set: 10.97.0.1-10.97.0.2");
    let mut other = config(&node, "1.0.0");
    // Fails at the last step inside.
    other["ipam"]["routes"] = json!([{"dst": "10.5.0.0/16", "gw": "192.0.2.1"}]);
    refused(&other, 999, "failed to add route");
    other["ipMasq"] = json!("yes");
    refused(&other, 6, "key \"ipMasq\": expected true or false");
    other["ipam"] = json!({});
    other["ipMasq"] = json!(false);
    refused(&other, 7, "key \"ipam.type\": missing");
    del(&narrow, &a);
}

#[test]
fn what_is_lost_is_found_by_its_alias_or_its_name() {
    let node = Node::new();
    let mut config = config(&node, "1.1.0");
    let (keep, lost, killed) = (Container::new("keep"), Container::new("lost"), Container::new("killed"));
    for container in [&keep, &lost, &killed] {
        add(&config, container);
    }
    block_on(async {
        let host = Netlink::open().expect("a socket");
        let port = host.link(&port_name("pods", "killed", "eth0")).await.expect("its port");
        // As it was before it got its alias.
        let change = LinkChange {
            alias: Some(String::new()),
            group: Some(unfinished_group("pods")),
            ..LinkChange::default()
        };
        host.change_link(port.index, &change).await.expect("a change");
    });
    config["cni.dev/valid-attachments"] = json!([{"containerID": "keep", "ifname": "eth0"}]);
    assert_eq!(Call::new("GC", &config, &keep).run("ptp"), Ok(Value::Null));
    let aliases: Vec<_> = host_links().into_iter().filter(|link| link.is_kind("veth")).collect();
    assert_eq!(aliases.len(), 1);
    assert_eq!(aliases[0].alias.as_deref(), Some("cni:pods:keep:eth0"));
    assert_eq!(node.leases().len(), 2);
    assert_eq!(Call::new("STATUS", &config, &keep).run("ptp"), Ok(Value::Null));
    let unnamed = Call { netns: "", ..Call::new("DEL", &config, &keep) };
    assert_eq!(unnamed.run("ptp"), Ok(Value::Null));
    assert!(keep.link("eth0").is_none());
    assert_eq!(node.leases(), Vec::<String>::new());
}
