//! The embedded store: one redb file, one writer thread, group commit.
//!
//! ```text
//! commit() --channel--> writer: take up to MAX_GROUP -> compare -> append by revision -> fsync -> sink -> acknowledge
//! ```
//!
//! On disk there is one table from revision to record (put or tombstone), so that writes append; the newest record of
//! a key is its value. Records that a newer one replaced are the history, kept for the last `history_limit` changes and
//! then removed in the same commits that add new ones. In memory there is only the index from key to revision.
//! A commit that fails closes the store: what is on disk is then unknown, and guessing would break the promise.
//!
//! Against a power cut: a new store gets its name only when it is whole, and the name is synced before the first write. A
//! commit is one sync; redb finds out by checksums whether a commit that was cut off is whole, and falls back to the one
//! before. `tests/power.rs` cuts the power of a disk that may lose, keep or tear whatever was not synced.

mod backup;
pub mod check;
mod overlay;
mod record;

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use futures::future::BoxFuture;
use redb::backends::FileBackend;
use redb::{Builder, Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{
    Backup, BackupError, Change, Expect, Key, Loaded, Revision, Sink, Storage, StorageError, Transaction,
    Write,
};
use crate::files::{self, FileError};
use record::Record;

const RECORDS: TableDefinition<u64, &[u8]> = TableDefinition::new("records");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const REVISION: &str = "revision";
const COMPACTED: &str = "compacted";

/// Transactions that share one durable commit, at most.
const MAX_GROUP: usize = 256;
/// Transactions that wait for the writer, at most; the next caller waits for a place.
const QUEUE: usize = 1024;
/// Bytes of redb's page cache. The server reads at start only, so it is small.
const PAGE_CACHE_BYTES: usize = 2 << 20;
/// Old records that one commit removes, at most, so that a writer never waits for a long clean-up.
const MAX_REMOVALS: usize = 512;
/// Backups that are made or fetched at a time, at most: each takes as much of the disk as the store.
const MAX_BACKUPS: usize = 2;
/// Changes kept for watchers that resume.
pub const DEFAULT_HISTORY_LIMIT: usize = 10_000;

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("open store {path}", path = path.display())]
    Database { path: PathBuf, source: Box<redb::Error> },
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "open store {path}: the file is empty; put a backup there, or remove it to begin a new cluster",
        path = path.display()
    )]
    Empty { path: PathBuf },
    #[error(
        "open store {path}: damaged: {reason}; see `orlopctl store check`, and put a backup in its place",
        path = path.display()
    )]
    Damaged { path: PathBuf, reason: String },
    #[error("open store {path}: record {revision} does not parse", path = path.display())]
    Record { path: PathBuf, revision: Revision },
    #[error("open store {path}: start the writer thread", path = path.display())]
    Thread { path: PathBuf, source: std::io::Error },
}

struct Request {
    transaction: Transaction,
    answer: oneshot::Sender<Result<Revision, StorageError>>,
}

/// A store whose file is open and loaded, but whose writer does not run yet.
pub struct Opened {
    writer: Writer,
    path: PathBuf,
    pub loaded: Loaded,
}

/// The running store. Dropping it ends the writer after the queued transactions and closes the file, so that the next start
/// need not examine all of it.
pub struct EmbeddedStore {
    requests: mpsc::Sender<Request>,
    database: Arc<Database>,
    path: PathBuf,
    backups: Arc<Semaphore>,
    /// Last, since fields are dropped in order: the writer ends when nobody can send.
    _writer: Joined,
}

/// A thread that is waited for when this is dropped.
struct Joined(Option<JoinHandle<()>>);

impl Drop for Joined {
    fn drop(&mut self) {
        if self.0.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the store's writer has panicked");
        }
    }
}

/// Opens or creates the store at `path` and reads everything in it. A file left by an unclean stop is repaired.
pub fn open(path: &Path, history_limit: usize) -> Result<Opened, OpenError> {
    let failed =
        |source: redb::Error| OpenError::Database { path: path.to_owned(), source: Box::new(source) };
    let file = match existing(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            create(path)?;
            existing(path)
        }
        found => found,
    };
    let file = file.map_err(|error| failed(redb::Error::Io(error)))?;
    if file.metadata().map_err(|error| failed(redb::Error::Io(error)))?.len() == 0 {
        return Err(OpenError::Empty { path: path.to_owned() });
    }
    // Its name may be as young as the file: whoever made it may have been killed before the sync.
    files::sync_directory(files::directory_of(path))?;
    let backend = FileBackend::new(file).map_err(|error| failed(error.into()))?;
    open_on(backend, path, history_limit)
}

/// Opens the store that lies on `backend`; `path` is for errors.
fn open_on(backend: impl StorageBackend, path: &Path, history_limit: usize) -> Result<Opened, OpenError> {
    let failed =
        |source: redb::Error| OpenError::Database { path: path.to_owned(), source: Box::new(source) };
    let read = || {
        let database = builder().create_with_backend(backend).map_err(|error| failed(error.into()))?;
        let records = read_all(&database, path)?;
        let meta = read_meta(&database).map_err(failed)?;
        Ok((database, records, meta))
    };
    let damaged = |reason| OpenError::Damaged { path: path.to_owned(), reason };
    let (database, records, meta) = survive(read).unwrap_or_else(|reason| Err(damaged(reason)))?;
    let mut writer = Writer {
        database: Arc::new(database),
        index: HashMap::new(),
        revision: 0,
        compacted: 0,
        history: VecDeque::new(),
        obsolete: VecDeque::new(),
        history_limit: history_limit.max(1),
    };
    let loaded = writer.load(records, meta);
    Ok(Opened { writer, path: path.to_owned(), loaded })
}

impl Opened {
    /// Starts the writer thread; `sink` gets every change from now on.
    pub fn start(self, sink: Sink) -> Result<EmbeddedStore, OpenError> {
        let (requests, queue) = mpsc::channel(QUEUE);
        let Opened { writer, path, .. } = self;
        let database = writer.database.clone();
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || writer.run(queue, sink))
            .map_err(|source| OpenError::Thread { path: path.clone(), source })?;
        let backups = Arc::new(Semaphore::new(MAX_BACKUPS));
        Ok(EmbeddedStore { requests, database, path, backups, _writer: Joined(Some(thread)) })
    }
}

impl Storage for EmbeddedStore {
    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision, StorageError>> {
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            let request = Request { transaction, answer };
            self.requests.send(request).await.map_err(|_| StorageError::Closed)?;
            answered.await.map_err(|_| StorageError::Closed)?
        })
    }

    fn closed(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.requests.closed())
    }

    fn backup(&self) -> BoxFuture<'_, Result<Backup, BackupError>> {
        Box::pin(async move {
            let place = self.backups.clone().try_acquire_owned();
            let place = place.map_err(|_| BackupError::Busy { limit: MAX_BACKUPS })?;
            let (database, path) = (self.database.clone(), self.path.clone());
            // The copy goes on when nobody waits for it any longer, and keeps its place until its end.
            let make = move || backup::make(&database, &path).map(|file| Backup { file, place });
            let made = tokio::task::spawn_blocking(make).await;
            made.map_err(|error| BackupError::Failed { reason: error.to_string() })?
        })
    }
}

/// Reads a file that may be damaged: redb answers some damage with a panic, whose message is then the error.
fn survive<T>(read: impl FnOnce() -> T) -> Result<T, String> {
    // What it worked on is never used again.
    catch_unwind(AssertUnwindSafe(read)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("pages cannot be read").to_owned()
    })
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(PAGE_CACHE_BYTES);
    builder
}

/// The file at `path`. Secrets are in it: only the owner may read it.
fn existing(path: &Path) -> std::io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

/// Makes an empty store that has its name from the moment it is whole: redb cannot open a file whose first pages were cut off.
fn create(path: &Path) -> Result<(), OpenError> {
    let failed =
        |source: redb::Error| OpenError::Database { path: path.to_owned(), source: Box::new(source) };
    let file = files::beside(path)?;
    let handle = file.as_file().try_clone().map_err(|error| failed(redb::Error::Io(error)))?;
    let database = builder().create_file(handle).map_err(|error| failed(error.into()))?;
    create_tables(&database).map_err(failed)?;
    drop(database);
    Ok(files::name_if_free(file, path)?)
}

fn create_tables(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(RECORDS)?;
    transaction.open_table(META)?;
    transaction.commit()?;
    Ok(())
}

fn read_meta(database: &Database) -> Result<(Revision, Revision), redb::Error> {
    let table = database.begin_read()?.open_table(META)?;
    let number =
        |name: &str| -> Result<u64, redb::Error> { Ok(table.get(name)?.map_or(0, |value| value.value())) };
    Ok((number(REVISION)?, number(COMPACTED)?))
}

fn read_all(database: &Database, path: &Path) -> Result<Vec<Change>, OpenError> {
    let failed =
        |source: redb::Error| OpenError::Database { path: path.to_owned(), source: Box::new(source) };
    let table = database
        .begin_read()
        .map_err(|error| failed(error.into()))?
        .open_table(RECORDS)
        .map_err(|error| failed(error.into()))?;
    let mut changes = Vec::new();
    for row in table.iter().map_err(|error| failed(error.into()))? {
        let (revision, bytes) = row.map_err(|error| failed(error.into()))?;
        let revision = revision.value();
        let write = Record::decode(bytes.value())
            .ok_or_else(|| OpenError::Record { path: path.to_owned(), revision })?;
        changes.push(Change { revision, write });
    }
    Ok(changes)
}

/// Owns the file; lives on its thread.
struct Writer {
    database: Arc<Database>,
    /// Live keys and the revision of their newest record.
    index: HashMap<Key, Revision>,
    revision: Revision,
    compacted: Revision,
    /// Revisions of the changes after `compacted`.
    history: VecDeque<Revision>,
    /// Records to remove: the record, and the revision that made it old (or its own, for a tombstone).
    obsolete: VecDeque<(Revision, Revision)>,
    history_limit: usize,
}

/// What one group of transactions does, before it is durable.
#[derive(Default)]
struct Group {
    changes: Vec<Change>,
    answers: Vec<(oneshot::Sender<Result<Revision, StorageError>>, Revision)>,
}

impl Writer {
    fn load(&mut self, records: Vec<Change>, (revision, compacted): (Revision, Revision)) -> Loaded {
        self.compacted = compacted;
        self.revision = revision;
        let mut loaded = Loaded { compacted, revision, ..Loaded::default() };
        let mut base: HashMap<Key, Change> = HashMap::new();
        for change in records {
            self.note(&change);
            if change.revision > compacted {
                loaded.history.push(change);
                continue;
            }
            match &change.write {
                Write::Put { key, .. } => base.insert(key.clone(), change),
                Write::Delete { key, .. } => base.remove(key),
            };
        }
        loaded.base = base.into_values().collect();
        loaded.base.sort_by_key(|change| change.revision);
        loaded
    }

    /// Updates index, history and the list of old records for one change.
    fn note(&mut self, change: &Change) {
        let key = change.write.key();
        let replaced = match &change.write {
            Write::Put { .. } => self.index.insert(key.clone(), change.revision),
            Write::Delete { .. } => self.index.remove(key),
        };
        if let Some(old) = replaced {
            self.obsolete.push_back((old, change.revision));
        }
        if matches!(change.write, Write::Delete { .. }) {
            self.obsolete.push_back((change.revision, change.revision));
        }
        if change.revision > self.compacted {
            self.history.push_back(change.revision);
        }
    }

    fn run(mut self, mut queue: mpsc::Receiver<Request>, sink: Sink) {
        while let Some(first) = queue.blocking_recv() {
            let mut requests = vec![first];
            while requests.len() < MAX_GROUP {
                match queue.try_recv() {
                    Ok(request) => requests.push(request),
                    Err(_) => break,
                }
            }
            let group = self.plan(requests);
            if group.changes.is_empty() {
                continue;
            }
            if let Err(error) = self.persist(&group.changes) {
                tracing::error!(%error, "store commit failed; no further write is accepted");
                let reason: Arc<str> = error.to_string().into();
                for (answer, _) in group.answers {
                    // A caller that went away needs no answer.
                    let _ = answer.send(Err(StorageError::Commit { reason: reason.clone() }));
                }
                return;
            }
            sink(&group.changes);
            for (answer, revision) in group.answers {
                let _ = answer.send(Ok(revision));
            }
        }
    }

    /// Compares and numbers the transactions of a group; a refused one is answered here.
    fn plan(&mut self, requests: Vec<Request>) -> Group {
        let mut group = Group::default();
        for Request { transaction, answer } in requests {
            if let Some(key) = self.first_conflict(&transaction) {
                let _ = answer.send(Err(StorageError::Conflict { key }));
                continue;
            }
            for write in transaction.writes {
                self.revision += 1;
                let change = Change { revision: self.revision, write };
                self.note(&change);
                group.changes.push(change);
            }
            group.answers.push((answer, self.revision));
        }
        group
    }

    fn first_conflict(&self, transaction: &Transaction) -> Option<Key> {
        let differs = |expect: &Expect, at: Option<&Revision>| match expect {
            Expect::Absent => at.is_some(),
            Expect::At(revision) => at != Some(revision),
        };
        let failed = transaction
            .compares
            .iter()
            .find(|compare| differs(&compare.expect, self.index.get(&compare.key)));
        failed.map(|compare| compare.key.clone())
    }

    fn persist(&mut self, changes: &[Change]) -> Result<(), redb::Error> {
        self.advance_compaction();
        let transaction = self.database.begin_write()?;
        {
            let mut records = transaction.open_table(RECORDS)?;
            for change in changes {
                records.insert(change.revision, Record::encode(&change.write).as_slice())?;
            }
            let mut removed = HashSet::new();
            while let Some((old, replaced_at)) = self.obsolete.front().copied() {
                if replaced_at > self.compacted || removed.len() >= MAX_REMOVALS {
                    break;
                }
                self.obsolete.pop_front();
                if removed.insert(old) {
                    records.remove(old)?;
                }
            }
            let mut meta = transaction.open_table(META)?;
            meta.insert(REVISION, self.revision)?;
            meta.insert(COMPACTED, self.compacted)?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn advance_compaction(&mut self) {
        while self.history.len() > self.history_limit {
            if let Some(revision) = self.history.pop_front() {
                self.compacted = revision;
            }
        }
    }
}

#[cfg(test)]
mod tests;
