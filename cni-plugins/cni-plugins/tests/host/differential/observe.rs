//! What a host is like, as lines of text that do not depend on chance: links, addresses, routes, rules, neighbours, queueing,
//! packet filters, switches, files. Observed by the system's own tools, never by our code.
//!
//! Indexes, counters, timers and the progress of duplicate detection are left out. Names that were chosen at random become
//! what they are of ([`Roles`]), and so do hardware addresses, in answers only where the link really has them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
};

use serde_json::{Map, Value};

use super::{
    look::{Look, look},
    twin::{HOST, STATE},
};

/// Of a link: chance, or the kernel's own progress.
const LINK_NOISE: [&str; 13] = [
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
    "addr_info",
    "gso_ipv4_max_size",
];
const OWNER_KEYS: [&str; 3] = ["containerID", "ifname", "network"];
const ADDRESS_NOISE: [&str; 3] = ["valid_life_time", "preferred_life_time", "tentative"];
const PASSING_ROUTE_FLAGS: [&str; 2] = ["linkdown", "dead"];
const PASSING_FLAGS: [&str; 3] = ["NO-CARRIER", "LOWER_UP", "M-DOWN"];

/// What was seen after a call.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub lines: BTreeSet<String>,
    /// By namespace.
    pub links: BTreeSet<(String, String)>,
    pub roles: Roles,
}

/// What random names and hardware addresses are of, and which hardware address each link has.
#[derive(Debug, Default, Clone)]
pub struct Roles {
    /// Names and addresses, also those that links had before.
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

/// Looks at the host, at some of its containers, and at its files; what is known of the other containers' links stays known.
pub fn snapshot(containers: &[&str], known: Roles) -> Snapshot {
    let namespaces = containers.iter().copied().chain([HOST]);
    let looks: Vec<(&str, Look)> = namespaces.map(|name| (name, look(name))).collect();
    let roles = roles(&looks, known);
    let mut lines = Vec::new();
    let mut links = BTreeSet::new();
    for (namespace, look) in &looks {
        let names = look.links.iter().map(|link| roles.rename(text(link, "ifname")));
        links.extend(names.map(|name| ((*namespace).to_owned(), name)));
        let mut add = |kind: &str, found: Vec<String>| {
            lines.extend(found.iter().map(|line| format!("{namespace} {kind} {}", roles.rename(line))));
        };
        add("links", look.links.iter().flat_map(link_lines).collect());
        add("routes", look.routes.iter().filter_map(route_line).collect());
        for (kind, value) in &look.others {
            add(kind, vec![without(value, &["ifindex", "refcnt"]).to_string()]);
        }
        add("nft", nft_lines(&look.ruleset));
        add("switches", look.switches.clone());
    }
    for folder in STATE {
        files(Path::new(folder), &roles, &mut lines);
    }
    Snapshot { lines: lines.into_iter().collect(), links, roles }
}

pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn roles(looks: &[(&str, Look)], known: Roles) -> Roles {
    let mut roles = known;
    let host = looks.iter().find(|(name, _)| *name == HOST).map(|(_, look)| look.links.as_slice());
    for (namespace, look) in looks {
        for link in &look.links {
            let name = text(link, "ifname").to_owned();
            let peer = host.filter(|_| *namespace != HOST).unwrap_or_default().iter().find(|peer| {
                peer.get("ifindex") == link.get("link_index") && is_random_name(text(peer, "ifname"))
            });
            // Where both ends are in one namespace, each names the other.
            let random = peer.map_or_else(|| text(link, "link"), |peer| text(peer, "ifname"));
            if is_random_name(random) && !is_random_name(&name) {
                roles.names.insert(random.to_owned(), format!("<host end of {namespace}/{name}>"));
            }
            let mac = text(link, "address");
            if is_random_mac(mac) {
                let role = format!("<address of {namespace}/{}>", roles.rename(&name));
                roles.names.entry(mac.to_owned()).or_insert(role);
            }
            roles.macs.insert(((*namespace).to_owned(), name), mac.to_owned());
        }
    }
    roles
}

/// `veth` and eight hexadecimal digits, or `bwp` and as many as fit.
fn is_random_name(name: &str) -> bool {
    let digits = name.strip_prefix("veth").or_else(|| name.strip_prefix("bwp"));
    digits.is_some_and(|digits| digits.len() >= 8 && digits.chars().all(|c| c.is_ascii_hexdigit()))
}

/// Addresses that tables configure begin with `02:11:00:00:00`, so that they stay readable; random ones do so by no chance that counts.
pub fn is_random_mac(mac: &str) -> bool {
    !mac.is_empty()
        && !mac.starts_with("00:00:00")
        && !mac.starts_with("ff:")
        && !mac.starts_with("02:11:00:00:00:")
}

fn link_lines(link: &Value) -> Vec<String> {
    let name = text(link, "ifname");
    let mut lines = Vec::new();
    let mut shown = without(link, &LINK_NOISE);
    if let Some(flags) = shown.get_mut("flags").and_then(Value::as_array_mut) {
        flags.retain(|flag| !PASSING_FLAGS.contains(&flag.as_str().unwrap_or_default()));
    }
    if is_random_mac(text(link, "address")) {
        shown["address"] = Value::from("<random>");
    }
    // Whose pair it is, by which our plugins find it; what others wrote there is part of the link.
    if text(link, "ifalias").starts_with("cni:") {
        shown = without(&shown, &["ifalias"]);
    }
    flatten(&shown, "", &mut |path, value| lines.push(format!("{name} {path}={value}")));
    // Link-local addresses come from the hardware address, in the kernel's own time.
    let addresses = link.get("addr_info").and_then(Value::as_array).into_iter().flatten();
    for address in addresses.filter(|address| text(address, "scope") != "link") {
        lines.push(format!("{name} address {}", without(address, &ADDRESS_NOISE)));
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
fn route_line(route: &Value) -> Option<String> {
    let automatic = ["local", "broadcast", "multicast", "anycast"].contains(&text(route, "type"))
        || text(route, "dst").starts_with("fe80::")
        || text(route, "dst").starts_with("ff00::");
    let mut shown = without(route, &["pref", "flags"]);
    let mut flags = route.get("flags").and_then(Value::as_array).cloned().unwrap_or_default();
    flags.retain(|flag| !PASSING_ROUTE_FLAGS.contains(&flag.as_str().unwrap_or_default()));
    if !flags.is_empty() {
        shown["flags"] = Value::from(flags);
    }
    (!automatic).then(|| shown.to_string())
}

/// Each rule with the table and chain that it stands in, and its position there.
fn nft_lines(ruleset: &str) -> Vec<String> {
    let mut places: Vec<(&str, usize)> = Vec::new();
    let mut lines = Vec::new();
    for line in ruleset.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let place: String = places.iter().map(|(place, _)| format!("{place} / ")).collect();
        if let Some(opened) = line.strip_suffix('{') {
            places.push((opened.trim(), 0));
            lines.push(format!("{place}{}", opened.trim()));
        } else if line == "}" {
            places.pop();
        } else {
            let position = places.last_mut().map_or(0, |(_, count)| {
                *count += 1;
                *count
            });
            lines.push(format!("{place}{position}: {line}"));
        }
    }
    lines
}

fn without(value: &Value, keys: &[&str]) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(key, _)| !keys.contains(&key.as_str()));
            Value::Object(kept.map(|(key, value)| (key.clone(), without(value, keys))).collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}

/// The files of a folder with their modes and texts.
fn files(folder: &Path, roles: &Roles, lines: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        // Our index of leases, which the reference never looks at.
        if path.extension().is_some_and(|extension| extension == "owners") {
            continue;
        }
        let mode = fs::symlink_metadata(&path).map_or(0, |metadata| metadata.permissions().mode() & 0o7777);
        if path.is_dir() {
            lines.push(format!("folder {} {mode:o}", path.display()));
            files(&path, roles, lines);
        } else {
            let text = fs::read_to_string(&path).unwrap_or_default();
            // The order of keys does not matter, and whose the file is, by which our GC finds it, the reference does not say.
            let shown = match serde_json::from_str(&text) {
                Ok(value @ Value::Object(_)) => without(&value, &OWNER_KEYS).to_string(),
                _ => format!("{text:?}"),
            };
            lines.push(roles.rename(&format!("file {} {mode:o} {shown}", path.display())));
        }
    }
}
