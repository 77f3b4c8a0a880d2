//! Joining, killing, devices on the unified tree (the program that pure v2 machines need), and freezing.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use linux::cgroup::{DeviceAccess, DeviceKind, DeviceRule, Group, Layout};

const LIMIT: Duration = Duration::from_secs(20);

struct Own(Group);

impl Own {
    fn new(layout: &Layout, name: &str) -> Own {
        let inside = std::fs::read_to_string("/proc/1/comm").is_ok_and(|name| name.trim() == "private-host");
        assert!(
            inside,
            "this test changes its host: run it with `cargo xtask test`, which gives it a private one"
        );
        let own = std::fs::metadata("/proc/self/ns/pid").expect("a mounted /proc").ino();
        let group = layout.group(&format!("orlop-linux-test-{own}/{name}")).expect("a group");
        group.create().expect("make the group");
        Own(group)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.0.kill(LIMIT);
        let _ = self.0.remove();
        for directory in self.0.directories().filter_map(|path| path.parent().map(Path::to_path_buf)) {
            let _ = std::fs::remove_dir(directory);
        }
    }
}

fn machine() -> Layout {
    Layout::detect(Path::new("/sys/fs/cgroup")).expect("control groups")
}

/// Runs a shell that joins the unified group by itself.
fn shell(group: &Group, script: &str) -> Child {
    let directory = group.unified_directory().expect("an unified tree");
    let script = format!("echo 0 > {}/cgroup.procs; {script}", directory.display());
    Command::new("/bin/sh").arg("-c").arg(script).stdout(Stdio::piped()).spawn().expect("a shell")
}

#[test]
fn killing_a_group_ends_those_that_go_on_forking() {
    let own = Own::new(&machine(), "kill");
    let mut child = shell(&own.0, "while :; do (sleep 100 & sleep 0.01) & sleep 0.01; done");
    while own.0.processes().len() < 5 {
        std::thread::yield_now();
    }
    own.0.kill(LIMIT).unwrap();
    assert!(own.0.processes().is_empty());
    child.wait().unwrap();
    own.0.remove().unwrap();
    own.0.remove().unwrap();
    assert!(!own.0.exists());
}

fn rule(kind: DeviceKind, major: u32, minor: Option<u32>, access: &str) -> DeviceRule {
    DeviceRule { kind, major: Some(major), minor, access: DeviceAccess::parse(access).expect("letters") }
}

/// What each attempt of a process in the group comes to: `yes` or `no`.
fn attempts(group: &Group, attempts: &[(&str, &str)]) -> Vec<String> {
    let script: String = attempts
        .iter()
        .map(|(name, what)| format!("({what}) 2>&- && echo {name} yes || echo {name} no;"))
        .collect();
    let output = shell(group, &script).wait_with_output().expect("a shell");
    String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
}

#[test]
fn the_device_program_allows_what_is_listed() {
    let unified = Layout { v1: Vec::new(), unified: machine().unified };
    let own = Own::new(&unified, "devices");
    let rules =
        [rule(DeviceKind::Character, 1, Some(3), "rwm"), rule(DeviceKind::Character, 1, Some(9), "r")];
    own.0.restrict_devices(&rules).unwrap();
    let table = [
        ("null-w", ": > /dev/null"),
        ("zero-r", ": < /dev/zero"),
        ("urandom-r", ": < /dev/urandom"),
        ("urandom-w", ": >> /dev/urandom"),
    ];
    assert_eq!(attempts(&own.0, &table), ["null-w yes", "zero-r no", "urandom-r yes", "urandom-w no"]);
}

/// A loop device stands in for the machine's disk, which may be closed to everybody.
const DISK: (u32, u32) = (7, 0);

#[test]
fn the_machines_disk_is_neither_made_nor_opened_in_a_restricted_group() {
    let unified = Layout { v1: Vec::new(), unified: machine().unified };
    let own = Own::new(&unified, "disk");
    let (major, minor) = DISK;
    let directory = std::env::temp_dir().join(format!("orlop-devices-{}", std::process::id()));
    // Pids repeat in private hosts, which share /tmp: an interrupted run may have left it.
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir(&directory).unwrap();
    let shown = directory.display();
    let numbers = [major, minor].map(|number| number.to_string());
    let made = Command::new("mknod").arg(directory.join("disk")).arg("b").args(numbers).status();
    assert!(made.unwrap().success());
    let make = format!("mknod {shown}/made b {major} {minor} && rm -f {shown}/made");
    let open = format!("exec 3< {shown}/disk");
    let both = [("make", make.as_str()), ("open", open.as_str())];
    let everything =
        DeviceRule { kind: DeviceKind::Any, major: None, minor: None, access: DeviceAccess::ALL };
    let outcomes = [
        vec![everything],
        vec![rule(DeviceKind::Character, 1, Some(3), "rwm")],
        vec![rule(DeviceKind::Block, major, Some(minor), "m")],
        vec![rule(DeviceKind::Block, major, Some(minor), "r")],
    ]
    .map(|rules| {
        // Each takes the place of the one before: rules of two programs would hold together.
        own.0.restrict_devices(&rules).unwrap();
        attempts(&own.0, &both).join(", ")
    });
    std::fs::remove_dir_all(&directory).unwrap();
    let expect = ["make yes, open yes", "make no, open no", "make yes, open no", "make no, open yes"];
    assert_eq!(outcomes, expect);
}

#[test]
fn a_frozen_group_stands_still() {
    let own = Own::new(&Layout { v1: Vec::new(), unified: machine().unified }, "freeze");
    let mut child = shell(&own.0, "exec sleep 100");
    while own.0.processes().is_empty() {
        std::thread::yield_now();
    }
    own.0.set_frozen(true).unwrap();
    let events = own.0.unified_directory().unwrap().join("cgroup.events");
    while !std::fs::read_to_string(&events).unwrap().contains("frozen 1") {
        std::thread::yield_now();
    }
    own.0.set_frozen(false).unwrap();
    let pidfd = linux::process::pidfd(child.id() as i32).unwrap();
    assert!(linux::process::signal(pidfd.as_fd(), 9).unwrap());
    child.wait().unwrap();
}
