//! Container logs as CRI writes them, and the part of them that a caller asked for. Pure.
//!
//! A line is `<RFC 3339 time> stdout|stderr P|F <text>`; P is a part of a longer line, F its end. The reader joins parts by
//! leaving the line end away. A line that is not like this is skipped.

use jiff::Timestamp;

use super::query::{LogOptions, Stream};

#[cfg(test)]
mod tests;

/// One line of a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    pub time: &'a str,
    pub stream: Stream,
    /// More of the same line follows.
    pub partial: bool,
    pub text: &'a [u8],
}

/// Reads a line without its line end.
pub fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let (time, rest) = split(line)?;
    let (stream, rest) = split(rest)?;
    // An empty line of the container ends right after the tags.
    let (tags, text) = split(rest).unwrap_or((rest, &[]));
    let stream = match stream {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let partial = match tags.split(|byte| *byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Entry { time: std::str::from_utf8(time).ok()?, stream, partial, text })
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == b' ')?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

/// Lets through what was asked for.
#[derive(Debug, Clone)]
pub struct Filter {
    since: Option<Timestamp>,
    timestamps: bool,
    stream: Option<Stream>,
    /// Bytes that may still be written.
    remaining: Option<u64>,
    /// Per stream: the next text continues a line.
    inside_line: [bool; 2],
}

impl Filter {
    pub fn new(options: &LogOptions) -> Self {
        Self {
            since: options.since,
            timestamps: options.timestamps,
            stream: options.stream,
            remaining: options.limit_bytes,
            inside_line: [false; 2],
        }
    }

    /// Whether the limit of bytes is reached.
    pub fn is_full(&self) -> bool {
        self.remaining == Some(0)
    }

    /// Appends to `out` what a line of the file, without its line end, contributes.
    pub fn feed(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(entry) = parse(line) else {
            if !line.is_empty() {
                tracing::debug!(bytes = line.len(), "a line of a container log is not in CRI format");
            }
            return;
        };
        if self.stream.is_some_and(|stream| stream != entry.stream) {
            return;
        }
        let time = if self.since.is_some() || self.timestamps {
            let Ok(time) = entry.time.parse::<Timestamp>() else { return };
            Some(time)
        } else {
            None
        };
        if let (Some(since), Some(time)) = (self.since, time)
            && time < since
        {
            return;
        }
        let start = out.len();
        let inside = &mut self.inside_line[entry.stream as usize];
        if let Some(time) = time.filter(|_| self.timestamps && !*inside) {
            out.extend_from_slice(time.strftime("%Y-%m-%dT%H:%M:%S%.9fZ").to_string().as_bytes());
            out.push(b' ');
        }
        *inside = entry.partial;
        out.extend_from_slice(entry.text);
        if !entry.partial {
            out.push(b'\n');
        }
        if let Some(remaining) = &mut self.remaining {
            let allowed = usize::try_from(*remaining).unwrap_or(usize::MAX).min(out.len() - start);
            out.truncate(start + allowed);
            *remaining -= allowed as u64;
        }
    }
}
