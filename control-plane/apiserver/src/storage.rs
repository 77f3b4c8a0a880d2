//! Durable storage: the trait that the rest of the server sees, and its types.
//!
//! A store is a map from keys to values with one global revision. A transaction compares the revisions at which keys
//! were last written and then writes or deletes; it is acknowledged only when it is durable. Every change is handed to
//! the store's sink in revision order before its transaction is acknowledged, so that a reader of the sink's state sees
//! its own writes. A store refuses a transaction whose comparison fails; it never waits for one to become true.

pub mod embedded;

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::OwnedSemaphorePermit;

/// One number for the whole store; grows by one per change.
pub type Revision = u64;

/// `<kind's storage name>/<namespace or empty>/<name>`; no component contains a slash.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub Arc<str>);

impl Key {
    pub fn new(resource: &str, namespace: &str, name: &str) -> Self {
        Key(format!("{resource}/{namespace}/{name}").into())
    }

    /// Storage name, namespace (empty for cluster scope) and name.
    pub fn parts(&self) -> (&str, &str, &str) {
        let mut parts = self.0.splitn(3, '/');
        (parts.next().unwrap_or(""), parts.next().unwrap_or(""), parts.next().unwrap_or(""))
    }
}

/// What a transaction expects of a key.
#[derive(Clone, Debug)]
pub enum Expect {
    /// The key does not exist.
    Absent,
    /// The key exists and was last written at this revision.
    At(Revision),
}

/// A comparison of a transaction.
#[derive(Clone, Debug)]
pub struct Compare {
    pub key: Key,
    pub expect: Expect,
}

/// One write of a transaction. Each takes a revision of its own, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    Put {
        key: Key,
        value: Bytes,
    },
    /// Deletes the key; `last` is the object's final state, kept for watchers.
    Delete {
        key: Key,
        last: Bytes,
    },
}

impl Write {
    pub fn key(&self) -> &Key {
        match self {
            Write::Put { key, .. } | Write::Delete { key, .. } => key,
        }
    }
}

/// All comparisons hold and all writes are done, or nothing is.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    pub compares: Vec<Compare>,
    pub writes: Vec<Write>,
}

/// One durable change, as the sink gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub revision: Revision,
    pub write: Write,
}

/// Why a transaction was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StorageError {
    #[error("compare {key}: written at another revision", key = key.0)]
    Conflict { key: Key },
    #[error("commit transaction: {reason}")]
    Commit { reason: Arc<str> },
    #[error("commit transaction: the store is closed")]
    Closed,
}

/// A copy of the whole store: a file without a name, to be read from its beginning.
#[derive(Debug)]
pub struct Backup {
    pub file: File,
    /// Given back when the backup is no longer needed.
    pub place: OwnedSemaphorePermit,
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("back up the store: {limit} backups are under way")]
    Busy { limit: usize },
    #[error("back up the store: {reason}")]
    Failed { reason: String },
}

/// The state at a start: everything that is alive, and the changes that history still holds.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Live keys as of `compacted`, in revision order.
    pub base: Vec<Change>,
    /// All changes after `compacted`, in revision order.
    pub history: Vec<Change>,
    pub compacted: Revision,
    pub revision: Revision,
}

/// Gets every change in order; runs on the store's own thread and must not block.
pub type Sink = Box<dyn Fn(&[Change]) + Send>;

/// A durable store.
pub trait Storage: Send + Sync + 'static {
    /// Runs one transaction. The answer is the revision of its last write; it comes after the change is durable and
    /// has been given to the sink.
    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision, StorageError>>;

    /// Ends when the store no longer takes writes, because one of its commits failed.
    fn closed(&self) -> BoxFuture<'_, ()>;

    /// Copies everything as of one revision; writes go on meanwhile.
    fn backup(&self) -> BoxFuture<'_, Result<Backup, BackupError>>;
}
