//! Pseudo terminals: opening a pair inside a given devpts, and the window size. Refuses to touch the caller's own controlling terminal.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use crate::Error;

/// Size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSize {
    /// Width.
    pub columns: u16,
    /// Height.
    pub rows: u16,
}

/// A terminal: what the supervisor holds, and what the process gets.
#[derive(Debug)]
pub struct Pair {
    /// The supervisor's side.
    pub master: OwnedFd,
    /// The process's side.
    pub slave: OwnedFd,
}

/// Sets the size; the foreground process group gets SIGWINCH.
///
/// # Errors
/// The kernel's.
pub fn set_window_size(terminal: impl AsFd, size: WindowSize) -> Result<(), Error> {
    let raw =
        rustix::termios::Winsize { ws_col: size.columns, ws_row: size.rows, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, raw)
        .map_err(|errno| Error::new("ioctl TIOCSWINSZ", "terminal", errno))
}

/// Opens a new terminal in the devpts instance whose multiplexer is `ptmx` (`/dev/ptmx`, `/dev/pts/ptmx`).
///
/// # Errors
/// The kernel's; ENOTTY when `ptmx` is something else.
pub fn open_pair(ptmx: &Path) -> Result<Pair, Error> {
    use rustix::fs::{Mode, OFlags};
    let master = rustix::fs::open(ptmx, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::new("open", ptmx.display(), errno))?;
    rustix::pty::unlockpt(&master).map_err(|errno| Error::new("ioctl TIOCSPTLCK", ptmx.display(), errno))?;
    // SAFETY: TIOCGPTPEER takes open flags by value and returns a new descriptor or -1.
    let slave = unsafe {
        libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC)
    };
    if slave < 0 {
        return Err(Error::last("ioctl TIOCGPTPEER", ptmx.display()));
    }
    // SAFETY: the kernel just returned this descriptor to us, nobody else owns it.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    Ok(Pair { master, slave })
}

/// Makes a terminal the controlling one of the calling process, which must lead a session without one.
///
/// # Errors
/// The kernel's: EPERM when the process leads no session.
pub fn make_controlling(terminal: impl AsFd) -> Result<(), Error> {
    rustix::process::ioctl_tiocsctty(terminal)
        .map_err(|errno| Error::new("ioctl TIOCSCTTY", "terminal", errno))
}
