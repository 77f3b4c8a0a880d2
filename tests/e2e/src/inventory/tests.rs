use serde_json::json;

use super::*;

fn inventory(lines: &[&str]) -> Inventory {
    Inventory(counted(lines.iter().map(|line| stable(line)).collect()))
}

#[test]
fn another_process_of_the_same_command_is_no_difference_and_a_second_one_is() {
    let before = inventory(&["process 7 /bin/agent --a", "fd agent socket", "fd agent pipe", "netns a"]);
    let after = inventory(&["process 8 /bin/agent --a", "fd agent socket", "fd agent socket"]);
    assert_eq!(before.differences(&after), ["+ fd agent socket #2", "- netns a"]);
    assert_eq!(after.counts(), [("fd agent".to_owned(), 2), ("process".to_owned(), 1)].into());
}

#[test]
fn open_files_are_named_without_their_numbers() {
    assert_eq!(unnumbered("socket:[4711]"), "socket");
    assert_eq!(unnumbered("anon_inode:[eventpoll]"), "anon_inode:[eventpoll]");
    assert_eq!(unnumbered("/var/lib/orlop/a"), "/var/lib/orlop/a");
}

#[test]
fn only_elements_in_use_count() {
    let element = |value: Value| json!({"formatted": {"key": 1, "value": value}});
    assert!(is_used(&element(json!(7))), "a hash map's element is there or is not");
    assert!(is_used(&element(json!({"addr_be": 1, "generation": 3, "last_generation": 3}))));
    assert!(!is_used(&element(json!({"addr_be": 1, "generation": 0, "last_generation": 3}))));
    assert_eq!(
        map_of("pin /sys/fs/bpf/orlop/v3/ORLOP_BACKENDS"),
        Some("/sys/fs/bpf/orlop/v3/ORLOP_BACKENDS")
    );
    assert_eq!(map_of("pin /sys/fs/bpf/orlop/v3/ORLOP_FLOWS"), None);
}

#[test]
fn what_is_there_of_other_pods_still_ends() {
    let known = inventory(&[
        "file /var/lib/orlop/pods",
        "file /var/lib/orlop/pods/u1",
        "file /var/lib/orlop/pods/u1/volumes",
        "file /var/lib/orlop/runtime/sandboxes/s1",
        "process 7 /bin/agent --a",
    ]);
    let pods = BTreeSet::from(["u1".to_owned()]);
    assert!(known.ending(&pods).is_empty());
    assert_eq!(known.ending(&BTreeSet::new()).len(), 2);
    let ending = inventory(&[
        "process 8 /opt/cni/bridge",
        "file /var/lib/orlop/pods/u2",
        "file /var/lib/orlop/runtime/sandboxes/s1",
        "file /var/lib/orlop/runtime/sandboxes/s2",
        "file /var/lib/orlop/runtime/sandboxes/s2/hosts",
    ]);
    let found = [
        "file /var/lib/orlop/pods/u2",
        "process /opt/cni/bridge",
        "file /var/lib/orlop/runtime/sandboxes/s2",
    ];
    assert_eq!(ending.ending(&pods), found);
}
