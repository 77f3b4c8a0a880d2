//! The private host itself: what a test finds in it, and that what a test leaves behind is noticed.

use std::process::Command;

use harness::private_host;

#[test]
fn it_has_its_own_network_with_loopback_up_and_nothing_else() {
    private_host::require();
    let output = Command::new("ip").args(["-o", "link"]).output().unwrap();
    let links = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(links.lines().count(), 1, "{links}");
    assert!(links.contains("lo:") && links.contains("UP"), "{links}");
}

#[test]
fn it_has_its_own_processes_cgroups_and_bpf_file_system() {
    private_host::require();
    assert_eq!(std::fs::read_to_string("/proc/1/comm").unwrap().trim(), "private-host");
    for line in std::fs::read_to_string("/proc/self/cgroup").unwrap().lines() {
        assert!(line.ends_with(":/"), "{line}");
    }
    let pinned: Vec<_> =
        std::fs::read_dir("/sys/fs/bpf").unwrap().map(|entry| entry.unwrap().file_name()).collect();
    // The kernel puts its own iterators there where it preloads them.
    assert!(pinned.iter().all(|name| name.to_string_lossy().ends_with(".debug")), "{pinned:?}");
    assert_eq!(std::fs::read_dir("/run").unwrap().count(), 1);
}

/// Runs a shell script in a private host of its own, inside this one, and gives its exit code and errors.
fn nested(script: &str) -> (Option<i32>, String) {
    private_host::require();
    let output =
        Command::new(env!("CARGO_BIN_EXE_private-host")).args(["sh", "-c", script]).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_clean_program_passes_its_exit_code_on() {
    assert_eq!(nested("exit 7"), (Some(7), String::new()));
}

#[test]
fn whatever_stays_is_a_failure_that_names_it() {
    for (script, named) in [
        ("setsid busybox sleep 1000 >/dev/null 2>&1 &", "+ process"),
        ("ip link add orlop-b type bridge", "+ link"),
        ("ip addr add 10.9.9.9/32 dev lo", "+ address"),
        ("mkdir /run/m && mount -t tmpfs x /run/m", "+ mount tmpfs"),
        ("d=/sys/fs/cgroup/unified; [ -d $d ] || d=/sys/fs/cgroup; mkdir $d/left", "+ cgroup"),
        ("touch /var/lib/left", "+ file /var/lib/left"),
    ] {
        let (code, errors) = nested(script);
        assert_eq!(code, Some(120), "{script}: {errors}");
        assert!(errors.contains(named), "{script}: {errors}");
    }
}
