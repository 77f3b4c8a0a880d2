//! CRI log files: `<RFC 3339> stdout|stderr F|P <text>`, one line of output per line, at most 16 KiB of it.
//!
//! Input: bytes as they come out of a container; output: lines. Output that does not end with a newline is kept until it does, until it fills a
//! line, or until the stream ends; the last two are marked partial. A write that fails (disk full) loses those lines and nothing else.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::timestamp;

#[cfg(test)]
mod tests;

/// Bytes of output in one line, as containerd has it.
pub const MAX_LINE_BYTES: usize = 16 * 1024;

/// Cuts one stream into lines.
#[derive(Debug)]
pub struct Splitter {
    stream: &'static str,
    kept: Vec<u8>,
}

impl Splitter {
    /// For `stdout` or `stderr`.
    pub fn new(stream: &'static str) -> Self {
        Splitter { stream, kept: Vec::new() }
    }

    /// Adds output and appends what became complete to `lines`.
    pub fn push(&mut self, mut output: &[u8], now: i64, lines: &mut Vec<u8>) {
        let stamp = timestamp::rfc3339(now);
        while !output.is_empty() {
            let space = MAX_LINE_BYTES - self.kept.len();
            let window = &output[..output.len().min(space + 1)];
            match window.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.write(&stamp, b'F', &output[..end], lines);
                    output = &output[end + 1..];
                }
                None if output.len() > space => {
                    self.write(&stamp, b'P', &output[..space], lines);
                    output = &output[space..];
                }
                None => {
                    self.kept.extend_from_slice(output);
                    output = &[];
                }
            }
        }
    }

    /// The stream ended: what is kept becomes a last partial line.
    pub fn finish(&mut self, now: i64, lines: &mut Vec<u8>) {
        if !self.kept.is_empty() {
            self.write(&timestamp::rfc3339(now), b'P', &[], lines);
        }
    }

    fn write(&mut self, stamp: &str, tag: u8, tail: &[u8], lines: &mut Vec<u8>) {
        lines.extend_from_slice(stamp.as_bytes());
        lines.push(b' ');
        lines.extend_from_slice(self.stream.as_bytes());
        lines.extend_from_slice(&[b' ', tag, b' ']);
        lines.append(&mut self.kept);
        lines.extend_from_slice(tail);
        lines.push(b'\n');
    }
}

/// The file of one container.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
}

impl LogFile {
    /// Opens for appending, with the directories above it.
    pub fn open(path: &Path) -> io::Result<LogFile> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
        Ok(LogFile { path: path.to_path_buf(), file })
    }

    /// Opens the path anew; the old file is kept when that fails.
    pub fn reopen(&mut self) -> io::Result<()> {
        *self = LogFile::open(&self.path)?;
        Ok(())
    }

    /// Appends lines.
    pub fn append(&mut self, lines: &[u8]) {
        if let Err(error) = self.file.write_all(lines) {
            eprintln!("write {}: {error}", self.path.display());
        }
    }
}
