//! The kernel frees what a transaction deleted after a grace period, and lets who closes a netlink socket of the packet filter wait
//! for that: 8 ms on two processors, with the lock of the rule set held, for which other transactions wait too.
//!
//! So a short-lived program, whose caller waits for its end, leaves its socket to a forked process. That has nothing else of its
//! parent's open, so that it holds up no reader of a pipe, no lock, and no end of a namespace. When its parent ends, it belongs to
//! init, or to the nearest subreaper, which reaps it. It stays in its parent's control group, process group and session; a kill of
//! those closes the socket at once, no more.

use std::{
    os::fd::{AsFd, AsRawFd, RawFd},
    sync::atomic::Ordering,
};

use rustix::thread::{MembarrierCommand, membarrier};

use super::Nftables;
use crate::{
    Error, fds,
    process::{ForkOptions, SingleThreaded, fork},
};

/// The number of the socket, after the three standard ones.
const KEPT: RawFd = 3;

impl Nftables {
    /// Lets who closes this socket wait for nothing: where transactions deleted something, a process of its own keeps it open for a
    /// grace period. Then little is left to wait for, and that process does. Where none can be forked, as by a process of several
    /// threads, all is as it was.
    pub fn free_in_background(&self) {
        if self.deleted.swap(false, Ordering::Relaxed) {
            let _ = keep_open(self.socket.as_fd().as_raw_fd());
        }
    }
}

fn keep_open(socket: RawFd) -> Result<(), Error> {
    fork(SingleThreaded::verify()?, ForkOptions::default(), || {
        if close_others(socket).is_ok() {
            // Where the kernel has no such call (one processor, or some without ticks), the end of the socket waits.
            let _ = membarrier(MembarrierCommand::Global);
        }
        0
    })?;
    Ok(())
}

/// Leaves the process the socket, under another number, and nowhere to print to.
fn close_others(socket: RawFd) -> Result<(), Error> {
    duplicate(socket, KEPT)?;
    // SAFETY: the path ends with a zero; the result is checked.
    let null = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
    if null < 0 {
        return Err(Error::last("open", "/dev/null"));
    }
    for standard in 0..KEPT {
        duplicate(null, standard)?;
    }
    // SAFETY: nothing that runs in this process from now on uses a descriptor: see `keep_open`.
    unsafe { fds::close_from(KEPT.cast_unsigned() + 1) }
}

fn duplicate(from: RawFd, to: RawFd) -> Result<(), Error> {
    // SAFETY: dup2 in a process that uses its owners of descriptors no more: see `keep_open`.
    if unsafe { libc::dup2(from, to) } < 0 { Err(Error::last("dup2", from)) } else { Ok(()) }
}
