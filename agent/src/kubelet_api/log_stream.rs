//! One log file, read from where the caller wants it, and followed.
//!
//! In: a path, options, and the runtime's events. Out: chunks into a bounded channel; a caller that does not read holds this
//! task back. Following waits for inotify events on the log's folder and for the container's exit, and never polls: new
//! bytes, a rotation (another file under the same name) and the exit each wake it. After the exit the rest is read once more.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use nix::sys::inotify::AddWatchFlags;
use runtime::{ContainerId, ContainerState, Event, Events, Runtime};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, SeekFrom};
use tokio::sync::mpsc;

use super::log_format::Filter;
use super::query::LogOptions;
use crate::file_watch::FileWatch;

#[cfg(test)]
mod tests;

/// Bytes per read.
const READ_BYTES: usize = 64 * 1024;
/// A line of a log file is at most 16 KiB of text; what is longer than this is no log and is skipped.
const MAX_LINE_BYTES: usize = 256 * 1024;
/// Chunks that wait for the caller.
pub const QUEUE_CHUNKS: usize = 4;

pub type Chunk = io::Result<Bytes>;

/// A log that is open and ready to be sent.
pub struct LogStream {
    path: PathBuf,
    file: File,
    options: LogOptions,
    follow: Option<Follow>,
}

/// What following waits for.
struct Follow {
    folder: FileWatch,
    exit: Exit,
}

/// When the container's log is complete.
pub struct Exit {
    exited: bool,
    /// Resolves at the exit; not polled again afterwards.
    exit: BoxFuture<'static, ()>,
}

impl LogStream {
    /// Opens the file and goes to where the options want it. With `exit` the log is followed.
    pub async fn open(path: &Path, options: LogOptions, exit: Option<Exit>) -> io::Result<Self> {
        // Watched before the first read: what is written after it wakes us.
        let follow = match exit {
            Some(exit) => Some(Follow { folder: watch_folder_of(path)?, exit }),
            None => None,
        };
        let mut file = File::open(path).await?;
        if let Some(lines) = options.tail_lines {
            let start = tail_start(&mut file, lines).await?;
            file.seek(SeekFrom::Start(start)).await?;
        }
        Ok(Self { path: path.to_owned(), file, options, follow })
    }

    /// Sends until the end: of the file, of the container's life when followed, of the limit, or of the caller's interest.
    pub async fn run(mut self, chunks: mpsc::Sender<Chunk>) {
        let mut lines = Lines { filter: Filter::new(&self.options), rest: Vec::new(), skipping: false };
        if let Err(error) = self.copy(&mut lines, &chunks).await {
            // The caller may be gone; then there is nobody to tell.
            let _gone = chunks.send(Err(error)).await;
        }
    }

    async fn copy(&mut self, lines: &mut Lines, chunks: &mpsc::Sender<Chunk>) -> io::Result<()> {
        loop {
            // Looked at before reading: what the container wrote before its exit is in the file now.
            let complete = self.follow.as_ref().is_none_or(|follow| follow.exit.exited);
            if !copy_available(&mut self.file, lines, chunks).await? {
                return Ok(());
            }
            if let Some(next) = self.rotated().await? {
                // What was written to the old file between the last read and the rotation.
                if !copy_available(&mut self.file, lines, chunks).await? {
                    return Ok(());
                }
                self.file = next;
                continue;
            }
            match &mut self.follow {
                Some(follow) if !complete => {
                    // Waiting takes nothing that matters: every wake-up leads to a new look at file and exit.
                    tokio::select! {
                        result = follow.wait() => result?,
                        () = chunks.closed() => return Ok(()),
                    }
                }
                _ => break,
            }
        }
        // A last line without its line end.
        let mut out = Vec::new();
        lines.finish(&mut out);
        send(out, chunks).await;
        Ok(())
    }

    /// The file that has taken the name over; a file that was cut short is read from its start again.
    async fn rotated(&mut self) -> io::Result<Option<File>> {
        if self.follow.is_none() {
            return Ok(None);
        }
        let own = self.file.metadata().await?;
        let named = match tokio::fs::metadata(&self.path).await {
            Ok(named) => named,
            // Renamed away, and the new one is not there yet: its creation will wake us.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let replaced = (own.dev(), own.ino()) != (named.dev(), named.ino());
        let cut_short = own.len() < self.file.stream_position().await?;
        if replaced || cut_short { File::open(&self.path).await.map(Some) } else { Ok(None) }
    }
}

impl Follow {
    /// Returns when something happened to the folder or to the container.
    async fn wait(&mut self) -> io::Result<()> {
        tokio::select! {
            changed = self.folder.changed() => changed,
            () = self.exit.wait() => Ok(()),
        }
    }
}

impl Exit {
    /// Of a container of the runtime. `events` must have been subscribed to before `running` was looked at.
    pub fn of_container(runtime: Runtime, mut events: Events, container: ContainerId, running: bool) -> Self {
        let exit = async move {
            loop {
                let exited = match events.recv().await {
                    Some(Event::ContainerExited { container: exited, .. }) => exited == container,
                    Some(Event::Lagged | Event::SandboxGone { .. }) => {
                        let status = runtime.container_status(&container);
                        status.is_none_or(|status| status.state != ContainerState::Running)
                    }
                    Some(_) => false,
                    None => true,
                };
                if exited {
                    return;
                }
            }
        };
        Self { exited: !running, exit: exit.boxed() }
    }

    /// Waits for the exit. Cancel safe: the future keeps its place.
    async fn wait(&mut self) {
        if !self.exited {
            (&mut self.exit).await;
            self.exited = true;
        }
    }
}

fn watch_folder_of(path: &Path) -> io::Result<FileWatch> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let wanted = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    FileWatch::new(folder, wanted)
}

/// Sends what is between the position and the end of the file. False when nobody wants more.
async fn copy_available(
    file: &mut File,
    lines: &mut Lines,
    chunks: &mpsc::Sender<Chunk>,
) -> io::Result<bool> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let count = file.read(&mut buffer).await?;
        if count == 0 {
            return Ok(true);
        }
        let mut out = Vec::new();
        lines.feed(&buffer[..count], &mut out);
        if !send(out, chunks).await || lines.filter.is_full() {
            return Ok(false);
        }
    }
}

/// False when the caller is gone.
async fn send(out: Vec<u8>, chunks: &mpsc::Sender<Chunk>) -> bool {
    out.is_empty() || chunks.send(Ok(out.into())).await.is_ok()
}

/// Cuts bytes into lines.
struct Lines {
    filter: Filter,
    /// The beginning of a line whose end has not been read.
    rest: Vec<u8>,
    /// The line is too long and is left out up to its end.
    skipping: bool,
}

impl Lines {
    fn feed(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, next) = (&bytes[..end], &bytes[end + 1..]);
            if self.skipping {
                self.skipping = false;
            } else if self.rest.is_empty() {
                self.filter.feed(line, out);
            } else {
                self.rest.extend_from_slice(line);
                self.filter.feed(&self.rest, out);
            }
            self.rest.clear();
            bytes = next;
        }
        if self.rest.len() + bytes.len() > MAX_LINE_BYTES {
            self.rest.clear();
            self.skipping = true;
        } else if !self.skipping {
            self.rest.extend_from_slice(bytes);
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        if !self.rest.is_empty() {
            self.filter.feed(&std::mem::take(&mut self.rest), out);
        }
    }
}

/// Where the last `lines` lines begin.
async fn tail_start(file: &mut File, lines: u64) -> io::Result<u64> {
    let size = file.metadata().await?.len();
    let mut block = vec![0; READ_BYTES];
    let mut right = size;
    // The line end in front of the first wanted line is the (lines + 1)th from the end.
    let mut missing = lines.saturating_add(1);
    while right > 0 {
        let left = right.saturating_sub(READ_BYTES as u64);
        let part = &mut block[..(right - left) as usize];
        file.seek(SeekFrom::Start(left)).await?;
        file.read_exact(part).await?;
        for (index, _) in part.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            missing -= 1;
            if missing == 0 {
                return Ok(left + index as u64 + 1);
            }
        }
        right = left;
    }
    Ok(if lines == 0 { size } else { 0 })
}
