//! Being told about kills for lack of memory.
//!
//! v2: `memory.events` becomes exceptional (EPOLLPRI) on every change. v1: an eventfd registered for `memory.oom_control` becomes readable.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::stats::keyed;
use super::{Group, read, write};
use crate::Error;

/// Tells when the number of kills may have changed. Dropping it ends the registration.
#[derive(Debug)]
pub struct OomWatch {
    fd: OwnedFd,
    by_eventfd: bool,
}

impl OomWatch {
    /// Watches a group.
    ///
    /// # Errors
    /// The kernel's; ENOENT when the group has no memory controller.
    pub fn new(group: &Group) -> Result<OomWatch, Error> {
        if let Some(directory) = group.v1_directory("memory") {
            let eventfd = rustix::event::eventfd(
                0,
                rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK,
            )
            .map_err(|errno| Error::new("eventfd", "", errno))?;
            let path = directory.join("memory.oom_control");
            let control = fs::File::open(&path).map_err(|error| Error::new("open", path.display(), error))?;
            let line = format!("{} {}", eventfd.as_raw_fd(), control.as_raw_fd());
            write(&directory.join("cgroup.event_control"), &line)?;
            return Ok(OomWatch { fd: eventfd, by_eventfd: true });
        }
        let path = group.unified_directory().unwrap_or_default().join("memory.events");
        let file = fs::File::open(&path).map_err(|error| Error::new("open", path.display(), error))?;
        Ok(OomWatch { fd: file.into(), by_eventfd: false })
    }

    /// Whether to poll for readability (v1) or for an exceptional condition (v2).
    pub fn is_readable_kind(&self) -> bool {
        self.by_eventfd
    }

    /// Takes the notification, so that the next one is seen.
    pub fn acknowledge(&self) {
        let mut buffer = [0_u8; 512];
        if !self.by_eventfd {
            let _ = rustix::fs::seek(&self.fd, rustix::fs::SeekFrom::Start(0));
        }
        let _ = rustix::io::read(&self.fd, &mut buffer);
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Processes of the group that the kernel killed for memory so far.
pub fn oom_kills(group: &Group) -> u64 {
    let file = match group.v1_directory("memory") {
        Some(directory) => directory.join("memory.oom_control"),
        None => group.unified_directory().unwrap_or_default().join("memory.events"),
    };
    read(&file).map_or(0, |text| kills_in(&text))
}

/// The count in `memory.events` (v2, which includes the groups below) or `memory.oom_control` (v1).
pub(super) fn kills_in(text: &str) -> u64 {
    keyed(text, "oom_kill").unwrap_or(0)
}
