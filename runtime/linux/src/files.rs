//! Files as this project keeps its state. Small ones of which a reader sees the old content or the new, also after a power cut: replaced as a
//! whole, or told by their last whole line. And the directories in which many short-lived others are made.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

#[cfg(test)]
mod tests;

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Makes a directory whose subdirectories ext4 spreads over the disk (`chattr +T`). It would keep them together; and without a journal it does not use
/// an inode again for minutes, but looks, for each new file, at all that were removed in its part of the disk: what ended pods left.
///
/// # Errors
/// The directory cannot be made. A file system without that flag is none: only the speed depends on it.
pub fn make_spread_directory(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    let directory = File::open(path)?;
    if let Ok(flags) = ioctl_getflags(&directory)
        && !flags.contains(IFlags::TOPDIR)
    {
        let _ = ioctl_setflags(&directory, flags | IFlags::TOPDIR);
    }
    Ok(())
}

/// Writes beside the file, makes it durable, and renames.
///
/// # Errors
/// Those of making, writing and renaming; the old file is then as it was.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("new-{}-{number}", std::process::id()));
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&temporary, path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Adds a line, which must have no line feed in it, and makes it durable. Costs a file system less than a replacement: no inode comes or goes.
///
/// # Errors
/// Those of opening and writing. Unless the whole line was written and only could not be made durable, what there is of it is no whole one.
pub fn append_line(path: &Path, line: &[u8]) -> io::Result<()> {
    let mut file = File::options().append(true).create(true).open(path)?;
    // The first line feed ends what a power cut left of the line before, the last one keeps whatever it leaves of the next one away from this line.
    file.write_all(&[b"\n", line, b"\n"].concat())?;
    file.sync_data()
}

/// The lines of such a file, the last first. The reader takes the first that makes sense to it.
pub fn lines_from_last(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.rsplit(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}
