use super::read::{Process, without_counters};
use super::*;

fn snapshot(lines: &[&str]) -> Snapshot {
    Snapshot(lines.iter().map(|line| (*line).to_owned()).collect())
}

#[test]
fn what_came_and_what_went_are_both_leaks() {
    let leaks = snapshot(&["link lo", "route a"]).leaks(&snapshot(&["link lo", "link veth1"]));
    assert_eq!(leaks, ["+ link veth1", "- route a"]);
}

#[test]
fn an_unchanged_host_has_none() {
    let host = snapshot(&["link lo"]);
    assert!(host.leaks(&host).is_empty());
}

fn process(name: &str, executable: &str, cgroup: &str) -> Process {
    Process { name: name.into(), executable: executable.into(), cgroup: cgroup.into() }
}

#[test]
fn only_our_processes_count_on_a_machine() {
    let ours = |name, executable, cgroup| {
        machine::is_our_process(&process(name, executable, cgroup), Path::new("/c/target"))
    };
    assert!(ours("xtask", "/c/target/debug/xtask", "0::/"));
    assert!(ours("orlop-shim", "/memfd:orlop-shim (deleted)", "0::/orlop-up/node-1/orlop/shims"));
    assert!(!ours("orlop-shim", "/memfd:orlop-shim (deleted)", "0::/orlop-test-12/orlop/shims"));
    assert!(!ours("orlop-agent", "/d/target/dist/bin/orlop-agent", "0::/"));
    assert!(!ours("vi", "/usr/bin/vi", "0::/"));
}

#[test]
fn other_software_of_a_machine_does_not_count() {
    assert!(machine::is_our_network("address 7: orlop-host inet 10.85.0.1/24"));
    assert!(machine::is_our_network("route 10.244.0.0/24 via 10.85.0.11 dev eth0"));
    assert!(!machine::is_our_network("link 9: veth12ab@if8: <UP> mtu 1500"));
    assert!(!machine::is_our_network("address 2: eth0 inet 110.85.0.1/24"));
    assert!(machine::is_watched_sysctl("/proc/sys/net/ipv4/ip_forward"));
    assert!(machine::is_watched_sysctl("/proc/sys/net/ipv4/conf/all/forwarding"));
    assert!(machine::is_watched_sysctl("/proc/sys/net/ipv4/conf/eth0/forwarding"));
    assert!(!machine::is_watched_sysctl("/proc/sys/net/ipv4/conf/eth0/rp_filter"));
    let target = Path::new("/c/target");
    assert!(machine::is_our_mount("mount nsfs net:[1] at /c/target/up/switch", target));
    assert!(machine::is_our_mount("mount bpf / at /sys/fs/bpf", target));
    assert!(!machine::is_our_mount("mount overlay / at /var/lib/docker/x/merged", target));
    assert!(machine::is_our_cgroup("cgroup /sys/fs/cgroup/cpu/orlop-up"));
    assert!(!machine::is_our_cgroup("cgroup /sys/fs/cgroup/cpu/orlop-test-7"));
}

#[test]
fn what_others_ended_is_no_leak_but_what_they_lost_is() {
    let before = snapshot(&["process 7 orlop-agent", "sysctl a = 1", "rule nft drop"]);
    assert_eq!(
        before.leaks_of_machine(&snapshot(&["sysctl a = 2"])),
        ["+ sysctl a = 2", "- rule nft drop", "- sysctl a = 1"]
    );
}

#[test]
fn counters_of_rules_are_not_part_of_them() {
    assert_eq!(without_counters("\tcounter packets 12 bytes 340 drop"), "counter drop");
    assert_eq!(without_counters(":INPUT ACCEPT [12:340]"), ":INPUT ACCEPT");
    assert_eq!(without_counters("[1:2] -A INPUT -s 10.0.0.1/32 -j DROP"), "-A INPUT -s 10.0.0.1/32 -j DROP");
}

#[test]
fn a_links_setting_counts_when_it_changed_and_not_when_it_came_with_its_link() {
    let sysctl =
        |link: &str, value: u8| format!("sysctl /proc/sys/net/ipv4/conf/{link}/forwarding = {value}");
    let before = Snapshot([sysctl("eth0", 0), sysctl("veth1", 0)].into());
    let after = Snapshot([sysctl("eth0", 1), sysctl("veth2", 1)].into());
    let changed = [format!("+ {}", sysctl("eth0", 1)), format!("- {}", sysctl("eth0", 0))];
    assert_eq!(before.leaks_of_machine(&after), changed);
}
