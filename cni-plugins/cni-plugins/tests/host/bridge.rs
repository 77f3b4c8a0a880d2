//! `bridge` with `host-local`: results, packets, switches, CHECK, failures.

use std::{net::IpAddr, time::Duration};

use linux::netlink::{LinkChange, Netlink};
use serde_json::{Value, json};

use super::node::{Call, Container, Node, block_on, host_links, host_state, tentative_addresses};

fn add(config: &Value, container: &Container) -> Value {
    Call::new("ADD", config, container).run("bridge").expect("an attachment")
}

fn del(config: &Value, container: &Container) {
    assert_eq!(Call::new("DEL", config, container).run("bridge"), Ok(Value::Null));
}

fn address(result: &Value, index: usize) -> IpAddr {
    let text = result["ips"][index]["address"].as_str().expect("an address");
    text.split('/').next().and_then(|ip| ip.parse().ok()).expect("an address")
}

#[test]
fn containers_reach_each_other_and_the_host() {
    let node = Node::new();
    let config = node.config("1.0.0");
    let (a, b) = (Container::new("a"), Container::new("b"));
    let before = (a.state(), b.state());
    let (of_a, of_b) = (add(&config, &a), add(&config, &b));

    assert_eq!(tentative_addresses("cni0"), []);
    let names: Vec<_> =
        (0..3).map(|index| of_a["interfaces"][index]["name"].as_str().unwrap_or("")).collect();
    assert_eq!((names[0], names[2]), ("cni0", "eth0"));
    assert!(names[1].starts_with("veth") && names[1].len() == 12, "{names:?}");
    assert_eq!(of_a["interfaces"][2]["sandbox"], a.path());
    let inside = a.link("eth0").expect("the link");
    assert_eq!(of_a["interfaces"][2]["mac"], inside.mac.expect("an address").to_string());
    assert_eq!(of_a["ips"][0], json!({"interface": 2, "address": "10.97.0.2/24", "gateway": "10.97.0.1"}));
    assert_eq!(of_a["ips"][1], json!({"interface": 2, "address": "fd97::2/64", "gateway": "fd97::1"}));
    assert_eq!(
        of_a["routes"],
        json!([{"dst": "0.0.0.0/0", "gw": "10.97.0.1"}, {"dst": "::/0", "gw": "fd97::1"}])
    );

    a.talks_to(Some(&b), address(&of_b, 0));
    a.talks_to(Some(&b), address(&of_b, 1));
    b.talks_to(Some(&a), address(&of_a, 0));
    a.talks_to(None, "10.97.0.1".parse().expect("an address"));
    let switch = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/{name}")).expect(name);
    assert_eq!(switch("ipv4/ip_forward").trim(), "1");
    assert_eq!(switch("ipv6/conf/all/forwarding").trim(), "1");
    assert_eq!(switch("ipv6/conf/cni0/accept_ra").trim(), "0");

    assert_eq!(node.leases().len(), 4);
    for container in [&a, &b, &a] {
        del(&config, container);
    }
    assert_eq!(node.leases(), Vec::<String>::new());
    assert_eq!((a.state(), b.state()), before);
    assert!(!host_links().iter().any(|link| link.is_kind("veth")));
}

#[test]
fn a_reused_address_is_announced() {
    let node = Node::new();
    let mut config = node.config("1.0.0");
    config["runtimeConfig"] = json!({"ips": ["10.97.0.10", "fd97::10"]});
    let (old, new, witness) = (Container::new("old"), Container::new("new"), Container::new("witness"));
    let addresses = ["10.97.0.10", "fd97::10"].map(|text| text.parse::<IpAddr>().expect(text));
    add(&config, &old);
    add(&node.config("1.0.0"), &witness);
    for address in addresses {
        witness.talks_to(Some(&old), address);
    }
    del(&config, &old);
    let result = add(&config, &new);
    let mac = result["interfaces"][2]["mac"].as_str().unwrap_or_default();
    // The witness sends nothing: it learns of the new owner because that one says so.
    for address in addresses {
        harness::wait::until("the announcement", Duration::from_secs(5), || {
            let known = witness.neighbour(address).map(|mac| mac.to_string());
            if known.as_deref() == Some(mac) { Ok(()) } else { Err(format!("{address} is at {known:?}")) }
        });
    }
    for container in [&new, &witness] {
        del(&config, container);
    }
}

#[test]
fn every_version_gets_its_result_and_cleans_up() {
    let node = Node::new();
    let a = Container::new("a");
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let mut config = node.config(version);
        let result = add(&config, &a);
        assert_eq!(result["cniVersion"], version);
        let address = if version < "0.3.0" { &result["ip4"]["ip"] } else { &result["ips"][0]["address"] };
        assert!(address.as_str().is_some_and(|text| text.ends_with("/24")), "{version}: {result}");
        if version >= "0.4.0" {
            config["prevResult"] = result;
            assert_eq!(Call::new("CHECK", &config, &a).run("bridge"), Ok(Value::Null), "{version}");
        }
        del(&config, &a);
        assert_eq!(node.leases(), Vec::<String>::new(), "{version}");
    }
}

#[test]
fn check_notices_what_was_changed() {
    let node = Node::new();
    let a = Container::new("a");
    let mut config = node.config("1.0.0");
    config["prevResult"] = add(&config, &a);
    assert_eq!(Call::new("CHECK", &config, &a).run("bridge"), Ok(Value::Null));
    let message = |config: &Value| {
        let error = Call::new("CHECK", config, &a).run("bridge").expect_err("a difference");
        error["msg"].as_str().unwrap_or_default().to_owned()
    };
    block_on(async {
        let inside = Netlink::open_in(&a.netns).expect("a socket");
        let routes = inside.routes().await.expect("the routes");
        let default = routes.iter().find(|r| r.destination.prefix() == 0 && r.destination.is_ipv4());
        inside.del_route(default.expect("a default route")).await.expect("it is deleted");
    });
    assert!(message(&config).contains("Expected Route 0.0.0.0/0 not found"), "{}", message(&config));
    block_on(async {
        let inside = Netlink::open_in(&a.netns).expect("a socket");
        let routes = inside.routes().await.expect("the routes");
        for route in routes.iter().filter(|route| route.destination.is_ipv4()) {
            inside.del_route(route).await.expect("it is deleted");
        }
    });
    let gateway = "Failed to find Gateway 10.97.0.1 for interface eth0";
    assert!(message(&config).contains(gateway), "{}", message(&config));
    block_on(async {
        let inside = Netlink::open_in(&a.netns).expect("a socket");
        let link = inside.link("eth0").await.expect("the link");
        let address = "10.97.0.2/24".parse().expect("a network");
        inside.del_address(link.index, address).await.expect("it is deleted");
    });
    assert!(message(&config).contains("Failed to match addr 10.97.0.2/24"), "{}", message(&config));
    let port = host_links().into_iter().find(|link| link.is_kind("veth")).expect("the port");
    block_on(async {
        let host = Netlink::open().expect("a socket");
        let change = LinkChange { master: Some(None), ..LinkChange::default() };
        host.change_link(port.index, &change).await.expect("it leaves the bridge");
    });
    assert!(message(&config).contains("is not a port of bridge cni0"), "{}", message(&config));
    del(&config, &a);
    assert!(message(&config).contains("host-local: Failed to find address"), "{}", message(&config));
}

#[test]
fn switches_reach_the_kernel() {
    let node = Node::new();
    let a = Container::new("a");
    let mut config = node.config("1.0.0");
    config["mtu"] = json!(1400);
    config["hairpinMode"] = json!(true);
    config["portIsolation"] = json!(true);
    config["runtimeConfig"] = json!({"mac": "02:00:00:00:00:07", "ips": ["10.97.0.77/24"]});
    let result = add(&config, &a);
    assert_eq!(result["ips"][0]["address"], "10.97.0.77/24");
    let inside = a.link("eth0").expect("the link");
    assert_eq!(
        (inside.mtu, inside.mac.map(|mac| mac.to_string())),
        (1400, Some("02:00:00:00:00:07".to_owned()))
    );
    let links = host_links();
    let port = links.iter().find(|link| link.is_kind("veth")).expect("the port");
    assert_eq!(port.mtu, 1400);
    assert!(port.bridge_port.is_some_and(|port| port.hairpin && port.isolated));
    assert_eq!(port.alias.as_deref(), Some("cni:pods:a:eth0"));
    del(&config, &a);
}

#[test]
fn a_network_without_addresses_is_a_link_that_is_up() {
    let node = Node::new();
    let (a, b) = (Container::new("a"), Container::new("b"));
    let mut config = node.config("1.0.0");
    config["ipam"] = json!({});
    config["promiscMode"] = json!(true);
    let result = add(&config, &a);
    assert_eq!(result.get("ips"), None);
    assert!(a.link("eth0").is_some_and(|link| link.up));
    assert!(host_links().iter().any(|link| link.name == "cni0" && link.promiscuity > 0));
    config["disableContainerInterface"] = json!(true);
    add(&config, &b);
    assert!(b.link("eth0").is_some_and(|link| !link.up));
    for container in [&a, &b] {
        del(&config, container);
    }
}

#[test]
fn addresses_stay_on_a_link_that_is_down() {
    let node = Node::new();
    let a = Container::new("a");
    let config = node.config("1.0.0");
    add(&config, &a);
    let addresses = || {
        let state = a.state().into_iter();
        state.filter(|line| line.starts_with("address ")).collect::<Vec<_>>()
    };
    let before = addresses();
    assert!(before.contains(&"address fd97::2/64 on eth0".to_owned()), "{before:?}");
    block_on(async {
        let inside = Netlink::open_in(&a.netns).expect("a socket");
        let index = inside.link("eth0").await.expect("the link").index;
        inside.set_link_down(index).await.expect("it goes down");
    });
    assert_eq!(addresses(), before);
    del(&config, &a);
}

#[test]
fn routes_to_one_place_stand_beside_each_other() {
    let node = Node::new();
    let a = Container::new("a");
    let mut config = node.config("1.0.0");
    // The first is what the bridge as the default gateway comes to as well.
    config["ipam"]["routes"] = json!([
        {"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.97.0.8"}, {"dst": "10.9.0.0/16", "gw": "10.97.0.9"},
    ]);
    add(&config, &a);
    let routes: Vec<String> = a
        .state()
        .into_iter()
        .filter(|line| line.contains("/0 via Some(10.") || line.contains(" 10.9."))
        .collect();
    assert_eq!(
        routes,
        [
            "route 0.0.0.0/0 via Some(10.97.0.1) on eth0 table 254",
            "route 10.9.0.0/16 via Some(10.97.0.8) on eth0 table 254",
            "route 10.9.0.0/16 via Some(10.97.0.9) on eth0 table 254",
        ]
    );
    del(&config, &a);
}

#[test]
fn a_failed_add_leaves_nothing() {
    let node = Node::new();
    let (a, b) = (Container::new("a"), Container::new("b"));
    let mut narrow = node.config("1.0.0");
    narrow["ipam"]["ranges"] = json!([[{"subnet": "10.97.0.0/30"}]]);
    add(&narrow, &a);
    let before = (host_state(), b.state(), node.leases());
    let refused = |config: &Value, container: &Container, code: u32, message: &str| {
        let error = Call::new("ADD", config, container).run("bridge").expect_err(message);
        assert_eq!(error["code"], code, "{error}");
        assert!(error["msg"].as_str().is_some_and(|text| text.contains(message)), "{error}");
    };
    refused(&narrow, &b, 999, "no IP addresses available in range set: 10.97.0.1-10.97.0.2");
    let mut other = node.config("1.0.0");
    other["ipam"]["ranges"] = json!([[{"subnet": "10.98.0.0/24"}]]);
    let message =
        "\"cni0\" already has an IP address different from 10.98.0.1/24: 10.97.0.1/30 (forceAddress";
    refused(&other, &b, 999, message);
    other["ipam"]["type"] = json!("no-such-plugin");
    refused(&other, &b, 999, "failed to find plugin \"no-such-plugin\"");
    refused(&narrow, &a, 999, "container veth name provided (eth0) already exists");
    let mut elsewhere = node.config("1.0.0");
    elsewhere["bridge"] = json!("lo");
    refused(&elsewhere, &b, 999, "\"lo\" already exists but is not a bridge");
    let gone = Call { netns: "/run/netns/none", ..Call::new("ADD", &narrow, &b) };
    assert_eq!(gone.run("bridge").expect_err("no namespace")["code"], 8);
    assert_eq!((host_state(), b.state(), node.leases()), before);

    other["ipam"]["type"] = json!("host-local");
    other["forceAddress"] = json!(true);
    add(&other, &b);
    assert!(host_state().contains(&"address 10.98.0.1/24 on cni0".to_owned()));
    del(&other, &b);
    del(&narrow, &a);
}

#[test]
fn many_at_once_get_different_addresses() {
    let node = Node::new();
    let config = node.config("1.0.0");
    let containers: Vec<Container> = (0..50).map(|index| Container::new(&format!("c{index}"))).collect();
    let config = &config;
    let results: Vec<Value> = std::thread::scope(|scope| {
        let adding: Vec<_> = containers.iter().map(|c| scope.spawn(move || add(config, c))).collect();
        adding.into_iter().map(|thread| thread.join().expect("an attachment")).collect()
    });
    let addresses: std::collections::BTreeSet<IpAddr> =
        results.iter().map(|result| address(result, 0)).collect();
    assert_eq!(addresses.len(), containers.len());
    containers[0].talks_to(Some(&containers[15]), address(&results[15], 0));
    std::thread::scope(|scope| {
        for container in &containers {
            scope.spawn(move || del(config, container));
        }
    });
    assert_eq!(node.leases(), Vec::<String>::new());
    assert!(!host_links().iter().any(|link| link.is_kind("veth")));
}

#[test]
fn check_knows_both_of_two_routes_to_one_destination() {
    let node = Node::new();
    let a = Container::new("a");
    let mut config = node.config("1.0.0");
    let routes = [
        ("10.9.0.0/16", "10.97.0.8"),
        ("10.9.0.0/16", "10.97.0.9"),
        ("fd09::/64", "fd97::8"),
        ("fd09::/64", "fd97::9"),
    ];
    config["ipam"]["routes"] = routes.map(|(dst, gw)| json!({"dst": dst, "gw": gw})).into();
    config["prevResult"] = add(&config, &a);
    assert_eq!(Call::new("CHECK", &config, &a).run("bridge"), Ok(Value::Null));
    del(&config, &a);
}
