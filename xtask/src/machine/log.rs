//! The logs of a machine's parts, `logs/<name>.log` in the node's folder: opened for appending and kept below a size.
//!
//! A part writes its file itself, so a full one is copied to `<name>.log.1` and emptied; the few lines written in between are lost.

use std::fs::File;
use std::io::{Read, Result, Write};
use std::path::{Path, PathBuf};

#[cfg(test)]
mod tests;

/// A log that is larger is cut.
const LOG_LIMIT: u64 = 32 << 20;

fn path(folder: &Path, name: &str) -> PathBuf {
    folder.join("logs").join(format!("{name}.log"))
}

pub fn open(folder: &Path, name: &str) -> Result<File> {
    File::options().create(true).append(true).open(path(folder, name))
}

/// Writes a line to pid 1's own log. A disk that is full must not end the machine, as `println!` would.
pub fn say(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Cuts every log that has become too large. A log that cannot be cut goes on growing, which its own line says.
pub fn cap<'a>(folder: &Path, names: impl Iterator<Item = &'a str>) {
    for name in names {
        let log = path(folder, name);
        if let Err(error) = cut(&log, LOG_LIMIT) {
            say(format_args!("cut {}: {error}", log.display()));
        }
    }
}

fn cut(log: &Path, limit: u64) -> Result<()> {
    let file = match File::options().read(true).write(true).open(log) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    if length <= limit {
        return Ok(());
    }
    let mut old = File::create(log.with_extension("log.1"))?;
    // Not more than what was seen: the part goes on writing.
    std::io::copy(&mut (&file).take(length), &mut old)?;
    // Appending writers go on at the new end.
    file.set_len(0)
}
