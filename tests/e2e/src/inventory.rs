//! What the first node has at one moment, to be compared with another: processes, namespaces, links, rules, mounts, cgroups, files
//! (leases, logs, the runtime's and the agent's folders), open files of agent and server, and elements of BPF maps.
//!
//! The leak check of `harness`, run inside of the node's namespaces, reads what is the node's own; the rest is read here. What has another
//! number after every start of a process is named without it, and counted instead.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;

use crate::cluster::{Cluster, GROUP};
use crate::processes;

#[cfg(test)]
mod tests;

/// Where the node's BPF maps are pinned.
const PINS: &str = "pin /sys/fs/bpf/orlop/";
/// Maps whose elements are services and their backends. The others remember flows, which end by themselves.
const SERVICE_MAPS: [&str; 2] = ["ORLOP_FRONTENDS", "ORLOP_BACKENDS"];
/// Part of the path of every network plugin.
const PLUGINS: &str = "/cni/";
/// One folder for each pod, and for each sandbox.
const POD_FOLDERS: &str = "file /var/lib/orlop/pods/";
const SANDBOXES: &str = "file /var/lib/orlop/runtime/sandboxes/";
/// Whose open files are counted.
const PROGRAMS: [&str; 2] = ["orlop-agent", "orlop-server"];

/// One line for each thing, starting with its kind.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Inventory(BTreeSet<String>);

impl Inventory {
    /// # Errors
    /// What could not be read, since something ended meanwhile.
    pub fn of(cluster: &Cluster) -> Result<Self, String> {
        let listed = cluster.ask_in_machine(&[&cluster.file("target/debug/leaks"), "list"])?;
        let mut lines: Vec<String> = listed.lines().map(stable).collect();
        for map in listed.lines().filter_map(map_of) {
            let dump = cluster.ask_in_machine(&["bpftool", "-j", "map", "dump", "pinned", map])?;
            let elements: Value = serde_json::from_str(&dump).map_err(|error| format!("{map}: {error}"))?;
            let used = elements.as_array().map_or(0, |all| all.iter().filter(|one| is_used(one)).count());
            lines.extend(std::iter::repeat_n(format!("element {map}"), used));
        }
        for program in PROGRAMS {
            let pid = cluster.pid_of(program).ok_or(format!("{program} does not run"))?;
            let folder =
                fs::read_dir(format!("/proc/{pid}/fd")).map_err(|error| format!("{program}: {error}"))?;
            let targets = folder.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
            lines.extend(
                targets.map(|target| format!("fd {program} {}", unnumbered(&target.to_string_lossy()))),
            );
        }
        lines.extend(namespaces());
        Ok(Self(counted(lines)))
    }

    /// What is still there of other pods than these, by uid: the node ends a pod after its object is gone, when it was deleted by force, and
    /// takes its network down later still.
    pub fn ending(&self, pods: &BTreeSet<String>) -> Vec<&str> {
        let folder = |line: &'_ str, of: &str| {
            line.strip_prefix(of).filter(|name| !name.contains('/')).map(str::to_owned)
        };
        let plugins = |line: &&str| line.starts_with("process ") && line.contains(PLUGINS);
        let of_others = |line: &&str| folder(line, POD_FOLDERS).is_some_and(|uid| !pods.contains(&uid));
        let lines = || self.0.iter().map(String::as_str);
        let sandboxes: Vec<&str> = lines().filter(|line| folder(line, SANDBOXES).is_some()).collect();
        let ending = lines().filter(|line| plugins(line) || of_others(line));
        ending.chain(sandboxes.into_iter().skip(pods.len())).collect()
    }

    /// How many there are of each kind, and of each program's open files.
    pub fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for line in &self.0 {
            let words: Vec<&str> = line.split(' ').collect();
            let kind = match words.as_slice() {
                ["fd", program, ..] => format!("fd {program}"),
                ["element", map, ..] => format!("element {}", map.rsplit('/').next().unwrap_or_default()),
                [kind, ..] => (*kind).to_owned(),
                [] => continue,
            };
            *counts.entry(kind).or_default() += 1;
        }
        counts
    }

    /// What `after` has that this has not, and what it lacks; but for open files, of which idle connections are the most.
    pub fn differences(&self, after: &Self) -> Vec<String> {
        let added = after.0.difference(&self.0).map(|line| format!("+ {line}"));
        let removed = self.0.difference(&after.0).filter(|line| !line.starts_with("fd "));
        added.chain(removed.map(|line| format!("- {line}"))).collect()
    }
}

/// Resident memory of a program, in KiB.
pub fn resident(cluster: &Cluster, program: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", cluster.pid_of(program)?)).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The namespaces that the machine's processes are in.
fn namespaces() -> BTreeSet<String> {
    let kinds = ["net", "mnt", "pid", "ipc", "uts", "cgroup"];
    let pids = processes::in_group(GROUP);
    let links = pids.iter().flat_map(|pid| kinds.map(|kind| format!("/proc/{pid}/ns/{kind}")));
    links
        .filter_map(|link| fs::read_link(link).ok())
        .map(|target| format!("namespace {}", target.display()))
        .collect()
}

/// A process without its number.
fn stable(line: &str) -> String {
    match line.strip_prefix("process ").and_then(|rest| rest.split_once(' ')) {
        Some((_, command)) => format!("process {command}"),
        None => line.to_owned(),
    }
}

/// `socket:[12]` as `socket`, and so on.
fn unnumbered(target: &str) -> &str {
    let is_number = |rest: &str| rest.trim_end_matches(']').parse::<u64>().is_ok();
    target.split_once(":[").filter(|(_, rest)| is_number(rest)).map_or(target, |(kind, _)| kind)
}

/// The path of a pinned map whose elements count.
fn map_of(line: &str) -> Option<&str> {
    let path = line.strip_prefix("pin ").filter(|_| line.starts_with(PINS))?;
    SERVICE_MAPS.iter().any(|map| path.ends_with(map)).then_some(path)
}

/// Whether an element of a map is in use: a backend that is free is in the array too, without a generation.
fn is_used(element: &Value) -> bool {
    element["formatted"]["value"]["generation"] != 0
}

/// Equal lines numbered, so that they stay apart.
fn counted(lines: Vec<String>) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let numbered = lines.into_iter().map(|line| {
        let count = seen.entry(line.clone()).or_default();
        *count += 1;
        if *count == 1 { line } else { format!("{line} #{count}") }
    });
    numbered.collect()
}
