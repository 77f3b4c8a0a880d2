//! `sbr` after `bridge`: packets leave by their source, tables and rules, failures, DEL.

use linux::netlink::{MAIN_TABLE, Netlink, Route, Rule};
use serde_json::{Value, json};

use super::node::{Call, Change, Container, Node, block_on};

const FIRST: &str = "10.97.0.2";

/// A container with links to two bridges, which share nothing.
struct Chain {
    node: Node,
    container: Container,
    bridge: Value,
    config: Value,
}

impl Chain {
    fn new() -> Self {
        let (node, container) = (Node::new(), Container::new("a"));
        let bridge = node.config("1.1.0");
        let result = Call::new("ADD", &bridge, &container).run("bridge").expect("an attachment");
        let config = json!({"cniVersion": "1.1.0", "name": "pods", "type": "sbr", "prevResult": result});
        Self { node, container, bridge, config }
    }

    fn run(&self, verb: &str) -> Result<Value, Value> {
        Call::new(verb, &self.config, &self.container).run("sbr")
    }

    fn rules(&self) -> Vec<Rule> {
        block_on(async {
            Netlink::open_in(&self.container.netns).expect("a socket").rules().await.expect("rules")
        })
    }

    fn routes(&self, table: u32) -> Vec<String> {
        let all = block_on(async {
            Netlink::open_in(&self.container.netns).expect("a socket").routes().await.expect("routes")
        });
        let text = |route: &Route| match route.gateway {
            Some(gateway) => format!("{} via {gateway}", route.destination),
            None => route.destination.to_string(),
        };
        let mut texts: Vec<String> = all.iter().filter(|route| route.table == table).map(text).collect();
        // Those to one destination stay in the kernel's order, which is that of its choice.
        texts.sort_by(|one, other| one.split(' ').next().cmp(&other.split(' ').next()));
        texts
    }

    /// Sources and tables of the rules that were made.
    fn sources(&self) -> Vec<String> {
        let source = |rule: &Rule| Some(format!("{} {}", rule.source?, rule.table));
        let mut sources: Vec<String> = self.rules().iter().filter_map(source).collect();
        sources.sort();
        sources
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        let del = Call::new("DEL", &self.bridge, &self.container).run("bridge");
        assert!(std::thread::panicking() || del == Ok(Value::Null), "{del:?}");
    }
}

#[test]
fn every_address_has_its_table() {
    let chain = Chain::new();
    let (rules, main) = (chain.rules(), chain.routes(MAIN_TABLE));
    assert_eq!(chain.run("ADD").as_ref(), Ok(&chain.config["prevResult"]));
    assert_eq!(chain.sources(), ["10.97.0.2/32 100", "fd97::2/128 101"]);
    assert_eq!(chain.routes(100), ["0.0.0.0/0 via 10.97.0.1", "10.97.0.0/24", "fd97::/64", "fe80::/64"]);
    assert_eq!(chain.routes(101), ["::/0 via fd97::1", "fd97::/64", "fe80::/64"]);
    assert_eq!(chain.routes(MAIN_TABLE), Vec::<String>::new());
    assert!(main.len() > 4, "{main:?}");
    assert_eq!(chain.run("CHECK"), Ok(Value::Null));
    // What says by which address it leaves gets through, to places that only the tables lead to.
    let reaches = |source: &str| {
        let source: std::net::IpAddr = source.parse().expect(source);
        let sent = chain.container.netns.run(|| {
            std::net::UdpSocket::bind((source, 0))
                .and_then(|socket| socket.send_to(b"hello", ("192.0.2.1", 9)))
        });
        sent.expect("a thread").is_ok()
    };
    assert!(reaches(FIRST) && !reaches("127.0.0.1"));
    for _ in 0..2 {
        assert_eq!(chain.run("DEL"), Ok(Value::Null));
        assert_eq!(chain.rules(), rules);
    }
    let error = chain.run("CHECK").expect_err("the rules are gone");
    assert_eq!(error["msg"], "no rule for source 10.97.0.2 found");
}

#[test]
fn routes_that_stand_beside_each_other_move_together() {
    let chain = Chain::new();
    block_on(async {
        let inside = Netlink::open_in(&chain.container.netns).expect("a socket");
        let link = Some(inside.link("eth0").await.expect("the link").index);
        for (to, gateway) in [
            ("10.99.0.0/16", "10.97.0.8"),
            ("10.99.0.0/16", "10.97.0.9"),
            ("fd09::/64", "fd97::8"),
            ("fd09::/64", "fd97::9"),
        ] {
            let to = Route::to(to.parse().expect("a network"));
            let route = Route { link, gateway: Some(gateway.parse().expect(gateway)), ..to };
            inside.add_route_beside(&route).await.expect("a route");
        }
    });
    let of = |table, to: &str| {
        let all = chain.routes(table).into_iter();
        all.filter(|route| route.starts_with(to)).collect::<Vec<_>>()
    };
    let pairs = ["10.99", "fd09"];
    let before = pairs.map(|to| of(MAIN_TABLE, to));
    assert_eq!(before[0], ["10.99.0.0/16 via 10.97.0.9", "10.99.0.0/16 via 10.97.0.8"]);
    assert_eq!(before[1], ["fd09::/64 via fd97::8", "fd09::/64 via fd97::9"]);
    chain.run("ADD").expect("a result");
    assert_eq!([of(100, pairs[0]), of(101, pairs[1])], before);
    assert_eq!(pairs.map(|to| of(MAIN_TABLE, to).len()), [0, 0]);
    assert_eq!(chain.run("DEL"), Ok(Value::Null));
}

#[test]
fn gateways_hints_and_foreign_tables_are_the_configurations() {
    let mut chain = Chain::new();
    chain.config["table"] = json!(5000);
    chain.run("ADD").expect("a result");
    assert_eq!(chain.sources(), ["10.97.0.2/32 5000", "fd97::2/128 5000"]);
    assert!(chain.routes(MAIN_TABLE).len() > 4);
    chain.config["table"] = json!(5001);
    assert_eq!(chain.run("DEL"), Ok(Value::Null));
    assert_eq!(chain.sources().len(), 2, "rules of another table stay");
    chain.config["table"] = json!(5000);
    assert_eq!(chain.run("DEL"), Ok(Value::Null));
    chain.config["table"] = Value::Null;
    chain.config["gateways"] = json!(["10.97.0.9", "fd97::9"]);
    chain.config["addSourceHints"] = json!(true);
    chain.run("ADD").expect("a result");
    assert_eq!(chain.routes(100)[0], "0.0.0.0/0 via 10.97.0.9");
    assert_eq!(chain.routes(101)[0], "::/0 via fd97::9");
    let main = chain.routes(MAIN_TABLE);
    assert!(main.contains(&"10.97.0.0/24".to_owned()) && main.contains(&"fd97::/64".to_owned()), "{main:?}");
    assert!(!main.iter().any(|route| route.contains("via")), "{main:?}");
    assert_eq!(chain.run("DEL"), Ok(Value::Null));
}

#[test]
fn rules_are_found_without_link_and_without_namespace() {
    let chain = Chain::new();
    let rules = chain.rules();
    chain.run("ADD").expect("a result");
    block_on(async {
        let inside = Netlink::open_in(&chain.container.netns).expect("a socket");
        let index = inside.link("eth0").await.expect("the link").index;
        inside.del_link(index).await.expect("it goes");
    });
    let gone = Call { netns: "/run/netns/none", ..Call::new("DEL", &chain.config, &chain.container) };
    assert_eq!(gone.run("sbr"), Ok(Value::Null));
    assert_eq!(chain.sources().len(), 2);
    assert_eq!(chain.run("DEL"), Ok(Value::Null));
    assert_eq!(chain.rules(), rules);
}

#[test]
fn a_failed_add_leaves_rules_and_routes_as_they_were() {
    let chain = Chain::new();
    let before = (chain.rules(), chain.container.state());
    let table: [(Change, u32, &str); 8] = [
        // A gateway that is on no network of the link: the step after the first rule fails.
        (|c| c["gateways"] = json!(["192.0.2.1"]), 999, "Failed to add default route"),
        (|c| c["gateways"] = json!(["10.97.0.9", "2001:db8::1"]), 999, "Failed to add default route"),
        (|c| c["gateways"] = json!(["x"]), 6, "key \"gateways[0]\": invalid IP address \"x\""),
        (
            |c| c["gateways"] = json!(["10.0.0.1", "10.0.0.2"]),
            7,
            "gateways list contains multiple IPv4 addresses: 10.0.0.1 and 10.0.0.2",
        ),
        (
            |c| c["gateways"] = json!(["10.0.0.1", "fd00::1", "fd00::2"]),
            7,
            "gateways list cannot contain more than 2 entries",
        ),
        (|c| c["table"] = json!("main"), 6, "key \"table\": expected a whole number"),
        (|c| c["prevResult"] = Value::Null, 7, "This plugin must be called as chained plugin"),
        (|c| c["prevResult"]["ips"] = json!([]), 999, "No IP addresses supplied on interface: eth0"),
    ];
    for (change, code, message) in table {
        let mut config = chain.config.clone();
        change(&mut config);
        let error = Call::new("ADD", &config, &chain.container).run("sbr").expect_err(message);
        assert_eq!(error["code"], code, "{error}");
        assert!(error["msg"].as_str().is_some_and(|text| text.contains(message)), "{error}");
        assert_eq!(error.get("details"), None, "{error}");
        assert_eq!((chain.rules(), chain.container.state()), before, "{message}");
    }
    assert_eq!(chain.node.leases().len(), 2);
}
