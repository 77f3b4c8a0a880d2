//! The private host itself: what a test finds in it, and that what a test leaves behind is noticed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::{private_host, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

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
    for hierarchy in linux::machine::hierarchies().unwrap() {
        assert_eq!(hierarchy.current, Path::new("/init"), "{hierarchy:?}");
    }
    let unified = Path::new("/sys/fs/cgroup/unified");
    let root = if unified.is_dir() { unified } else { Path::new("/sys/fs/cgroup") };
    assert_eq!(std::fs::read_to_string(root.join("cgroup.procs")).unwrap(), "", "the root has no process");
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

/// The leaves of private hosts that are here, and the processes in them.
fn leaves() -> (Vec<String>, Vec<i32>) {
    let hierarchies = linux::machine::hierarchies().unwrap();
    let pure = linux::machine::is_pure_v2(&hierarchies);
    let parent = linux::machine::Leaf::named(hierarchies.clone(), if pure { "/" } else { "" });
    let names: Vec<String> =
        parent.children().into_iter().filter(|name| name.starts_with("orlop-test-")).collect();
    let inside = |name: &String| {
        let base = if pure { "/" } else { "" };
        linux::machine::Leaf::named(hierarchies.clone(), format!("{base}{name}")).processes()
    };
    let processes = names.iter().flat_map(inside).collect();
    (names, processes)
}

/// Starts a private host whose program runs until it is ended, and waits until that runs.
fn endless() -> std::process::Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_private-host"))
        .args(["sh", "-c", "echo runs; sleep 1000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "runs\n");
    child
}

#[test]
fn an_interrupted_host_ends_whole_and_leaves_no_cgroup() {
    private_host::require();
    let mut child = endless();
    assert_eq!(leaves().0.len(), 1);
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    child.wait().unwrap();
    assert_eq!(leaves(), (Vec::new(), Vec::new()));
}

#[test]
fn a_killed_host_ends_whole_and_the_next_one_sweeps_its_cgroup() {
    private_host::require();
    let mut child = endless();
    child.kill().unwrap();
    child.wait().unwrap();
    wait::until("its processes end", Duration::from_secs(10), || match leaves().1 {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    });
    assert_eq!(leaves().0.len(), 1);
    assert_eq!(nested("exit 0"), (Some(0), String::new()));
    assert_eq!(leaves().0.len(), 0);
}
