//! The socket that systemd listens at for a service, and hands to its first process (sd_listen_fds(3)).
//!
//! Takes `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES` out of the environment, so that no child believes that they are for it.
//! Refuses more than one socket, and anything that is no listening unix stream socket.

use std::env;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::Error;
use crate::process::SingleThreaded;

#[cfg(test)]
mod tests;

/// Of the first socket that is handed over (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;
const PID: &str = "LISTEN_PID";
const COUNT: &str = "LISTEN_FDS";
const NAMES: &str = "LISTEN_FDNAMES";
const CALL: &str = "sd_listen_fds";

/// Takes the listener that was handed to this process; none when none was. To be called before anything else opens a file.
///
/// # Errors
/// More than one socket, or another kind of descriptor.
pub fn take_listener(_proof: SingleThreaded) -> Result<Option<UnixListener>, Error> {
    let (pid, count) = (env::var(PID).ok(), env::var(COUNT).ok());
    for name in [PID, COUNT, NAMES] {
        // SAFETY: the process has one thread (the proof says so), so nobody reads the environment meanwhile.
        unsafe { env::remove_var(name) };
    }
    match handed_over(pid.as_deref(), count.as_deref(), std::process::id())? {
        0 => Ok(None),
        1 => adopt(FIRST).map(Some),
        count => Err(refused(format!("{count} sockets: expected one"))),
    }
}

/// How many descriptors are for this process. Pure.
fn handed_over(pid: Option<&str>, count: Option<&str>, own: u32) -> Result<u32, Error> {
    let (Some(pid), Some(count)) = (pid, count) else { return Ok(0) };
    if pid.parse() != Ok(own) {
        return Ok(0);
    }
    count.parse().map_err(|_| refused(format!("{COUNT}={count:?}: expected a number")))
}

fn adopt(fd: RawFd) -> Result<UnixListener, Error> {
    let failed = |call| move |errno: rustix::io::Errno| Error::new(call, object(fd), errno);
    // SAFETY: the number is borrowed for this call alone, and the kernel says when it is no descriptor.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_setfd(borrowed, FdFlags::CLOEXEC).map_err(failed("fcntl F_SETFD"))?;
    // SAFETY: it is open, and LISTEN_PID says that it is this process's own; nothing else can have taken it, since the variables are gone
    // after the first call, which is before anything else opens a file.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    check(&fd)?;
    Ok(UnixListener::from(fd))
}

fn check(fd: &OwnedFd) -> Result<(), Error> {
    let is_listener = || {
        Ok::<bool, rustix::io::Errno>(
            sockopt::socket_domain(fd)? == AddressFamily::UNIX
                && sockopt::socket_type(fd)? == SocketType::STREAM
                && sockopt::socket_acceptconn(fd)?,
        )
    };
    match is_listener() {
        Ok(true) => Ok(()),
        Ok(false) | Err(rustix::io::Errno::NOTSOCK) => Err(refused(format!(
            "{}: expected a listening unix stream socket (ListenStream=)",
            object(FIRST)
        ))),
        Err(errno) => Err(Error::new("getsockopt", object(FIRST), errno)),
    }
}

fn object(fd: RawFd) -> String {
    format!("descriptor {fd} from systemd")
}

fn refused(why: String) -> Error {
    Error::new(CALL, "of systemd", io::Error::other(why))
}
