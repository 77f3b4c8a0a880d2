//! Leases on disk, so that a daemon that was killed finds what it has to renew: `<folder of the socket>/dhcp/<hash>.json`.
//!
//! The folder is volatile, as containers are: after a reboot there is nothing to renew. Where it is not, the times in a file of another boot
//! mean nothing, so its lease counts as expired. A file is replaced by a rename, and one
//! that cannot be read is left alone and told.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use cni::json::DOCUMENT_LIMIT;
use linux::clock;
use serde::{Deserialize, Serialize};

use super::{config::Options, lease::Lease};
use crate::hash;

/// Characters of a file's name.
const NAME_LENGTH: usize = 32;

/// Bytes of an option, without the one that says the identifier's type.
const CLIENT_ID_LIMIT: usize = 254;

/// Bytes of one file: a question's options, which are of a document, and the routes of a packet.
const FILE_LIMIT: usize = 2 * DOCUMENT_LIMIT;

const WHOLE: &str = "json";
const UNFINISHED: &str = "new";

/// Whose lease it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Owner {
    pub(super) network: String,
    pub(super) container_id: String,
    pub(super) ifname: String,
}

impl Owner {
    /// What the server knows the client by.
    pub(super) fn client_id(&self) -> String {
        let mut id = format!("{}/{}/{}", self.container_id, self.network, self.ifname);
        // A link's name may have characters of several bytes.
        id.truncate(id.floor_char_boundary(CLIENT_ID_LIMIT));
        id
    }
}

/// A lease with everything that is needed to extend it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Held {
    pub(super) owner: Owner,
    /// As the plugin named it.
    pub(super) netns: PathBuf,
    /// Of the link, so that another one under its name is not taken for it.
    pub(super) mac: [u8; 6],
    pub(super) options: Options,
    pub(super) lease: Lease,
}

/// A file's contents.
#[derive(Serialize)]
struct Writing<'a> {
    /// In which the times are meant.
    boot: &'a str,
    #[serde(flatten)]
    held: &'a Held,
}

/// The same when it is read; daemons before this one wrote no boot, and other times.
#[derive(Deserialize)]
struct Reading {
    #[serde(default)]
    boot: String,
    #[serde(flatten)]
    held: Held,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Keep {
    dir: PathBuf,
    boot: String,
    /// The folder, locked: two daemons would renew each other's leases, and give them back. The lock ends with the process.
    _lock: File,
}

impl Keep {
    /// Takes the folder, for one daemon alone.
    pub(super) fn beside(socket: &Path) -> io::Result<Self> {
        let dir = socket.parent().unwrap_or_else(|| Path::new("/")).join("dhcp");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let lock = File::open(&dir)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                let dir = dir.display();
                let hint = "stop it, or give this one a socket in another folder (-socketpath)";
                io::Error::other(format!(
                    "another daemon has the leases in {dir} (`fuser {dir}` tells which): {hint}"
                ))
            }
            TryLockError::Error(error) => error,
        })?;
        Ok(Self { dir, boot: clock::boot_id().map_err(io::Error::other)?, _lock: lock })
    }

    pub(super) fn store(&self, held: &Held) -> io::Result<()> {
        let path = self.path(&held.owner);
        let unfinished = path.with_extension(UNFINISHED);
        fs::write(&unfinished, bounded(serde_json::to_vec(&Writing { boot: &self.boot, held })?)?)?;
        fs::rename(unfinished, path)
    }

    /// Takes away the file, and what was left of one that could not be stored.
    pub(super) fn forget(&self, owner: &Owner) -> io::Result<()> {
        let path = self.path(owner);
        let unfinished = remove(&path.with_extension(UNFINISHED));
        remove(&path).and(unfinished)
    }

    /// What an earlier daemon held.
    pub(super) fn all(&self) -> io::Result<Vec<Held>> {
        let mut all = Vec::new();
        for path in fs::read_dir(&self.dir)?.flatten().map(|entry| entry.path()) {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some(WHOLE) => {}
                // What a killed daemon was writing.
                Some(UNFINISHED) => {
                    fs::remove_file(&path)?;
                    continue;
                }
                _ => continue,
            }
            match read(&path) {
                Ok(Reading { boot, mut held }) => {
                    if boot != self.boot {
                        held.lease.expire();
                    }
                    all.push(held);
                }
                Err(error) => eprintln!("{}: {error}: its lease is not renewed", path.display()),
            }
        }
        Ok(all)
    }

    pub(super) fn path(&self, owner: &Owner) -> PathBuf {
        self.dir.join(hash::name(NAME_LENGTH, "", &owner.client_id())).with_extension(WHOLE)
    }
}

fn read(path: &Path) -> io::Result<Reading> {
    let mut bytes = Vec::new();
    // One byte more than allowed, so that one sees that it is too large.
    File::open(path)?.take(FILE_LIMIT as u64 + 1).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bounded(bytes)?)?)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn bounded(bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    if bytes.len() > FILE_LIMIT {
        return Err(io::Error::other(format!("a larger file: expected at most {FILE_LIMIT} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
