//! Private files: written whole or not at all, and one lock per directory.
//!
//! Refuses nothing by itself; every error names the operation and the path.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::PkiError;

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> PkiError {
    let path = path.to_owned();
    move |source| PkiError::File { operation, path, source }
}

pub(super) fn make_private_directory(path: &Path) -> Result<(), PkiError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make directory", path))
}

/// Holds the directory's lock until the file is dropped.
pub(super) fn lock(directory: &Path) -> Result<File, PkiError> {
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

pub(super) fn read(path: &Path) -> Result<String, PkiError> {
    std::fs::read_to_string(path).map_err(failed("read", path))
}

pub(super) fn write_atomically(path: &Path, contents: &[u8]) -> Result<(), PkiError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".tmp{}", std::process::id()));
    let temporary = Path::new(&temporary);
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(temporary)
        .map_err(failed("create", temporary))?;
    file.write_all(contents).map_err(failed("write", temporary))?;
    file.sync_all().map_err(failed("sync", temporary))?;
    std::fs::rename(temporary, path).map_err(failed("rename to", path))
}

/// Whether a certificate lies in `directory`.
pub(super) fn any_certificate(directory: &Path) -> Result<bool, PkiError> {
    let entries = std::fs::read_dir(directory).map_err(failed("read", directory))?;
    for entry in entries {
        let name = entry.map_err(failed("read", directory))?.file_name();
        if Path::new(&name).extension().is_some_and(|extension| extension == "crt") {
            return Ok(true);
        }
    }
    Ok(false)
}
