//! The private host of a test: its own mount, network, pid, uts, ipc and cgroup namespaces.
//!
//! `private-host PROGRAM ARGUMENTS…` (cargo's target runner in the root tiers) makes one, runs the program in it as a
//! child of pid 1, and fails if the program leaves something behind. Inside, `/run`, `/var/lib`, `/var/log` and `/etc` are the
//! test's own, loopback is up, a BPF file system is at `/sys/fs/bpf`, and the cgroup root is a leaf of the test's own; the test
//! runs in a leaf below it, so that it can enable controllers at the root.
//!
//! Three stages of one executable: the outer one makes the leaf and takes it away, `--enter` leaves the host's namespaces, and
//! `--init` is pid 1. Each dies with the one before it, so a test that is interrupted ends whole; a leaf that then stays, since
//! its outer stage was killed, is swept by the next.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use linux::machine::{self, Hierarchy, Leaf};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::leaks::Snapshot;

#[cfg(test)]
mod tests;

/// Set for everything that runs inside a private host.
const MARK: &str = "ORLOP_PRIVATE_HOST";

/// Tells a stage the pid of the one before it.
const PARENT: &str = "ORLOP_PRIVATE_HOST_PARENT";

/// What the runner exits with when the test passed but left something behind.
const LEAKED: u8 = 120;

/// What the names of our leaves begin with; the outer stage's pid follows.
const LEAF: &str = "orlop-test-";

/// How long the kernel may take to end a private host's processes.
const END_LIMIT: Duration = Duration::from_secs(20);

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

/// The runner, from its command line.
pub fn main(arguments: Vec<OsString>) -> Result<ExitCode> {
    match arguments.first().and_then(|first| first.to_str()) {
        Some("--init") => return init(&arguments[1..]),
        Some("--enter") => return enter(&arguments[1..]),
        None => anyhow::bail!("usage: private-host PROGRAM ARGUMENTS…"),
        Some(_) => {}
    }
    if arguments.iter().any(|argument| argument == "--list") {
        // nextest asks each binary for its tests; nothing runs, so no host is needed.
        let error = Command::new(&arguments[0]).args(&arguments[1..]).exec();
        return Err(error).context("run the test binary");
    }
    outside(&arguments)
}

/// The first stage: it stays on the host, so that it can remove the leaf when everything in it has ended.
fn outside(arguments: &[OsString]) -> Result<ExitCode> {
    let hierarchies = machine::hierarchies()?;
    sweep(&hierarchies);
    let leaf = Leaf::create(hierarchies.clone(), leaf_name(&hierarchies, std::process::id()))?;
    // Blocked before the child exists, so that none is missed; the next stage unblocks what it inherits.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("block signals")?;
    let status = me("--enter", arguments).and_then(|mut command| {
        command.env(PARENT, std::process::id().to_string());
        let child = command.spawn().context("start the private host")?;
        wait_or_forward(child, &signals)
    });
    // Pid 1 is killed when the second stage ends, and with it every process of its namespace.
    wait_empty(&leaf)?;
    leaf.remove()?;
    let status = status?;
    if let Some(signal) = status.signal() {
        eprintln!("private-host: ended by signal {signal}");
    }
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}

/// v2 hands controllers down only from cgroups without processes, so there a leaf starts at the root. With v1 it stays below
/// its caller and within the caller's limits.
fn leaf_name(hierarchies: &[Hierarchy], pid: u32) -> String {
    let base = if machine::is_pure_v2(hierarchies) { "/" } else { "" };
    format!("{base}{LEAF}{pid}")
}

fn me(stage: &str, arguments: &[OsString]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("find own executable")?);
    command.arg(stage).args(arguments);
    Ok(command)
}

/// Waits for the child; a signal that asks us to end kills it first.
fn wait_or_forward(mut child: Child, signals: &SigSet) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().context("wait for the private host")? {
            return Ok(status);
        }
        if signals.wait().context("wait for a signal")? != Signal::SIGCHLD {
            child.kill().context("end the private host")?;
        }
    }
}

fn wait_empty(leaf: &Leaf) -> Result<()> {
    let deadline = Instant::now() + END_LIMIT;
    loop {
        let left = leaf.processes();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "processes of the private host do not end: {left:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Removes leaves whose outer stage was killed before it could. What cannot be removed is in use and somebody else's to end.
fn sweep(hierarchies: &[Hierarchy]) {
    let parent = if machine::is_pure_v2(hierarchies) { "/" } else { "" };
    for name in Leaf::named(hierarchies.to_vec(), parent).children() {
        if abandoned(&name, |pid| Path::new("/proc").join(pid).exists()) {
            let _ = Leaf::named(hierarchies.to_vec(), format!("{parent}{name}")).remove();
        }
    }
}

/// Whether a cgroup is a leaf of ours whose maker is gone.
fn abandoned(name: &str, is_alive: impl Fn(&str) -> bool) -> bool {
    name.strip_prefix(LEAF).is_some_and(|pid| pid.parse::<u32>().is_ok() && !is_alive(pid))
}

/// The second stage: leaves the host's namespaces and waits for pid 1 in them.
fn enter(arguments: &[OsString]) -> Result<ExitCode> {
    let outer = die_with_parent()?;
    let hierarchies = machine::hierarchies()?;
    let leaf = Leaf::named(hierarchies.clone(), leaf_name(&hierarchies, outer));
    let inner = leaf.create_below(machine::INIT)?;
    leaf.join()?;
    machine::unshare()?;
    inner.join()?;
    inner.enable_controllers();
    let mut command = me("--init", arguments)?;
    command.env(PARENT, std::process::id().to_string()).env(MARK, "1");
    let status = command.status().context("start pid 1")?;
    if let Some(signal) = status.signal() {
        eprintln!("private-host: pid 1 ended by signal {signal}");
    }
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}

/// Asks the kernel to end this process when the stage before it ends, refuses to go on when that has happened already, and
/// gives that stage's pid.
fn die_with_parent() -> Result<u32> {
    let parent = std::env::var(PARENT).context("private-host starts this stage itself")?;
    let parent: u32 = parent.parse().context("read the pid of the stage before")?;
    set_pdeathsig(Signal::SIGKILL).context("ask to end with the parent")?;
    ensure!(parent_in_proc()? == parent, "private-host was ended");
    SigSet::empty().thread_set_mask().context("unblock signals")?;
    Ok(parent)
}

/// The parent's pid as the mounted /proc numbers it: to pid 1 of a namespace, getppid says 0.
fn parent_in_proc() -> Result<u32> {
    let stat = std::fs::read_to_string("/proc/self/stat").context("read /proc/self/stat")?;
    let field = stat.rsplit_once(") ").and_then(|(_, fields)| fields.split(' ').nth(1));
    field.and_then(|pid| pid.parse().ok()).context("/proc/self/stat has no parent")
}

fn init(arguments: &[OsString]) -> Result<ExitCode> {
    die_with_parent()?;
    let hierarchies = machine::hierarchies()?;
    prepare(&hierarchies)?;
    let before = Snapshot::of_private_host(&hierarchies)?;
    let mut test = Command::new(&arguments[0]);
    let child = test.args(&arguments[1..]).env_remove(PARENT).spawn().context("start the test")?;
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
