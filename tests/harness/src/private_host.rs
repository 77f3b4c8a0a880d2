//! The private host of a test: its own mount, network, pid, uts, ipc and cgroup namespaces.
//!
//! `private-host PROGRAM ARGUMENTS…` (cargo's target runner in the root tiers) makes one, runs the program in it as a
//! child of pid 1, and fails if the program leaves something behind. Inside, `/run`, `/var/lib`, `/var/log` and `/etc` are the
//! test's own, loopback is up, a BPF file system is at `/sys/fs/bpf`, and the cgroup root is a leaf of the test's own.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use linux::machine::{self, Hierarchy, Leaf};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::leaks::Snapshot;

/// Set for everything that runs inside a private host.
const MARK: &str = "ORLOP_PRIVATE_HOST";

/// What the runner exits with when the test passed but left something behind.
const LEAKED: u8 = 120;

/// Panics outside a private host: a test that touches links, mounts, cgroups or sysctls calls this first.
pub fn require() {
    let inside = std::env::var_os(MARK).is_some() && is_child_of_private_init();
    assert!(
        inside,
        "this test changes its host: run it with `cargo xtask test`, which gives it a private one"
    );
}

/// In a private host pid 1 is our runner, whatever the environment claims.
fn is_child_of_private_init() -> bool {
    std::fs::read_to_string("/proc/1/comm").is_ok_and(|name| name.trim() == "private-host")
}

/// The runner, from its command line. The first stage is outside, the second is pid 1 of the private host.
pub fn main(mut arguments: Vec<OsString>) -> Result<ExitCode> {
    if arguments.first().is_some_and(|first| first == "--init") {
        arguments.remove(0);
        return init(&arguments);
    }
    if arguments.iter().any(|argument| argument == "--list") {
        // nextest asks each binary for its tests; nothing runs, so no host is needed.
        let error = Command::new(&arguments[0]).args(&arguments[1..]).exec();
        return Err(error).context("run the test binary");
    }
    outside(&arguments)
}

fn outside(arguments: &[OsString]) -> Result<ExitCode> {
    let name = format!("orlop-test-{}", std::process::id());
    let leaf = Leaf::create(machine::hierarchies()?, &name)?;
    leaf.join()?;
    let status = machine::unshare().map_err(anyhow::Error::from).and_then(|()| {
        let me = std::env::current_exe().context("find own executable")?;
        Command::new(me).arg("--init").args(arguments).env(MARK, "1").status().context("start pid 1")
    });
    // The pid namespace is gone by now, and every process in it.
    leaf.leave()?;
    leaf.remove()?;
    let status = status?;
    if let Some(signal) = status.signal() {
        eprintln!("private-host: pid 1 ended by signal {signal}");
    }
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}

fn init(arguments: &[OsString]) -> Result<ExitCode> {
    let hierarchies = machine::hierarchies()?;
    prepare(&hierarchies)?;
    let before = Snapshot::of_private_host(&hierarchies)?;
    let child = Command::new(&arguments[0]).args(&arguments[1..]).spawn().context("start the test")?;
    let code = reap_until(Pid::from_raw(i32::try_from(child.id())?))?;
    let after = Snapshot::of_private_host(&hierarchies)?;
    let left = before.leaks(&after);
    end_the_rest();
    if left.is_empty() {
        return Ok(ExitCode::from(code));
    }
    for leak in &left {
        eprintln!("left behind: {leak}");
    }
    Ok(ExitCode::from(if code == 0 { LEAKED } else { code }))
}

fn prepare(hierarchies: &[Hierarchy]) -> Result<()> {
    machine::mount_system(hierarchies)?;
    machine::empty(Path::new("/run"))?;
    let changes = Path::new("/run/private-host");
    for folder in ["/etc", "/var/lib", "/var/log"] {
        machine::shadow(Path::new(folder), &changes.join(folder.trim_start_matches('/').replace('/', "-")))?;
    }
    nix::unistd::sethostname("private-host").context("set the host name")?;
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("start ip")?;
    anyhow::ensure!(status.success(), "bring loopback up: {status}");
    Ok(())
}

/// Waits for the test and reaps whatever is reparented to us meanwhile.
fn reap_until(test: Pid) -> Result<u8> {
    loop {
        match waitpid(None, None).context("wait for the test")? {
            WaitStatus::Exited(pid, code) if pid == test => return Ok(u8::try_from(code).unwrap_or(1)),
            WaitStatus::Signaled(pid, signal, _) if pid == test => {
                eprintln!("private-host: the test ended by {signal}");
                return Ok(1);
            }
            _ => {}
        }
    }
}

/// Ends what the test left running and reaps it, so that its cgroups are empty when we exit.
fn end_the_rest() {
    // In our own pid namespace -1 means everything except pid 1, that is, us.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    while waitpid(None, None).is_ok() {}
}
