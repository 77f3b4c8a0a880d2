//! Files of the data directory: private, written whole or not at all, there after a power cut, and one lock per directory.
//!
//! A file's contents and its name become durable separately: the name is an entry of its directory, and only a sync of the
//! directory keeps that. Input: paths and contents. Refuses nothing by itself; every error names the operation and the path.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// What could not be done with a file.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}", path = path.display())]
pub struct FileError {
    pub operation: &'static str,
    pub path: PathBuf,
    pub source: std::io::Error,
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError { operation, path, source }
}

/// The directory that `path` is an entry of.
pub(crate) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    }
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(failed("sync directory", path))
}

/// Makes a directory, and those above it that are missing.
pub(crate) fn make_private_directory(path: &Path) -> Result<(), FileError> {
    let missing = path.ancestors().take_while(|above| !above.as_os_str().is_empty() && !above.exists());
    let missing: Vec<&Path> = missing.collect();
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make directory", path))?;
    missing.iter().try_for_each(|made| sync_directory(directory_of(made)))
}

/// Holds the directory's lock until the file is dropped.
pub(crate) fn lock(directory: &Path) -> Result<File, FileError> {
    let path = directory.join(".lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed("open", &path))?;
    file.lock().map_err(failed("lock", &path))?;
    Ok(file)
}

pub(crate) fn read(path: &Path) -> Result<String, FileError> {
    std::fs::read_to_string(path).map_err(failed("read", path))
}

/// A file without its final name yet, in the directory of `path`, readable by the owner only.
pub(crate) fn beside(path: &Path) -> Result<NamedTempFile, FileError> {
    NamedTempFile::new_in(directory_of(path)).map_err(failed("make a temporary file for", path))
}

/// Writes `contents` to `path`, replacing what is there.
pub(crate) fn write_atomically(path: &Path, contents: &[u8]) -> Result<(), FileError> {
    let mut file = beside(path)?;
    file.write_all(contents).map_err(failed("write", path))?;
    file.as_file().sync_all().map_err(failed("sync", path))?;
    file.persist(path).map_err(|error| failed("rename to", path)(error.error))?;
    sync_directory(directory_of(path))
}

/// Gives a file its name, unless the name is taken: then the file that has it stays.
pub(crate) fn name_if_free(file: NamedTempFile, path: &Path) -> Result<(), FileError> {
    file.as_file().sync_all().map_err(failed("sync", path))?;
    match file.persist_noclobber(path) {
        Ok(_) => sync_directory(directory_of(path)),
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed("rename to", path)(error.error)),
    }
}

/// Whether a certificate lies in `directory`.
pub(crate) fn any_certificate(directory: &Path) -> Result<bool, FileError> {
    let entries = std::fs::read_dir(directory).map_err(failed("read", directory))?;
    for entry in entries {
        let name = entry.map_err(failed("read", directory))?.file_name();
        if Path::new(&name).extension().is_some_and(|extension| extension == "crt") {
            return Ok(true);
        }
    }
    Ok(false)
}
