//! The inside of a node that `up` starts: `cargo xtask machine`, not for typing.
//!
//! Two stages of one executable. `start` joins the node's cgroup and leaves the host's namespaces, says `ready`, waits until
//! `up` has put a link into the new network namespace, and starts pid 1. `init` is that pid 1: it mounts what the machine has
//! of its own, starts the node's parts in a cgroup each, restarts one that dies, reaps, and keeps `parts.json` true. Killing
//! it ends everything inside; nothing that fails once the parts run ends it.

mod log;
pub mod parts;

use std::fs;
use std::io::{BufRead, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use linux::machine::{self, Hierarchy, Leaf};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use serde::{Deserialize, Serialize};

use crate::up::relay;
use parts::{Running, Status};

/// What the command line of pid 1 has after the executable; the node's folder follows.
pub const INIT_ARGUMENTS: [&str; 2] = ["machine", "init"];

/// How often the sizes of the logs are looked at: a watch would wake up for every line.
const LOG_CHECK: Duration = Duration::from_secs(60);

/// Everything that the machine needs to know; `up` writes it to `machine.json` in the node's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub name: String,
    /// In every hierarchy, counted from its root: an absolute path.
    pub cgroup: String,
    pub parts: Vec<Part>,
}

/// One program that runs as long as the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub name: String,
    pub command: Vec<String>,
    pub environment: Vec<(String, String)>,
}

#[derive(clap::Subcommand)]
pub enum Stage {
    /// Leave the host's namespaces and start pid 1.
    Start { folder: PathBuf },
    /// Be pid 1.
    Init { folder: PathBuf },
    /// Pass connections of the nodes on to the host's loopback.
    Relay { targets: Vec<String> },
}

impl Machine {
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("machine.json");
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("parse {}", path.display()))
    }

    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join("machine.json");
        fs::write(&path, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("write {}", path.display()))
    }
}

pub fn run(stage: &Stage) -> Result<()> {
    match stage {
        Stage::Start { folder } => start(folder),
        Stage::Init { folder } => init(folder),
        Stage::Relay { targets } => relay::serve(targets),
    }
}

fn start(folder: &Path) -> Result<()> {
    // Pid 1 works in `/`.
    let folder = &fs::canonicalize(folder).with_context(|| format!("find {}", folder.display()))?;
    let description = Machine::read(folder)?;
    let leaf = Leaf::create(machine::hierarchies()?, &description.cgroup)?;
    let inner = leaf.create_below(machine::INIT)?;
    leaf.join()?;
    machine::unshare()?;
    // The machine's cgroup root keeps no process: it could not hand controllers down to pods.
    inner.join()?;
    inner.enable_controllers();
    println!("ready");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("wait for the network")?;
    ensure!(answer.trim() == "go", "the network was not made");
    let log = log::open(folder, "init").context("open init.log")?;
    let mut init = Command::new(std::env::current_exe().context("find own executable")?);
    init.args(INIT_ARGUMENTS).arg(folder).current_dir("/");
    init.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    let child = init.spawn().context("start pid 1")?;
    println!("{}", child.id());
    std::io::stdout().flush().context("report pid 1")
}

fn init(folder: &Path) -> Result<()> {
    let description = Machine::read(folder)?;
    let hierarchies = machine::hierarchies()?;
    mount(folder, &hierarchies)?;
    nix::unistd::sethostname(&description.name).context("set the host name")?;
    let children = watch_children()?;
    let own = Leaf::named(hierarchies.clone(), in_machine(machine::INIT));
    let mut running: Vec<Running> = Vec::new();
    for part in &description.parts {
        let leaf = Leaf::create(hierarchies.clone(), in_machine(&part.name))?;
        running.push(Running::new(part.clone(), leaf));
    }
    let mut logs_due = Instant::now();
    loop {
        let now = Instant::now();
        if logs_due <= now {
            log::cap(folder, running.iter().map(Running::name).chain(["init"]));
            logs_due = now + LOG_CHECK;
        }
        let mut changed = false;
        for part in &mut running {
            changed |= part.start_if_due(folder, &own, now);
        }
        // SIGCHLD was not blocked while a part was started: look before waiting for it.
        changed |= reap(&mut running);
        if changed {
            let statuses: Vec<&Status> = running.iter().map(Running::status).collect();
            if let Err(error) = parts::write(folder, &statuses) {
                log::say(format_args!("{error:#}"));
            }
        }
        let next = running.iter().filter_map(Running::due).fold(logs_due, Instant::min);
        if let Err(error) = wait_for_exit(&children, next) {
            log::say(format_args!("{error:#}"));
        }
    }
}

/// A cgroup of the machine, counted from its own root.
fn in_machine(name: &str) -> PathBuf {
    Path::new("/").join(name)
}

/// Readable whenever a child ended.
fn watch_children() -> Result<SignalFd> {
    let signals = child_signal();
    signals.thread_block().context("block SIGCHLD")?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .context("watch for children")
}

fn child_signal() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals
}

/// The machine's own file systems. `/var/lib/orlop` is bound, since layers of containers cannot lie on an overlay.
fn mount(folder: &Path, hierarchies: &[Hierarchy]) -> Result<()> {
    machine::mount_system(hierarchies)?;
    machine::empty(Path::new("/run"))?;
    for shadowed in ["/etc", "/var/lib", "/var/log"] {
        let name = shadowed.trim_start_matches('/').replace('/', "-");
        machine::shadow(Path::new(shadowed), &folder.join("changes").join(name))?;
    }
    for (inside, outside) in [("/var/lib/orlop", "var-lib-orlop"), ("/var/log/pods", "pod-logs")] {
        let outside = folder.join(outside);
        fs::create_dir_all(&outside).with_context(|| format!("create {}", outside.display()))?;
        machine::bind(&outside, Path::new(inside))?;
    }
    name_servers(folder)?;
    fs::create_dir_all("/run/orlop").context("create /run/orlop")
}

/// The host's resolv.conf may be a link into its /run, which is empty here.
fn name_servers(folder: &Path) -> Result<()> {
    const HERE: &str = "/etc/resolv.conf";
    match fs::remove_file(HERE) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {HERE}"));
        }
        _ => {}
    }
    fs::copy(folder.join("resolv.conf"), HERE).map(drop).with_context(|| format!("write {HERE}"))
}

/// Waits until a child ends or `next` comes.
fn wait_for_exit(children: &SignalFd, next: Instant) -> Result<()> {
    let rest = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
    let timeout = PollTimeout::try_from(rest).unwrap_or(PollTimeout::MAX);
    let mut ready = [PollFd::new(children.as_fd(), PollFlags::POLLIN)];
    match poll(&mut ready, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(errno).context("wait for a child"),
    }
    // One signal may stand for several children.
    let _ = children.read_signal();
    Ok(())
}

/// Reaps whatever has ended, orphans of the parts too; whether one was a part.
fn reap(running: &mut [Running]) -> bool {
    let mut any = false;
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
        let pid = status.pid().map(nix::unistd::Pid::as_raw);
        if let Some(part) = running.iter_mut().find(|part| pid.is_some() && part.pid() == pid) {
            part.ended(&format!("{status:?}"));
            any = true;
        }
    }
    any
}
