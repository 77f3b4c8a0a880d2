//! Being told that a file or a folder changed, by inotify.
//!
//! In: a path and the kinds of changes. Out: a reason to look again; what changed is not told, so nothing can be lost by a full queue.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

/// Bytes of events that are thrown away at once.
const EVENT_BYTES: usize = 4096;

/// A watch. Dropping it ends it.
#[derive(Debug)]
pub struct FileWatch(AsyncFd<OwnedFd>);

impl FileWatch {
    /// Watches `path` from now on: what is read after this is read no later than the change that is told.
    ///
    /// # Errors
    /// The kernel's: the path is not there, or there are too many watches.
    pub fn new(path: &Path, wanted: AddWatchFlags) -> io::Result<FileWatch> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(path, wanted)?;
        linux::fds::watch(inotify.into()).map(FileWatch)
    }

    /// Waits for a change. Cancel safe: events are only a reason to look.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn changed(&self) -> io::Result<()> {
        let mut events = [0; EVENT_BYTES];
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|watch| nix::unistd::read(watch, &mut events).map_err(io::Error::from)) {
                Ok(read) => return read.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}
