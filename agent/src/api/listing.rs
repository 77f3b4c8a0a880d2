//! What the events of a watch come to, across full lists. Pure.
//!
//! ```text
//! Init --InitApply: seen--> ... --InitDone: what was not seen is gone--> Apply, Delete, or the next Init after the watch broke
//! ```
//! Until a full list is through, what was known before it stays.

use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;

use kube::ResourceExt;
use kube::runtime::watcher::Event;

#[cfg(test)]
mod tests;

/// What an event says.
#[derive(Debug, PartialEq, Eq)]
pub enum News<K: Eq + Hash, O> {
    /// It is there, perhaps as it was before.
    Is(K, O),
    Gone(K),
    /// These are there, which have all been told, and no others.
    All(HashSet<K>),
}

/// Which objects the full list that is being read has shown, and whether there was one at all.
pub struct Listing<K> {
    seen: HashSet<K>,
    pub listed_once: bool,
}

impl<K> Default for Listing<K> {
    fn default() -> Self {
        Self { seen: HashSet::new(), listed_once: false }
    }
}

impl<K: Clone + Eq + Hash> Listing<K> {
    /// `key`: by what objects are known; one that has none is nobody.
    pub fn on_event<O>(&mut self, event: Event<O>, key: impl FnOnce(&O) -> Option<K>) -> Option<News<K, O>> {
        match event {
            Event::Init => {
                self.seen.clear();
                None
            }
            Event::InitApply(object) => {
                let key = key(&object)?;
                self.seen.insert(key.clone());
                Some(News::Is(key, object))
            }
            Event::Apply(object) => Some(News::Is(key(&object)?, object)),
            Event::Delete(object) => key(&object).map(News::Gone),
            Event::InitDone => {
                self.listed_once = true;
                Some(News::All(std::mem::take(&mut self.seen)))
            }
        }
    }
}

/// What is kept of the objects of a watch, by their names.
pub struct Kept<T> {
    items: BTreeMap<String, T>,
    listing: Listing<String>,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { items: BTreeMap::new(), listing: Listing::default() }
    }
}

impl<T: PartialEq> Kept<T> {
    /// Whether anything changed; the first full list is a change, whatever it holds. `read`: what to keep of an object, if anything.
    pub fn on_event<O: ResourceExt>(&mut self, event: Event<O>, read: impl FnOnce(&O) -> Option<T>) -> bool {
        let is_first = !self.listing.listed_once;
        match self.listing.on_event(event, |object| Some(object.name_any())) {
            None => false,
            Some(News::Is(name, object)) => match read(&object) {
                Some(item) if self.items.get(&name) != Some(&item) => {
                    self.items.insert(name, item);
                    true
                }
                Some(_) => false,
                None => self.items.remove(&name).is_some(),
            },
            Some(News::Gone(name)) => self.items.remove(&name).is_some(),
            Some(News::All(names)) => {
                let before = self.items.len();
                self.items.retain(|name, _| names.contains(name));
                is_first || self.items.len() != before
            }
        }
    }

    pub fn items(&self) -> &BTreeMap<String, T> {
        &self.items
    }

    /// Whether there was a full list.
    pub fn is_listed(&self) -> bool {
        self.listing.listed_once
    }
}
