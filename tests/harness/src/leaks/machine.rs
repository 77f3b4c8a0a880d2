//! Which lines of a busy machine's snapshot count: pure questions about one thing each.
//!
//! What a private host of some test has is left out: that host has a leak check of its own, and comes and goes meanwhile.

use std::path::Path;

use super::read::Process;

/// Networks of a cluster that `up` starts: of its nodes, its pods and its services.
const NETWORKS: [&str; 3] = ["10.85.0.", "10.244.", "10.96."];
/// What the processes of a private host have in their cgroup's path.
const PRIVATE: &str = "orlop-test-";

/// Settings below `/proc/sys` that no namespace isolates and that container runtimes and kubelets are known to change. The rest of those
/// folders holds counters.
pub const SHARED_SETTINGS: [&str; 11] = [
    "fs/inotify/max_user_instances",
    "fs/inotify/max_user_watches",
    "fs/may_detach_mounts",
    "kernel/core_pattern",
    "kernel/keys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/pid_max",
    "kernel/unprivileged_bpf_disabled",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
];

pub fn is_ours(line: &str) -> bool {
    line.to_ascii_lowercase().contains("orlop")
}

/// A process of an executable below our `target`, or with our name from anywhere that is not another checkout.
pub fn is_our_process(process: &Process, target: &Path) -> bool {
    if process.cgroup.contains(PRIVATE) {
        return false;
    }
    let named = process.name.starts_with("orlop-") && !process.executable.contains("/target/");
    named || Path::new(&process.executable).starts_with(target)
}

/// A link, address, route, rule or namespace of the cluster.
pub fn is_our_network(line: &str) -> bool {
    is_ours(line)
        || line.split([' ', '/']).any(|word| NETWORKS.iter().any(|network| word.starts_with(network)))
}

/// A setting that holds for the whole machine, and of a link whether it forwards. Its other settings come and go with the link.
pub fn is_watched_sysctl(path: &str) -> bool {
    match path.split_once("/conf/") {
        Some((_, rest)) => {
            rest.starts_with("all/") || rest.starts_with("default/") || rest.ends_with("/forwarding")
        }
        None => true,
    }
}

/// The path in a difference about a link's own setting.
fn setting_of_link(difference: &str) -> Option<&str> {
    let path = difference.get(2..)?.strip_prefix("sysctl ")?.split_once(" = ")?.0;
    let link = path.split_once("/conf/")?.1.split('/').next()?;
    (link != "all" && link != "default").then_some(path)
}

/// A mount of ours, or a BPF or cgroup file system, which nobody mounts often.
pub fn is_our_mount(line: &str, target: &Path) -> bool {
    let kind = line.split(' ').nth(1).unwrap_or_default();
    is_ours(line)
        || matches!(kind, "bpf" | "cgroup" | "cgroup2")
        || line.rsplit(' ').next().is_some_and(|point| Path::new(point).starts_with(target))
}

pub fn is_our_cgroup(line: &str) -> bool {
    is_ours(line) && !line.contains(PRIVATE)
}

pub fn is_our_file(path: &Path) -> bool {
    let path = path.to_string_lossy();
    ["orlop", "/cni", "kube"].iter().any(|word| path.contains(word))
}

/// Whether one of the `differences` is a leak: everything that came, and of what went only what others do not end by themselves. A
/// link's setting counts when it changed, not when it came or went with its link.
pub fn counts(difference: &str, differences: &[String]) -> bool {
    if let Some(path) = setting_of_link(difference) {
        return differences.iter().filter(|other| setting_of_link(other) == Some(path)).count() == 2;
    }
    let transient = ["- process ", "- file ", "- cgroup ", "- bpf ", "- netns "];
    !transient.iter().any(|kind| difference.starts_with(kind))
}
