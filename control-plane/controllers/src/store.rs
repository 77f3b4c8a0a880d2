//! One kind's objects in memory, kept by one watch, with indexes and change handlers.
//!
//! Input: `watcher::Event`s in the order of the API server. Output: lookups by key and by index, a call to every handler
//! after each change, and the answer to "has my own write been seen here yet?". Work per event is O(changed): a new list
//! after a lost watch is compared with what is held, and only differences reach the handlers. Managed fields are dropped.
//! Refuses to ask the API server for anything.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use kube::Resource;
use kube::runtime::watcher::Event;
use tokio::sync::watch;

use crate::key::ObjectKey;
use crate::queue::Queue;

#[cfg(test)]
mod tests;

/// Computes under which values an object stands in one index.
pub type IndexFn<K> = fn(&K) -> Vec<String>;

/// Which of a store's indexes is meant: its place in the list that the store was made with.
#[derive(Clone, Copy, Debug)]
pub struct IndexId(pub usize);

/// One change of one object. Old and new are never both absent; an object that was replaced by another of the same name
/// is told as two changes.
#[derive(Debug)]
pub struct Change<K> {
    pub old: Option<Arc<K>>,
    pub new: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// The newest state that is known, of a deleted object its last one.
    pub fn latest(&self) -> Option<&Arc<K>> {
        self.new.as_ref().or(self.old.as_ref())
    }

    /// The states that are known, old and new.
    pub fn states(&self) -> impl Iterator<Item = &Arc<K>> {
        self.old.iter().chain(self.new.iter())
    }
}

type Handler<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

/// A moment after an own write; see [`Store::has_seen`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteMark {
    version: Option<u64>,
    lists_started: u64,
}

/// The objects of one kind.
pub struct Store<K> {
    state: RwLock<State<K>>,
    handlers: RwLock<Vec<Handler<K>>>,
    indexers: Vec<IndexFn<K>>,
    synced: watch::Sender<bool>,
}

struct State<K> {
    objects: HashMap<ObjectKey, Arc<K>>,
    indexes: Vec<HashMap<String, HashSet<ObjectKey>>>,
    /// What the list under way has brought so far.
    incoming: HashMap<ObjectKey, Arc<K>>,
    /// The highest resource version of any event.
    seen_version: u64,
    lists_started: u64,
    lists_done: u64,
}

impl<K> Store<K>
where
    K: Resource<DynamicType = ()> + Send + Sync + 'static,
{
    pub fn new(indexers: Vec<IndexFn<K>>) -> Self {
        let indexes = indexers.iter().map(|_| HashMap::new()).collect();
        Self {
            state: RwLock::new(State {
                objects: HashMap::new(),
                indexes,
                incoming: HashMap::new(),
                seen_version: 0,
                lists_started: 0,
                lists_done: 0,
            }),
            handlers: RwLock::new(Vec::new()),
            indexers,
            synced: watch::Sender::new(false),
        }
    }

    /// Calls `handler` after every change from now on, in the watch's task: a handler only adds keys to queues.
    pub fn on_change(&self, handler: impl Fn(&Change<K>) + Send + Sync + 'static) {
        self.handlers.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(handler));
    }

    /// Adds the key of every object that changes from now on to `queue`.
    pub fn queue_changes(&self, queue: &Arc<Queue<ObjectKey>>) {
        let queue = queue.clone();
        self.on_change(move |change| {
            if let Some(object) = change.latest() {
                queue.add(ObjectKey::of(&**object));
            }
        });
    }

    pub fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.read().objects.get(key).cloned()
    }

    pub fn contains(&self, key: &ObjectKey) -> bool {
        self.read().objects.contains_key(key)
    }

    pub fn keys(&self) -> Vec<ObjectKey> {
        self.read().objects.keys().cloned().collect()
    }

    pub fn all(&self) -> Vec<Arc<K>> {
        self.read().objects.values().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.read().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The objects that stand under `value` in an index, in no order.
    pub fn by_index(&self, index: IndexId, value: &str) -> Vec<Arc<K>> {
        let state = self.read();
        let Some(keys) = state.indexes.get(index.0).and_then(|index| index.get(value)) else {
            return Vec::new();
        };
        keys.iter().filter_map(|key| state.objects.get(key).cloned()).collect()
    }

    /// How many objects stand under `value` in an index.
    pub fn index_len(&self, index: IndexId, value: &str) -> usize {
        self.read().indexes.get(index.0).and_then(|index| index.get(value)).map_or(0, HashSet::len)
    }

    /// Remembers an own write, by the resource version that the API server answered with.
    pub fn mark(&self, resource_version: Option<&str>) -> WriteMark {
        WriteMark {
            version: resource_version.and_then(|version| version.parse().ok()),
            lists_started: self.read().lists_started,
        }
    }

    /// Whether this cache shows the marked write or something newer: the watch passed its resource version, or a list
    /// that began after it is complete.
    pub fn has_seen(&self, mark: &WriteMark) -> bool {
        let state = self.read();
        let passed = mark.version.is_some_and(|version| state.seen_version >= version);
        passed || state.lists_done > mark.lists_started
    }

    /// Waits until the first list is complete.
    pub async fn wait_synced(&self) {
        // The sender lives in `self`, so the wait cannot end with an error.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Takes one event of the watch.
    pub fn apply(&self, event: Event<K>) {
        let listed = matches!(event, Event::InitDone);
        let changes = self.take_event(event);
        let handlers = self.handlers.read().unwrap_or_else(PoisonError::into_inner);
        for change in &changes {
            for handler in handlers.iter() {
                handler(change);
            }
        }
        if listed {
            // Only now: who waits for the list may rely on every handler having seen it.
            self.synced.send_replace(true);
        }
    }

    fn take_event(&self, event: Event<K>) -> Vec<Change<K>> {
        let mut state = self.write();
        match event {
            Event::Init => {
                state.lists_started += 1;
                state.incoming = HashMap::new();
                Vec::new()
            }
            Event::InitApply(object) => {
                let object = slim(object);
                state.note_version(&object);
                state.incoming.insert(ObjectKey::of(&*object), object);
                Vec::new()
            }
            Event::InitDone => {
                let changes = state.replace(&self.indexers);
                state.lists_done = state.lists_started;
                changes
            }
            Event::Apply(object) => {
                let object = slim(object);
                state.note_version(&object);
                state.put(ObjectKey::of(&*object), object, &self.indexers)
            }
            Event::Delete(object) => {
                let object = slim(object);
                state.note_version(&object);
                state.remove(&ObjectKey::of(&*object), &self.indexers).into_iter().collect()
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State<K>> {
        // Nothing panics while the lock is held, so a poisoned state is still whole.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<K>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Resource<DynamicType = ()>> State<K> {
    fn note_version(&mut self, object: &Arc<K>) {
        let version: Option<u64> =
            object.meta().resource_version.as_deref().and_then(|version| version.parse().ok());
        self.seen_version = self.seen_version.max(version.unwrap_or(0));
    }

    /// Makes the complete list the truth.
    fn replace(&mut self, indexers: &[IndexFn<K>]) -> Vec<Change<K>> {
        let incoming = mem::take(&mut self.incoming);
        let gone: Vec<ObjectKey> =
            self.objects.keys().filter(|key| !incoming.contains_key(*key)).cloned().collect();
        let mut changes: Vec<Change<K>> = gone.iter().filter_map(|key| self.remove(key, indexers)).collect();
        for (key, object) in incoming {
            changes.extend(self.put(key, object, indexers));
        }
        changes
    }

    fn put(&mut self, key: ObjectKey, new: Arc<K>, indexers: &[IndexFn<K>]) -> Vec<Change<K>> {
        let old = self.objects.get(&key).cloned();
        if let Some(old) = &old
            && old.meta().uid == new.meta().uid
            && old.meta().resource_version == new.meta().resource_version
            && new.meta().resource_version.is_some()
        {
            return Vec::new();
        }
        let mut changes = Vec::new();
        let mut previous = old;
        if previous.as_ref().is_some_and(|old| old.meta().uid != new.meta().uid) {
            changes.extend(self.remove(&key, indexers));
            previous = None;
        }
        self.reindex(&key, previous.as_deref(), Some(&new), indexers);
        self.objects.insert(key, new.clone());
        changes.push(Change { old: previous, new: Some(new) });
        changes
    }

    fn remove(&mut self, key: &ObjectKey, indexers: &[IndexFn<K>]) -> Option<Change<K>> {
        let old = self.objects.remove(key)?;
        self.reindex(key, Some(&old), None, indexers);
        Some(Change { old: Some(old), new: None })
    }

    fn reindex(&mut self, key: &ObjectKey, old: Option<&K>, new: Option<&K>, indexers: &[IndexFn<K>]) {
        for (index, indexer) in self.indexes.iter_mut().zip(indexers) {
            let before = old.map(indexer).unwrap_or_default();
            let after = new.map(indexer).unwrap_or_default();
            if before == after {
                continue;
            }
            for value in before {
                if let Some(keys) = index.get_mut(&value) {
                    keys.remove(key);
                    if keys.is_empty() {
                        index.remove(&value);
                    }
                }
            }
            for value in after {
                index.entry(value).or_default().insert(key.clone());
            }
        }
    }
}

/// Drops what no controller reads.
fn slim<K: Resource>(mut object: K) -> Arc<K> {
    object.meta_mut().managed_fields = None;
    Arc::new(object)
}
