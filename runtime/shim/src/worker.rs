//! Short-lived forks of the shim that do what would make its loop wait.
//!
//! Input: a closure; output: one [`Outcome`] and at most one descriptor over a socket pair. A worker resets everything that the shim set for itself
//! (signal mask and dispositions), and reports a panic as a failure.

pub mod exec;
pub mod start;

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context, Result};
use linux::process::{ForkOptions, SingleThreaded};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use serde::{Deserialize, Serialize};

/// Longest outcome; longer failure texts are cut.
const OUTCOME_BYTES: usize = 64 * 1024;
/// Longest text of a failure.
const MESSAGE_BYTES: usize = 16 * 1024;

/// What a worker reports.
#[derive(Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// A process runs.
    Running {
        /// Its pid.
        pid: i32,
        /// What could not be done and does not matter enough.
        warnings: Vec<String>,
    },
    /// It is done.
    Done,
    /// It failed.
    Failed {
        /// Why.
        message: String,
    },
}

/// What the work itself returns: an outcome, and a descriptor for the shim.
pub type Work = Result<(Outcome, Option<OwnedFd>)>;

/// Forks a worker in the first of the control groups that takes it; the result is readable when it reported or died. Without any, it stays
/// in the shim's.
pub fn spawn(proof: SingleThreaded, places: &[OwnedFd], work: impl FnOnce() -> Work) -> Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .context("socketpair")?;
    let mut work = Some(work);
    let mut child = || {
        let Some(work) = work.take() else { return 1 };
        let outcome = catch_unwind(AssertUnwindSafe(|| reset().and_then(|()| work())));
        let (outcome, fd) = match outcome {
            Ok(Ok(done)) => done,
            Ok(Err(error)) => (failed(&format!("{error:#}")), None),
            Err(_) => (failed("the worker panicked"), None),
        };
        let bytes = serde_json::to_vec(&outcome).unwrap_or_default();
        let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
        i32::from(linux::scm::send(&theirs, &bytes, &fds).is_err())
    };
    let mut fork = |place: Option<&OwnedFd>| {
        let options = ForkOptions { cgroup: place.map(AsFd::as_fd), ..ForkOptions::default() };
        linux::process::fork(proof, options, &mut child)
    };
    let mut forked = fork(places.first());
    for place in places.iter().skip(1) {
        // The group hands controllers down, and so takes no process itself; or it has just been removed.
        if !matches!(&forked, Err(error) if matches!(error.errno(), Some(libc::EBUSY | libc::ENODEV))) {
            break;
        }
        forked = fork(Some(place));
    }
    forked?;
    Ok(ours)
}

fn failed(message: &str) -> Outcome {
    let end =
        (0..=message.len().min(MESSAGE_BYTES)).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
    Outcome::Failed { message: message[..end].to_owned() }
}

/// Containers inherit the mask and ignored signals of whoever starts them: they get the defaults.
fn reset() -> Result<()> {
    for number in [Signal::SIGPIPE, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
        // SAFETY: the default disposition runs no code of ours.
        unsafe { signal(number, SigHandler::SigDfl) }.context("reset a signal")?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).context("reset the signal mask")?;
    linux::process::set_name(c"orlop-worker")?;
    Ok(())
}

/// Reads a worker's report. A worker that died without one failed.
pub fn receive(socket: &OwnedFd) -> (Outcome, Option<OwnedFd>) {
    let mut buffer = vec![0; OUTCOME_BYTES];
    let mut fds = Vec::new();
    let count = linux::scm::receive(socket, &mut buffer, &mut fds).unwrap_or(0);
    let outcome = serde_json::from_slice(&buffer[..count])
        .unwrap_or_else(|_| Outcome::Failed { message: "the worker ended without a report".into() });
    (outcome, fds.pop())
}
