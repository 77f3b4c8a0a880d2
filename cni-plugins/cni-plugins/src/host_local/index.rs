//! Which addresses an owner has, without reading every lease.
//!
//! `<dataDir>/.<network>.owners/` has a symbolic link for each owner, `<container id>:<link>`, whose target lists the
//! addresses. It lies beside the leases, where the reference plugin never looks. The folder's modification time tells that of
//! the leases' folder that the index describes, by a constant of years: no change in either folder gives it such a time. The
//! leases' is set into the past too, so that any change of a lease, by whomever and however soon, makes it another. The index is
//! then rebuilt. Our own changes set the index's time to zero first, so that a crash in between does too.
//!
//! Owns that folder. It is a cache: a failure to read or write it makes it unusable until the next rebuild, and is
//! never an error.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    net::IpAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::store::Owner;

/// How far in the past the time of the leases' folder is set: further than the coarsest grain of a file system's clock.
const INTO_THE_PAST: Duration = Duration::from_secs(10);
/// How much older than that the index's folder is that describes it: about eight years.
const OLDER: Duration = Duration::from_secs(1 << 28);
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
        modified(leases).is_ok_and(|time| modified(&self.dir).ok() == time.checked_sub(OLDER))
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
        if let Err(error) = set_modified(&self.dir, UNIX_EPOCH)
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
        let _ = mark(leases).and_then(|time| set_modified(&self.dir, time - OLDER));
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

/// Gives the folder a time that no change can give it, and tells it as the file system keeps it.
fn mark(leases: &Path) -> io::Result<SystemTime> {
    set_modified(leases, SystemTime::now() - INTO_THE_PAST)?;
    modified(leases)
}

fn modified(folder: &Path) -> io::Result<SystemTime> {
    fs::metadata(folder)?.modified()
}

fn set_modified(folder: &Path, time: SystemTime) -> io::Result<()> {
    File::open(folder)?.set_modified(time)
}
