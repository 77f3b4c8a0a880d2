//! `macspoofchk` of `bridge`: rules as the reference makes them, and frames with a foreign sender.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    process::Command,
};

use linux::netlink::{LinkChange, Netlink};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use super::node::{Call, Container, Node, PACKET_LIMIT, block_on, host_links, nft};

const PORT: u16 = 5005;

fn run(verb: &str, config: &Value, container: &Container) -> Value {
    Call::new(verb, config, container).run("bridge").unwrap_or_else(|error| panic!("{verb}: {error}"))
}

fn guarded(node: &Node, version: &str) -> Value {
    let mut config = node.config(version);
    config["macspoofchk"] = json!(true);
    config
}

fn port() -> String {
    host_links().into_iter().find(|link| link.is_kind("veth")).expect("the port").name
}

/// Sends a broadcast by a link of the container.
fn broadcast(container: &Container, link: &str, text: &str) {
    let socket = container.netns.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).expect("a socket");
        socket.bind_device(Some(link.as_bytes())).expect("it is bound");
        socket.set_broadcast(true).expect("it may broadcast");
        socket
    });
    let to = SocketAddr::from((Ipv4Addr::BROADCAST, PORT));
    socket.expect("a thread").send_to(text.as_bytes(), &to.into()).expect("a datagram");
}

/// The first datagram that reaches `to` when `from` sends one from a foreign hardware address, then one from its own.
fn first_heard(from: &Container, to: &Container) -> String {
    let spoofs = [
        "link add spoof link eth0 type macvlan mode bridge",
        "addr add 10.97.0.200/24 dev spoof",
        "link set spoof up",
    ];
    for command in spoofs {
        let words = ["-n", from.id.as_str()].into_iter().chain(command.split(' '));
        assert!(Command::new("ip").args(words).status().expect("ip starts").success(), "{command}");
    }
    let receiver = to.netns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))).expect("a thread");
    let receiver = receiver.expect("a socket");
    receiver.set_read_timeout(Some(PACKET_LIMIT)).expect("a limit");
    broadcast(from, "spoof", "foreign");
    broadcast(from, "eth0", "own");
    let mut text = [0; 16];
    let length = receiver.recv(&mut text).expect("a datagram");
    String::from_utf8_lossy(&text[..length]).into_owned()
}

#[test]
fn only_frames_from_the_own_address_pass() {
    let node = Node::new();
    for (config, expected) in [(node.config("1.0.0"), "foreign"), (guarded(&node, "1.0.0"), "own")] {
        let (a, b) = (Container::new("a"), Container::new("b"));
        run("ADD", &config, &a);
        let result = run("ADD", &config, &b);
        assert_eq!(first_heard(&a, &b), expected);
        let address = result["ips"][0]["address"].as_str().and_then(|text| text.split('/').next());
        a.talks_to(Some(&b), address.and_then(|text| text.parse().ok()).expect("an address"));
        for container in [&a, &b] {
            run("DEL", &config, container);
        }
    }
}

#[test]
fn the_table_is_the_references() {
    let node = Node::new();
    let a = Container::new("a");
    let config = guarded(&node, "1.0.0");
    let result = run("ADD", &config, &a);
    let (port, mac) = (port(), result["interfaces"][2]["mac"].as_str().unwrap_or_default().to_owned());
    let table = ["list", "table", "bridge", "nat"];
    assert_eq!(
        nft(&table),
        format!(
            "table bridge nat {{
\tchain PREROUTING {{
\t\ttype filter hook prerouting priority dstnat; policy accept;
\t\tiifname \"{port}\" jump cni-br-iface-a-eth0 comment \"macspoofchk-a-eth0\"
\t}}

\tchain cni-br-iface-a-eth0 {{
\t\tjump cni-br-iface-a-eth0-mac comment \"macspoofchk-a-eth0\"
\t}}

\tchain cni-br-iface-a-eth0-mac {{
\t\tether saddr {mac} return comment \"macspoofchk-a-eth0\"
\t\tdrop comment \"macspoofchk-a-eth0\"
\t}}
}}
"
        )
    );
    let empty = "table bridge nat {
\tchain PREROUTING {
\t\ttype filter hook prerouting priority dstnat; policy accept;
\t}
}
";
    for _ in 0..2 {
        run("DEL", &config, &a);
        assert_eq!(nft(&table), empty);
    }
}

#[test]
fn what_the_reference_left_half_done_is_replaced() {
    let node = Node::new();
    let a = Container::new("a");
    let config = guarded(&node, "1.0.0");
    let ports = cni_plugins::pair::port_name("pods", "a", "eth0");
    nft(&[&format!(
        "add table bridge nat; add chain bridge nat PREROUTING {{ type filter hook prerouting priority -300; }};
         add chain bridge nat cni-br-iface-a-eth0; add chain bridge nat cni-br-iface-a-eth0-mac;
         add chain bridge nat cni-br-iface-z-eth0; add rule bridge nat cni-br-iface-z-eth0 drop;
         add rule bridge nat cni-br-iface-a-eth0 jump cni-br-iface-a-eth0-mac;
         add rule bridge nat PREROUTING iifname vethold jump cni-br-iface-a-eth0 comment \"macspoofchk-a-eth0\";
         add rule bridge nat PREROUTING iifname {ports} jump cni-br-iface-z-eth0 comment \"macspoofchk-z-eth0\";
         add rule bridge nat PREROUTING iifname {ports} counter comment \"somebody's\""
    )]);
    run("ADD", &config, &a);
    let text = nft(&["list", "chain", "bridge", "nat", "PREROUTING"]);
    let rules: Vec<&str> = text.lines().map(str::trim).filter(|line| line.starts_with("iifname")).collect();
    assert_eq!(rules.len(), 2, "{text}");
    assert!(rules[0].contains("somebody's") && rules[1].contains("jump cni-br-iface-a-eth0 "), "{text}");
    run("DEL", &config, &a);
}

#[test]
fn gc_deletes_what_guards_a_link_that_is_gone() {
    let node = Node::new();
    let mut config = guarded(&node, "1.1.0");
    let (a, b) = (Container::new("a"), Container::new("b"));
    for container in [&a, &b] {
        run("ADD", &config, container);
    }
    // Of another network, which this GC knows nothing of.
    let other = Container::new("other");
    let mut foreign = guarded(&node, "1.1.0");
    foreign["name"] = json!("other");
    foreign["ipam"] = json!({});
    run("ADD", &foreign, &other);
    config["cni.dev/valid-attachments"] = json!([{"containerID": "b", "ifname": "eth0"}]);
    run("GC", &config, &b);
    let text = nft(&["list", "table", "bridge", "nat"]);
    for (id, stays) in [("a", false), ("b", true), ("other", true)] {
        assert_eq!(text.contains(&format!("macspoofchk-{id}-eth0")), stays, "{id}: {text}");
        assert_eq!(text.contains(&format!("chain cni-br-iface-{id}-eth0-mac {{")), stays, "{id}: {text}");
    }
    // A valid attachment's guard stays though its link is gone: CHECK is to tell, and DEL to clean up.
    block_on(async {
        let inside = Netlink::open_in(&b.netns).expect("a socket");
        let link = inside.link("eth0").await.expect("the link");
        inside.del_link(link.index).await.expect("it is deleted");
    });
    run("GC", &config, &b);
    assert!(nft(&["list", "table", "bridge", "nat"]).contains("macspoofchk-b-eth0"));
    run("DEL", &config, &b);
    run("DEL", &foreign, &other);
}

#[test]
fn check_misses_the_guard() {
    let node = Node::new();
    let a = Container::new("a");
    let mut config = guarded(&node, "1.0.0");
    config["prevResult"] = run("ADD", &config, &a);
    run("CHECK", &config, &a);
    nft(&["flush", "chain", "bridge", "nat", "PREROUTING"]);
    let error = Call::new("CHECK", &config, &a).run("bridge").expect_err("the guard is missing");
    assert_eq!(error["msg"], format!("rules of the spoof-check of interface {} not found", port()));
    run("DEL", &config, &a);
}

#[test]
fn a_container_without_its_link_loses_its_rules() {
    let node = Node::new();
    let a = Container::new("a");
    let config = guarded(&node, "1.0.0");
    run("ADD", &config, &a);
    block_on(async {
        let inside = Netlink::open_in(&a.netns).expect("a socket");
        let link = inside.link("eth0").await.expect("the link");
        // Before 6.2 a link that is up keeps its name.
        inside.set_link_down(link.index).await.expect("it is down");
        let renamed = LinkChange { name: Some("eth9".to_owned()), ..LinkChange::default() };
        inside.change_link(link.index, &renamed).await.expect("a change");
        inside.del_link(link.index).await.expect("it is deleted");
    });
    run("DEL", &config, &a);
    assert!(!nft(&["list", "ruleset"]).contains("macspoofchk"));
}
