//! fsGroup: gives a volume's files to a group, so that every container of the pod can use them. Symbolic links are never followed.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::Path;

/// What the group may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

/// Gives everything at and below `path` to `group`. Directories get the setgid bit, so that new files are the group's too.
///
/// # Errors
/// The kernel's.
pub fn give(path: &Path, group: u32, access: Access) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    lchown(path, None, Some(group))?;
    if metadata.file_type().is_symlink() {
        return Ok(());
    }
    let mut mode = metadata.permissions().mode() & 0o7777;
    mode |= match access {
        Access::ReadOnly => 0o440,
        Access::ReadWrite => 0o660,
    };
    if metadata.is_dir() {
        mode |= 0o2110;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), group, access)?;
        }
    }
    Ok(())
}
