//! `portmap`'s tables, and what CHECK, DEL and GC make of them.

use serde_json::{Value, json};

use super::{Published, rules, run};
use crate::host::node::{Call, Container, Node, nft};

#[test]
fn the_tables_are_the_references() {
    let node = Node::new();
    let a = Container::new("a");
    let mapping = |host: u16, inside: u16, protocol: &str, ip: &str| json!({"hostPort": host, "containerPort": inside, "protocol": protocol, "hostIP": ip});
    let mappings = json!({"portMappings": [
        mapping(8080, 80, "tcp", ""), mapping(8080, 81, "udp", ""), mapping(8088, 88, "sctp", ""),
        mapping(8083, 83, "tcp", "192.168.0.2"), mapping(8084, 84, "tcp", "0.0.0.0"),
        mapping(8085, 85, "tcp", "2001:db8:a::1"), mapping(8086, 86, "tcp", "::"),
    ]});
    let keys = json!({"runtimeConfig": mappings, "conditionsV4": ["ip", "saddr", "!=", "10.5.0.0/16"]});
    let published = Published::new(&node, &a, "1.0.0", keys);
    let of_family = |family: &str| nft(&["list", "table", family, "cni_hostport"]);
    assert_eq!(
        of_family("ip"),
        "table ip cni_hostport {
\tcomment \"CNI portmap plugin\"
\tchain hostports {
\t\ttcp dport 8080 dnat to 10.97.0.2:80 comment \"a\"
\t\tudp dport 8080 dnat to 10.97.0.2:81 comment \"a\"
\t\tsctp dport 8088 dnat to 10.97.0.2:88 comment \"a\"
\t\tip daddr 192.168.0.2 tcp dport 8083 dnat to 10.97.0.2:83 comment \"a\"
\t\ttcp dport 8084 dnat to 10.97.0.2:84 comment \"a\"
\t}

\tchain hostip_hostports {
\t}

\tchain hostports_all {
\t\tjump hostip_hostports
\t\tjump hostports
\t}

\tchain prerouting {
\t\ttype nat hook prerouting priority dstnat; policy accept;
\t\tip saddr != 10.5.0.0/16 fib daddr type local jump hostports_all
\t}

\tchain output {
\t\ttype nat hook output priority -100; policy accept;
\t\tip saddr != 10.5.0.0/16 fib daddr type local jump hostports_all
\t}

\tchain masquerading {
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tip saddr 10.97.0.2 ip daddr 10.97.0.2 masquerade comment \"a\"
\t\tip saddr 127.0.0.1 ip daddr 10.97.0.2 masquerade comment \"a\"
\t}
}
"
    );
    assert_eq!(
        of_family("ip6"),
        "table ip6 cni_hostport {
\tcomment \"CNI portmap plugin\"
\tchain hostports {
\t\ttcp dport 8080 dnat to [fd97::2]:80 comment \"a\"
\t\tudp dport 8080 dnat to [fd97::2]:81 comment \"a\"
\t\tsctp dport 8088 dnat to [fd97::2]:88 comment \"a\"
\t\tip6 daddr 2001:db8:a::1 tcp dport 8085 dnat to [fd97::2]:85 comment \"a\"
\t\ttcp dport 8086 dnat to [fd97::2]:86 comment \"a\"
\t}

\tchain hostip_hostports {
\t}

\tchain hostports_all {
\t\tjump hostip_hostports
\t\tjump hostports
\t}

\tchain prerouting {
\t\ttype nat hook prerouting priority dstnat; policy accept;
\t\tfib daddr type local jump hostports_all
\t}

\tchain output {
\t\ttype nat hook output priority -100; policy accept;
\t\tfib daddr type local jump hostports_all
\t}

\tchain masquerading {
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tip6 saddr fd97::2 ip6 daddr fd97::2 masquerade comment \"a\"
\t}
}
"
    );
    let switch = std::fs::read_to_string("/proc/sys/net/ipv4/conf/cni0/route_localnet").expect("the switch");
    assert_eq!(switch.trim(), "1");
    published.detach();
}

#[test]
fn every_version_passes_its_result_on() {
    let node = Node::new();
    let a = Container::new("a");
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let published = Published::new(&node, &a, version, json!({}));
        assert_eq!(rules().len(), 7, "{version}: {:?}", rules());
        if version >= "0.4.0" {
            assert_eq!(run("portmap", "CHECK", &published.portmap, &a), Value::Null);
        }
        if version >= "1.1.0" {
            assert_eq!(run("portmap", "STATUS", &published.portmap, &a), Value::Null);
        }
        published.detach();
        assert_eq!(rules(), Vec::<String>::new(), "{version}");
    }
}

#[test]
fn without_mappings_nothing_is_made() {
    let node = Node::new();
    let a = Container::new("a");
    let published = Published::new(&node, &a, "1.0.0", json!({"runtimeConfig": {}}));
    assert_eq!(nft(&["list", "ruleset"]), "");
    assert_eq!(run("portmap", "CHECK", &published.portmap, &a), Value::Null);
    let mut alone = published.portmap.clone();
    alone["prevResult"] = Value::Null;
    let message = |verb: &str, config: &Value| {
        let error = Call::new(verb, config, &a).run("portmap").expect_err("no result");
        (error["code"].clone(), error["msg"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(message("ADD", &alone), (json!(999), "must be called as chained plugin".to_owned()));
    assert_eq!(message("CHECK", &alone), (json!(999), "Required prevResult missing".to_owned()));
    alone["markMasqBit"] = json!(40);
    assert_eq!(message("ADD", &alone).1, "failed to parse config: MasqMarkBit must be between 0 and 31");
    assert_eq!(run("portmap", "DEL", &alone, &a), Value::Null);
    published.detach();
}

#[test]
fn check_counts_the_rules() {
    let node = Node::new();
    let a = Container::new("a");
    let published = Published::new(&node, &a, "1.0.0", json!({}));
    let message = || {
        let error = Call::new("CHECK", &published.portmap, &a).run("portmap").expect_err("a rule is missing");
        error["msg"].as_str().unwrap_or_default().to_owned()
    };
    nft(&["flush", "chain", "ip6", "cni_hostport", "masquerading"]);
    assert_eq!(message(), "missing hostport rules in \"masquerading\" chain");
    nft(&["flush", "chain", "ip", "cni_hostport", "hostports"]);
    assert_eq!(message(), "missing hostport rules in \"hostports\" chain");
    nft(&["flush", "ruleset"]);
    assert_eq!(message(), "missing hostport rules in \"hostports\" chain");
    published.detach();
}

#[test]
fn gc_deletes_lost_ports_of_its_network_only() {
    let node = Node::new();
    let containers = ["a", "b", "c"].map(Container::new);
    let [a, b, c] = &containers;
    let mut of_a = Published::new(&node, a, "1.1.0", json!({}));
    let of_b = Published::new(&node, b, "1.1.0", json!({}));
    let of_c = Published::new(&node, c, "1.1.0", json!({"name": "other"}));
    // As the reference plugin writes it: of which network cannot be told.
    nft(&["add rule ip cni_hostport hostports tcp dport 7 dnat to 10.97.0.7:7 comment \"z\""]);
    of_a.portmap["cni.dev/valid-attachments"] =
        json!([{"containerID": "b", "ifname": "eth0"}, {"containerID": "a", "ifname": "eth1"}]);
    run("portmap", "GC", &of_a.portmap, a);
    let count =
        |id: &str| rules().iter().filter(|rule| rule.ends_with(&format!(" comment \"{id}\""))).count();
    assert_eq!(["a", "b", "c", "z"].map(count), [0, 7, 7, 1]);
    // Another network's attachment of the same container is not taken along.
    let mut elsewhere = of_c.portmap.clone();
    elsewhere["name"] = json!("pods");
    run("portmap", "DEL", &elsewhere, c);
    assert_eq!(count("c"), 7);
    let reference = Call { container_id: "z", ..Call::new("DEL", &of_a.portmap, a) };
    assert_eq!(reference.run("portmap"), Ok(Value::Null));
    assert_eq!(count("z"), 0);
    for published in [of_a, of_b, of_c] {
        published.detach();
    }
    assert_eq!(rules(), Vec::<String>::new());
}

#[test]
fn many_at_once_keep_to_their_own_ports() {
    let node = Node::new();
    let containers: Vec<Container> = (0..12).map(|index| Container::new(&format!("c{index}"))).collect();
    let node = &node;
    let published: Vec<Published<'_>> = std::thread::scope(|scope| {
        let publish = |container| scope.spawn(move || Published::new(node, container, "1.1.0", json!({})));
        let adding: Vec<_> = containers.iter().map(publish).collect();
        adding.into_iter().map(|thread| thread.join().expect("an attachment")).collect()
    });
    assert_eq!(rules().len(), 7 * containers.len());
    let mut collecting = published[0].portmap.clone();
    collecting["cni.dev/valid-attachments"] = json!([]);
    std::thread::scope(|scope| {
        scope.spawn(|| run("portmap", "GC", &collecting, &containers[0]));
        for published in published {
            scope.spawn(|| published.detach());
        }
    });
    assert_eq!(rules(), Vec::<String>::new());
}
