//! `vrf` after `bridge`, where the kernel has VRFs; and what it refuses anywhere.

use linux::netlink::{LinkKind, MAIN_TABLE, Netlink, NewLink};
use serde_json::{Value, json};

use super::node::{Call, Change, Container, Node, block_on, has_kind};

const BLUE: LinkKind = LinkKind::Vrf { table: 1000 };

/// Two links of one container, by `bridge`.
struct Links {
    node: Node,
    container: Container,
}

impl Links {
    fn new() -> Self {
        Self { node: Node::new(), container: Container::new("a") }
    }

    fn bridge(&self, verb: &str, ifname: &str) -> Result<Value, Value> {
        let mut config = self.node.config("1.1.0");
        config["ipam"]["routes"] = json!([{"dst": "10.9.0.0/16", "gw": "10.97.0.9"}, {"dst": "fd09::/64", "gw": "fd97::9"},
                {"dst": "fd09::/64", "gw": "fd97::8"}]);
        Call { ifname, ..Call::new(verb, &config, &self.container) }.run("bridge")
    }

    fn config(&self, result: Value) -> Value {
        json!({"cniVersion": "1.1.0", "name": "pods", "type": "vrf", "vrfname": "blue", "prevResult": result})
    }

    fn run(&self, verb: &str, config: &Value, ifname: &str) -> Result<Value, Value> {
        Call { ifname, ..Call::new(verb, config, &self.container) }.run("vrf")
    }

    /// Addresses and routes of the link, the tables' numbers replaced by their names.
    fn state(&self, table: u32) -> Vec<String> {
        let suffix = format!(" on eth0 table {table}");
        let lines = self.container.state().into_iter();
        let of_link = lines.filter_map(|line| match line.strip_suffix(&suffix) {
            Some(route) => Some(route.to_owned()),
            None => Some(line).filter(|line| line.starts_with("address ") && line.ends_with(" on eth0")),
        });
        of_link.collect()
    }
}

#[test]
fn a_link_keeps_addresses_and_routes_in_its_vrf() {
    let links = Links::new();
    if !has_kind(BLUE) {
        return;
    }
    let result = links.bridge("ADD", "eth0").expect("an attachment");
    links.bridge("ADD", "eth1").expect("an attachment");
    let before = links.state(MAIN_TABLE);
    assert!(before.iter().any(|line| line.starts_with("route 10.9.0.0/16")), "{before:?}");
    let mut config = links.config(result);
    assert_eq!(links.run("ADD", &config, "eth0").as_ref(), Ok(&config["prevResult"]));
    let vrf = links.container.link("blue").expect("the VRF");
    assert_eq!((vrf.settings, vrf.up), (Some(LinkKind::Vrf { table: 1 }), true));
    assert_eq!(links.container.link("eth0").and_then(|link| link.master), Some(vrf.index));
    assert_eq!(links.state(1), before);
    assert_eq!(links.run("CHECK", &config, "eth0"), Ok(Value::Null));
    let error = links.run("ADD", &config, "eth0").expect_err("it has a master");
    assert_eq!(error["msg"], "interface eth0 has already a master set: blue");
    let error = links.run("CHECK", &config, "eth1").expect_err("it is not in");
    assert_eq!(error["msg"], "failed to find eth1 associated to vrf blue");

    config["table"] = json!(5);
    let error = links.run("ADD", &config, "eth1").expect_err("another table");
    assert_eq!(error["msg"], "VRF blue already exist with different routing table 1");
    config["table"] = json!(1);
    links.run("ADD", &config, "eth1").expect("a result");
    assert_eq!(links.run("DEL", &config, "eth0"), Ok(Value::Null));
    assert_eq!(links.container.link("eth0").and_then(|link| link.master), None);
    assert!(links.container.link("blue").is_some());
    for _ in 0..2 {
        assert_eq!(links.run("DEL", &config, "eth1"), Ok(Value::Null));
        assert!(links.container.link("blue").is_none());
    }
    for ifname in ["eth0", "eth1"] {
        assert_eq!(links.bridge("DEL", ifname), Ok(Value::Null));
    }
}

#[test]
fn addresses_that_the_kernel_drops_come_back() {
    let links = Links::new();
    if !has_kind(BLUE) {
        return;
    }
    let result = links.bridge("ADD", "eth0").expect("an attachment");
    let before = links.state(MAIN_TABLE);
    let kept = "/proc/sys/net/ipv6/conf/eth0/keep_addr_on_down";
    let written = links.container.netns.run(|| std::fs::write(kept, "0"));
    written.expect("a thread").expect("a sysctl");
    let mut config = links.config(result);
    config["table"] = json!(77);
    links.run("ADD", &config, "eth0").expect("a result");
    assert_eq!(links.state(77), before);
    // Without a namespace there is nothing to leave.
    let gone = Call { netns: "", ..Call::new("DEL", &config, &links.container) };
    assert_eq!(gone.run("vrf"), Ok(Value::Null));
    assert!(links.container.link("blue").is_some());
    assert_eq!(links.run("DEL", &config, "eth0"), Ok(Value::Null));
    assert_eq!(links.bridge("DEL", "eth0"), Ok(Value::Null));
}

#[test]
fn a_failed_add_leaves_no_vrf() {
    let links = Links::new();
    if !has_kind(BLUE) {
        return;
    }
    let result = links.bridge("ADD", "eth0").expect("an attachment");
    // A link that may not join.
    let taken = links.config(result);
    block_on(async {
        let inside = Netlink::open_in(&links.container.netns).expect("a socket");
        inside.add_link(&NewLink::new("red", BLUE)).await.expect("a VRF");
    });
    let before = links.container.state();
    let error = links.run("ADD", &taken, "lo").expect_err("the loopback cannot join");
    assert!(
        error["msg"].as_str().is_some_and(|text| text.starts_with("could not set the vrf as master")),
        "{error}"
    );
    assert_eq!(links.container.state(), before);
    assert_eq!(links.bridge("DEL", "eth0"), Ok(Value::Null));
}

#[test]
fn impossible_configurations_say_why() {
    let links = Links::new();
    let result = links.bridge("ADD", "eth0").expect("an attachment");
    let before = links.container.state();
    let table: [(Change, u32, &str); 6] = [
        (|c| c["vrfname"] = json!(""), 7, "configuration is expected to have a valid vrf name"),
        (|c| c["vrfname"] = json!("a/b"), 7, "key \"vrfname\": invalid interface name \"a/b\""),
        (|c| c["table"] = json!(-1), 6, "key \"table\": -1 is out of range"),
        (|c| c["prevResult"] = Value::Null, 7, "missing prevResult from earlier plugin"),
        (|c| c["vrfname"] = json!("lo"), 999, "Netlink lo is not a VRF"),
        (|c| c["cniVersion"] = json!("0.3.0"), 1, "incompatible CNI versions"),
    ];
    for (change, code, message) in table {
        let mut config = links.config(result.clone());
        change(&mut config);
        let error = links.run("ADD", &config, "eth0").expect_err(message);
        assert_eq!(error["code"], code, "{error}");
        assert!(error["msg"].as_str().is_some_and(|text| text.contains(message)), "{error}");
        assert_eq!(links.container.state(), before, "{message}");
    }
    let mut config = links.config(result);
    assert_eq!(links.run("DEL", &config, "eth0"), Ok(Value::Null));
    config["vrfname"] = json!("lo");
    assert_eq!(links.run("DEL", &config, "eth0"), Ok(Value::Null));
    assert_eq!(links.bridge("DEL", "eth0"), Ok(Value::Null));
}
