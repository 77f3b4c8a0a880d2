//! `firewall` after `bridge`: which packets pass, and what is left of it.

use std::{net::IpAddr, path::Path, process::Command};

use serde_json::{Value, json};

use super::{
    node::{Call, Container, Node, bin_dir, nft},
    outside::{OUTSIDE, Outside},
};

fn run(plugin: &str, verb: &str, config: &Value, container: &Container) -> Value {
    let answer = Call::new(verb, config, container).run(plugin);
    answer.unwrap_or_else(|error| panic!("{plugin} {verb}: {error}"))
}

/// A container on one of two bridges, with `firewall`'s configuration for it.
struct Guarded<'a> {
    container: &'a Container,
    bridge: Value,
    firewall: Value,
    addresses: [IpAddr; 2],
}

impl<'a> Guarded<'a> {
    fn new(node: &Node, container: &'a Container, bridge: u8, keys: Value) -> Self {
        Self::of_version(node, container, bridge, "1.1.0", keys)
    }

    /// `keys` go over the configuration.
    fn of_version(node: &Node, container: &'a Container, number: u8, version: &str, keys: Value) -> Self {
        let mut bridge = node.config(version);
        bridge["bridge"] = json!(format!("cni{number}"));
        bridge["name"] = json!(format!("net{number}"));
        bridge["ipam"]["ranges"] =
            json!([[{"subnet": format!("10.9{number}.0.0/24")}], [{"subnet": format!("fd9{number}::/64")}]]);
        let result = run("bridge", "ADD", &bridge, container);
        let mut firewall = json!({
            "cniVersion": version, "name": bridge["name"], "type": "firewall", "prevResult": result,
        });
        for (key, value) in keys.as_object().into_iter().flatten() {
            firewall[key] = value.clone();
        }
        let ip = |index: usize| {
            let text = result["ips"][index]["address"].as_str().and_then(|text| text.split('/').next());
            text.and_then(|text| text.parse().ok()).expect("an address")
        };
        let guarded = Self { container, bridge, addresses: [ip(0), ip(1)], firewall };
        assert_eq!(run("firewall", "ADD", &guarded.firewall, container), result);
        guarded
    }

    fn detach(mut self) {
        self.firewall.as_object_mut().expect("an object").remove("prevResult");
        run("firewall", "DEL", &self.firewall, self.container);
        run("bridge", "DEL", &self.bridge, self.container);
    }

    fn is_known_to(&self, neighbour: &Container) {
        self.container.is_known_to(neighbour, &self.addresses);
    }

    /// Both families must agree on whether packets pass while the rules of `policy` are there.
    fn hears(&self, from: &Container, policy: &str) -> bool {
        let rules = format!("flush ruleset\n{}", nft(&["list", "ruleset"]));
        let file = Path::new("/run/rules");
        std::fs::write(file, rules).expect("a file");
        let heard = self.addresses.map(|address| {
            let heard = self.container.first_heard(from, address, || drop(nft(&["flush", "ruleset"])));
            nft(&["-f", "/run/rules"]);
            heard == "before"
        });
        std::fs::remove_file(file).expect("it is removed");
        assert_eq!(heard[0], heard[1], "{policy}");
        heard[0]
    }
}

/// Whether the kernel knows by which bridge a frame came, as another program finds.
fn filters_by_bridge() -> bool {
    let probe =
        "add table bridge probe; add chain bridge probe a; add rule bridge probe a meta ibrname \"x\" drop;
                 delete table bridge probe";
    Command::new("nft").arg(probe).status().expect("nft starts").success()
}

/// The rules with comments, without those that only dispatch.
fn rules() -> Vec<String> {
    let text = nft(&["list", "ruleset"]);
    let lines = text.lines().map(str::trim).filter(|line| line.contains(" comment "));
    lines.filter(|line| !line.starts_with("jump")).map(str::to_owned).collect()
}

#[test]
fn each_policy_lets_its_packets_pass() {
    let node = Node::new();
    let outside = Outside::new();
    for (policy, between, within) in
        [("open", true, true), ("same-bridge", false, true), ("isolated", false, false)]
    {
        let [a, b, c] = ["a", "b", "c"].map(Container::new);
        let guard =
            |container, bridge| Guarded::new(&node, container, bridge, json!({"ingressPolicy": policy}));
        let (of_a, of_b, of_c) = (guard(&a, 1), guard(&b, 1), guard(&c, 2));
        of_b.is_known_to(&a);
        assert_eq!(of_b.hears(&a, policy), within, "{policy}: within a bridge");
        assert_eq!(of_c.hears(&a, policy), between, "{policy}: from one bridge to the other");
        assert_eq!(of_a.hears(&c, policy), between, "{policy}: back");
        // What does not come from a bridge is no business of the policy.
        assert!(of_a.hears(&outside.machine, policy), "{policy}: from outside");
        for address in OUTSIDE {
            a.talks_to(Some(&outside.machine), address.parse().expect("an address"));
        }
        // Nor is an open bridge kept from an isolated one.
        let d = Container::new("d");
        let of_d = Guarded::new(&node, &d, 3, json!({}));
        assert!(of_d.hears(&a, policy), "{policy}: to an open bridge");
        for guarded in [of_a, of_b, of_c, of_d] {
            // The rules have been saved and restored as text, and are still known by their comments.
            assert_eq!(run("firewall", "CHECK", &guarded.firewall, guarded.container), Value::Null);
            guarded.detach();
        }
        nft(&["flush", "ruleset"]);
    }
}

#[test]
fn neighbours_are_apart_without_the_bridges_help() {
    let node = Node::new();
    for switch in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        let switch = Path::new("/proc/sys/net/bridge").join(switch);
        if switch.exists() {
            std::fs::write(switch, "0").expect("it is off");
        }
    }
    let (a, b) = (Container::new("a"), Container::new("b"));
    let open = Guarded::new(&node, &a, 1, json!({}));
    let mut isolated = open.firewall.clone();
    isolated["ingressPolicy"] = json!("isolated");
    if !filters_by_bridge() {
        let error = Call::new("ADD", &isolated, &a).run("firewall").expect_err("the kernel cannot");
        assert!(error["details"].as_str().is_some_and(|text| text.contains("br_netfilter")), "{error}");
        open.detach();
        return harness::skip::skip("the kernel has no NFT_BRIDGE_META");
    }
    run("firewall", "ADD", &isolated, &a);
    let other = Guarded::new(&node, &b, 1, json!({"ingressPolicy": "isolated"}));
    let text = nft(&["list", "table", "bridge", "cni_firewall"]);
    for family in ["ip", "ip6"] {
        let rule =
            format!("meta ibrname \"cni1\" meta protocol {family} drop comment \"CNI firewall plugin rules");
        assert_eq!(text.matches(&rule).count(), 1, "{text}");
    }
    other.is_known_to(&a);
    assert!(!other.hears(&a, "isolated"));
    assert_eq!(run("firewall", "CHECK", &isolated, &a), Value::Null);
    // The rules have been saved and restored as text, and are still known by their comments.
    other.detach();
    open.detach();
    let left = nft(&["list", "ruleset"]);
    assert!(!["\"a\"", "\"b\""].iter().any(|id| left.contains(&format!("comment {id}"))), "{left}");
}

#[test]
fn the_administrator_comes_first() {
    let node = Node::new();
    let outside = Outside::new();
    let a = Container::new("a");
    let guarded =
        Guarded::new(&node, &a, 1, json!({"backend": "iptables", "iptablesAdminChainName": "MINE"}));
    for (address, word) in guarded.addresses.into_iter().zip(["ip", "ip6"]) {
        nft(&[&format!("add rule inet cni_firewall MINE {word} daddr {address} drop")]);
        let open = || drop(nft(&["flush", "chain", "inet", "cni_firewall", "MINE"]));
        assert_eq!(a.first_heard(&outside.machine, address, open), "after");
    }
    // Another ADD leaves the administrator's rules, and its own chain's place.
    nft(&["add rule inet cni_firewall MINE counter"]);
    let b = Container::new("b");
    let other = Guarded::new(&node, &b, 1, json!({}));
    let text = nft(&["list", "chain", "inet", "cni_firewall", "CNI-FORWARD"]);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| line.contains("comment")).collect();
    assert_eq!(
        lines[..2],
        [
            "jump CNI-ADMIN comment \"CNI firewall plugin admin overrides\"",
            "jump MINE comment \"CNI firewall plugin admin overrides\"",
        ]
    );
    assert!(nft(&["list", "chain", "inet", "cni_firewall", "MINE"]).contains("counter"));
    guarded.detach();
    other.detach();
}

#[test]
fn a_container_may_begin_and_be_answered() {
    let node = Node::new();
    let outside = Outside::new();
    let a = Container::new("a");
    let guarded = Guarded::new(&node, &a, 1, json!({}));
    // What the container's rules did not accept by then goes no further.
    nft(&["add rule inet cni_firewall forward drop"]);
    for (address, own) in OUTSIDE.into_iter().zip(guarded.addresses) {
        a.talks_to(Some(&outside.machine), address.parse().expect("an address"));
        let open = || {
            let b = Container::new("b");
            // The next ADD sets the way of packets right again.
            Guarded::new(&node, &b, 1, json!({})).detach();
        };
        assert_eq!(a.first_heard(&outside.machine, own, open), "after");
        nft(&["add rule inet cni_firewall forward drop"]);
    }
    guarded.detach();
}

#[test]
fn the_tables_hold_what_is_documented() {
    let node = Node::new();
    let (a, b) = (Container::new("a"), Container::new("b"));
    let keys = json!({"ingressPolicy": "isolated"});
    let (of_a, of_b) = (Guarded::new(&node, &a, 1, keys.clone()), Guarded::new(&node, &b, 1, keys));
    assert_eq!(
        nft(&["list", "table", "inet", "cni_firewall"]),
        "table inet cni_firewall {
\tcomment \"CNI firewall plugin\"
\tchain CNI-FORWARD {
\t\tjump CNI-ADMIN comment \"CNI firewall plugin admin overrides\"
\t\tip daddr 10.91.0.2 ct state established,related accept comment \"a\"
\t\tip saddr 10.91.0.2 accept comment \"a\"
\t\tip6 daddr fd91::2 ct state established,related accept comment \"a\"
\t\tip6 saddr fd91::2 accept comment \"a\"
\t\tip daddr 10.91.0.3 ct state established,related accept comment \"b\"
\t\tip saddr 10.91.0.3 accept comment \"b\"
\t\tip6 daddr fd91::3 ct state established,related accept comment \"b\"
\t\tip6 saddr fd91::3 accept comment \"b\"
\t}

\tchain CNI-ISOLATION-STAGE-1 {
\t\tiifname \"cni1\" oifname \"cni1\" drop comment \"CNI firewall plugin rules (ingressPolicy: isolated)\"
\t\tiifname \"cni1\" oifname != \"cni1\" jump CNI-ISOLATION-STAGE-2 comment \"CNI firewall plugin rules (ingressPolicy: isolated)\"
\t}

\tchain CNI-ISOLATION-STAGE-2 {
\t\toifname \"cni1\" drop comment \"CNI firewall plugin rules (ingressPolicy: isolated)\"
\t}

\tchain CNI-ADMIN {
\t}

\tchain forward {
\t\ttype filter hook forward priority filter; policy accept;
\t\tjump CNI-ISOLATION-STAGE-1 comment \"CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)\"
\t\tjump CNI-FORWARD comment \"CNI firewall plugin rules\"
\t}
}
"
    );
    let shared = rules().len() - 8;
    for _ in 0..2 {
        let alone =
            json!({"cniVersion": "1.1.0", "name": "net1", "type": "firewall", "backend": "firewalld"});
        run("firewall", "DEL", &alone, &a);
        assert_eq!(rules().len(), shared + 4);
        assert!(!rules().iter().any(|rule| rule.ends_with("comment \"a\"")), "{:?}", rules());
    }
    of_a.detach();
    of_b.detach();
    assert_eq!(rules().len(), shared);
}

#[test]
fn versions_from_0_4_0_pass_their_result_on() {
    let node = Node::new();
    let a = Container::new("a");
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let guarded = Guarded::of_version(&node, &a, 1, version, json!({"ingressPolicy": "same-bridge"}));
        assert_eq!(run("firewall", "CHECK", &guarded.firewall, &a), Value::Null);
        if version >= "1.1.0" {
            assert_eq!(run("firewall", "STATUS", &guarded.firewall, &a), Value::Null);
        }
        guarded.detach();
    }
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1"] {
        let config = json!({"cniVersion": version, "name": "net1", "type": "firewall"});
        for verb in ["ADD", "DEL"] {
            let error = Call::new(verb, &config, &a).run("firewall").expect_err("too old");
            assert_eq!((&error["code"], &error["msg"]), (&json!(1), &json!("incompatible CNI versions")));
        }
    }
    let mut question = Command::new(bin_dir().join("firewall"));
    let answer = question.env("CNI_COMMAND", "VERSION").output().expect("it starts").stdout;
    let answer: Value = serde_json::from_slice(&answer).expect("a document");
    assert_eq!(answer["supportedVersions"], json!(["0.4.0", "1.0.0", "1.1.0"]));
}

#[test]
fn a_failed_add_leaves_nothing() {
    let node = Node::new();
    let a = Container::new("a");
    let guarded = Guarded::new(&node, &a, 1, json!({}));
    nft(&["flush", "ruleset"]);
    let refused = |key: &str, value: Value, message: &str| {
        let mut config = guarded.firewall.clone();
        config[key] = value;
        let error = Call::new("ADD", &config, &a).run("firewall").expect_err(message);
        assert!(error["msg"].as_str().is_some_and(|text| text.contains(message)), "{error}");
    };
    refused("prevResult", Value::Null, "missing prevResult from earlier plugin");
    refused("backend", json!("firewalld"), "\"firewalld\" is not supported");
    refused("ingressPolicy", json!("closed"), "unknown ingress policy: \"closed\"");
    assert_eq!(nft(&["list", "ruleset"]), "");
    // Somebody's chain of this name is called elsewhere: the transaction fails.
    nft(&[
        "add table inet cni_firewall; add chain inet cni_firewall forward { type filter hook input priority 0; }",
    ]);
    let before = nft(&["list", "ruleset"]);
    refused(
        "backend",
        json!("iptables"),
        "failed to set up firewall rules: add chain inet cni_firewall forward",
    );
    assert_eq!(nft(&["list", "ruleset"]), before);
    guarded.detach();
}

#[test]
fn check_and_gc_know_whose_a_rule_is() {
    let node = Node::new();
    let [a, b, c] = ["a", "b", "c"].map(Container::new);
    let guard =
        |container, bridge| Guarded::new(&node, container, bridge, json!({"ingressPolicy": "isolated"}));
    let (of_a, of_b, of_c) = (guard(&a, 1), guard(&b, 1), guard(&c, 2));
    let mut collecting = of_b.firewall.clone();
    collecting["cni.dev/valid-attachments"] = json!([{"containerID": "b", "ifname": "eth0"}]);
    run("firewall", "GC", &collecting, &b);
    let count =
        |id: &str| rules().iter().filter(|rule| rule.ends_with(&format!(" comment \"{id}\""))).count();
    assert_eq!(["a", "b", "c"].map(count), [0, 4, 4]);
    let message = |guarded: &Guarded<'_>| {
        let error = Call::new("CHECK", &guarded.firewall, guarded.container).run("firewall");
        error.expect_err("a rule is missing")["msg"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(message(&of_a), "expected rule of container a not found");
    for guarded in [&of_b, &of_c] {
        assert_eq!(run("firewall", "CHECK", &guarded.firewall, guarded.container), Value::Null);
    }
    nft(&["flush", "chain", "inet", "cni_firewall", "CNI-ISOLATION-STAGE-2"]);
    assert_eq!(message(&of_c), "expected rule to cni2 not found");
    nft(&["flush", "chain", "inet", "cni_firewall", "forward"]);
    assert_eq!(message(&of_c), "expected rule CNI firewall plugin rules not found");
    for guarded in [of_a, of_b, of_c] {
        guarded.detach();
    }
}

#[test]
fn many_at_once_share_the_shared_rules() {
    let node = Node::new();
    let containers: Vec<Container> = (0..12).map(|index| Container::new(&format!("c{index}"))).collect();
    let node = &node;
    let guarded: Vec<Guarded<'_>> = std::thread::scope(|scope| {
        let guard = |container| {
            scope.spawn(move || Guarded::new(node, container, 1, json!({"ingressPolicy": "isolated"})))
        };
        let adding: Vec<_> = containers.iter().map(guard).collect();
        adding.into_iter().map(|thread| thread.join().expect("an attachment")).collect()
    });
    assert_eq!(rules().iter().filter(|rule| rule.contains("comment \"c")).count(), 48);
    // The next one takes away what was made twice.
    let last = Container::new("last");
    Guarded::new(node, &last, 1, json!({"ingressPolicy": "isolated"})).detach();
    let shared = rules().len() - 48;
    let unique: std::collections::BTreeSet<String> = rules().into_iter().collect();
    assert_eq!(unique.len(), rules().len());
    let admin = nft(&["list", "chain", "inet", "cni_firewall", "CNI-FORWARD"]);
    assert_eq!(admin.matches("jump CNI-ADMIN").count(), 1, "{admin}");
    std::thread::scope(|scope| {
        for guarded in guarded {
            scope.spawn(|| guarded.detach());
        }
    });
    assert_eq!(rules().len(), shared);
}
