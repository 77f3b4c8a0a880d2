//! What is left of attachments whose runtime lost them: DEL without a namespace, GC, STATUS.

use cni_plugins::pair::{port_name, unfinished_group};
use linux::{
    netlink::{LinkChange, Netlink},
    netns,
};
use serde_json::{Value, json};

use super::{
    delegate::plugin,
    node::{Call, Container, Node, block_on, host_links},
};

fn ports() -> Vec<String> {
    let links = host_links().into_iter().filter(|link| link.is_kind("veth"));
    let mut aliases: Vec<String> = links.map(|link| link.alias.unwrap_or_default()).collect();
    aliases.sort();
    aliases
}

#[test]
fn del_finds_the_link_when_the_namespace_has_no_name_any_more() {
    let node = Node::new();
    let config = node.config("1.0.0");
    let (a, b) = (Container::new("a"), Container::new("b"));
    for container in [&a, &b] {
        Call::new("ADD", &config, container).run("bridge").expect("an attachment");
    }
    // Still alive by this test's handles, as by a process that hangs.
    netns::remove(a.netns.path()).expect("its name is removed");
    assert_eq!(Call::new("DEL", &config, &a).run("bridge"), Ok(Value::Null));
    assert_eq!(ports(), ["cni:pods:b:eth0"]);
    let unnamed = Call { netns: "", ..Call::new("DEL", &config, &b) };
    assert_eq!(unnamed.run("bridge"), Ok(Value::Null));
    assert_eq!(ports(), Vec::<String>::new());
    assert_eq!(node.leases(), Vec::<String>::new());
}

#[test]
fn gc_keeps_valid_attachments_only() {
    let node = Node::new();
    let mut config = node.config("1.1.0");
    let (keep, lost) = (Container::new("keep"), Container::new("lost"));
    for container in [&keep, &lost] {
        Call::new("ADD", &config, container).run("bridge").expect("an attachment");
    }
    assert_eq!(node.leases().len(), 4);
    let nothing_told = Call::new("GC", &config, &keep).run("bridge").expect_err("the list is missing");
    assert_eq!(nothing_told["code"], 6);
    config["cni.dev/valid-attachments"] = json!([{"containerID": "keep", "ifname": "eth0"}]);
    assert_eq!(Call::new("GC", &config, &keep).run("bridge"), Ok(Value::Null));
    assert_eq!(ports(), ["cni:pods:keep:eth0"]);
    assert_eq!(node.leases().len(), 2);
    assert!(lost.link("eth0").is_none());
    assert_eq!(Call::new("STATUS", &config, &keep).run("bridge"), Ok(Value::Null));
    assert_eq!(Call::new("DEL", &config, &keep).run("bridge"), Ok(Value::Null));
}

/// A DHCP server is told through the link; nobody else may get an address while a link carries it.
#[test]
fn gc_asks_dhcp_before_the_link_goes_and_others_after() {
    let node = Node::new();
    let a = Container::new("a");
    for (ipam, links) in [("dhcp", 1), ("fake", 0)] {
        let config = json!({"cniVersion": "1.1.0", "name": "pods", "type": "bridge"});
        Call::new("ADD", &config, &a).run("bridge").expect("an attachment");
        let mut config = config;
        config["ipam"] = json!({"type": ipam});
        config["cni.dev/valid-attachments"] = json!([]);
        let seen = node.path("seen");
        let path = plugin(&node, ipam, &format!("ip -o link show type veth | wc -l > {}", seen.display()));
        assert_eq!(Call { path: &path, ..Call::new("GC", &config, &a) }.run("bridge"), Ok(Value::Null));
        let seen = std::fs::read_to_string(seen).expect("it was asked");
        assert_eq!((seen.trim(), ports()), (links.to_string().as_str(), Vec::new()), "{ipam}");
    }
}

#[test]
fn gc_removes_what_a_killed_add_left() {
    let node = Node::new();
    let mut config = node.config("1.1.0");
    let a = Container::new("a");
    Call::new("ADD", &config, &a).run("bridge").expect("an attachment");
    let port = host_links().into_iter().find(|link| link.is_kind("veth")).expect("the port");
    assert_eq!((port.name, port.group), (port_name("pods", "a", "eth0"), 0));
    // As it was before it got its alias.
    block_on(async {
        let change = LinkChange {
            alias: Some(String::new()),
            group: Some(unfinished_group("pods")),
            ..LinkChange::default()
        };
        let host = Netlink::open().expect("a socket");
        host.change_link(port.index, &change).await.expect("a change");
    });
    let mut gc = |valid: Value| {
        config["cni.dev/valid-attachments"] = valid;
        assert_eq!(Call::new("GC", &config, &a).run("bridge"), Ok(Value::Null));
        ports().len()
    };
    assert_eq!(gc(json!([{"containerID": "a", "ifname": "eth0"}])), 1);
    assert_eq!(gc(json!([])), 0);
    assert_eq!(node.leases(), Vec::<String>::new());
}
