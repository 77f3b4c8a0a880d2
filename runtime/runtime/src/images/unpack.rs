//! One layer from a tar stream into a directory, in the form that overlayfs reads.
//!
//! Every path is opened below the layer's own root (`openat2` with RESOLVE_IN_ROOT), so neither `..` nor a symbolic link of the layer itself leads out.
//! Whiteouts become 0:0 character devices and opaque markers the attribute `trusted.overlay.opaque`. Device nodes are made as containerd makes
//! them; what they may do is up to the container's device rules. Refused: streams beyond [`MAX_UNPACKED_BYTES`] or [`MAX_ENTRIES`], headers
//! beyond those of [`super::bounded`], names with `..`, hard links to what is not in the layer, and entry types that no layer has.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use tar::{Archive, Entry, EntryType};

use super::bounded::{Bounded, Budget};

#[cfg(test)]
mod tests;

/// Bytes of file content in one layer.
pub const MAX_UNPACKED_BYTES: u64 = 64 << 30;
/// Entries of one layer.
pub const MAX_ENTRIES: u64 = 4_000_000;
/// Bytes of the paths of one layer's directories, which are remembered until its end.
const MAX_DIRECTORY_BYTES: usize = 256 << 20;
const BUFFER_BYTES: usize = 256 * 1024;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const PAX_XATTR: &str = "SCHILY.xattr.";

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Bytes of file content.
    pub bytes: u64,
    /// Files, directories and the like.
    pub inodes: u64,
}

/// Undoes gzip or zstd, told by the first bytes; anything else is taken as it is.
pub fn decompress(file: File) -> io::Result<Box<dyn Read + Send>> {
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, file);
    let start = io::BufRead::fill_buf(&mut reader)?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::with_buffer(reader)?),
        _ => Box::new(reader),
    })
}

/// Unpacks.
pub fn unpack(stream: impl Read, directory: &Path) -> io::Result<Unpacked> {
    let root =
        rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut layer =
        Layer { root, done: Unpacked::default(), directory_times: Vec::new(), directory_bytes: 0 };
    rustix::fs::chmod(directory, Mode::from_bits_truncate(0o755))?;
    let budget = Budget::new();
    let mut archive = Archive::new(Bounded::new(stream, &budget));
    let mut count = 0;
    for entry in archive.entries()? {
        count += 1;
        if count > MAX_ENTRIES {
            return Err(invalid(format!("more than {MAX_ENTRIES} entries")));
        }
        let mut entry = entry?;
        budget.enter(&mut entry)?;
        layer.entry(&mut entry)?;
    }
    layer.finish()?;
    Ok(layer.done)
}

fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

struct Layer {
    root: OwnedFd,
    done: Unpacked,
    /// Set last, since making files in a directory changes them.
    directory_times: Vec<(PathBuf, Timestamps)>,
    /// Of their paths.
    directory_bytes: usize,
}

impl Layer {
    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> io::Result<()> {
        if matches!(entry.header().entry_type(), EntryType::XGlobalHeader) {
            return Ok(());
        }
        let path = clean(&entry.path()?)?;
        let Some(name) = path.file_name() else {
            return self.dress(entry, self.root_again()?.as_fd(), &path);
        };
        let parent = self.open_parent(path.parent().unwrap_or(Path::new("")))?;
        let name = name.as_bytes();
        if name == OPAQUE {
            let directory = reopen(&parent)?;
            return Ok(rustix::fs::fsetxattr(
                &directory,
                "trusted.overlay.opaque",
                b"y",
                XattrFlags::empty(),
            )?);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(parent.as_fd(), hidden);
        }
        self.make(entry, parent.as_fd(), &path, name)
    }

    fn root_again(&self) -> io::Result<OwnedFd> {
        self.root.try_clone()
    }

    fn open_below(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        if path.as_os_str().is_empty() {
            return rustix::io::fcntl_dupfd_cloexec(&self.root, 0);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat2(
            &self.root,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    }

    /// The directory at a path, made with those above it when the layer does not bring them.
    fn open_parent(&mut self, path: &Path) -> io::Result<OwnedFd> {
        match self.open_below(path) {
            Ok(found) => return Ok(found),
            Err(rustix::io::Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let above = self.open_parent(path.parent().unwrap_or(Path::new("")))?;
        let name = path.file_name().ok_or_else(|| invalid("empty path"))?;
        rustix::fs::mkdirat(&above, name, Mode::from_bits_truncate(0o755))?;
        rustix::fs::chmodat(&above, name, Mode::from_bits_truncate(0o755), AtFlags::empty())?;
        self.done.inodes += 1;
        Ok(self.open_below(path)?)
    }

    fn whiteout(&mut self, parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        check_name(name)?;
        // What the same layer brings under this name stays: the marker is about the layers below.
        match rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => {
                self.done.inodes += 1;
                Ok(())
            }
            Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn make<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        parent: BorrowedFd<'_>,
        path: &Path,
        name: &[u8],
    ) -> io::Result<()> {
        let kind = entry.header().entry_type();
        self.clear(parent, name, kind.is_dir())?;
        self.done.inodes += 1;
        let device = || -> io::Result<u64> {
            let header = entry.header();
            let (major, minor) = (header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0));
            Ok(rustix::fs::makedev(major, minor))
        };
        match kind {
            EntryType::Directory => {
                match rustix::fs::mkdirat(parent, name, Mode::from_bits_truncate(0o700)) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.regular(entry, parent, name)?
            }
            EntryType::Symlink => {
                let target =
                    entry.link_name_bytes().ok_or_else(|| invalid("symbolic link without a target"))?;
                rustix::fs::symlinkat(target.as_ref(), parent, name)?;
            }
            EntryType::Link => {
                let target = entry.link_name()?.ok_or_else(|| invalid("hard link without a target"))?;
                return self.hard_link(&clean(&target)?, parent, name);
            }
            EntryType::Char => {
                rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), device()?)?;
            }
            EntryType::Block => {
                rustix::fs::mknodat(parent, name, FileType::BlockDevice, Mode::empty(), device()?)?
            }
            EntryType::Fifo => rustix::fs::mknodat(parent, name, FileType::Fifo, Mode::empty(), 0)?,
            other => {
                return Err(invalid(format!("{}: entry type {:?}", path.display(), other.as_byte() as char)));
            }
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        self.dress(entry, made.as_fd(), path)
    }

    /// Makes room: a later entry of a layer replaces an earlier one, and directories are merged.
    fn clear(&self, parent: BorrowedFd<'_>, name: &[u8], keep_directory: bool) -> io::Result<()> {
        let found = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => FileType::from_raw_mode(found.st_mode),
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        if found != FileType::Directory {
            return Ok(rustix::fs::unlinkat(parent, name, AtFlags::empty())?);
        }
        if keep_directory {
            return Ok(());
        }
        std::fs::remove_dir_all(descriptor_path(parent).join(std::ffi::OsStr::from_bytes(name)))
    }

    fn regular<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        parent: BorrowedFd<'_>,
        name: &[u8],
    ) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(parent, name, flags, Mode::from_bits_truncate(0o600))?);
        let left = MAX_UNPACKED_BYTES.saturating_sub(self.done.bytes);
        let written = io::copy(&mut entry.take(left + 1), &mut file)?;
        if written > left {
            return Err(invalid(format!("more than {MAX_UNPACKED_BYTES} bytes of content")));
        }
        self.done.bytes += written;
        Ok(())
    }

    fn hard_link(&self, target: &Path, parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        let base = target.file_name().ok_or_else(|| invalid("hard link to the root"))?;
        let from = self.open_below(target.parent().unwrap_or(Path::new("")));
        let linked = from.and_then(|from| rustix::fs::linkat(&from, base, parent, name, AtFlags::empty()));
        linked.map_err(|errno| {
            io::Error::new(
                io::Error::from(errno).kind(),
                format!("hard link to {}: {errno}", target.display()),
            )
        })
    }

    /// Owner, mode, attributes and times, in the order in which the kernel keeps them: a new owner clears set-id bits and capabilities.
    fn dress<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        made: BorrowedFd<'_>,
        path: &Path,
    ) -> io::Result<()> {
        let attributes = attributes(entry)?;
        let header = entry.header();
        let id = |value: u64| u32::try_from(value).ok().filter(|id| *id != u32::MAX);
        let (Some(uid), Some(gid)) =
            (id(owner(header.uid(), &header.as_old().uid)?), id(owner(header.gid(), &header.as_old().gid)?))
        else {
            return Err(invalid(format!("{}: owner is out of range", path.display())));
        };
        let (mode, time) = (header.mode()?, header.mtime()?);
        let link = header.entry_type().is_symlink();
        let times = timestamps(time);
        rustix::fs::chownat(
            made,
            "",
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            AtFlags::EMPTY_PATH,
        )?;
        // An O_PATH descriptor takes no chmod or attributes by itself; its entry in /proc does, and follows to exactly this file.
        let own = descriptor_path(made);
        if !link {
            rustix::fs::chmod(&own, Mode::from_bits_truncate(mode & 0o7777))?;
            for (key, value) in attributes {
                rustix::fs::setxattr(&own, key.as_str(), &value, XattrFlags::empty())?;
            }
        }
        if header.entry_type().is_dir() {
            self.directory_bytes += path.as_os_str().len();
            if self.directory_bytes > MAX_DIRECTORY_BYTES {
                return Err(invalid(format!("more than {MAX_DIRECTORY_BYTES} bytes of directory names")));
            }
            self.directory_times.push((path.to_path_buf(), times));
        } else if !link {
            rustix::fs::utimensat(rustix::fs::CWD, &own, &times, AtFlags::empty())?;
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        for (path, times) in std::mem::take(&mut self.directory_times) {
            // A later entry may have replaced the directory.
            if let Ok(directory) = self.open_below(&path) {
                rustix::fs::utimensat(
                    rustix::fs::CWD,
                    descriptor_path(directory.as_fd()),
                    &times,
                    AtFlags::empty(),
                )?;
            }
        }
        Ok(())
    }
}

/// A number of a header; a field that was never filled in is 0.
fn owner(parsed: io::Result<u64>, raw: &[u8]) -> io::Result<u64> {
    if raw.iter().all(|byte| matches!(byte, 0 | b' ')) { Ok(0) } else { parsed }
}

fn descriptor_path(fd: BorrowedFd<'_>) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn reopen(directory: &OwnedFd) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(
        directory,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

fn timestamps(seconds: u64) -> Timestamps {
    let time = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(0), tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

/// Attributes that containers keep; the overlay's own would change the meaning of the tree.
fn attributes<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    let Some(extensions) = entry.pax_extensions()? else { return Ok(found) };
    for extension in extensions {
        let extension = extension?;
        let Some(key) = extension.key().ok().and_then(|key| key.strip_prefix(PAX_XATTR)) else { continue };
        if key.starts_with("security.capability") || key.starts_with("user.") {
            found.push((key.to_owned(), extension.value_bytes().to_vec()));
        }
    }
    Ok(found)
}

/// A path of an entry without root, `.` and trailing slash.
fn clean(path: &Path) -> io::Result<PathBuf> {
    let mut cleaned = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => cleaned.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(invalid(format!("{}: leads out of the layer", path.display())));
            }
        }
    }
    Ok(cleaned)
}

fn check_name(name: &[u8]) -> io::Result<()> {
    match name {
        b"" | b"." | b".." => Err(invalid("whiteout without a name")),
        name if name.contains(&b'/') => Err(invalid("whiteout with a path")),
        _ => Ok(()),
    }
}
