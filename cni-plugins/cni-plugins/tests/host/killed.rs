//! Plugins killed at random points of ADD and DEL, and what GC then leaves: nothing but what is valid.
//!
//! A runtime that was told nothing by a killed call either tries DEL or loses its memory; both happen here. `ORLOP_KILLS=NUMBER`
//! is the whole form with so many pairs of ADD and DEL.

use std::{
    io::Write,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::node::{Call, Container, Node, bin_dir, host_links, wait_for_plugins};

/// Pairs of ADD and DEL in a usual run.
const PAIRS: usize = 120;
const KILLS: &str = "ORLOP_KILLS";
const VALID: usize = 3;
/// The folder of what `tuning` remembers.
const TUNING: &str = "tuning";

struct Chain {
    plugins: Vec<(&'static str, Value)>,
    /// How long the longest call of each took: where a kill may strike.
    longest: Vec<[Duration; 2]>,
}

impl Chain {
    fn of(node: &Node, main: &'static str) -> Self {
        let mut link = node.config("1.1.0");
        link["type"] = json!(main);
        link["ipMasq"] = json!(true);
        match main {
            "bridge" => link["macspoofchk"] = json!(true),
            // `ptp` waits until an IPv6 address is found to be unique.
            _ => link["ipam"]["ranges"] = json!([[{"subnet": "10.97.0.0/24"}]]),
        }
        let common = |name: &str| json!({"cniVersion": "1.1.0", "name": "pods", "type": name});
        let (mut tuning, firewall) = (common("tuning"), common("firewall"));
        tuning["dataDir"] = json!(node.path(TUNING));
        tuning["mtu"] = json!(1400);
        tuning["sysctl"] = json!({"net.ipv4.conf.IFNAME.arp_filter": "1"});
        let (mut portmap, mut bandwidth) = (common("portmap"), common("bandwidth"));
        portmap["runtimeConfig"] = json!({"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        ]});
        bandwidth["runtimeConfig"] = json!({"bandwidth": {
            "ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000,
        }});
        let plugins = vec![
            (main, link),
            ("tuning", tuning),
            ("portmap", portmap),
            ("firewall", firewall),
            ("bandwidth", bandwidth),
        ];
        Self { longest: vec![[Duration::ZERO; 2]; plugins.len()], plugins }
    }

    /// The result of the chain; none when the call to be killed was killed.
    fn add(&mut self, container: &Container, killed: Option<usize>) -> Option<Value> {
        let mut result = Value::Null;
        for index in 0..self.plugins.len() {
            result = self.call("ADD", index, container, &result, killed == Some(index))?;
        }
        Some(result)
    }

    fn del(&mut self, container: &Container, result: &Value, killed: Option<usize>) -> Option<()> {
        for index in (0..self.plugins.len()).rev() {
            self.call("DEL", index, container, result, killed == Some(index))?;
        }
        Some(())
    }

    /// None when it was killed.
    fn call(
        &mut self,
        verb: &'static str,
        index: usize,
        container: &Container,
        result: &Value,
        killed: bool,
    ) -> Option<Value> {
        let (plugin, mut config) = self.plugins[index].clone();
        if !result.is_null() {
            config["prevResult"] = result.clone();
        }
        let longest = &mut self.longest[index][usize::from(verb == "DEL")];
        if killed {
            kill(&Call::new(verb, &config, container), plugin, longest.mul_f64(fastrand::f64()));
            return None;
        }
        let begin = Instant::now();
        let done = Call::new(verb, &config, container).run(plugin);
        *longest = (*longest).max(begin.elapsed()).min(Duration::from_millis(200));
        Some(done.unwrap_or_else(|error| panic!("{plugin} {verb} of {}: {error}", container.id)))
    }

    fn gc(&self, valid: &[Container]) {
        let kept: Vec<Value> =
            valid.iter().map(|kept| json!({"containerID": kept.id, "ifname": "eth0"})).collect();
        for (plugin, config) in &self.plugins {
            let mut config = config.clone();
            config["cni.dev/valid-attachments"] = json!(kept);
            assert_eq!(Call::new("GC", &config, &valid[0]).run(plugin), Ok(Value::Null), "{plugin}");
        }
    }
}

/// Starts a call and kills it after a while, wherever it is then. What it started goes on.
fn kill(call: &Call<'_>, plugin: &str, after: Duration) {
    let mut child = Command::new(bin_dir().join(plugin))
        .env("CNI_COMMAND", call.verb)
        .env("CNI_CONTAINERID", call.container_id)
        .env("CNI_NETNS", call.netns)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", bin_dir())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let mut stdin = child.stdin.take().expect("its standard input");
    stdin.write_all(call.config.to_string().as_bytes()).expect("it is not dead yet");
    drop(stdin);
    // No condition is waited for: this is the random point.
    std::thread::sleep(after);
    child.kill().expect("a signal");
    child.wait().expect("its end");
}

/// Rules that a container may have.
fn rules() -> Vec<String> {
    let output = Command::new("nft").args(["list", "ruleset"]).output().expect("nft runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let of_containers = ["dnat to", "comment", "ether saddr"];
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with("comment"));
    lines.filter(|line| of_containers.iter().any(|part| line.contains(part))).map(str::to_owned).collect()
}

/// All that attachments have on the host.
#[derive(Debug, PartialEq, Eq)]
struct Kept {
    leases: Vec<String>,
    rules: Vec<String>,
    /// Pairs and shapers.
    links: [usize; 2],
    /// Of `tuning`.
    files: usize,
}

impl Kept {
    fn on(node: &Node) -> Self {
        let links = host_links();
        let count = |kind: &str| links.iter().filter(|link| link.is_kind(kind)).count();
        let files = std::fs::read_dir(node.path(TUNING)).into_iter().flatten().count();
        Self { leases: node.leases(), rules: rules(), links: [count("veth"), count("ifb")], files }
    }
}

#[test]
fn nothing_but_valid_attachments_to_a_bridge_is_left() {
    kill_at_random("bridge");
}

#[test]
fn nothing_but_valid_pairs_is_left() {
    kill_at_random("ptp");
}

fn kill_at_random(main: &'static str) {
    let node = Node::new();
    let pairs = std::env::var(KILLS).ok().map_or(PAIRS, |text| text.parse().expect("a number"));
    let seed = fastrand::u64(..);
    println!("seed {seed}, {pairs} pairs");
    fastrand::seed(seed);
    let mut chain = Chain::of(&node, main);
    // One whole life first, which says how long each call takes, and makes what attachments share.
    let whole = Container::new("whole");
    let result = chain.add(&whole, None).expect("it is not killed");
    chain.del(&whole, &result, None).expect("it is not killed");
    let nothing = Kept::on(&node);
    assert_eq!((nothing.leases.len(), nothing.links, nothing.files), (0, [0, 0], 0));
    let valid: Vec<Container> = (0..VALID).map(|index| Container::new(&format!("valid{index}"))).collect();
    let results: Vec<Value> =
        valid.iter().map(|kept| chain.add(kept, None).expect("it is not killed")).collect();
    let expected = Kept::on(&node);
    assert_eq!((expected.links, expected.files), ([VALID, VALID], VALID));

    let mut lost = Vec::new();
    for index in 0..pairs {
        let container = Container::new(&format!("c{index}"));
        let victim = Some(fastrand::usize(..chain.plugins.len()));
        let result =
            if fastrand::bool() { chain.add(&container, victim) } else { chain.add(&container, None) };
        let forgets = fastrand::u8(..4) == 0;
        let deleted = match result {
            // The first try may be killed, too.
            Some(result) if fastrand::bool() => chain
                .del(&container, &result, victim)
                .or_else(|| (!forgets).then(|| chain.del(&container, &result, None)).flatten()),
            Some(result) => chain.del(&container, &result, None),
            None if forgets => None,
            None => {
                wait_for_plugins();
                chain.del(&container, &Value::Null, None)
            }
        };
        if deleted.is_none() {
            // Its namespace lives on, so that nothing goes with that.
            lost.push(container);
        }
    }
    assert!(!lost.is_empty());
    wait_for_plugins();
    chain.gc(&valid);
    assert_eq!(Kept::on(&node), expected);
    for (kept, result) in valid.iter().zip(&results) {
        for (plugin, mut config) in chain.plugins.clone() {
            config["prevResult"] = result.clone();
            assert_eq!(Call::new("CHECK", &config, kept).run(plugin), Ok(Value::Null), "{plugin}");
        }
        chain.del(kept, result, None).expect("it is not killed");
    }
    assert_eq!(Kept::on(&node), nothing);
}
