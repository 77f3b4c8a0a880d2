//! subPath: a part of a volume, opened so that no symbolic link can lead out of the volume, and bound at a place of its own.
//!
//! The kernel resolves the path (openat2 with RESOLVE_BENEATH), and what is mounted is the opened file itself: a container that swaps a
//! directory for a link in between changes nothing. Needs Linux 5.6.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, mkdirat};

use crate::api::chain;

#[cfg(test)]
mod tests;

/// Opens `sub` in the volume at `root`, making directories that are missing, and binds it at `target`.
///
/// # Errors
/// In words; a path that leads out of the volume is one.
pub fn bind(root: &Path, sub: &str, target: &Path) -> Result<(), String> {
    let opened = open(root, sub)?;
    let is_folder = fs::metadata(proc_path(&opened)).map_err(|error| error.to_string())?.is_dir();
    // An earlier start of the container may have left its own mount here.
    linux::mount::detach(target).map_err(|error| chain(&error))?;
    let failed = |error: std::io::Error| format!("make {}: {error}", target.display());
    if is_folder {
        fs::create_dir_all(target).map_err(failed)?;
    } else {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        fs::File::options().create(true).append(true).open(target).map_err(failed)?;
    }
    linux::mount::bind(&proc_path(&opened), target).map_err(|error| chain(&error))
}

fn proc_path(opened: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", opened.as_raw_fd()).into()
}

/// Opens a path below a volume's root.
fn open(root: &Path, sub: &str) -> Result<OwnedFd, String> {
    let parts: Vec<&Path> = Path::new(sub)
        .components()
        .map(|part| match part {
            Component::Normal(name) => Ok(Path::new(name)),
            _ => Err(format!("subPath \"{sub}\" must be a relative path and must not contain \"..\"")),
        })
        .collect::<Result<_, _>>()?;
    let folder = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let base = nix::fcntl::open(root, folder, Mode::empty())
        .map_err(|errno| format!("open {}: {errno}", root.display()))?;
    match open_beneath(&base, Path::new(sub)) {
        Ok(opened) => return Ok(opened),
        Err(Errno::ENOENT) => {}
        Err(errno) => return Err(escaped(sub, errno)),
    }
    // What is missing is made directory by directory, each in the one that was opened before.
    let mut path = PathBuf::new();
    let mut last: Option<OwnedFd> = None;
    for part in parts {
        path.push(part);
        let parent = last.as_ref().unwrap_or(&base);
        match mkdirat(parent, part, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(format!("mkdir {}: {errno}", path.display())),
        }
        last = Some(open_beneath(&base, &path).map_err(|errno| escaped(sub, errno))?);
    }
    last.ok_or_else(|| format!("subPath \"{sub}\" is empty"))
}

fn open_beneath(base: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(base, path, how)
}

fn escaped(sub: &str, errno: Errno) -> String {
    match errno {
        Errno::EXDEV | Errno::ELOOP => format!("subPath \"{sub}\" leads out of its volume"),
        errno => format!("open subPath \"{sub}\": {errno}"),
    }
}
