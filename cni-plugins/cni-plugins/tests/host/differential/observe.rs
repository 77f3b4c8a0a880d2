//! What a host is like, as lines of text that do not depend on chance: links, addresses, routes, rules, neighbours, queueing,
//! packet filters, switches, files. Observed by the system's own tools, never by our code.
//!
//! Indexes, counters, timers and the progress of duplicate detection are left out. Names that were chosen at random become
//! what they are of ([`Roles`]), and so do hardware addresses, in answers only where the link really has them.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Map, Value};

use super::twin::{HOST, STATE, netns_exec};

/// Prints sections that begin with `#name`.
const SCRIPT: &str = r"
echo '#links'; ip -j -d addr show
for family in 4 6; do
    echo '#routes'; ip -j -$family route show table all
    echo '#rules'; ip -j -$family rule show
done
echo '#neighbours'; ip -j neigh show nud permanent
echo '#qdiscs'; tc -j qdisc show
for link in $(ls /sys/class/net); do
    echo '#filters'; tc -j filter show dev $link
    echo '#filters'; tc -j filter show dev $link ingress
done
echo '#vlans'; bridge -j vlan show
echo '#nft'; nft -s list ruleset
echo '#switches'
grep -rs . /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/neigh
";

/// Of a link: chance, or the kernel's own progress.
const LINK_NOISE: [&str; 14] = [
    "ifindex",
    "link_index",
    "link_netnsid",
    "operstate",
    "bridge_id",
    "root_id",
    "designated_root",
    "designated_bridge",
    "state",
    "stats",
    "stats64",
    "ifalias",
    "addr_info",
    "gso_ipv4_max_size",
];
const ADDRESS_NOISE: [&str; 3] = ["valid_life_time", "preferred_life_time", "tentative"];
const PASSING_FLAGS: [&str; 3] = ["NO-CARRIER", "LOWER_UP", "M-DOWN"];

/// Of all namespaces, host first.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub lines: Vec<String>,
    pub roles: Roles,
}

/// What random names are of, and which hardware address each link has.
#[derive(Debug, Default, Clone)]
pub struct Roles {
    names: BTreeMap<String, String>,
    /// By namespace and link.
    macs: BTreeMap<(String, String), String>,
}

impl Roles {
    /// The text with every random name replaced.
    fn rename(&self, text: &str) -> String {
        self.names.iter().fold(text.to_owned(), |text, (random, role)| text.replace(random, role))
    }

    /// An answer without chance: an interface's hardware address is `<its own>` when it is what the link has.
    pub fn answer(&self, answer: &Value) -> String {
        let mut answer = answer.clone();
        for interface in answer.get_mut("interfaces").and_then(Value::as_array_mut).into_iter().flatten() {
            let sandbox = text(interface, "sandbox");
            let namespace =
                if sandbox.is_empty() { HOST } else { sandbox.rsplit('/').next().unwrap_or(sandbox) };
            let link = (namespace.to_owned(), text(interface, "name").to_owned());
            let mac = text(interface, "mac");
            if is_random_mac(mac) && self.macs.get(&link).is_some_and(|own| own == mac) {
                interface["mac"] = Value::from("<its own>");
            }
        }
        self.rename(&answer.to_string())
    }
}

/// Looks at the host, its containers and its files.
pub fn snapshot(containers: &[&str]) -> Snapshot {
    let namespaces = containers.iter().copied().chain([HOST]);
    let looks: Vec<(&str, Vec<(String, String)>)> = namespaces.map(|name| (name, look(name))).collect();
    let links: Vec<(&str, Vec<Value>)> =
        looks.iter().map(|(name, sections)| (*name, array(sections, "links"))).collect();
    let roles = roles(&links);
    let mut lines = Vec::new();
    for (namespace, sections) in &looks {
        for (section, text) in sections {
            let found = match section.as_str() {
                "links" => parse(text).iter().flat_map(link_lines).collect(),
                "routes" => parse(text).into_iter().filter_map(route_line).collect(),
                "nft" => nft_lines(text),
                "switches" => {
                    text.lines().filter(|line| !line.contains("stable_secret")).map(str::to_owned).collect()
                }
                _ => parse(text)
                    .into_iter()
                    .map(|value| without(value, &["ifindex", "refcnt"]).to_string())
                    .collect::<Vec<_>>(),
            };
            lines.extend(found.into_iter().map(|line| format!("{namespace} {section} {line}")));
        }
    }
    for folder in STATE {
        files(Path::new(folder), &mut lines);
    }
    let mut lines: Vec<String> = lines.iter().map(|line| roles.rename(line)).collect();
    lines.sort();
    Snapshot { lines, roles }
}

fn look(namespace: &str) -> Vec<(String, String)> {
    let output = netns_exec(namespace).args(["sh", "-c", SCRIPT]).output().expect("a look");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut sections: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix('#'), sections.last_mut()) {
            (Some(name), _) => sections.push((name.to_owned(), String::new())),
            (None, Some((_, body))) => {
                body.push_str(line);
                body.push('\n');
            }
            (None, None) => {}
        }
    }
    sections
}

fn array(sections: &[(String, String)], name: &str) -> Vec<Value> {
    sections.iter().filter(|(section, _)| section == name).flat_map(|(_, text)| parse(text)).collect()
}

/// The tools print nothing, or an empty object, where there is nothing.
fn parse(text: &str) -> Vec<Value> {
    let values: Vec<Value> = match text.trim() {
        "" => Vec::new(),
        text => serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}")),
    };
    values.into_iter().filter(|value| value.as_object().is_some_and(|map| !map.is_empty())).collect()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn roles(namespaces: &[(&str, Vec<Value>)]) -> Roles {
    let mut roles = Roles::default();
    let host = namespaces.iter().find(|(name, _)| *name == HOST).map(|(_, links)| links.as_slice());
    for (namespace, links) in namespaces {
        for link in links {
            let name = text(link, "ifname").to_owned();
            let peer = host.filter(|_| *namespace != HOST).unwrap_or_default().iter().find(|peer| {
                peer.get("ifindex") == link.get("link_index") && is_random_name(text(peer, "ifname"))
            });
            if let Some(peer) = peer {
                roles
                    .names
                    .insert(text(peer, "ifname").to_owned(), format!("<host end of {namespace}/{name}>"));
            }
            roles.macs.insert(((*namespace).to_owned(), name), text(link, "address").to_owned());
        }
    }
    roles
}

/// `veth` and eight hexadecimal digits, or `bwp` and as many as fit.
fn is_random_name(name: &str) -> bool {
    let digits = name.strip_prefix("veth").or_else(|| name.strip_prefix("bwp"));
    digits.is_some_and(|digits| digits.len() >= 8 && digits.chars().all(|c| c.is_ascii_hexdigit()))
}

/// Addresses that tables configure begin with `02:11`, so that they stay readable.
fn is_random_mac(mac: &str) -> bool {
    !mac.is_empty() && !mac.starts_with("00:00:00") && !mac.starts_with("ff:") && !mac.starts_with("02:11:")
}

fn link_lines(link: &Value) -> Vec<String> {
    let name = text(link, "ifname");
    let mut lines = Vec::new();
    let mut shown = without(link.clone(), &LINK_NOISE);
    if let Some(flags) = shown.get_mut("flags").and_then(Value::as_array_mut) {
        flags.retain(|flag| !PASSING_FLAGS.contains(&flag.as_str().unwrap_or_default()));
    }
    if is_random_mac(text(link, "address")) {
        shown["address"] = Value::from("<random>");
    }
    flatten(&shown, "", &mut |path, value| lines.push(format!("{name} {path}={value}")));
    // Link-local addresses come from the hardware address, in the kernel's own time.
    let addresses = link.get("addr_info").and_then(Value::as_array).into_iter().flatten();
    for address in addresses.filter(|address| text(address, "scope") != "link") {
        lines.push(format!("{name} address {}", without(address.clone(), &ADDRESS_NOISE)));
    }
    lines
}

fn flatten(value: &Value, path: &str, line: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter().filter(|(key, _)| !key.ends_with("_timer")) {
                flatten(value, &format!("{path}.{key}"), line);
            }
        }
        other => line(path, other),
    }
}

/// Without what the kernel makes by itself for each address.
fn route_line(route: Value) -> Option<String> {
    let automatic = ["local", "broadcast", "multicast", "anycast"].contains(&text(&route, "type"))
        || text(&route, "dst").starts_with("fe80::")
        || text(&route, "dst").starts_with("ff00::");
    (!automatic).then(|| without(route, &["flags", "pref"]).to_string())
}

/// Each rule with the table and chain that it stands in.
fn nft_lines(ruleset: &str) -> Vec<String> {
    let mut place: Vec<&str> = Vec::new();
    let mut lines = Vec::new();
    for line in ruleset.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(opened) = line.strip_suffix('{') {
            place.push(opened.trim());
            lines.push(place.join(" / "));
        } else if line == "}" {
            place.pop();
        } else {
            lines.push(format!("{} / {line}", place.join(" / ")));
        }
    }
    lines
}

fn without(value: Value, keys: &[&str]) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(key, _)| !keys.contains(&key.as_str()));
            Value::Object(kept.map(|(key, value)| (key, without(value, keys))).collect::<Map<_, _>>())
        }
        other => other,
    }
}

/// The files of a folder with their text.
fn files(folder: &Path, lines: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        // Our index of leases, which the reference never looks at.
        if path.extension().is_some_and(|extension| extension == "owners") {
            continue;
        }
        if path.is_dir() {
            files(&path, lines);
        } else {
            let text = fs::read_to_string(&path).unwrap_or_default();
            lines.push(format!("file {} {:?}", path.display(), text));
        }
    }
}
