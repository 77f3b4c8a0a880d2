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

#[test]
fn the_device_program_allows_what_is_listed() {
    let unified = Layout { v1: Vec::new(), unified: machine().unified };
    let own = Own::new(&unified, "devices");
    let rule = |minor, access| DeviceRule { kind: DeviceKind::Character, major: Some(1), minor, access };
    let read = DeviceAccess { read: true, write: false, mknod: false };
    own.0.restrict_devices(&[rule(Some(3), DeviceAccess::ALL), rule(Some(9), read)]).unwrap();
    let try_it = "try() { if (eval \"$2\") 2>/dev/null; then echo $1 yes; else echo $1 no; fi; };";
    let script = format!(
        "{try_it} try null-w ': > /dev/null'; try zero-r ': < /dev/zero'; try urandom-r ': < /dev/urandom'; try urandom-w ': >> /dev/urandom'"
    );
    let output = shell(&own.0, &script).wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, "null-w yes\nzero-r no\nurandom-r yes\nurandom-w no\n");
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
