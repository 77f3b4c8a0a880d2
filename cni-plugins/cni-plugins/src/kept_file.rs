//! Small files that plugins keep about attachments: whole or not there, whatever a kill strikes.
//!
//! A file is written beside its place, under its name with a dot before, and renamed. What is kept never begins with a dot,
//! as no container's id does: so both names of a file are known from either.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// Writes the file; what was there before stays until it is whole. Makes the folder.
///
/// A power failure, too, leaves the one or the other: the bytes are on the disk before they have the name. When the name is, nobody
/// waits for: the links that the file is about do not outlive the power, and leases are not waited for either.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
    }
    let unfinished = unfinished(path);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(FILE_MODE);
    let written = options.open(&unfinished).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    });
    if written.is_err() {
        let _ = fs::remove_file(unfinished);
    }
    written
}

/// Removes the file, and what a killed plugin left of it; neither need be there.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    for path in [unfinished(path), path.to_owned()] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The names of what is in the folder, finished or not; none where there is no folder.
pub(crate) fn names(folder: &Path) -> io::Result<BTreeSet<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries?,
    };
    let name = |entry: io::Result<fs::DirEntry>| {
        let name = entry?.file_name().to_string_lossy().into_owned();
        Ok(name.strip_prefix('.').map(str::to_owned).unwrap_or(name))
    };
    entries.map(name).collect()
}

fn unfinished(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}"))
}
