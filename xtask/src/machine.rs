//! The inside of a node that `up` starts: `cargo xtask machine`, not for typing.
//!
//! Two stages of one executable. `start` joins the node's cgroup and leaves the host's namespaces, says `ready`, waits until
//! `up` has put a link into the new network namespace, and starts pid 1. `init` is that pid 1: it mounts what the machine has
//! of its own, starts the node's parts, restarts one that dies, and reaps. Killing it ends everything inside.

use std::fs::{self, File};
use std::io::{BufRead, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use linux::machine::{self, Leaf};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use serde::{Deserialize, Serialize};

/// A part that dies at once is started again after this, doubled each time.
const RESTART_FIRST: Duration = Duration::from_millis(100);
const RESTART_MOST: Duration = Duration::from_secs(2);
/// A part that ran this long starts over with the first delay.
const RESTART_FORGET: Duration = Duration::from_secs(2);

/// Everything that the machine needs to know; `up` writes it to `machine.json` in the node's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub name: String,
    /// Below the caller's cgroup in every hierarchy.
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

    /// The cgroups of this machine, as seen by a process that is where `up` was.
    pub fn leaf(&self) -> Result<Leaf> {
        Ok(Leaf::named(machine::hierarchies()?, &self.cgroup))
    }
}

pub fn run(stage: &Stage) -> Result<()> {
    match stage {
        Stage::Start { folder } => start(folder),
        Stage::Init { folder } => init(folder),
    }
}

fn start(folder: &Path) -> Result<()> {
    // Pid 1 works in `/`.
    let folder = &fs::canonicalize(folder).with_context(|| format!("find {}", folder.display()))?;
    let description = Machine::read(folder)?;
    let leaf = Leaf::create(machine::hierarchies()?, &description.cgroup)?;
    leaf.join()?;
    machine::unshare()?;
    println!("ready");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("wait for the network")?;
    ensure!(answer.trim() == "go", "the network was not made");
    let log = log(folder, "init")?;
    let mut init = Command::new(std::env::current_exe().context("find own executable")?);
    init.args(["machine", "init"]).arg(folder).current_dir("/");
    init.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    let child = init.spawn().context("start pid 1")?;
    println!("{}", child.id());
    std::io::stdout().flush().context("report pid 1")
}

fn init(folder: &Path) -> Result<()> {
    let description = Machine::read(folder)?;
    mount(folder)?;
    nix::unistd::sethostname(&description.name).context("set the host name")?;
    let children = watch_children()?;
    let mut running: Vec<Running> = description.parts.iter().map(|part| Running::new(part.clone())).collect();
    loop {
        let now = Instant::now();
        for part in &mut running {
            part.start_if_due(folder, now)?;
        }
        let next = running.iter().filter_map(|part| part.due).min();
        wait_for_exit(&children, next, &mut running)?;
    }
}

/// Readable whenever a child ended. Children start with no signal blocked, as the standard library sees to.
fn watch_children() -> Result<SignalFd> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block().context("block SIGCHLD")?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .context("watch for children")
}

/// The machine's own file systems. `/var/lib/orlop` is bound, since layers of containers cannot lie on an overlay.
fn mount(folder: &Path) -> Result<()> {
    machine::mount_system(&machine::hierarchies()?)?;
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
    fs::create_dir_all("/run/orlop").context("create /run/orlop")
}

struct Running {
    part: Part,
    pid: Option<i32>,
    started: Option<Instant>,
    delay: Duration,
    /// When to start it; `None` while it runs.
    due: Option<Instant>,
}

impl Running {
    fn new(part: Part) -> Self {
        Self { part, pid: None, started: None, delay: RESTART_FIRST, due: Some(Instant::now()) }
    }

    fn start_if_due(&mut self, folder: &Path, now: Instant) -> Result<()> {
        if self.due.is_none_or(|due| due > now) {
            return Ok(());
        }
        let log = log(folder, &self.part.name)?;
        let [program, arguments @ ..] = self.part.command.as_slice() else { return Ok(()) };
        let mut command = Command::new(program);
        command.args(arguments).envs(self.part.environment.iter().cloned()).process_group(0);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        match command.spawn() {
            Ok(child) => {
                self.pid = i32::try_from(child.id()).ok();
                (self.started, self.due) = (Some(now), None);
            }
            Err(error) => {
                println!("start {program}: {error}");
                self.retry(now);
            }
        }
        Ok(())
    }

    fn ended(&mut self, status: &WaitStatus) {
        let now = Instant::now();
        println!("{} ended: {status:?}", self.part.name);
        if self.started.is_some_and(|started| now.duration_since(started) > RESTART_FORGET) {
            self.delay = RESTART_FIRST;
        }
        self.retry(now);
    }

    fn retry(&mut self, now: Instant) {
        (self.pid, self.due) = (None, Some(now + self.delay));
        self.delay = (self.delay * 2).min(RESTART_MOST);
    }
}

/// Waits until a child ends or the next restart is due, then reaps whatever has ended.
fn wait_for_exit(children: &SignalFd, next: Option<Instant>, running: &mut [Running]) -> Result<()> {
    let timeout = next.map_or(PollTimeout::NONE, |next| {
        let rest = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(rest).unwrap_or(PollTimeout::MAX)
    });
    let mut ready = [PollFd::new(children.as_fd(), PollFlags::POLLIN)];
    match poll(&mut ready, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(errno).context("wait for a child"),
    }
    // One signal may stand for several children.
    let _ = children.read_signal();
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
        note(&status, running);
    }
    Ok(())
}

fn note(status: &WaitStatus, running: &mut [Running]) {
    let pid = status.pid().map(nix::unistd::Pid::as_raw);
    if let Some(part) = running.iter_mut().find(|part| part.pid.is_some() && part.pid == pid) {
        part.ended(status);
    }
}

fn log(folder: &Path, name: &str) -> Result<File> {
    let path = folder.join("logs").join(format!("{name}.log"));
    File::options().create(true).append(true).open(&path).with_context(|| format!("open {}", path.display()))
}
