//! Which Events are new, which are repeats, and which are too many. Pure; the rules are client-go's event correlator.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;

use super::{EventType, Report};

#[cfg(test)]
mod tests;

/// Events that are remembered (client-go: `maxLruCacheEntries`).
const KNOWN_EVENTS: usize = 4_096;
/// Events about one object that are written at once (client-go: `defaultSpamBurst`).
const BURST: f64 = 25.0;
/// Events about one object per second after that (client-go: `defaultSpamQPS`).
const RATE: f64 = 1.0 / 300.0;

/// What to do with a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// There are too many about this object.
    Drop,
    /// Write a new Event.
    Create {
        /// Its name.
        name: String,
    },
    /// Raise the count of the Event that is there.
    Repeat {
        /// Its name.
        name: String,
        /// The count with this one.
        count: i32,
    },
}

impl Decision {
    pub fn is_repeat(&self) -> bool {
        matches!(self, Decision::Repeat { .. })
    }
}

/// What makes two reports the same Event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    object: ObjectKey,
    kind: EventType,
    reason: String,
    message: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ObjectKey {
    kind: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    uid: Option<String>,
    field_path: Option<String>,
}

impl ObjectKey {
    fn of(report: &Report) -> ObjectKey {
        let object = &report.object;
        ObjectKey {
            kind: object.kind.clone(),
            namespace: object.namespace.clone(),
            name: object.name.clone(),
            uid: object.uid.clone(),
            field_path: object.field_path.clone(),
        }
    }

    /// The object without its part, for which the rate is limited.
    fn whole(mut self) -> ObjectKey {
        self.field_path = None;
        self
    }
}

impl Key {
    fn of(report: &Report) -> Key {
        Key {
            object: ObjectKey::of(report),
            kind: report.kind,
            reason: report.reason.clone(),
            message: report.message.clone(),
        }
    }
}

struct Known {
    name: String,
    count: i32,
}

struct Bucket {
    tokens: f64,
    filled_at: Timestamp,
}

/// The Events that were written, and how many more each object may have.
#[derive(Default)]
pub struct Aggregator {
    known: HashMap<Arc<Key>, Known>,
    known_order: VecDeque<Arc<Key>>,
    buckets: HashMap<Arc<ObjectKey>, Bucket>,
    bucket_order: VecDeque<Arc<ObjectKey>>,
}

impl Aggregator {
    /// What to do with a report. Nothing is remembered before [`Aggregator::written`].
    pub fn decide(&self, report: &Report) -> Decision {
        if self.tokens(report) < 1.0 {
            return Decision::Drop;
        }
        match self.known.get(&Key::of(report)) {
            Some(known) => {
                Decision::Repeat { name: known.name.clone(), count: known.count.saturating_add(1) }
            }
            None => {
                let object = report.object.name.as_deref().unwrap_or_default();
                Decision::Create { name: format!("{object}.{:x}", report.at.as_nanosecond()) }
            }
        }
    }

    /// The decision was carried out.
    pub fn written(&mut self, report: &Report, decision: &Decision) {
        let (name, count) = match decision {
            Decision::Drop => return,
            Decision::Create { name } => (name, 1),
            Decision::Repeat { name, count } => (name, *count),
        };
        self.take_token(report);
        let key = Arc::new(Key::of(report));
        if self.known.insert(key.clone(), Known { name: name.clone(), count }).is_none() {
            self.known_order.push_back(key);
            if self.known_order.len() > KNOWN_EVENTS
                && let Some(oldest) = self.known_order.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
    }

    /// The Event that was there is gone.
    pub fn forget(&mut self, report: &Report) {
        let key = Key::of(report);
        self.known.remove(&key);
        self.known_order.retain(|other| **other != key);
    }

    fn tokens(&self, report: &Report) -> f64 {
        let bucket = self.buckets.get(&ObjectKey::of(report).whole());
        bucket.map_or(BURST, |bucket| {
            let seconds = report.at.duration_since(bucket.filled_at).as_secs_f64().max(0.0);
            (bucket.tokens + seconds * RATE).min(BURST)
        })
    }

    fn take_token(&mut self, report: &Report) {
        let tokens = self.tokens(report) - 1.0;
        let key = Arc::new(ObjectKey::of(report).whole());
        if self.buckets.insert(key.clone(), Bucket { tokens, filled_at: report.at }).is_none() {
            self.bucket_order.push_back(key);
            if self.bucket_order.len() > KNOWN_EVENTS
                && let Some(oldest) = self.bucket_order.pop_front()
            {
                self.buckets.remove(&oldest);
            }
        }
    }
}
