//! Attachments that are links: pinned, found again by their pins, and switched to another program in place.
//!
//! A link is one of: missing -> the caller attaches and pins; attached to the target that its name says, running our program
//! -> left alone; running another -> updated; attached to something else, because the cgroup or the interface was made
//! anew -> unpinned, and then it is missing.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::{fs, io};

use aya::programs::links::FdLink;

use super::{Identity, OpenError};
use crate::sys::{self, TcxPlace};

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

/// What stands for a dot, as VLANs have in their names, and the BPF file system refuses: no interface's name has one of these.
const DOT: &str = ":";

/// Where the link of a program is pinned, for each interface where it is on several.
pub fn pin(pins: &Path, program: &str, interface: Option<&str>) -> PathBuf {
    pins.join(match interface {
        Some(interface) => format!("{PREFIX}{program}_{}", interface.replace('.', DOT)),
        None => format!("{PREFIX}{program}"),
    })
}

/// Takes over the pinned link of `target` and makes it run our program; `false` if a new link is needed.
pub fn adopt(target: &Target<'_>, program: BorrowedFd<'_>, wanted: &Identity) -> Result<bool, OpenError> {
    let refused = |source| OpenError::Link { operation: "update", path: target.pin.clone(), source };
    try_adopt(target, program, wanted)?.map_err(refused)
}

/// The same; the kernel may refuse to make the link run our program, which leaves it as it is.
fn try_adopt(
    target: &Target<'_>,
    program: BorrowedFd<'_>,
    wanted: &Identity,
) -> Result<io::Result<bool>, OpenError> {
    let failed = |operation| move |source| OpenError::Link { operation, path: target.pin.clone(), source };
    let link = match sys::object_get(&target.pin) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Ok(false)),
        link => link.map_err(failed("open"))?,
    };
    let info = sys::link_info(link.as_fd()).map_err(failed("read"))?;
    if info.target != target.id && info.target & 0xffff_ffff != target.id {
        tracing::info!(program = target.program, target = target.shown, "the pinned link is stale");
        sys::link_detach(link.as_fd()).map_err(failed("detach"))?;
        fs::remove_file(&target.pin).map_err(failed("unpin"))?;
        return Ok(Ok(false));
    }
    if wanted.is_of(info.program) {
        return Ok(Ok(true));
    }
    tracing::info!(program = target.program, target = target.shown, "replacing the attached program");
    Ok(sys::link_update(link.as_fd(), program).map(|()| true))
}

/// Makes an interface run a program, until its link is detached or the interface goes.
pub fn attach_tcx(
    target: &Target<'_>,
    program: BorrowedFd<'_>,
    wanted: &Identity,
    place: TcxPlace,
) -> Result<(), OpenError> {
    let refused = |source| OpenError::AttachTcx {
        program: target.program.to_owned(),
        interface: target.shown.clone(),
        source,
    };
    if adopt(target, program, wanted)? {
        return Ok(());
    }
    pin_made(target, sys::attach_tcx(program, target.id as u32, place))?.map_err(refused)
}

/// Takes over the pinned link of an interface, or pins a new one; the kernel may refuse either.
pub fn attach(
    target: &Target<'_>,
    program: BorrowedFd<'_>,
    wanted: &Identity,
    make: impl FnOnce(u32) -> io::Result<OwnedFd>,
) -> Result<io::Result<()>, OpenError> {
    match try_adopt(target, program, wanted)? {
        Ok(true) => Ok(Ok(())),
        Ok(false) => pin_made(target, make(target.id as u32)),
        Err(refused) => Ok(Err(refused)),
    }
}

fn pin_made(target: &Target<'_>, made: io::Result<OwnedFd>) -> Result<io::Result<()>, OpenError> {
    let link = match made {
        Err(refused) => return Ok(Err(refused)),
        Ok(link) => link,
    };
    let failed = |source| OpenError::Link { operation: "pin", path: target.pin.clone(), source };
    sys::object_pin(link.as_fd(), &target.pin).map(Ok).map_err(failed)
}

/// The interfaces that a program is pinned for.
pub fn interfaces(pins: &Path, program: &str) -> io::Result<Vec<String>> {
    let prefix = format!("{PREFIX}{program}_");
    let mut found = Vec::new();
    for entry in fs::read_dir(pins)? {
        let name = entry?.file_name();
        let interface = name.to_str().and_then(|name| name.strip_prefix(&prefix));
        found.extend(interface.map(|interface| interface.replace(DOT, ".")));
    }
    Ok(found)
}

/// The names of the pinned links, and the programs that they run.
pub fn programs(pins: &Path) -> Result<Vec<(OsString, u32)>, OpenError> {
    let failed = |source| OpenError::File { operation: "read", path: pins.into(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(pins).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if name.to_string_lossy().starts_with(PREFIX) {
            let path = pins.join(&name);
            let info = sys::object_get(&path).and_then(|link| sys::link_info(link.as_fd()));
            let info = info.map_err(|source| OpenError::Link { operation: "read", path, source })?;
            found.push((name, info.program));
        }
    }
    Ok(found)
}

/// The index of the interface that a pinned link is attached to; `None` if that is gone, or there is no such link.
pub fn interface_of(pin: &Path) -> Result<Option<u32>, OpenError> {
    let failed = |operation| move |source| OpenError::Link { operation, path: pin.into(), source };
    let link = match sys::object_get(pin) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        link => link.map_err(failed("open"))?,
    };
    let info = sys::link_info(link.as_fd()).map_err(failed("read"))?;
    Ok(Some(info.target as u32).filter(|index| *index != 0))
}

/// Detaches and unpins a link; whether it was there.
pub fn remove(pin: &Path) -> Result<bool, OpenError> {
    let failed = |operation| move |source| OpenError::Link { operation, path: pin.into(), source };
    match sys::object_get(pin) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(failed("open")(source)),
        Ok(link) => sys::link_detach(link.as_fd()).map_err(failed("detach"))?,
    }
    match fs::remove_file(pin) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed("remove")(source)),
        _ => Ok(true),
    }
}

/// Gives the links that are pinned in one folder their pins in another.
pub fn move_all(from: &Path, to: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::File { operation: "read", path: from.into(), source };
    for entry in fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            let path = entry.path();
            fs::rename(&path, to.join(entry.file_name())).map_err(|source| OpenError::Link {
                operation: "move",
                path,
                source,
            })?;
        }
    }
    Ok(())
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
    let failed = |source| OpenError::File { operation: "read", path: pins.into(), source };
    for entry in fs::read_dir(pins).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let is_link = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        if is_link && !wanted.contains(&path) {
            remove(&path)?;
        }
    }
    Ok(())
}
