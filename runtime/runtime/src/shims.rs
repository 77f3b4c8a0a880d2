//! Shims as processes: the sealed executable they share, starting one, finding those that live, and ending what one left behind.

pub(crate) mod client;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use linux::cgroup::Layout;
use linux::process::Place;
use shim_protocol::{PROGRAM, ShimConfig};

use crate::config::{Config, is_id};
use crate::error::Error;

/// Longest start of a shim.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Longest look for shims.
const LOOK_LIMIT: Duration = Duration::from_secs(30);
/// Bytes compared at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// A shim that lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Living {
    /// Its pid.
    pub pid: i32,
    /// Its sandbox.
    pub sandbox: String,
}

/// The shims of this runtime. Those that cannot be looked at in time count as gone.
pub(crate) fn living(config: &Config) -> Vec<Living> {
    let (config, (sender, receiver)) = (config.clone(), mpsc::channel());
    let look = move || {
        if let Err(error) = look(&config, &sender) {
            tracing::warn!(%error, "shims cannot be looked for, and count as gone");
        }
    };
    // Nobody waits for a thread that somebody holds.
    if let Err(error) = std::thread::Builder::new().name("find-shims".into()).spawn(look) {
        tracing::warn!(%error, "shims cannot be looked for, and count as gone");
    }
    let (shims, is_all) = found_until(Instant::now() + LOOK_LIMIT, &receiver);
    if !is_all {
        tracing::warn!("shims are looked for no longer: those not found yet count as gone");
    }
    shims
}

fn look(config: &Config, found: &Sender<Living>) -> Result<(), linux::Error> {
    let trust = Trust::now(config)?;
    let shims = linux::process::list()?.into_iter().filter_map(|pid| trust.shim(config, pid));
    // Nobody waits any more.
    let _late = shims.map(|shim| found.send(shim)).find(Result::is_err);
    Ok(())
}

/// What a look has found when it ends, or at the deadline, and whether it has ended.
fn found_until<T>(deadline: Instant, receiver: &Receiver<T>) -> (Vec<T>, bool) {
    let mut found = Vec::new();
    loop {
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(one) => found.push(one),
            Err(error) => return (found, error == RecvTimeoutError::Disconnected),
        }
    }
}

/// Which processes are asked for their command line. A container's author can make any process look like a shim, and hold whoever reads its
/// memory: his are in another pid namespace, or, with the node's, in the container's control group.
struct Trust {
    own: Place,
    /// Who is in the shims' control group, when there is one. Who starts a shim is still in ours.
    shims: Option<BTreeSet<i32>>,
}

impl Trust {
    fn now(config: &Config) -> Result<Trust, linux::Error> {
        let in_group = |path: &String| Ok(Layout::detect(&config.cgroup_root)?.group(path)?.processes());
        let shims = config.shim_cgroup.as_ref().map(in_group).transpose()?;
        Ok(Trust { own: Place::own()?, shims: shims.map(BTreeSet::from_iter) })
    }

    fn covers(&self, pid: i32, place: &Place) -> bool {
        let by_group = |shims: &BTreeSet<i32>| shims.contains(&pid) || place.cgroups == self.own.cgroups;
        place.pid_namespace == self.own.pid_namespace && self.shims.as_ref().is_none_or(by_group)
    }

    /// The shim that a process is, by its command line: the program, the sandbox, and the file that is this sandbox's configuration. What
    /// it names must be ours, and nothing but a name.
    fn shim(&self, config: &Config, pid: i32) -> Option<Living> {
        if !runs_a_shim(pid) || !self.covers(pid, &Place::of(pid).ok()?) {
            return None;
        }
        match linux::process::arguments_of(pid).as_slice() {
            [program, sandbox, file]
                if program == PROGRAM && is_id(sandbox) && Path::new(file) == config.shim_config(sandbox) =>
            {
                Some(Living { pid, sandbox: sandbox.clone() })
            }
            _ => None,
        }
    }
}

/// Whether a process runs a copy that [`executable`] made, by the name of the memory file, which anybody can give to one of his.
fn runs_a_shim(pid: i32) -> bool {
    let executable = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    executable.as_os_str() == format!("/memfd:{PROGRAM} (deleted)").as_str()
}

/// The executable that all shims share: the one that living shims run when it has the content of the file, else a new sealed copy.
pub(crate) fn executable(config: &Config, living: &[Living]) -> Result<OwnedFd, Error> {
    for shim in living {
        let path = format!("/proc/{}/exe", shim.pid);
        if let Ok(running) = File::open(&path)
            && linux::memfd::is_sealed(&running)
            && same_content(&config.shim, &running).unwrap_or(false)
        {
            return Ok(running.into());
        }
    }
    linux::memfd::sealed_copy(&config.shim, PROGRAM)
        .map_err(|source| Error::System { operation: "load the shim's executable".into(), source })
}

fn same_content(one: &Path, mut other: &File) -> std::io::Result<bool> {
    let mut one = File::open(one)?;
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    loop {
        let count = one.read(&mut left)?;
        if count == 0 {
            return Ok(true);
        }
        other.read_exact(&mut right[..count])?;
        if left[..count] != right[..count] {
            return Ok(false);
        }
    }
}

/// Starts a shim and returns when it listens.
pub(crate) async fn spawn(executable: &OwnedFd, config: &ShimConfig, file: &Path) -> Result<(), Error> {
    let bytes = serde_json::to_vec(config).unwrap_or_default();
    std::fs::write(file, bytes)
        .map_err(|source| Error::Io { operation: format!("write {}", file.display()), source })?;
    let failed =
        |source| Error::Io { operation: format!("start the shim of sandbox \"{}\"", config.sandbox), source };
    let mut command = std::process::Command::new(format!("/proc/self/fd/{}", executable.as_raw_fd()));
    std::os::unix::process::CommandExt::arg0(&mut command, PROGRAM);
    command.arg(&config.sandbox).arg(file).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = tokio::process::Command::from(command).spawn().map_err(failed)?;
    let output = match tokio::time::timeout(START_LIMIT, child.wait_with_output()).await {
        Ok(output) => output.map_err(failed)?,
        Err(_) => {
            return Err(Error::Timeout {
                operation: format!("start the shim of sandbox \"{}\"", config.sandbox),
            });
        }
    };
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Shim {
        operation: "start the sandbox",
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Ends the shim of a sandbox when it lives, and takes off what it mounted. Its containers' control groups are the caller's to empty.
pub(crate) fn destroy(config: &Config, sandbox: &str) {
    kill(config, sandbox);
    take_off(config, sandbox);
}

/// Ends the shim of a sandbox when it lives.
pub(crate) fn kill(config: &Config, sandbox: &str) {
    for shim in living(config).into_iter().filter(|shim| shim.sandbox == sandbox) {
        if let Ok(pidfd) = linux::process::pidfd(shim.pid) {
            // The number may have gone to another process until the descriptor was opened.
            let still_it =
                Trust::now(config).is_ok_and(|trust| trust.shim(config, shim.pid).as_ref() == Some(&shim));
            if still_it {
                let _ = linux::process::signal(
                    std::os::fd::AsFd::as_fd(&pidfd),
                    rustix::process::Signal::KILL.as_raw(),
                );
                wait_for_end(&pidfd);
            }
        }
    }
}

/// Waits, at most as long as a start may take, until a killed process is gone.
pub(crate) fn wait_for_end(pidfd: &OwnedFd) {
    let mut poll = [rustix::event::PollFd::new(pidfd, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: START_LIMIT.as_secs().cast_signed(), tv_nsec: 0 };
    let _ = rustix::event::poll(&mut poll, Some(&limit));
}

/// Removes mounts, socket and configuration of a sandbox whose shim is gone. Fine when they are gone.
pub(crate) fn take_off(config: &Config, sandbox: &str) {
    let netns = config.netns_path(sandbox);
    let shm = config.shm_path(sandbox);
    for path in [&netns, &shm] {
        if let Err(error) = linux::mount::detach(path) {
            tracing::warn!(sandbox, %error, "mount of a sandbox cannot be taken off");
        }
    }
    let _ = std::fs::remove_file(&netns);
    let _ = std::fs::remove_dir(&shm);
    let _ = std::fs::remove_file(config.shim_socket(sandbox));
    let _ = std::fs::remove_file(config.shim_config(sandbox));
}
