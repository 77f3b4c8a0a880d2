//! The watch cache: every live object and the last changes of each kind, in memory, fed by the store in order.
//!
//! Input: the store's changes. Output: gets, lists (now, or at an older revision that the window still reaches) and
//! watches. One lock orders everything, so a list's revision is exact: nothing newer is in it, nothing older missing.
//! Refuses revisions that its window no longer reaches ("too old"); drops a watcher that does not keep up.

mod history;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use parking::RwLock;
use tokio::sync::mpsc;

use crate::metrics::{Gauges, Metrics};
use crate::object;
use crate::selectors::{FieldSelector, LabelSelector};
use crate::storage::{Change, Key, Loaded, Revision, Write};

/// Changes of one kind that a watch can start from, at most.
const WINDOW_CHANGES: usize = 4096;
/// Bytes of old object versions that one kind's window keeps, at most.
const WINDOW_BYTES: usize = 4 << 20;
/// Changes that wait for one watcher; a watcher with more is dropped and must list again.
pub const WATCHER_QUEUE: usize = 1024;

/// A lock that cannot be poisoned into an error path: no code that holds it panics.
mod parking {
    use std::sync::{PoisonError, RwLockReadGuard, RwLockWriteGuard};

    #[derive(Debug, Default)]
    pub(super) struct RwLock<T>(std::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(super) fn new(value: T) -> Self {
            RwLock(std::sync::RwLock::new(value))
        }

        pub(super) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(PoisonError::into_inner)
        }

        pub(super) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

/// The values that field selectors of a kind may name, besides metadata.name and metadata.namespace.
pub type FieldValues = fn(&serde_json::Value) -> Vec<(&'static str, String)>;

/// One version of one object.
#[derive(Debug)]
pub struct Entry {
    pub key: Key,
    pub revision: Revision,
    tail: Bytes,
    labels: Box<[(Box<str>, Box<str>)]>,
    fields: Box<[(&'static str, Box<str>)]>,
}

impl Entry {
    fn new(key: Key, revision: Revision, tail: Bytes, fields: FieldValues) -> Self {
        let value = object::decode(revision, &tail);
        let labels = object::entries(&value, "/metadata/labels");
        let labels = labels.map(|(key, value)| (key.into(), value.into())).collect();
        let fields = fields(&value).into_iter().map(|(name, value)| (name, value.into())).collect();
        Entry { key, revision, tail, labels, fields }
    }

    /// The object's JSON.
    pub fn json(&self) -> Bytes {
        object::join(self.revision, &self.tail)
    }

    /// Appends the object's JSON.
    pub fn append_json(&self, out: &mut bytes::BytesMut) {
        object::append(out, self.revision, &self.tail);
    }

    pub fn value(&self) -> serde_json::Value {
        object::decode(self.revision, &self.tail)
    }

    /// The bytes as they are stored.
    pub fn tail(&self) -> Bytes {
        self.tail.clone()
    }

    pub fn size(&self) -> usize {
        self.tail.len()
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(name, _)| **name == *key).map(|(_, value)| &**value)
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        let (_, namespace, object_name) = self.key.parts();
        match name {
            "metadata.name" => Some(object_name),
            "metadata.namespace" => Some(namespace),
            other => self.fields.iter().find(|(field, _)| *field == other).map(|(_, value)| &**value),
        }
    }
}

/// Which objects of a kind a request is about.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Empty: every namespace.
    pub namespace: String,
    pub labels: LabelSelector,
    pub fields: FieldSelector,
}

impl Filter {
    pub fn matches(&self, entry: &Entry) -> bool {
        (self.namespace.is_empty() || entry.key.parts().1 == self.namespace)
            && self.fields.matches(|name| entry.field(name))
            && self.labels.matches(|name| entry.label(name))
    }
}

/// What a change means to a watcher with a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    Added,
    Modified,
    Deleted,
}

/// One change, as a watcher gets it. A deletion carries the last state with the revision of the deletion.
#[derive(Clone, Debug)]
pub struct Event {
    pub kind: EventType,
    pub entry: Arc<Entry>,
}

/// One change in a kind's window.
#[derive(Clone, Debug)]
struct Recorded {
    deleted: bool,
    entry: Arc<Entry>,
    previous: Option<Arc<Entry>>,
}

impl Recorded {
    /// The event that a watcher with `filter` sees, if any. An object that stops matching is deleted for that watcher,
    /// and carries its last matching state with this change's revision.
    fn seen_through(&self, filter: &Filter) -> Option<Event> {
        let now = !self.deleted && filter.matches(&self.entry);
        let before = self.previous.as_ref().filter(|previous| filter.matches(previous));
        match (now, before) {
            (true, None) => Some(Event { kind: EventType::Added, entry: self.entry.clone() }),
            (true, Some(_)) => Some(Event { kind: EventType::Modified, entry: self.entry.clone() }),
            (false, Some(_)) if self.deleted => {
                Some(Event { kind: EventType::Deleted, entry: self.entry.clone() })
            }
            (false, Some(previous)) => {
                let entry = Entry {
                    key: previous.key.clone(),
                    revision: self.entry.revision,
                    tail: previous.tail.clone(),
                    labels: previous.labels.clone(),
                    fields: previous.fields.clone(),
                };
                Some(Event { kind: EventType::Deleted, entry: Arc::new(entry) })
            }
            (false, None) => None,
        }
    }
}

struct Watcher {
    filter: Filter,
    events: mpsc::Sender<Event>,
}

/// All objects and the window of one kind.
struct KindCache {
    fields: FieldValues,
    objects: BTreeMap<Key, Arc<Entry>>,
    window: VecDeque<Recorded>,
    window_bytes: usize,
    /// Every change after this revision is in the window.
    complete_after: Revision,
    watchers: Vec<Watcher>,
}

struct World {
    revision: Revision,
    kinds: HashMap<&'static str, KindCache>,
}

/// Why a read of the past failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// The window starts after `wanted`.
    TooOld { wanted: Revision, oldest: Revision },
    /// The store has not reached `wanted`.
    TooNew { wanted: Revision, current: Revision },
}

/// A consistent answer: objects in key order, and the revision they are from.
#[derive(Debug, Default)]
pub struct Listed {
    pub revision: Revision,
    pub entries: Vec<Arc<Entry>>,
    /// Whether more objects follow the last one, and how many where that is known cheaply.
    pub more: Option<u64>,
}

/// Which part of a list is wanted.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Exactly this revision; none is the newest.
    pub at: Option<Revision>,
    /// Objects behind this key only.
    pub after: Option<Key>,
    /// Objects per page; 0 is all.
    pub limit: usize,
}

/// Where a watch starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchStart {
    /// Changes after this revision.
    After(Revision),
    /// All objects as ADDED first, then changes.
    State,
}

/// A started watch: what is already known, and the channel of what comes. The channel closes when the watcher falls
/// behind.
pub struct Watch {
    pub initial: Vec<Event>,
    pub revision: Revision,
    pub events: mpsc::Receiver<Event>,
}

/// The cache; shared by all requests.
pub struct Cache {
    world: RwLock<World>,
    pub metrics: Metrics,
}

impl Cache {
    /// A cache of what the store loaded, for the given kinds (storage name and field table).
    pub fn new(kinds: impl IntoIterator<Item = (&'static str, FieldValues)>, loaded: Loaded) -> Self {
        let empty = |fields| KindCache {
            fields,
            objects: BTreeMap::new(),
            window: VecDeque::new(),
            window_bytes: 0,
            complete_after: loaded.compacted,
            watchers: Vec::new(),
        };
        let kinds = kinds.into_iter().map(|(name, fields)| (name, empty(fields))).collect();
        let mut world = World { revision: loaded.revision, kinds };
        for change in &loaded.base {
            world.restore(change);
        }
        let metrics = Metrics::default();
        for change in &loaded.history {
            world.apply(change, &metrics);
        }
        world.revision = loaded.revision;
        Cache { world: RwLock::new(world), metrics: Metrics::default() }
    }

    /// Takes over changes; called by the store, in revision order.
    pub fn apply(&self, changes: &[Change]) {
        let mut world = self.world.write();
        for change in changes {
            world.apply(change, &self.metrics);
        }
    }

    /// Sizes, for metrics.
    pub fn gauges(&self) -> Gauges {
        let world = self.world.read();
        let mut kinds: Vec<_> = world.kinds.iter().collect();
        kinds.sort_by_key(|(name, _)| **name);
        Gauges {
            revision: world.revision,
            objects: kinds.iter().map(|(name, kind)| (**name, kind.objects.len())).collect(),
            watchers: kinds.iter().map(|(name, kind)| (**name, kind.watchers.len())).collect(),
        }
    }

    pub fn revision(&self) -> Revision {
        self.world.read().revision
    }

    pub fn get(&self, key: &Key) -> Option<Arc<Entry>> {
        self.world.read().kinds.get(key.parts().0)?.objects.get(key).cloned()
    }

    /// Objects of a kind that match, in key order.
    pub fn list(&self, storage: &str, filter: &Filter, page: &Page) -> Result<Listed, ReadError> {
        let world = self.world.read();
        let Some(kind) = world.kinds.get(storage) else {
            return Ok(Listed { revision: world.revision, ..Listed::default() });
        };
        match page.at {
            Some(wanted) if wanted > world.revision => {
                Err(ReadError::TooNew { wanted, current: world.revision })
            }
            Some(wanted) if wanted < world.revision => {
                if wanted < kind.complete_after {
                    return Err(ReadError::TooOld { wanted, oldest: kind.complete_after });
                }
                let past = history::objects_at(kind.objects.iter(), kind.window.iter(), wanted);
                Ok(cut(wanted, past.into_iter(), filter, page))
            }
            _ => Ok(cut(world.revision, kind.range(storage, filter, page), filter, page)),
        }
    }

    /// Starts a watch.
    pub fn watch(&self, storage: &str, filter: Filter, start: WatchStart) -> Result<Watch, ReadError> {
        let mut world = self.world.write();
        let revision = world.revision;
        let (sender, events) = mpsc::channel(WATCHER_QUEUE);
        let Some(kind) = world.kinds.get_mut(storage) else {
            return Ok(Watch { initial: Vec::new(), revision, events });
        };
        let initial = match start {
            WatchStart::After(wanted) if wanted > revision => {
                return Err(ReadError::TooNew { wanted, current: revision });
            }
            WatchStart::After(wanted) if wanted < kind.complete_after => {
                return Err(ReadError::TooOld { wanted, oldest: kind.complete_after });
            }
            WatchStart::After(wanted) => {
                let from = kind.window.partition_point(|change| change.entry.revision <= wanted);
                kind.window.range(from..).filter_map(|change| change.seen_through(&filter)).collect()
            }
            WatchStart::State => {
                let all =
                    cut(revision, kind.range(storage, &filter, &Page::default()), &filter, &Page::default());
                let added = |entry| Event { kind: EventType::Added, entry };
                all.entries.into_iter().map(added).collect()
            }
        };
        kind.watchers.push(Watcher { filter, events: sender });
        Ok(Watch { initial, revision, events })
    }
}

impl World {
    fn restore(&mut self, change: &Change) {
        let Some(kind) = self.kinds.get_mut(change.write.key().parts().0) else { return };
        if let Write::Put { key, value } = &change.write {
            let entry = Entry::new(key.clone(), change.revision, value.clone(), kind.fields);
            kind.objects.insert(key.clone(), Arc::new(entry));
        }
    }

    fn apply(&mut self, change: &Change, metrics: &Metrics) {
        self.revision = change.revision;
        let Some(kind) = self.kinds.get_mut(change.write.key().parts().0) else { return };
        kind.apply(change, metrics);
    }
}

impl KindCache {
    fn apply(&mut self, change: &Change, metrics: &Metrics) {
        let (key, tail, deleted) = match &change.write {
            Write::Put { key, value } => (key, value, false),
            Write::Delete { key, last } => (key, last, true),
        };
        let entry = Arc::new(Entry::new(key.clone(), change.revision, tail.clone(), self.fields));
        let previous =
            if deleted { self.objects.remove(key) } else { self.objects.insert(key.clone(), entry.clone()) };
        let recorded = Recorded { deleted, entry, previous };
        self.watchers.retain(|watcher| {
            let Some(event) = recorded.seen_through(&watcher.filter) else {
                return !watcher.events.is_closed();
            };
            let sent = watcher.events.try_send(event);
            if matches!(sent, Err(mpsc::error::TrySendError::Full(_))) {
                Metrics::add(&metrics.terminated_watchers);
            }
            sent.is_ok()
        });
        self.window_bytes += recorded.entry.size();
        self.window.push_back(recorded);
        while self.window.len() > WINDOW_CHANGES
            || (self.window_bytes > WINDOW_BYTES && self.window.len() > 1)
        {
            let Some(oldest) = self.window.pop_front() else { break };
            self.window_bytes -= oldest.entry.size();
            Metrics::add(&metrics.window_evictions);
            self.complete_after = oldest.entry.revision;
        }
    }

    fn range<'a>(
        &'a self,
        storage: &str,
        filter: &Filter,
        page: &Page,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<Entry>)> + use<'a> {
        let prefix = if filter.namespace.is_empty() {
            format!("{storage}/")
        } else {
            format!("{storage}/{}/", filter.namespace)
        };
        let start = match &page.after {
            Some(key) => Bound::Excluded(key.clone()),
            None => Bound::Included(Key(prefix.as_str().into())),
        };
        self.objects.range((start, Bound::Unbounded)).take_while(move |(key, _)| key.0.starts_with(&prefix))
    }
}

/// Filters and pages.
fn cut<'a>(
    revision: Revision,
    objects: impl Iterator<Item = (&'a Key, &'a Arc<Entry>)>,
    filter: &Filter,
    page: &Page,
) -> Listed {
    let limit = if page.limit == 0 { usize::MAX } else { page.limit };
    let behind = |key: &Key| page.after.as_ref().is_none_or(|after| key > after);
    let mut matching =
        objects.filter(|(key, entry)| behind(key) && filter.matches(entry)).map(|(_, entry)| entry);
    let entries: Vec<_> = matching.by_ref().take(limit).cloned().collect();
    let rest = if entries.len() == limit { matching.count() as u64 } else { 0 };
    Listed { revision, entries, more: (rest > 0).then_some(rest) }
}

#[cfg(test)]
mod tests;
