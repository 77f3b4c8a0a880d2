//! What the system's own tools say of one network namespace, as they say it.
//!
//! There are thousands of looks, so one asks few processes, side by side, and each of them several questions.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Child, Command, Stdio},
};

use linux::netns::Netns;
use serde_json::{Value, json};

use super::{
    observe::{is_random_mac, text},
    twin::{NAMESPACES, find},
};

/// Folders of `/proc/sys/net`: what belongs to a namespace.
const SWITCHES: [&str; 3] = ["core", "ipv4", "ipv6"];
/// Random, or of the whole machine.
const SWITCH_NOISE: [&str; 2] = ["stable_secret", "random"];

/// See the module.
#[derive(Debug, Default)]
pub struct Look {
    pub links: Vec<Value>,
    pub routes: Vec<Value>,
    /// Everything else that comes as objects, with the name of its kind.
    pub others: Vec<(&'static str, Value)>,
    pub ruleset: String,
    /// Path and value.
    pub switches: Vec<String>,
}

/// Looks around in a namespace of the twin.
pub fn look(namespace: &str) -> Look {
    let netns = Netns::open(Path::new(NAMESPACES).join(namespace)).expect("a namespace");
    netns.run(look_around).expect("a thread in the namespace")
}

fn look_around() -> Look {
    const KINDS: [&str; 6] = ["links", "neighbours", "routes", "rules", "routes", "rules"];
    let ipv4 = "addr show\nneigh show nud permanent\nroute show table all\nrule show\n";
    let ipv4 = start("ip", &["-j", "-d"], ipv4);
    let ipv6 = start("ip", &["-j", "-d", "-6"], "route show table all\nrule show\n");
    let queueing = start("tc", &["-j"], "qdisc show\n");
    let ruleset = Command::new(find("nft")).args(["-s", "list", "ruleset"]).stdout(Stdio::piped()).spawn();
    let mut look = Look::default();
    for folder in SWITCHES {
        switches(&Path::new("/proc/sys/net").join(folder), &mut look.switches);
    }
    for (kind, values) in KINDS.into_iter().zip(end(ipv4).into_iter().chain(end(ipv6))) {
        match kind {
            "links" => look.links = values,
            "routes" => look.routes.extend(values),
            kind => look.others.extend(values.into_iter().map(|value| (kind, value))),
        }
    }
    let qdiscs: Vec<Value> = end(queueing).into_iter().flatten().collect();
    look.others.extend(filters_and_classes(&qdiscs));
    look.others.extend(qdiscs.into_iter().map(|value| ("qdiscs", value)));
    if look.links.iter().any(|link| link.pointer("/linkinfo/info_kind").is_some_and(|kind| kind == "bridge"))
    {
        look.others.extend(forwarding());
    }
    let ruleset = ruleset.and_then(Child::wait_with_output).expect("nft runs");
    look.ruleset = String::from_utf8_lossy(&ruleset.stdout).into_owned();
    look
}

/// Of links that queue in a way of their own. The tool does not say which link they are of.
fn filters_and_classes(qdiscs: &[Value]) -> Vec<(&'static str, Value)> {
    let mut found = Vec::new();
    for qdisc in qdiscs.iter().filter(|qdisc| text(qdisc, "kind") != "noqueue") {
        let link = text(qdisc, "dev");
        let places = match text(qdisc, "kind") {
            "ingress" | "clsact" => vec!["ingress", "egress"],
            _ => vec!["root"],
        };
        let questions: String =
            places.iter().map(|place| format!("filter show dev {link} {place}\n")).collect();
        for (place, values) in places.iter().zip(end(start("tc", &["-j"], &questions))) {
            let named = values.into_iter().map(|value| json!({"link": link, "place": place, "is": value}));
            found.extend(named.map(|value| ("filters", value)));
        }
        // Not of every kind does it tell in JSON.
        let classes =
            Command::new(find("tc")).args(["class", "show", "dev", link]).output().expect("tc runs");
        let classes = String::from_utf8_lossy(&classes.stdout).into_owned();
        found.extend(classes.lines().map(|line| ("classes", json!({"link": link, "is": line}))));
    }
    found
}

/// VLANs of ports, and forwarding entries that somebody made: not what was learned, and no multicast. In a VLAN that the bridge is in
/// itself, the kernel keeps one entry for an address that bridge and port share, and the bridge has that of its lowest port: where
/// addresses are random, so is who has the entry.
fn forwarding() -> Vec<(&'static str, Value)> {
    let mut answers = end(start("bridge", &["-j"], "vlan show\nfdb show\n")).into_iter();
    let vlans = answers.next().unwrap_or_default();
    let is_in = |bridge: &str, vlan: &Value| {
        let of_bridge = vlans.iter().filter(|port| text(port, "ifname") == bridge);
        of_bridge.filter_map(|port| port["vlans"].as_array()).flatten().any(|entry| entry["vlan"] == *vlan)
    };
    let entries = answers.next().unwrap_or_default().into_iter().filter(|entry| {
        let multicast = ["33:33:", "01:00:5e:"].iter().any(|prefix| text(entry, "mac").starts_with(prefix));
        let shared = is_random_mac(text(entry, "mac")) && is_in(text(entry, "master"), &entry["vlan"]);
        !text(entry, "state").is_empty() && !multicast && !shared
    });
    let entries = entries.map(|mut entry| {
        if is_random_mac(text(&entry, "mac")) {
            entry["mac"] = Value::from("<random>");
        }
        ("forwarding", entry)
    });
    let entries: Vec<_> = entries.collect();
    vlans.into_iter().map(|vlan| ("vlans", vlan)).chain(entries).collect()
}

/// Starts a tool that is to answer every line of `questions`.
fn start(tool: &str, options: &[&str], questions: &str) -> Child {
    let child = Command::new(find(tool))
        .args(options)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = child.expect("the tool starts");
    let mut stdin = child.stdin.take().expect("its standard input");
    stdin.write_all(questions.as_bytes()).expect("it reads");
    child
}

/// Its answers, a list a question. Where there is nothing to list, the tools print an empty object.
fn end(child: Child) -> Vec<Vec<Value>> {
    let output = child.wait_with_output().expect("the tool ends");
    let answers = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Vec<Value>>();
    let is_something = |value: &Value| value.as_object().is_some_and(|map| !map.is_empty());
    answers.map(|answer| answer.expect("a list").into_iter().filter(is_something).collect()).collect()
}

fn switches(path: &Path, lines: &mut Vec<String>) {
    if let Ok(entries) = fs::read_dir(path) {
        entries.flatten().for_each(|entry| switches(&entry.path(), lines));
    } else if let Ok(text) = fs::read_to_string(path)
        && !SWITCH_NOISE.iter().any(|noise| path.ends_with(noise))
    {
        lines.push(format!("{}:{}", path.display(), text.trim_end()));
    }
}
