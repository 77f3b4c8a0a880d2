//! `ipMasq` of `bridge`: rules as the reference makes them, and who a machine outside believes to talk to.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{
    node::{Call, Container, Node, nft},
    outside::{HOST, OUTSIDE, Outside},
};

const TABLE: [&str; 4] = ["list", "table", "inet", "cni_plugins_masquerade"];
const OF_A: &str = "net: pods, if: eth0, id: a\"";
const OF_B: &str = "net: pods, if: eth0, id: b\"";

fn run(verb: &str, config: &Value, container: &Container) -> Value {
    Call::new(verb, config, container).run("bridge").unwrap_or_else(|error| panic!("{verb}: {error}"))
}

fn address(result: &Value, index: usize) -> IpAddr {
    let text = result["ips"][index]["address"].as_str().expect("an address");
    text.split('/').next().and_then(|ip| ip.parse().ok()).expect("an address")
}

/// The rules of the containers, one line each.
fn rules() -> Vec<String> {
    let text = nft(&TABLE);
    let lines = text.lines().map(str::trim).filter(|line| line.contains(" masquerade "));
    lines.map(str::to_owned).collect()
}

#[test]
fn what_leaves_the_network_has_the_hosts_address() {
    let node = Node::new();
    let outside = Outside::new();
    let (a, b) = (Container::new("a"), Container::new("b"));
    let mut config = node.config("1.0.0");
    let plain = run("ADD", &config, &b);
    config["ipMasq"] = json!(true);
    let result = run("ADD", &config, &a);
    for (index, (seen, to)) in HOST.into_iter().zip(OUTSIDE).enumerate() {
        let to = to.parse().expect("an address");
        assert_eq!(a.talks_to(Some(&outside.machine), to).to_string(), seen);
        assert_eq!(b.talks_to(Some(&outside.machine), to), address(&plain, index));
        assert_eq!(a.talks_to(Some(&b), address(&plain, index)), address(&result, index));
    }
    run("DEL", &config, &a);
    config["ipMasq"] = json!(false);
    run("DEL", &config, &b);
}

#[test]
fn the_table_is_the_references() {
    let node = Node::new();
    let (a, b) = (Container::new("a"), Container::new("b"));
    let mut config = node.config("1.0.0");
    config["ipMasq"] = json!(true);
    for container in [&a, &b] {
        run("ADD", &config, container);
    }
    assert_eq!(
        nft(&TABLE),
        "table inet cni_plugins_masquerade {
\tcomment \"Masquerading for plugins from github.com/containernetworking/plugins\"
\tchain masq_checks {
\t\tcomment \"Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet\"
\t\tip saddr 10.97.0.2 ip daddr != 10.97.0.0/24 masquerade comment \"aa9217ce5dd9862e-a193fd394fc69048, net: pods, if: eth0, id: a\"
\t\tip6 saddr fd97::2 ip6 daddr != fd97::/64 masquerade comment \"aa9217ce5dd9862e-a193fd394fc69048, net: pods, if: eth0, id: a\"
\t\tip saddr 10.97.0.3 ip daddr != 10.97.0.0/24 masquerade comment \"aa9217ce5dd9862e-705ab526e1b0362f, net: pods, if: eth0, id: b\"
\t\tip6 saddr fd97::3 ip6 daddr != fd97::/64 masquerade comment \"aa9217ce5dd9862e-705ab526e1b0362f, net: pods, if: eth0, id: b\"
\t}

\tchain postrouting {
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tip daddr 224.0.0.0/4 return
\t\tip6 daddr ff00::/8 return
\t\tgoto masq_checks
\t}
}
"
    );
    run("DEL", &config, &a);
    assert!(rules().len() == 2 && rules().iter().all(|rule| rule.contains(OF_B)), "{:?}", rules());
    // Without a namespace, and again.
    for _ in 0..2 {
        let unnamed = Call { netns: "", ..Call::new("DEL", &config, &b) };
        assert_eq!(unnamed.run("bridge"), Ok(Value::Null));
        assert_eq!(rules(), Vec::<String>::new());
    }
    assert_eq!(nft(&["list", "chains"]).matches("chain ").count(), 2);
}

#[test]
fn gc_deletes_the_rules_of_lost_attachments_of_its_network() {
    let node = Node::new();
    let (a, b) = (Container::new("a"), Container::new("b"));
    let mut config = node.config("1.1.0");
    config["ipMasq"] = json!(true);
    for container in [&a, &b] {
        run("ADD", &config, container);
    }
    let foreign =
        "add rule inet cni_plugins_masquerade masq_checks ip saddr 10.9.0.9 masquerade comment \"x\"";
    nft(&[foreign]);
    config["cni.dev/valid-attachments"] = json!([{"containerID": "b", "ifname": "eth0"}]);
    run("GC", &config, &b);
    let left = rules();
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(!left.iter().any(|rule| rule.contains(OF_A)), "{left:?}");
    run("DEL", &config, &b);
}

#[test]
fn rules_go_though_the_link_cannot() {
    let node = Node::new();
    let a = Container::new("a");
    let mut config = node.config("1.1.0");
    config["ipMasq"] = json!(true);
    config["macspoofchk"] = json!(true);
    run("ADD", &config, &a);
    for plugin in ["bridge", "ptp"] {
        // A namespace, but of another kind.
        let call = Call { netns: "/proc/self/ns/mnt", ..Call::new("DEL", &config, &a) };
        let error = call.run(plugin).expect_err("nobody can look there for the link");
        assert!(
            error["msg"].as_str().is_some_and(|text| text.contains("enter network namespace")),
            "{error}"
        );
        assert_eq!((rules().len(), node.leases().len()), (0, 2));
        // It may still send: its guard and its addresses stay.
        assert!(nft(&["list", "ruleset"]).contains("macspoofchk"));
        assert!(a.link("eth0").is_some());
    }
    run("DEL", &config, &a);
    assert!(!nft(&["list", "ruleset"]).contains("macspoofchk"));
    assert_eq!(node.leases(), Vec::<String>::new());
}

#[test]
fn check_misses_a_rule_where_the_backend_is_certain() {
    let node = Node::new();
    let a = Container::new("a");
    let mut config = node.config("1.0.0");
    config["ipMasq"] = json!(true);
    config["ipMasqBackend"] = json!("nftables");
    config["prevResult"] = run("ADD", &config, &a);
    run("CHECK", &config, &a);
    nft(&["flush", "chain", "inet", "cni_plugins_masquerade", "masq_checks"]);
    let error = Call::new("CHECK", &config, &a).run("bridge").expect_err("a rule is missing");
    assert_eq!(error["msg"], "rules that masquerade a not found");
    for backend in [json!(null), json!("iptables")] {
        config["ipMasqBackend"] = backend;
        run("CHECK", &config, &a);
    }
    run("DEL", &config, &a);
}

#[test]
fn a_failed_add_leaves_no_rule() {
    let node = Node::new();
    let a = Container::new("a");
    let mut config = node.config("1.0.0");
    config["ipMasq"] = json!(true);
    config["ipMasqBackend"] = json!("ebtables");
    let error = Call::new("ADD", &config, &a).run("bridge").expect_err("no such backend");
    assert_eq!(
        (&error["code"], &error["msg"]),
        (&json!(999), &json!("unknown ipmasq backend \"ebtables\": expected \"nftables\" or \"iptables\""))
    );
    assert!(a.link("eth0").is_none());
    config["ipMasqBackend"] = json!("iptables");
    run("ADD", &config, &a);
    assert_eq!(rules().len(), 2);
    // The link is there, so this ADD fails before it does anything that counts.
    Call::new("ADD", &config, &a).run("bridge").expect_err("a second one");
    run("DEL", &config, &a);
    assert_eq!((rules().len(), node.leases().len()), (0, 0));
}

#[test]
fn what_an_earlier_attempt_left_is_replaced() {
    let node = Node::new();
    let a = Container::new("a");
    let mut config = node.config("1.0.0");
    config["ipMasq"] = json!(true);
    nft(&["add table inet cni_plugins_masquerade; add chain inet cni_plugins_masquerade masq_checks;
          add rule inet cni_plugins_masquerade masq_checks ip saddr 10.97.0.99 masquerade \
          comment \"aa9217ce5dd9862e-a193fd394fc69048, net: pods, if: eth0, id: a\""]);
    run("ADD", &config, &a);
    assert!(rules().len() == 2 && rules()[0].starts_with("ip saddr 10.97.0.2 "), "{:?}", rules());
    run("DEL", &config, &a);
}

#[test]
fn many_at_once_keep_to_their_own_rules() {
    let node = Node::new();
    let mut config = node.config("1.1.0");
    config["ipMasq"] = json!(true);
    config["macspoofchk"] = json!(true);
    let containers: Vec<Container> = (0..16).map(|index| Container::new(&format!("c{index}"))).collect();
    let config = &config;
    let all = |verb: &'static str, containers: &[Container]| {
        std::thread::scope(|scope| {
            for container in containers {
                scope.spawn(move || run(verb, config, container));
            }
        });
    };
    all("ADD", &containers);
    assert_eq!(rules().len(), 32);
    let (first, second) = containers.split_at(8);
    let mut collecting = config.clone();
    let kept = second.iter().map(|container| json!({"containerID": container.id, "ifname": "eth0"}));
    collecting["cni.dev/valid-attachments"] = kept.collect();
    std::thread::scope(|scope| {
        scope.spawn(|| run("GC", &collecting, &second[0]));
        all("DEL", first);
    });
    assert_eq!(rules().len(), 16);
    assert_eq!(nft(&["list", "chain", "bridge", "nat", "PREROUTING"]).matches("macspoofchk-").count(), 8);
    all("DEL", second);
    assert!(rules().is_empty() && !nft(&["list", "ruleset"]).contains("macspoofchk"));
}
