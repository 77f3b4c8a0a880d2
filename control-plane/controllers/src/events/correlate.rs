//! Which event is new, which repeats one that exists, and which is too many.
//!
//! Input: happenings and the present. Output: a [`Verdict`] each. Pure apart from its own bounded memory. Three steps, as
//! in client-go: events that differ only in their message are joined when there were ten within ten minutes; equal events
//! raise a count; an object's events are limited by a bucket of 25 that gains one every five minutes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;

use super::{Happening, Severity};

#[cfg(test)]
mod tests;

/// Entries of each memory; the one used longest ago goes first.
pub const MEMORY: usize = 4096;
/// Different messages within the window after which similar events are joined.
pub const SIMILAR_LIMIT: usize = 10;
/// The window of the similar events.
pub const SIMILAR_WINDOW: SignedDuration = SignedDuration::from_secs(600);
/// Events that one object may make at once.
pub const BURST: f64 = 25.0;
/// Seconds after which an object may make one more.
pub const REFILL_SECONDS: f64 = 300.0;
/// What joined events begin with.
pub const JOINED_PREFIX: &str = "(combined from similar events): ";

/// What to do with a happening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    First { name: String, message: String },
    Repeat { name: String, message: String, count: i32 },
    Drop,
}

/// What makes happenings similar.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Similar {
    component: &'static str,
    object: Object,
    severity: Severity,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Object {
    kind: String,
    namespace: String,
    name: String,
    uid: String,
    field_path: String,
}

#[derive(Debug)]
struct SimilarState {
    messages: HashSet<String>,
    since: Timestamp,
}

#[derive(Clone, Debug)]
struct Written {
    name: String,
    count: i32,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Timestamp,
}

/// The memory of the events written lately.
#[derive(Debug)]
pub struct Correlator {
    similar: Recent<Similar, SimilarState>,
    written: Recent<(Similar, String), Written>,
    buckets: Recent<(&'static str, Object), Bucket>,
    sequence: u64,
}

impl Default for Correlator {
    fn default() -> Self {
        Self {
            similar: Recent::new(MEMORY),
            written: Recent::new(MEMORY),
            buckets: Recent::new(MEMORY),
            sequence: 0,
        }
    }
}

impl Correlator {
    /// Decides what to do with a happening at the time `now`.
    pub fn take(&mut self, happening: &Happening, now: Timestamp) -> Verdict {
        let object = object(&happening.regarding);
        let similar = Similar {
            component: happening.component,
            object: object.clone(),
            severity: happening.severity,
            reason: happening.reason,
        };
        let joined = self.join(&similar, &happening.message, now);
        if !self.admit((happening.component, object), now) {
            return Verdict::Drop;
        }
        let message = match joined {
            true => format!("{JOINED_PREFIX}{}", happening.message),
            false => happening.message.clone(),
        };
        // Joined events count as one, whatever they say.
        let identity = (similar, if joined { String::new() } else { happening.message.clone() });
        if let Some(written) = self.written.get(&identity) {
            written.count = written.count.saturating_add(1);
            return Verdict::Repeat { name: written.name.clone(), message, count: written.count };
        }
        let name = self.name(happening, now);
        self.written.put(identity, Written { name: name.clone(), count: 1 });
        Verdict::First { name, message }
    }

    /// Starts a new event for a happening whose event is gone.
    pub fn renew(&mut self, happening: &Happening, message: String, now: Timestamp) -> Verdict {
        let similar = Similar {
            component: happening.component,
            object: object(&happening.regarding),
            severity: happening.severity,
            reason: happening.reason,
        };
        let joined = message.starts_with(JOINED_PREFIX);
        let identity = (similar, if joined { String::new() } else { happening.message.clone() });
        let name = self.name(happening, now);
        self.written.put(identity, Written { name: name.clone(), count: 1 });
        Verdict::First { name, message }
    }

    /// Whether this happening is one of too many similar ones.
    fn join(&mut self, similar: &Similar, message: &str, now: Timestamp) -> bool {
        let fresh = SimilarState { messages: HashSet::new(), since: now };
        let state = self.similar.get_or_put(similar.clone(), fresh);
        if now.duration_since(state.since) > SIMILAR_WINDOW {
            state.messages.clear();
            state.since = now;
        }
        if state.messages.len() < SIMILAR_LIMIT {
            state.messages.insert(message.to_owned());
        }
        state.messages.len() >= SIMILAR_LIMIT
    }

    /// Whether the object may make another event.
    fn admit(&mut self, source: (&'static str, Object), now: Timestamp) -> bool {
        let bucket = self.buckets.get_or_put(source, Bucket { tokens: BURST, at: now });
        let elapsed = now.duration_since(bucket.at).as_secs_f64().max(0.0);
        bucket.tokens = (bucket.tokens + elapsed / REFILL_SECONDS).min(BURST);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }

    /// The object's name and a number that no other event of it has.
    fn name(&mut self, happening: &Happening, now: Timestamp) -> String {
        self.sequence += 1;
        let object = happening.regarding.name.as_deref().unwrap_or("unknown");
        let unique = now.as_nanosecond() as u64;
        format!("{object}.{:016x}", unique.wrapping_add(self.sequence))
    }
}

fn object(reference: &ObjectReference) -> Object {
    Object {
        kind: reference.kind.clone().unwrap_or_default(),
        namespace: reference.namespace.clone().unwrap_or_default(),
        name: reference.name.clone().unwrap_or_default(),
        uid: reference.uid.clone().unwrap_or_default(),
        field_path: reference.field_path.clone().unwrap_or_default(),
    }
}

/// A map that forgets what was used longest ago.
#[derive(Debug)]
struct Recent<K, V> {
    capacity: usize,
    clock: u64,
    entries: HashMap<K, (u64, V)>,
    order: BTreeMap<u64, K>,
}

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    fn new(capacity: usize) -> Self {
        Self { capacity, clock: 0, entries: HashMap::new(), order: BTreeMap::new() }
    }

    fn get(&mut self, key: &K) -> Option<&mut V> {
        self.touch(key);
        self.entries.get_mut(key).map(|(_, value)| value)
    }

    fn put(&mut self, key: K, value: V) {
        if let Some((used, _)) = self.entries.remove(&key) {
            self.order.remove(&used);
        }
        while self.entries.len() >= self.capacity {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            self.entries.remove(&oldest);
        }
        self.clock += 1;
        self.order.insert(self.clock, key.clone());
        self.entries.insert(key, (self.clock, value));
    }

    fn get_or_put(&mut self, key: K, fresh: V) -> &mut V {
        if self.entries.contains_key(&key) {
            self.touch(&key);
        } else {
            self.put(key.clone(), fresh);
        }
        let clock = self.clock;
        // The entry was touched or put just now, so it is there.
        &mut self.entries.get_mut(&key).unwrap_or_else(|| unreachable!("entry {clock} was just put")).1
    }

    fn touch(&mut self, key: &K) {
        let Some((used, _)) = self.entries.get_mut(key) else { return };
        self.order.remove(used);
        self.clock += 1;
        *used = self.clock;
        self.order.insert(self.clock, key.clone());
    }
}
