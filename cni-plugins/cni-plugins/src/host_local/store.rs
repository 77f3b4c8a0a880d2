//! Leases on disk, in the format of the reference plugin, so that a node can switch over and back.
//!
//! `<dataDir>/<network>/` holds one file per leased address, named by it, with `<container id>\r\n<link>` inside;
//! `last_reserved_ip.<n>` with the last address handed out of range set n; and `lock`, on which every user holds a
//! `flock` while it looks or changes. Releases of long ago wrote the container id alone.
//!
//! Owns those files, under the lock, which lives as long as the [`Store`]. A lease appears whole or not at all: it is
//! written under another name and linked to its own. Who owns which addresses is answered from an index beside the
//! folder where that is up to date, else by reading every lease (see [`super::index`]).

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::index::Index;

const LOCK: &str = "lock";
const LAST_PREFIX: &str = "last_reserved_ip.";
const LINE_BREAK: &str = "\r\n";
/// A lease that has no address yet; no address has this name.
const PENDING: &str = ".pending";
/// A lease file is a container id and a link's name; what is longer is not ours.
const LEASE_LIMIT: u64 = 4096;

/// A file of the store that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}: {error}")]
pub(crate) struct StoreError {
    operation: &'static str,
    path: PathBuf,
    error: io::Error,
}

/// Whose a lease is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Owner {
    pub(crate) container_id: String,
    /// Empty in leases of old releases.
    pub(crate) ifname: String,
}

impl Owner {
    pub(crate) fn new(container_id: &str, ifname: &str) -> Self {
        Self { container_id: container_id.to_owned(), ifname: ifname.to_owned() }
    }

    /// The same owner as an old release wrote it.
    fn without_ifname(&self) -> Self {
        Self::new(&self.container_id, "")
    }

    fn parse(text: &str) -> Option<Self> {
        let (container_id, ifname) = match text.trim().split_once('\n') {
            Some((container_id, ifname)) => (container_id, ifname),
            None => (text, ""),
        };
        let container_id = container_id.trim();
        (!container_id.is_empty()).then(|| Self::new(container_id, ifname.trim()))
    }
}

/// The leases of one network, locked.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    index: Index,
    /// Holding it is what counts.
    _lock: File,
}

impl Store {
    /// Waits for the lock. Missing folders are made.
    pub(crate) fn open(data_dir: &Path, network: &str) -> Result<Self, StoreError> {
        let dir = data_dir.join(network);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&dir)
            .map_err(failed("create folder", &dir))?;
        let path = dir.join(LOCK);
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o750)
            .open(&path)
            .map_err(failed("open lock", &path))?;
        while let Err(error) = lock.lock() {
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(failed("lock", &path)(error));
            }
        }
        Ok(Self { index: Index::new(data_dir, network), dir, _lock: lock })
    }

    /// As [`Store::open`]; none when nothing was ever leased, for those who only take away.
    pub(crate) fn open_existing(data_dir: &Path, network: &str) -> Result<Option<Self>, StoreError> {
        if data_dir.join(network).exists() { Self::open(data_dir, network).map(Some) } else { Ok(None) }
    }

    /// The last address handed out of a range set; none when that is not known.
    pub(crate) fn last(&self, set: usize) -> Option<IpAddr> {
        fs::read_to_string(self.last_path(set)).ok()?.trim().parse().ok()
    }

    /// The addresses that the owner has.
    pub(crate) fn owned(&self, owner: &Owner) -> Result<Vec<IpAddr>, StoreError> {
        let [own, old] = self.look_up([owner, &owner.without_ifname()])?;
        Ok([own, old].concat())
    }

    /// The addresses of each owner; the index is up to date afterwards.
    fn look_up<const N: usize>(&self, owners: [&Owner; N]) -> Result<[Vec<IpAddr>; N], StoreError> {
        if self.index.is_current(&self.dir) {
            let known = owners.map(|owner| self.index.lookup(owner));
            if known.iter().all(Option::is_some) {
                return Ok(known.map(Option::unwrap_or_default));
            }
        }
        let leases = self.scan()?;
        self.index.rebuild(&self.dir, &by_owner(&leases));
        Ok(owners.map(|owner| {
            leases.iter().filter(|(_, found)| found == owner).map(|(address, _)| *address).collect()
        }))
    }

    /// Begins to lease; the leases are the index's and the lock's concern when it is finished.
    pub(crate) fn lease(&self, owner: &Owner) -> Result<Leasing<'_>, StoreError> {
        let path = self.dir.join(PENDING);
        let indexed = self.index.is_current(&self.dir);
        self.index.invalidate();
        // One that a crash left may be a lease under its other name: it must not be written to.
        remove(&path)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("create lease", &path))?;
        let content = format!("{}{LINE_BREAK}{}", owner.container_id, owner.ifname);
        let writing = file.write_all(content.as_bytes());
        let leasing =
            Leasing { store: self, owner: owner.clone(), pending: path, indexed, taken: Vec::new() };
        writing.map_err(failed("write lease", &leasing.pending))?;
        Ok(leasing)
    }

    /// Every leased address.
    pub(crate) fn taken(&self) -> Result<HashSet<IpAddr>, StoreError> {
        Ok(self.addresses()?.into_iter().collect())
    }

    /// Ends the owner's leases; none is success.
    pub(crate) fn release(&self, owner: &Owner) -> Result<(), StoreError> {
        let legacy = owner.without_ifname();
        let [own, old] = self.look_up([owner, &legacy])?;
        // What an old release wrote may be of any link of the container.
        let known = if own.is_empty() { old } else { own };
        if known.is_empty() {
            return Ok(());
        }
        self.index.invalidate();
        for address in &known {
            remove(&self.dir.join(address.to_string()))?;
        }
        self.index.replace(owner, &[]);
        self.index.replace_if_known(&legacy, |addresses| addresses.retain(|a| !known.contains(a)));
        self.index.confirm(&self.dir);
        Ok(())
    }

    /// Ends every lease whose owner is not to be kept, and those without an owner, which a crash of another
    /// implementation leaves; the lock says that nobody is about to write them.
    pub(crate) fn collect(&self, keep: impl Fn(&Owner) -> bool) -> Result<(), StoreError> {
        let leases = self.scan()?;
        let owned: HashSet<IpAddr> = leases.iter().map(|(address, _)| *address).collect();
        let (kept, dropped): (Vec<_>, Vec<_>) = leases.into_iter().partition(|(_, owner)| keep(owner));
        self.index.invalidate();
        for (address, _) in &dropped {
            remove(&self.dir.join(address.to_string()))?;
        }
        for address in self.addresses()?.into_iter().filter(|address| !owned.contains(address)) {
            remove(&self.dir.join(address.to_string()))?;
        }
        self.index.rebuild(&self.dir, &by_owner(&kept));
        Ok(())
    }

    fn addresses(&self) -> Result<Vec<IpAddr>, StoreError> {
        let mut addresses = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed("read folder", &self.dir))? {
            let name = entry.map_err(failed("read folder", &self.dir))?.file_name();
            addresses.extend(name.to_str().and_then(|name| name.parse::<IpAddr>().ok()));
        }
        Ok(addresses)
    }

    /// Reads every lease: time and memory are proportional to their number.
    fn scan(&self) -> Result<Vec<(IpAddr, Owner)>, StoreError> {
        let mut leases = Vec::new();
        for address in self.addresses()? {
            let path = self.dir.join(address.to_string());
            let text = read_small(&path).map_err(failed("read lease", &path))?;
            leases.extend(Owner::parse(&text).map(|owner| (address, owner)));
        }
        Ok(leases)
    }

    fn last_path(&self, set: usize) -> PathBuf {
        self.dir.join(format!("{LAST_PREFIX}{set}"))
    }
}

/// Leases being made for one owner. Dropped without [`Leasing::finish`], it takes them back.
#[derive(Debug)]
pub(crate) struct Leasing<'a> {
    store: &'a Store,
    owner: Owner,
    pending: PathBuf,
    /// The index was up to date before, so it is again when this is added, or taken back.
    indexed: bool,
    taken: Vec<IpAddr>,
}

impl Leasing<'_> {
    /// Leases the address for range set `set`, unless somebody has it.
    pub(crate) fn try_take(&mut self, address: IpAddr, set: usize) -> Result<bool, StoreError> {
        let path = self.store.dir.join(address.to_string());
        match fs::hard_link(&self.pending, &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            linked => linked.map_err(failed("create lease", &path))?,
        }
        self.taken.push(address);
        let last = self.store.last_path(set);
        write(&last, &address.to_string()).map_err(failed("write", &last))?;
        Ok(true)
    }

    /// Keeps the leases.
    pub(crate) fn finish(mut self) -> Result<(), StoreError> {
        remove(&self.pending)?;
        let taken = std::mem::take(&mut self.taken);
        if std::mem::take(&mut self.indexed) {
            self.store.index.replace_if_known(&self.owner, |addresses| addresses.extend(&taken));
            self.store.index.confirm(&self.store.dir);
        }
        Ok(())
    }
}

impl Drop for Leasing<'_> {
    fn drop(&mut self) {
        // The other name is gone already when the leases are kept; the next lease removes what stays.
        let left = self.taken.iter().map(|address| self.store.dir.join(address.to_string()));
        for path in left.chain([self.pending.clone()]) {
            if let Err(error) = remove(&path) {
                eprintln!("take back a lease: {error}");
                self.indexed = false;
            }
        }
        if self.indexed {
            self.store.index.confirm(&self.store.dir);
        }
    }
}

fn by_owner(leases: &[(IpAddr, Owner)]) -> BTreeMap<Owner, Vec<IpAddr>> {
    let mut owners: BTreeMap<Owner, Vec<IpAddr>> = BTreeMap::new();
    for (address, owner) in leases {
        owners.entry(owner.clone()).or_default().push(*address);
    }
    owners
}

fn read_small(path: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    File::open(path)?.take(LEASE_LIMIT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Only its owner may read it, as every file of leases.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |error| StoreError { operation, path, error }
}

#[cfg(test)]
mod tests;
