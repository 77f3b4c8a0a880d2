//! Writes a set of files so that readers see the old set or the new one, never a mixture: the layout of the kubelet's AtomicWriter.
//!
//! ```text
//! <volume>/..2026_01_02_03_04_05.000000001/   the files
//! <volume>/..data -> ..2026_01_02_…           switched by one rename
//! <volume>/<top-level name> -> ..data/<top-level name>
//! ```
//! In: the folder and the files. Out: the layout, unchanged when the files are. Killed at any point, the next write repairs the rest.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::owner;
use super::payload::Payload;

#[cfg(test)]
mod tests;

/// The link that is switched.
const DATA: &str = "..data";
/// Its name until it is switched.
const NEW_DATA: &str = "..data_tmp";

/// A step failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}", path = path.display())]
pub struct WriteError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn step<T>(operation: &'static str, path: &Path, result: io::Result<T>) -> Result<T, WriteError> {
    result.map_err(|source| WriteError { operation, path: path.to_path_buf(), source })
}

/// Brings the folder to hold exactly these files, given to `group` where there is one.
///
/// # Errors
/// [`WriteError`].
pub fn write(folder: &Path, files: &Payload, group: Option<u32>) -> Result<(), WriteError> {
    let data = folder.join(DATA);
    let current = fs::read_link(&data).ok();
    let is_current = current.as_ref().is_some_and(|current| same(&folder.join(current), files));
    if !is_current {
        let fresh = write_version(folder, files, group)?;
        let new_data = folder.join(NEW_DATA);
        remove(&new_data)?;
        step("symlink", &new_data, symlink(&fresh, &new_data))?;
        step("rename", &new_data, fs::rename(&new_data, &data))?;
    }
    link_names(folder, files)?;
    remove_stale(folder, files)
}

/// Writes a new version's folder and returns its name.
fn write_version(folder: &Path, files: &Payload, group: Option<u32>) -> Result<PathBuf, WriteError> {
    let name = version_name(Timestamp::now());
    let version = folder.join(&name);
    let mut builder = fs::DirBuilder::new();
    step("mkdir", &version, builder.mode(0o755).create(&version))?;
    step("chmod", &version, fs::set_permissions(&version, fs::Permissions::from_mode(0o755)))?;
    for (path, file) in files {
        let path = version.join(path);
        if let Some(parent) = path.parent() {
            step("mkdir", parent, fs::create_dir_all(parent))?;
        }
        let opened = fs::File::options().write(true).create_new(true).mode(0o600).open(&path);
        step("write", &path, opened.and_then(|mut opened| opened.write_all(&file.data)))?;
        step("chmod", &path, fs::set_permissions(&path, fs::Permissions::from_mode(file.mode)))?;
    }
    if let Some(group) = group {
        step("chown", &version, owner::give(&version, group, owner::Access::ReadOnly))?;
    }
    Ok(name.into())
}

/// `..2026_01_02_03_04_05.000000001`
fn version_name(now: Timestamp) -> String {
    let text = now.strftime("%Y_%m_%d_%H_%M_%S");
    format!("..{text}.{:09}", now.subsec_nanosecond())
}

/// Whether a version holds exactly these files.
fn same(version: &Path, files: &Payload) -> bool {
    let mut found = BTreeSet::new();
    if collect(version, Path::new(""), &mut found).is_err() || found.len() != files.len() {
        return false;
    }
    files.iter().all(|(path, file)| {
        found.contains(path) && fs::read(version.join(path)).is_ok_and(|data| data == file.data)
    })
}

fn collect(root: &Path, below: &Path, found: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(root, &path, found)?;
        } else {
            found.insert(path);
        }
    }
    Ok(())
}

fn top_names(files: &Payload) -> BTreeSet<PathBuf> {
    files
        .keys()
        .filter_map(|path| path.components().next())
        .map(|part| PathBuf::from(part.as_os_str()))
        .collect()
}

fn link_names(folder: &Path, files: &Payload) -> Result<(), WriteError> {
    for name in top_names(files) {
        let link = folder.join(&name);
        let target = Path::new(DATA).join(&name);
        if fs::read_link(&link).ok().as_ref() == Some(&target) {
            continue;
        }
        remove(&link)?;
        step("symlink", &link, symlink(&target, &link))?;
    }
    Ok(())
}

/// Removes links that lead nowhere now, and versions that are not the current one.
fn remove_stale(folder: &Path, files: &Payload) -> Result<(), WriteError> {
    let names = top_names(files);
    let current = fs::read_link(folder.join(DATA)).ok();
    let entries = step("read", folder, fs::read_dir(folder))?;
    for entry in entries.flatten() {
        let name = PathBuf::from(entry.file_name());
        let is_kept = name == Path::new(DATA) || Some(&name) == current.as_ref() || names.contains(&name);
        if !is_kept {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a file, a link or a folder; fine when it is not there.
fn remove(path: &Path) -> Result<(), WriteError> {
    let is_folder = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let result = if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => step("remove", path, result),
    }
}
