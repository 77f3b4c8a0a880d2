//! Attachments that are links: pinned, found again by their pins, and switched to another program in place.
//!
//! A link is one of: missing -> the caller attaches and pins; attached to the target that its name says, running our program
//! -> left alone; running another -> updated; attached to something else, because the cgroup or the interface was made
//! anew -> unpinned, and then it is missing.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::{fs, io};

use aya::programs::links::FdLink;

use super::{Identity, OpenError};
use crate::sys;

const PREFIX: &str = "link_";

/// Where a program is attached.
pub struct Target<'a> {
    pub shown: String,
    /// A cgroup's or an interface's number, as link information has it.
    pub id: u64,
    pub pin: PathBuf,
    pub program: &'a str,
    /// The first kernel with this kind of attachment.
    pub since: &'static str,
}

/// Where the link of a program is pinned, for each interface where it is on several.
pub fn pin(pins: &Path, program: &str, interface: Option<&str>) -> PathBuf {
    pins.join(match interface {
        Some(interface) => format!("{PREFIX}{program}_{interface}"),
        None => format!("{PREFIX}{program}"),
    })
}

/// Takes over the pinned link of `target` and makes it run our program; `false` if a new link is needed.
pub fn adopt(target: &Target<'_>, program: BorrowedFd<'_>, wanted: &Identity) -> Result<bool, OpenError> {
    let failed = |operation| move |source| OpenError::Link { operation, path: target.pin.clone(), source };
    let link = match sys::object_get(&target.pin) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(false),
        link => link.map_err(failed("open"))?,
    };
    let info = sys::link_info(link.as_fd()).map_err(failed("read"))?;
    if info.target != target.id && info.target & 0xffff_ffff != target.id {
        tracing::info!(program = target.program, target = target.shown, "the pinned link is stale");
        sys::link_detach(link.as_fd()).map_err(failed("detach"))?;
        fs::remove_file(&target.pin).map_err(failed("unpin"))?;
        return Ok(false);
    }
    if !wanted.is_of(info.program) {
        tracing::info!(program = target.program, target = target.shown, "replacing the attached program");
        sys::link_update(link.as_fd(), program).map_err(failed("update"))?;
    }
    Ok(true)
}

/// Makes a new link outlive this process.
pub fn pin_new(link: FdLink, target: &Target<'_>) -> Result<(), OpenError> {
    link.pin(&target.pin).map(drop).map_err(|source| OpenError::Link {
        operation: "pin",
        path: target.pin.clone(),
        source: io::Error::other(source),
    })
}

/// Detaches and unpins every link but the wanted ones. Of a link that is only unpinned the kernel ends the attachment later, in the
/// background: a connection that begins meanwhile is translated halfway.
pub fn remove_stale(pins: &Path, wanted: &HashSet<PathBuf>) -> Result<(), OpenError> {
    let failed = |operation, path: &Path, source| OpenError::File { operation, path: path.into(), source };
    let of_link = |operation, path: &Path, source| OpenError::Link { operation, path: path.into(), source };
    for entry in fs::read_dir(pins).map_err(|source| failed("read", pins, source))? {
        let path = entry.map_err(|source| failed("read", pins, source))?.path();
        let is_link = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        if is_link && !wanted.contains(&path) {
            match sys::object_get(&path) {
                Err(source) if source.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(of_link("open", &path, source)),
                Ok(link) => {
                    sys::link_detach(link.as_fd()).map_err(|source| of_link("detach", &path, source))?;
                }
            }
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", &path, source));
                }
                _ => {}
            }
        }
    }
    Ok(())
}
