//! The streams of one container: its output goes to the log and to whoever is attached, attached input goes to its stdin.
//!
//! Input: readiness of non-blocking descriptors; output: bytes moved, and which descriptors to watch for what. Attached readers that do not read
//! hold the output back (the container then waits in write, as under containerd); nothing is kept beyond [`PENDING_BYTES`] per reader.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use crate::log_file::{LogFile, Splitter};

/// Bytes kept for an attached reader, or for a container that does not read its stdin, before the source is no longer read.
pub const PENDING_BYTES: usize = 64 * 1024;
/// Bytes moved by one call.
const CHUNK_BYTES: usize = 16 * 1024;
/// Attachments to one container.
pub const MAX_ATTACHMENTS: usize = 16;

/// Identifies an attachment within a container.
pub type AttachmentId = u32;

/// A descriptor with bytes that wait to be written to it.
#[derive(Debug)]
pub struct Sink {
    /// Where they go.
    pub fd: OwnedFd,
    pending: VecDeque<u8>,
}

impl Sink {
    /// For a non-blocking descriptor.
    pub fn new(fd: OwnedFd) -> Self {
        Sink { fd, pending: VecDeque::new() }
    }

    /// Whether it waits for its reader.
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    fn is_full(&self) -> bool {
        self.pending.len() >= PENDING_BYTES
    }

    /// Writes what can be written; an error means that the reader is gone.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.is_pending() {
            let (front, _) = self.pending.as_slices();
            match rustix::io::write(&self.fd, front) {
                Ok(count) => {
                    self.pending.drain(..count);
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.pending.extend(bytes);
        self.flush()
    }
}

/// Which output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// stdout, or everything of a terminal.
    Stdout,
    /// stderr.
    Stderr,
}

/// What reading gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Bytes were moved.
    Moved,
    /// Nothing there now.
    Waiting,
    /// The other side closed.
    Ended,
}

/// One output of a container.
#[derive(Debug)]
pub struct Output {
    /// Read end of the pipe, or the terminal's master.
    pub fd: OwnedFd,
    splitter: Splitter,
    /// Attached readers.
    pub readers: Vec<(AttachmentId, Sink)>,
}

impl Output {
    /// For a non-blocking descriptor.
    pub fn new(fd: OwnedFd, which: Which) -> Self {
        let name = if which == Which::Stdout { "stdout" } else { "stderr" };
        Output { fd, splitter: Splitter::new(name), readers: Vec::new() }
    }

    /// Whether an attached reader holds it back.
    pub fn is_held_back(&self) -> bool {
        self.readers.iter().any(|(_, sink)| sink.is_full())
    }

    /// Moves one chunk to the log and to the readers; ids of readers that are gone are appended to `gone`.
    pub fn pump(&mut self, log: Option<&mut LogFile>, gone: &mut Vec<AttachmentId>) -> Progress {
        let mut chunk = [0_u8; CHUNK_BYTES];
        let count = match rustix::io::read(&self.fd, &mut chunk) {
            // A terminal whose processes are all gone reads as EIO.
            Ok(0) | Err(rustix::io::Errno::IO) => return Progress::Ended,
            Ok(count) => count,
            Err(rustix::io::Errno::AGAIN) => return Progress::Waiting,
            Err(rustix::io::Errno::INTR) => return Progress::Moved,
            Err(_) => return Progress::Ended,
        };
        let bytes = &chunk[..count];
        if let Some(log) = log {
            let mut lines = Vec::with_capacity(count + 128);
            self.splitter.push(bytes, shim_protocol::now(), &mut lines);
            log.append(&lines);
        }
        self.readers.retain_mut(|(id, sink)| {
            let kept = sink.push(bytes).is_ok();
            if !kept {
                gone.push(*id);
            }
            kept
        });
        Progress::Moved
    }

    /// Writes what was kept for lack of a newline.
    pub fn finish(&mut self, log: Option<&mut LogFile>) {
        let mut lines = Vec::new();
        self.splitter.finish(shim_protocol::now(), &mut lines);
        if let Some(log) = log.filter(|_| !lines.is_empty()) {
            log.append(&lines);
        }
    }
}

/// A container's stdin and those who feed it.
#[derive(Debug)]
pub struct Input {
    /// Write end of the pipe, or the terminal's master.
    pub sink: Sink,
    /// Attached writers.
    pub writers: Vec<(AttachmentId, OwnedFd)>,
}

impl Input {
    /// For a non-blocking descriptor.
    pub fn new(fd: OwnedFd) -> Self {
        Input { sink: Sink::new(fd), writers: Vec::new() }
    }

    /// Whether the container holds its writers back.
    pub fn is_held_back(&self) -> bool {
        self.sink.is_full()
    }

    /// Moves one chunk of an attached writer to the container.
    pub fn pump(&mut self, writer: AttachmentId) -> Progress {
        let Some((_, fd)) = self.writers.iter().find(|(id, _)| *id == writer) else { return Progress::Ended };
        let mut chunk = [0_u8; CHUNK_BYTES];
        match rustix::io::read(fd, &mut chunk) {
            Ok(0) => Progress::Ended,
            Ok(count) => match self.sink.push(&chunk[..count]) {
                Ok(()) => Progress::Moved,
                Err(_) => Progress::Ended,
            },
            Err(rustix::io::Errno::AGAIN) => Progress::Waiting,
            Err(rustix::io::Errno::INTR) => Progress::Moved,
            Err(_) => Progress::Ended,
        }
    }
}
