//! Reading one kind of thing each, as lines that compare equal when nothing changed.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use linux::machine::Hierarchy;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

#[cfg(test)]
mod tests;

/// Entries read from one folder tree at the most: a snapshot is for comparing, not for archiving.
const MAX_FILES: usize = 200_000;
/// How long the processes that are on their way out may take, all together: the kernel takes their namespaces down first.
const EXIT_LIMIT: Duration = Duration::from_secs(5);

/// A process, as far as it can be read.
pub struct Process {
    pub name: String,
    /// Where its executable is; empty when that cannot be seen.
    pub executable: String,
    /// Its cgroups, one line each.
    pub cgroup: String,
}

/// Every process that is `wanted`, without us, those above us, and pid 1.
pub fn processes(wanted: impl Fn(&Process) -> bool) -> Result<Vec<String>> {
    let me = std::process::id();
    let deadline = Instant::now() + EXIT_LIMIT;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("read /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some(program) = program(&stat) else { continue };
        let executable = fs::read_link(entry.path().join("exe")).unwrap_or_default();
        let process = Process {
            name: program.name.to_owned(),
            executable: executable.to_string_lossy().into_owned(),
            cgroup: fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default(),
        };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        // In the middle of an exec the command line is empty.
        let command = if command.is_empty() {
            process.name.clone()
        } else {
            String::from_utf8_lossy(&command).replace('\0', " ")
        };
        if pid == me || pid == 1 || !wanted(&process) || is_ancestor(pid) {
            continue;
        }
        if !(program.exits && is_gone_by(deadline, pid)) {
            found.push(format!("process {pid} {}", command.trim()));
        }
    }
    Ok(found)
}

/// What a `stat` line says of a process.
#[derive(Debug, PartialEq, Eq)]
struct Program<'a> {
    name: &'a str,
    /// It is on its way out.
    exits: bool,
}

/// None for a kernel thread and for a zombie, which its parent reaps.
fn program(stat: &str) -> Option<Program<'_>> {
    const EXITING: u64 = 0x4;
    const KERNEL_THREAD: u64 = 0x0020_0000;
    let (name, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    let flags: u64 = fields.nth(5)?.parse().ok()?;
    (state != "Z" && state != "X" && flags & KERNEL_THREAD == 0).then(|| Program {
        name: name.split_once('(').map_or(name, |pair| pair.1),
        exits: flags & EXITING != 0,
    })
}

/// Waits for the end of an exiting process; one that hangs on its way out is a leak.
fn is_gone_by(deadline: Instant, pid: u32) -> bool {
    let Ok(pidfd) = linux::process::pidfd(pid as i32) else {
        return !Path::new("/proc").join(pid.to_string()).exists();
    };
    let left = PollTimeout::try_from(deadline.saturating_duration_since(Instant::now()));
    poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], left.unwrap_or(PollTimeout::ZERO)) == Ok(1)
}

/// Whether `pid` is above us in the process tree: the shell or test runner that took the snapshot.
fn is_ancestor(pid: u32) -> bool {
    let mut current = std::process::id();
    while current > 1 {
        let Some(parent) = parent(current) else { return false };
        if parent == pid {
            return true;
        }
        current = parent;
    }
    false
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// Links, addresses, routes and policy rules of this network namespace, and the named namespaces.
pub fn network() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (kind, arguments) in [
        ("link", &["-o", "link", "show"][..]),
        ("address", &["-o", "addr", "show"]),
        ("route", &["route", "show", "table", "all"]),
        ("route6", &["-6", "route", "show", "table", "all"]),
        ("rule", &["rule", "show"]),
        ("netns", &["netns", "list"]),
    ] {
        let output = Command::new("ip").args(arguments).output().context("start ip")?;
        ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), output.status);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        found.extend(text.lines().map(|line| format!("{kind} {}", stable(line))));
    }
    Ok(found)
}

/// Drops life times, which count down.
fn stable(line: &str) -> String {
    let mut words = Vec::new();
    let mut skip = false;
    for word in line.split_whitespace() {
        if skip {
            skip = false;
        } else if matches!(word, "valid_lft" | "preferred_lft" | "expires") {
            skip = true;
        } else {
            words.push(word);
        }
    }
    words.join(" ")
}

pub fn mounts() -> Result<Vec<String>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    // The ids in front change when an unrelated mount comes or goes.
    Ok(text
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(3);
            let (root, point) = (fields.next()?, fields.next()?);
            let kind = line.split_once(" - ")?.1.split(' ').next()?;
            Some(format!("mount {kind} {root} at {point}"))
        })
        .collect())
}

pub fn cgroups(hierarchies: &[Hierarchy]) -> Vec<String> {
    let mut found = Vec::new();
    for hierarchy in hierarchies {
        let mut open = vec![hierarchy.mount_point.clone()];
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    found.push(format!("cgroup {}", entry.path().display()));
                    open.push(entry.path());
                }
            }
        }
    }
    found
}

pub fn pins(folder: &Path) -> Vec<String> {
    files(folder, |_| true).into_iter().map(|line| line.replacen("file", "pin", 1)).collect()
}

/// Files and folders below `folder`, by path.
pub fn files(folder: &Path, wanted: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if !wanted(&path) && !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if wanted(&path) {
                found.push(format!("file {}", path.display()));
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && found.len() < MAX_FILES {
                open.push(path);
            }
        }
    }
    found
}

/// What lies directly in `folder`.
pub fn children(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| format!("file {}", entry.path().display())).collect()
}

/// Every readable setting below `folder` that is `wanted` and keeps still by itself.
pub fn sysctls(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for line in files(folder, |_| true) {
        let path = line.trim_start_matches("file ").to_owned();
        let counts = ["nf_conntrack_count", "max_lock", "/neigh/", "ipfrag_", "ip6frag_"];
        if counts.iter().any(|word| path.contains(word)) || !wanted(&path) {
            continue;
        }
        if let Ok(value) = fs::read_to_string(&path) {
            found.push(format!("sysctl {path} = {}", value.trim().replace('\n', " ")));
        }
    }
    found
}

/// Netfilter rules of both kinds; a tool that is not installed has made none.
pub fn rules() -> Vec<String> {
    let mut found = Vec::new();
    for (program, arguments) in
        [("nft", &["list", "ruleset"][..]), ("iptables-legacy-save", &[]), ("ip6tables-legacy-save", &[])]
    {
        let Ok(output) = Command::new(program).args(arguments).output() else { continue };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        found.extend(lines.map(|line| format!("rule {program} {}", without_counters(line))));
    }
    found
}

/// A rule as it was written: nft counts as `packets 1 bytes 2`, iptables as `[1:2]`.
pub(super) fn without_counters(line: &str) -> String {
    let is_pair = |word: &str| {
        let inner = word.strip_prefix('[').and_then(|word| word.strip_suffix(']'));
        let pair = inner.and_then(|inner| inner.split_once(':'));
        pair.is_some_and(|(packets, bytes)| packets.parse::<u64>().is_ok() && bytes.parse::<u64>().is_ok())
    };
    let mut words: Vec<&str> = Vec::new();
    for word in line.split_whitespace() {
        let counted = matches!(words.last(), Some(&"packets" | &"bytes")) && word.parse::<u64>().is_ok();
        if counted {
            words.pop();
        } else if !is_pair(word) {
            words.push(word);
        }
    }
    words.join(" ")
}

/// BPF programs, maps and links of the kernel. Ids are left out: what counts is how many of each name there are. A link has
/// the name of its program.
pub fn bpf_objects() -> Vec<String> {
    let mut found = Vec::new();
    let mut programs: BTreeMap<u64, String> = BTreeMap::new();
    for kind in ["prog", "map", "link"] {
        let Ok(output) = Command::new("bpftool").args(["-j", kind, "show"]).output() else { continue };
        let Ok(objects) = serde_json::from_slice::<Vec<serde_json::Value>>(&output.stdout) else { continue };
        let mut names: Vec<String> = Vec::new();
        for object in &objects {
            let program = object["prog_id"].as_u64().and_then(|id| programs.get(&id));
            let name = program.map_or_else(|| text(object, "name"), String::as_str).to_owned();
            names.push(format!("{} {name}", text(object, "type")));
            if let (true, Some(id)) = (kind == "prog", object["id"].as_u64()) {
                programs.insert(id, name);
            }
        }
        names.sort();
        let mut before = String::new();
        let mut count = 0;
        for name in names {
            count = if name == before { count + 1 } else { 1 };
            before.clone_from(&name);
            found.push(format!("bpf {kind} {name} #{count}"));
        }
    }
    found
}

fn text<'a>(object: &'a serde_json::Value, key: &str) -> &'a str {
    object.get(key).and_then(serde_json::Value::as_str).unwrap_or("-")
}
