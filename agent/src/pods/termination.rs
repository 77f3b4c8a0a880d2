//! What a container says about its own end: its termination message file, or the tail of its log.
//!
//! In: the annotations that the container was made with. Out: text of a bounded length. Reads files only, follows no symbolic link.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use runtime::ContainerStatus;

use super::labels;

#[cfg(test)]
mod tests;

/// Longest message from the file (kubelet: `MaxContainerTerminationMessageLength`).
const MESSAGE_BYTES: u64 = 4_096;
/// Longest message from the log (kubelet: `MaxContainerTerminationMessageLogLength`).
const LOG_BYTES: usize = 2_048;
/// Lines of the log (kubelet: `MaxContainerTerminationMessageLogLines`).
const LOG_LINES: usize = 80;
/// Bytes read from the log's end: its lines are longer than what they carry.
const LOG_TAIL_BYTES: u64 = 64 * 1_024;

/// The termination message of a container that is over.
pub fn message(status: &ContainerStatus) -> String {
    let annotations = &status.config.annotations;
    let file = labels::get(annotations, labels::MESSAGE_FILE);
    let text = if file.is_empty() { String::new() } else { read_message(Path::new(file)) };
    let fall_back = labels::get(annotations, labels::MESSAGE_POLICY) == "FallbackToLogsOnError";
    if text.is_empty() && fall_back && status.exit_code != 0 && !status.log_path.as_os_str().is_empty() {
        return read_log_tail(&status.log_path);
    }
    text
}

fn read_message(path: &Path) -> String {
    let mut bytes = Vec::new();
    let Ok(file) = open(path) else { return String::new() };
    let _ = file.take(MESSAGE_BYTES).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn open(path: &Path) -> std::io::Result<File> {
    // The container may have replaced what it can reach; O_NONBLOCK: also by a FIFO.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    File::options().read(true).custom_flags(flags).open(path)
}

fn read_log_tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    log_text(&read().unwrap_or_default())
}

/// The last lines of a log in CRI format (`time stream P|F text`), joined where they were cut.
fn log_text(bytes: &[u8]) -> String {
    let mut text: Vec<u8> = Vec::new();
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let (Some(_time), Some(_stream), Some(tag), Some(content)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        text.extend_from_slice(content);
        if tag == b"P" && text.last() == Some(&b'\n') {
            text.pop();
        }
    }
    let start = text.len().saturating_sub(LOG_BYTES);
    String::from_utf8_lossy(&text[start..]).into_owned()
}
