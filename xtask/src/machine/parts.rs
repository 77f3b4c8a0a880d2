//! The parts of a machine: starting each in its cgroup, restarting one that ended, and telling `up` how they are.
//!
//! `parts.json` in the node's folder is written by pid 1 whenever a part starts or ends; `up` reads it and decides by [`judge`].

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use linux::machine::Leaf;
use serde::{Deserialize, Serialize};

use super::{Part, child_signal, log};

#[cfg(test)]
mod tests;

/// A part that dies at once is started again after this, doubled each time.
const RESTART_FIRST: Duration = Duration::from_millis(100);
const RESTART_MOST: Duration = Duration::from_secs(2);
/// A part that ran this long starts over with the first delay.
const RESTART_FORGET: Duration = Duration::from_secs(2);
/// `up` gives up when it has seen a part end this often in a row.
const GIVE_UP: u32 = 8;

/// What pid 1 says about a part.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub name: String,
    /// In the machine's pid namespace; `None` while it waits for its next start.
    pub pid: Option<i32>,
    /// When `pid` last changed, in milliseconds since 1970.
    pub since: u64,
    /// How often it ended.
    pub ends: u32,
    /// How often it ended soon after its start, without a longer run in between.
    pub failures: u32,
    pub last_exit: Option<String>,
}

/// What `up` makes of the parts.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Healthy,
    /// Something starts: look again.
    Wait,
    GiveUp {
        name: String,
        last_exit: String,
    },
}

/// Decides about the parts as they are `now`, having first seen them as `before`.
pub fn judge(before: &[Status], parts: &[Status], now: u64) -> Verdict {
    let forget = u64::try_from(RESTART_FORGET.as_millis()).unwrap_or(u64::MAX);
    let mut verdict = if parts.is_empty() { Verdict::Wait } else { Verdict::Healthy };
    for part in parts {
        let runs = part.pid.is_some() && (part.failures == 0 || now.saturating_sub(part.since) > forget);
        if runs {
            continue;
        }
        let seen = before.iter().find(|other| other.name == part.name).map_or(0, |other| other.ends);
        if part.failures >= GIVE_UP && part.ends >= seen.saturating_add(GIVE_UP) {
            let last_exit = part.last_exit.clone().unwrap_or_default();
            return Verdict::GiveUp { name: part.name.clone(), last_exit };
        }
        verdict = Verdict::Wait;
    }
    verdict
}

fn file(folder: &Path) -> PathBuf {
    folder.join("parts.json")
}

/// What pid 1 wrote last; nothing before its first word.
pub fn read(folder: &Path) -> Vec<Status> {
    let bytes = fs::read(file(folder)).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// Forgets what an earlier pid 1 wrote.
pub fn forget(folder: &Path) -> Result<()> {
    match fs::remove_file(file(folder)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("remove parts.json"),
        _ => Ok(()),
    }
}

pub(super) fn write(folder: &Path, parts: &[&Status]) -> Result<()> {
    let path = file(folder);
    let temporary = path.with_extension("new");
    fs::write(&temporary, serde_json::to_vec(parts)?).context("write parts.json")?;
    fs::rename(&temporary, &path).context("replace parts.json")
}

/// Milliseconds since 1970.
pub fn clock() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// A part as pid 1 keeps it.
pub(super) struct Running {
    part: Part,
    leaf: Leaf,
    status: Status,
    started: Option<Instant>,
    delay: Duration,
    /// When to start it; `None` while it runs.
    due: Option<Instant>,
}

impl Running {
    pub fn new(part: Part, leaf: Leaf) -> Self {
        let status = Status { name: part.name.clone(), since: clock(), ..Status::default() };
        Self { part, leaf, status, started: None, delay: RESTART_FIRST, due: Some(Instant::now()) }
    }

    pub fn name(&self) -> &str {
        &self.part.name
    }

    pub fn status(&self) -> &Status {
        &self.status
    }

    pub fn pid(&self) -> Option<i32> {
        self.status.pid
    }

    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Starts the part if it is time, as a child of pid 1, whose own cgroup is `own`; whether it tried.
    pub fn start_if_due(&mut self, folder: &Path, own: &Leaf, now: Instant) -> bool {
        if self.due.is_none_or(|due| due > now) {
            return false;
        }
        self.started = Some(now);
        match self.start(folder, own) {
            Ok(pid) => {
                (self.due, self.status.pid, self.status.since) = (None, Some(pid), clock());
            }
            Err(error) => self.ended(&format!("{error:#}")),
        }
        true
    }

    fn start(&self, folder: &Path, own: &Leaf) -> Result<i32> {
        let [program, arguments @ ..] = self.part.command.as_slice() else {
            anyhow::bail!("the part has no command");
        };
        let mut command = Command::new(program);
        command.args(arguments).envs(self.part.environment.iter().cloned()).process_group(0);
        command.stdin(Stdio::null());
        // A part without a log of its own writes to pid 1's.
        match log::open(folder, &self.part.name).and_then(|log| Ok((log.try_clone()?, log))) {
            Ok((output, errors)) => {
                command.stdout(output).stderr(errors);
            }
            Err(error) => log::say(format_args!("open the log of {}: {error}", self.part.name)),
        }
        // A child starts where its parent is, so pid 1, which has one thread, goes there and comes back.
        if let Err(error) = self.leaf.join() {
            log::say(format_args!("start {} in its cgroup: {error}", self.part.name));
        }
        let child = unblocked(|| command.spawn());
        if let Err(error) = own.join() {
            log::say(format_args!("return to pid 1's cgroup: {error}"));
        }
        let child = child.with_context(|| format!("start {program}"))?;
        i32::try_from(child.id()).context("the pid is too large")
    }

    /// Notes the end, and when to start again.
    pub fn ended(&mut self, how: &str) {
        let now = Instant::now();
        log::say(format_args!("{} ended: {how}", self.part.name));
        if self.started.is_some_and(|started| now.duration_since(started) > RESTART_FORGET) {
            (self.delay, self.status.failures) = (RESTART_FIRST, 0);
        } else {
            self.status.failures += 1;
        }
        self.status.ends += 1;
        (self.status.pid, self.status.since) = (None, clock());
        self.status.last_exit = Some(how.to_owned());
        self.due = Some(now + self.delay);
        self.delay = (self.delay * 2).min(RESTART_MOST);
    }
}

/// Runs `spawn` with SIGCHLD not blocked: a child inherits what is. This process has one thread.
fn unblocked<T>(spawn: impl FnOnce() -> T) -> T {
    let signals = child_signal();
    if let Err(errno) = signals.thread_unblock() {
        log::say(format_args!("unblock SIGCHLD: {errno}"));
    }
    let child = spawn();
    if let Err(errno) = signals.thread_block() {
        log::say(format_args!("block SIGCHLD: {errno}"));
    }
    child
}
