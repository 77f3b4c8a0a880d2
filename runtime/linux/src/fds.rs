//! Facts about and flags of file descriptors.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;

use crate::Error;

/// Makes reads and writes return instead of waiting.
///
/// # Errors
/// The kernel's.
pub fn set_non_blocking(fd: impl AsFd) -> Result<(), Error> {
    let fd = fd.as_fd();
    let flags =
        rustix::fs::fcntl_getfl(fd).map_err(|errno| Error::new("fcntl F_GETFL", "descriptor", errno))?;
    rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)
        .map_err(|errno| Error::new("fcntl F_SETFL", "descriptor", errno))
}

/// Lets tokio wait for a non-blocking descriptor.
///
/// # Errors
/// The kernel's, as for a descriptor that cannot be polled.
pub fn watch(fd: OwnedFd) -> std::io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays open, and the same, for as long as the returned value holds it.
    unsafe { tokio::io::unix::AsyncFd::register(fd) }.map_err(Into::into)
}

/// A pipe whose ends close on exec.
///
/// # Errors
/// The kernel's.
pub fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|errno| Error::new("pipe2", "", errno))
}

/// Marks every descriptor from `first` on close-on-exec.
///
/// # Errors
/// The kernel's.
pub fn close_on_exec_from(first: u32) -> Result<(), Error> {
    // SAFETY: close_range with CLOSE_RANGE_CLOEXEC only sets a flag on descriptors of this process.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result < 0 { Err(Error::last("close_range", first)) } else { Ok(()) }
}

/// Closes every descriptor from `first` on: for a forked process that goes on without anything of its parent's.
///
/// # Safety
/// Nothing that runs afterwards in this process may use an owner of one of the descriptors.
///
/// # Errors
/// The kernel's.
pub unsafe fn close_from(first: u32) -> Result<(), Error> {
    // SAFETY: the caller promises that no owner of a closed descriptor is used again.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if result < 0 { Err(Error::last("close_range", first)) } else { Ok(()) }
}
