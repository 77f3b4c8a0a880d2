//! Which addresses an owner has, without reading every lease.
//!
//! `<dataDir>/.<network>.owners/` has a symbolic link for each owner, `<container id>:<link>`, whose target lists the
//! addresses. It lies beside the leases, where the reference plugin never looks. The link `@seen` tells the state of the
//! leases' folder (inode and modification time) that the index describes; that time is set into the past, so that any
//! change of a lease, by whomever and however soon, makes it another. The index is then rebuilt. Our own changes remove
//! `@seen` first, so that a crash in between does too.
//!
//! Owns that folder. It is a cache: a failure to read or write it makes it unusable until the next rebuild, and is
//! never an error.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    net::IpAddr,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::store::Owner;

const SEEN: &str = "@seen";
/// How far in the past the folder's time is set: further than the coarsest grain of a file system's clock.
const INTO_THE_PAST: Duration = Duration::from_secs(10);
/// Bytes of a file name that every file system takes.
const NAME_LIMIT: usize = 240;

/// See the module.
#[derive(Debug)]
pub(super) struct Index {
    dir: PathBuf,
}

impl Index {
    pub(super) fn new(data_dir: &Path, network: &str) -> Self {
        Self { dir: data_dir.join(format!(".{network}.owners")) }
    }

    /// True when it describes the leases as they are.
    pub(super) fn is_current(&self, leases: &Path) -> bool {
        let seen = fs::read_link(self.dir.join(SEEN)).ok();
        seen.is_some() && seen == state_of(leases).ok().map(PathBuf::from)
    }

    /// The owner's addresses, possibly none; `None` when the index cannot tell.
    pub(super) fn lookup(&self, owner: &Owner) -> Option<Vec<IpAddr>> {
        match fs::read_link(self.entry(owner)?) {
            Ok(target) => target.to_str()?.split(',').map(|address| address.parse().ok()).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(Vec::new()),
            Err(_) => None,
        }
    }

    /// To be called before a lease changes; [`Index::confirm`] ends it.
    pub(super) fn invalidate(&self) {
        if let Err(error) = fs::remove_file(self.dir.join(SEEN))
            && error.kind() != io::ErrorKind::NotFound
        {
            // It must not be believed; without its folder it cannot be.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }

    /// Sets an owner's addresses; none removes the owner.
    pub(super) fn replace(&self, owner: &Owner, addresses: &[IpAddr]) {
        let Some(entry) = self.entry(owner) else { return };
        let removed = match fs::remove_file(&entry) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        let target = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let written =
            removed.and_then(|()| if addresses.is_empty() { Ok(()) } else { symlink(target, &entry) });
        if written.is_err() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }

    /// Changes an owner's addresses, where they are known.
    pub(super) fn replace_if_known(&self, owner: &Owner, change: impl FnOnce(&mut Vec<IpAddr>)) {
        if let Some(mut addresses) = self.lookup(owner) {
            change(&mut addresses);
            self.replace(owner, &addresses);
        }
    }

    /// Says that it describes the leases as they are now.
    pub(super) fn confirm(&self, leases: &Path) {
        // Without a folder there is no index to confirm: the next question rebuilds it.
        if let Ok(state) = mark(leases) {
            let _ = symlink(state, self.dir.join(SEEN));
        }
    }

    /// Makes it anew.
    pub(super) fn rebuild(&self, leases: &Path, owners: &BTreeMap<Owner, Vec<IpAddr>>) {
        let _ = fs::remove_dir_all(&self.dir);
        if fs::create_dir(&self.dir).is_err() {
            return;
        }
        for (owner, addresses) in owners {
            self.replace(owner, addresses);
        }
        self.confirm(leases);
    }

    /// None for a name that is too long for a file.
    fn entry(&self, owner: &Owner) -> Option<PathBuf> {
        let name = format!("{}:{}", owner.container_id, owner.ifname);
        let fits = name.len() <= NAME_LIMIT && !name.contains('/');
        fits.then(|| self.dir.join(name))
    }
}

/// Gives the folder a time that no change can give it, and tells its state.
fn mark(leases: &Path) -> io::Result<String> {
    File::open(leases)?.set_modified(SystemTime::now() - INTO_THE_PAST)?;
    state_of(leases)
}

fn state_of(leases: &Path) -> io::Result<String> {
    let metadata = fs::metadata(leases)?;
    Ok(format!("{}.{}.{}", metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
}
