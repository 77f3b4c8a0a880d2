use super::*;

#[test]
fn a_process_belongs_to_the_pod_whose_group_it_is_below() {
    let cgroup = "8:pids:/orlop-up/node-1/orlop/kubepods/besteffort/pod1-2/abc\n0::/\n";
    assert!(is_below(cgroup, "/pod1-2"));
    assert!(!is_below(cgroup, "/pod1"));
    assert!(!is_below("0::/orlop-up/node-1/orlop/kubepods/pod1-2\n", "/pod1-2"));
}

#[test]
fn the_start_time_is_found_behind_any_name() {
    let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 1000 2\n";
    assert_eq!(start_time(stat), Some(4242));
    assert_eq!(start_time(&stat.replace(") S", ") Z")), None);
}
