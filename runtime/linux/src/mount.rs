//! Mounts: detached trees, overlays, propagation, unmounting, and reading the mount table.

use std::ffi::CString;
use std::fmt::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::Error;

#[cfg(test)]
mod tests;

/// Bytes of mount options that mount(2) takes: one page.
const OPTION_BYTES: usize = 4095;

/// What an overlay is made of. Relative paths are relative to the calling process's working directory, and keep the options short.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    /// Lower directories, the topmost first.
    pub lower: Vec<PathBuf>,
    /// Writable directory; `None` makes the overlay read only.
    pub upper: Option<PathBuf>,
    /// Work directory on the file system of `upper`.
    pub work: Option<PathBuf>,
}

impl Overlay {
    /// The option string of mount(2).
    ///
    /// # Errors
    /// E2BIG when it does not fit into a page, EINVAL for paths with characters that overlayfs takes as separators.
    pub fn options(&self) -> Result<String, Error> {
        let mut text = String::new();
        if self.upper.is_none() {
            text.push_str("ro,");
        }
        text.push_str("lowerdir=");
        for (index, path) in self.lower.iter().enumerate() {
            let _ = write!(text, "{}{}", if index == 0 { "" } else { ":" }, plain(path)?);
        }
        if let (Some(upper), Some(work)) = (&self.upper, &self.work) {
            let _ = write!(text, ",upperdir={},workdir={}", plain(upper)?, plain(work)?);
        }
        if text.len() > OPTION_BYTES {
            return Err(Error::new("mount", "overlay", rustix::io::Errno::TOOBIG));
        }
        Ok(text)
    }
}

fn plain(path: &Path) -> Result<&str, Error> {
    match path.to_str() {
        Some(text) if !text.contains([':', ',', '\\']) => Ok(text),
        _ => Err(Error::new("mount", path.display(), rustix::io::Errno::INVAL)),
    }
}

/// Mounts an overlay.
///
/// # Errors
/// The kernel's, and those of [`Overlay::options`].
pub fn overlay(overlay: &Overlay, target: &Path) -> Result<(), Error> {
    let options =
        CString::new(overlay.options()?).map_err(|error| Error::new("mount", target.display(), error))?;
    let flags = if overlay.upper.is_none() { MountFlags::RDONLY } else { MountFlags::empty() };
    rustix::mount::mount("overlay", target, "overlay", flags, options.as_c_str())
        .map_err(|errno| Error::new("mount overlay on", target.display(), errno))
}

/// Mounts a tmpfs that holds data only: no programs, no device nodes.
///
/// # Errors
/// The kernel's.
pub fn tmpfs(target: &Path, options: &str) -> Result<(), Error> {
    mount_tmpfs(target, options, MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC)
}

/// Mounts a tmpfs that programs may lie on and run from, as the kubelet mounts volumes in memory.
///
/// # Errors
/// The kernel's.
pub fn tmpfs_of_programs(target: &Path, options: &str) -> Result<(), Error> {
    mount_tmpfs(target, options, MountFlags::empty())
}

fn mount_tmpfs(target: &Path, options: &str, flags: MountFlags) -> Result<(), Error> {
    let options = CString::new(options).map_err(|error| Error::new("mount", target.display(), error))?;
    rustix::mount::mount("tmpfs", target, "tmpfs", flags, options.as_c_str())
        .map_err(|errno| Error::new("mount tmpfs on", target.display(), errno))
}

/// A detached copy of the mount tree at a path. It stays in the peer group of what it was copied from.
///
/// # Errors
/// The kernel's.
pub fn clone_tree(path: &Path) -> Result<OwnedFd, Error> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    rustix::mount::open_tree(CWD, path, flags).map_err(|errno| Error::new("open_tree", path.display(), errno))
}

/// Mounts a detached tree at a path.
///
/// # Errors
/// The kernel's.
pub fn attach_tree(tree: impl AsFd, target: &Path) -> Result<(), Error> {
    rustix::mount::move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|errno| Error::new("move_mount", target.display(), errno))
}

/// Binds one file or directory over another.
///
/// # Errors
/// The kernel's.
pub fn bind(source: &Path, target: &Path) -> Result<(), Error> {
    rustix::mount::mount_bind(source, target)
        .map_err(|errno| Error::new("mount bind", target.display(), errno))
}

/// How mounts made later travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// Neither way, for one mount.
    Private,
    /// Neither way, for a mount and all below it.
    PrivateRecursive,
    /// From the peer group only, for a mount and all below it.
    SlaveRecursive,
}

/// Changes the propagation of the mount at a path.
///
/// # Errors
/// The kernel's; EINVAL when the path is no mount point.
pub fn set_propagation(target: &Path, propagation: Propagation) -> Result<(), Error> {
    let flags = match propagation {
        Propagation::Private => MountPropagationFlags::PRIVATE,
        Propagation::PrivateRecursive => MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        Propagation::SlaveRecursive => MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    };
    rustix::mount::mount_change(target, flags)
        .map_err(|errno| Error::new("mount propagation", target.display(), errno))
}

/// Takes a mount off at once, even when it is busy. Fine when nothing is mounted there.
///
/// # Errors
/// The kernel's.
pub fn detach(target: &Path) -> Result<(), Error> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(errno) => Err(Error::new("umount2", target.display(), errno)),
    }
}

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Path within the file system that is mounted.
    pub root: PathBuf,
    /// Where.
    pub mount_point: PathBuf,
    /// Type, `overlay`.
    pub filesystem: String,
    /// Options of the file system.
    pub super_options: String,
}

/// Reads the mount table of the calling process.
///
/// # Errors
/// The file cannot be read.
pub fn table() -> Result<Vec<MountEntry>, Error> {
    let text = std::fs::read("/proc/self/mountinfo")
        .map_err(|error| Error::new("read", "/proc/self/mountinfo", error))?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(parse_entry).collect())
}

fn parse_entry(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let root = unescape(fields.nth(3)?);
    let mount_point = unescape(fields.next()?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let filesystem = String::from_utf8_lossy(rest.next()?).into_owned();
    let super_options = String::from_utf8_lossy(rest.nth(1)?).into_owned();
    Some(MountEntry { root, mount_point, filesystem, super_options })
}

/// Space, tab, newline and backslash appear as `\ooo`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = |byte: u8| (b'0'..=b'7').contains(&byte).then(|| u32::from(byte - b'0'));
        rest = match (first, tail) {
            (b'\\', [a, b, c, after @ ..]) => match (octal(*a), octal(*b), octal(*c)) {
                (Some(a), Some(b), Some(c)) => {
                    bytes.push((a * 64 + b * 8 + c) as u8);
                    after
                }
                _ => {
                    bytes.push(*first);
                    tail
                }
            },
            _ => {
                bytes.push(*first);
                tail
            }
        };
    }
    std::ffi::OsString::from_vec(bytes).into()
}
