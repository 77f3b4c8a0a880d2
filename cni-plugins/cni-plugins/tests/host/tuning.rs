//! `tuning` after `bridge`: sysctls, the link's properties and their return, CHECK, failures, the list of allowed ones.

use std::{fs, path::Path};

use linux::netlink::{Link, LinkChange, Netlink};
use serde_json::{Value, json};

use super::node::{Call, Container, Node, block_on};

/// An attachment of `bridge`, and the configuration that tunes it.
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
        let config = json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "tuning", "dataDir": node.path("tuning"),
            "prevResult": result,
        });
        Self { node, container, bridge, config }
    }

    fn run(&self, verb: &str) -> Result<Value, Value> {
        Call::new(verb, &self.config, &self.container).run("tuning")
    }

    fn link(&self) -> Link {
        self.container.link("eth0").expect("the link")
    }

    fn sysctl(&self, name: &str) -> String {
        let path = format!("/proc/sys/net/{name}");
        let read = self.container.netns.run(|| fs::read_to_string(&path).expect("a sysctl"));
        read.expect("a thread").trim().to_owned()
    }

    fn change(&self, change: &LinkChange<'_>) {
        let index = self.link().index;
        block_on(async {
            let inside = Netlink::open_in(&self.container.netns).expect("a socket");
            inside.change_link(index, change).await.expect("a change");
        });
    }

    fn backup(&self) -> Option<Value> {
        let text = fs::read(self.node.path("tuning/a_eth0.json")).ok()?;
        Some(serde_json::from_slice(&text).expect("a document"))
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        let del = Call::new("DEL", &self.bridge, &self.container).run("bridge");
        assert!(std::thread::panicking() || del == Ok(Value::Null), "{del:?}");
    }
}

#[test]
fn properties_are_set_and_restored() {
    let mut chain = Chain::new();
    let before = chain.link();
    chain.config["mac"] = json!("02:00:00:00:00:09");
    chain.config["mtu"] = json!(1400);
    chain.config["promisc"] = json!(true);
    chain.config["allmulti"] = json!(true);
    chain.config["txQLen"] = json!(77);
    let result = chain.run("ADD").expect("a result");
    assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:00:09");
    assert_eq!(result["interfaces"][1], chain.config["prevResult"]["interfaces"][1]);
    assert_eq!(result["ips"], chain.config["prevResult"]["ips"]);
    let link = chain.link();
    assert_eq!(link.mac.map(|mac| mac.to_string()).as_deref(), Some("02:00:00:00:00:09"));
    assert_eq!((link.mtu, link.promiscuity, link.all_multicast, link.tx_queue_len), (1400, 1, true, 77));
    let mac = before.mac.expect("an address").to_string();
    assert_eq!(
        chain.backup(),
        Some(json!({
            "mac": mac, "promisc": false, "mtu": 1500, "allmulti": false, "txQLen": before.tx_queue_len,
            "network": "pods", "containerID": "a", "ifname": "eth0",
        }))
    );
    chain.config["prevResult"] = result;
    assert_eq!(chain.run("CHECK"), Ok(Value::Null));
    // Tuned once more, the first values are still those to restore.
    chain.config["mtu"] = json!(1300);
    chain.run("ADD").expect("a result");
    assert_eq!(chain.link().mtu, 1300);
    for _ in 0..2 {
        assert_eq!(chain.run("DEL"), Ok(Value::Null));
        assert_eq!((chain.link(), chain.backup()), (before.clone(), None));
    }
}

#[test]
fn sysctls_are_those_of_the_container() {
    let mut chain = Chain::new();
    let host = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").expect("a sysctl");
    chain.config["sysctl"] = json!({
        "net.ipv4.ip_local_port_range": "20000 30000", "net/ipv4/conf/IFNAME/arp_filter": "1",
    });
    chain.config["args"] = json!({"cni": {"sysctl": {"net.ipv4.conf.all.log_martians": "1"}}});
    assert_eq!(chain.run("ADD").as_ref(), Ok(&chain.config["prevResult"]));
    assert_eq!(chain.sysctl("ipv4/ip_local_port_range"), "20000\t30000");
    assert_eq!(chain.sysctl("ipv4/conf/eth0/arp_filter"), "1");
    assert_eq!(chain.sysctl("ipv4/conf/all/log_martians"), "1");
    assert_eq!(fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").expect("a sysctl"), host);
    assert_eq!(chain.backup(), None);
    assert_eq!(chain.run("CHECK"), Ok(Value::Null));
    chain.config["sysctl"]["net/ipv4/conf/IFNAME/arp_filter"] = json!("0");
    let error = chain.run("CHECK").expect_err("another value");
    assert_eq!(
        error["msg"],
        "Error: Tuning configured value of /proc/sys/net/ipv4/conf/eth0/arp_filter is 0, current value is 1"
    );
}

#[test]
fn check_notices_what_was_changed() {
    let mut chain = Chain::new();
    chain.config["allmulti"] = json!(false);
    chain.config["mtu"] = json!(1400);
    chain.run("ADD").expect("a result");
    assert_eq!(chain.run("CHECK"), Ok(Value::Null));
    let noticed = |change: LinkChange<'_>, message: &str| {
        chain.change(&change);
        assert_eq!(
            chain.run("CHECK").expect_err(message)["msg"],
            format!("Error: Tuning configured {message}")
        );
    };
    let none = LinkChange::default;
    noticed(
        LinkChange { all_multicast: Some(true), ..none() },
        "all-multicast mode of eth0 is false, current value is true",
    );
    noticed(LinkChange { mtu: Some(1450), ..none() }, "MTU of eth0 is 1400, current value is 1450");
    noticed(
        LinkChange { promiscuous: Some(true), ..none() },
        "promisc of eth0 is false, current value is true",
    );
    chain.change(&LinkChange { promiscuous: Some(false), ..none() });
    assert_eq!(chain.run("DEL"), Ok(Value::Null));
}

#[test]
fn a_failed_add_changes_nothing() {
    let mut chain = Chain::new();
    let (before, filter) = (chain.link(), chain.sysctl("ipv4/conf/eth0/arp_filter"));
    chain.config["sysctl"] = json!({"net.ipv4.conf.IFNAME.arp_filter": "1"});
    chain.config["promisc"] = json!(true);
    let refused = |chain: &Chain, code: u32, message: &str| {
        let error = chain.run("ADD").expect_err(message);
        assert_eq!(error["code"], code, "{error}");
        assert!(error["msg"].as_str().is_some_and(|text| text.contains(message)), "{error}");
        let after = (chain.link(), chain.sysctl("ipv4/conf/eth0/arp_filter"), chain.backup());
        assert_eq!(after, (before.clone(), filter.clone(), None), "{message}");
    };
    chain.config["mtu"] = json!(10_000_000);
    refused(&chain, 999, "failed to set MTU of \"eth0\"");
    chain.config["mtu"] = json!(1400);
    chain.config["sysctl"]["net.ipv4.zz_none"] = json!("1");
    refused(&chain, 999, "failed to set sysctl /proc/sys/net/ipv4/zz_none: No such file");
    chain.config["sysctl"] = json!({"kernel.panic": "1"});
    refused(&chain, 7, "invalid net sysctl key: \"kernel/panic\"");
    chain.config["sysctl"] = json!({});
    let result = chain.config["prevResult"].take();
    refused(&chain, 7, "Required prevResult missing");
    chain.config["prevResult"] = result;
    let gone = Call { netns: "/run/netns/none", ..Call::new("ADD", &chain.config, &chain.container) };
    assert_eq!(gone.run("tuning").expect_err("no namespace")["code"], 8);
}

#[test]
fn only_what_is_on_the_list_may_be_set() {
    let mut chain = Chain::new();
    linux::mount::tmpfs(Path::new("/etc"), "mode=0755,size=1m").expect("a mount");
    fs::create_dir_all("/etc/cni/tuning").expect("a folder");
    fs::write("/etc/cni/tuning/allowlist.conf", "^net\\.core\\.\n").expect("a file");
    chain.config["sysctl"] = json!({"net.core.somaxconn": "77"});
    let allowed = (chain.run("STATUS"), chain.run("ADD"));
    chain.config["sysctl"]["net.ipv4.ip_forward"] = json!("1");
    let refused = (chain.run("STATUS"), chain.run("ADD"));
    linux::mount::detach(Path::new("/etc")).expect("unmount");
    assert_eq!(allowed.0, Ok(Value::Null));
    assert!(allowed.1.is_ok(), "{allowed:?}");
    assert_eq!(chain.sysctl("core/somaxconn"), "77");
    for answer in [refused.0, refused.1] {
        assert_eq!(
            answer.expect_err("not on the list")["msg"],
            "Sysctl net.ipv4.ip_forward is not allowed. Only the following sysctls are allowed: [^net\\.core\\.]"
        );
    }
}

#[test]
fn what_is_lost_is_found_by_its_file() {
    let mut chain = Chain::new();
    chain.config["mtu"] = json!(1400);
    chain.run("ADD").expect("a result");
    // Of another network, and of a plugin that does not say whose it is.
    for (name, text) in [
        ("b_eth0.json", r#"{"mtu": 1, "network": "other", "containerID": "b", "ifname": "eth0"}"#),
        ("c_eth0.json", r#"{"mtu": 1}"#),
    ] {
        fs::write(chain.node.path("tuning").join(name), text).expect("a file");
    }
    chain.config["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
    assert_eq!(chain.run("GC"), Ok(Value::Null));
    assert!(chain.backup().is_some());
    chain.config["cni.dev/valid-attachments"] = json!([]);
    assert_eq!(chain.run("GC"), Ok(Value::Null));
    assert!(chain.backup().is_none());
    assert_eq!(fs::read_dir(chain.node.path("tuning")).expect("a folder").count(), 2);
    // What cannot be read belongs to whom its name says; a killed ADD may leave a part beside its name.
    let names = ["a_eth0.json", "d_eth0.json", "e_e_eth0.json", ".f_eth0.json", "notes.json"];
    for name in names {
        fs::write(chain.node.path("tuning").join(name), "{\"mtu\":").expect("a file");
    }
    chain.config["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
    assert_eq!(chain.run("GC"), Ok(Value::Null));
    let is_there = names.map(|name| chain.node.path("tuning").join(name).exists());
    assert_eq!(is_there, [true, false, false, false, true]);
    chain.run("ADD").expect("a result");
    fs::write(chain.node.path("tuning/.a_eth0.json"), "").expect("a file");
    let unnamed = Call { netns: "", ..Call::new("DEL", &chain.config, &chain.container) };
    assert_eq!(unnamed.run("tuning"), Ok(Value::Null));
    assert!(chain.backup().is_none() && !chain.node.path("tuning/.a_eth0.json").exists());
}

#[test]
fn a_second_plugin_that_fails_leaves_what_the_first_kept() {
    let mut chain = Chain::new();
    let before = chain.link();
    chain.config["mtu"] = json!(1400);
    chain.run("ADD").expect("a result");
    let kept = chain.backup();
    chain.config["allmulti"] = json!(true);
    chain.config["mtu"] = json!(10_000_000);
    chain.run("ADD").expect_err("no link takes so much");
    assert_eq!((chain.link().mtu, chain.backup()), (1400, kept));
    assert_eq!(chain.run("DEL"), Ok(Value::Null));
    assert_eq!(chain.link(), before);
}

#[test]
fn values_are_never_half_written() {
    let mut chain = Chain::new();
    chain.config["mtu"] = json!(1400);
    chain.run("ADD").expect("a result");
    // Whoever has the old file open sees it whole after it was replaced.
    let mut old = fs::File::open(chain.node.path("tuning/a_eth0.json")).expect("the file");
    chain.config["allmulti"] = json!(true);
    chain.run("ADD").expect("a result");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut old, &mut text).expect("text");
    let old: Value = serde_json::from_str(&text).expect("a document");
    assert_eq!((&old["mtu"], old.get("allmulti")), (&json!(1500), None));
    assert_eq!(chain.backup().map(|new| new["allmulti"].clone()), Some(json!(false)));
    assert_eq!(chain.run("DEL"), Ok(Value::Null));
}

#[test]
fn what_cannot_be_restored_is_forgotten() {
    let mut chain = Chain::new();
    chain.config["mtu"] = json!(1400);
    chain.run("ADD").expect("a result");
    fs::write(chain.node.path("tuning/a_eth0.json"), r#"{"mtu": 10000000}"#).expect("a file");
    assert_eq!(chain.run("DEL"), Ok(Value::Null));
    assert_eq!((chain.link().mtu, chain.backup()), (1400, None));
}
