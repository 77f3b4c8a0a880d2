//! The pods that wait for a node, in the order in which they are tried.
//!
//! Input: pods that came, failed, or may fit after a change. Output: `pop`, the next pod to try. No clock: the present is
//! an argument. Order: priority, then how long the pod has waited.
//!
//! ```text
//!   add ----> active ----pop----> in hand --bound--> (gone)
//!              ^  ^                  |  |
//!     its time |  | relevant change  |  '- no node fits --> unschedulable --(5 min)--> active
//!              |  '------------------+------------------------'   | relevant change, too early
//!            back-off <---- error ---'                            v
//!              ^---------------------------------------------- back-off
//! ```
//!
//! A change wakes a pod only where the check that failed may pass now. Back-off starts at 1 s and doubles up to 10 s,
//! counted from the last attempt. Bounded by the pods of the cache that feeds it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::filter::Check;
use crate::key::ObjectKey;
use crate::ownership::uid_of;

/// The pause after a pod's first failed attempt.
pub const BACKOFF_BASE: Duration = Duration::from_secs(1);
/// The longest pause.
pub const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// How long a pod stays unschedulable without any relevant change before it is tried anyway.
pub const LEFTOVER_AFTER: Duration = Duration::from_secs(300);

/// What changed, for the pods that wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A node came: every check may pass there.
    Node,
    /// Something of a node or on it changed: these checks may pass now.
    Checks(BTreeSet<Check>),
}

/// The place in the order of attempts.
type Rank = (Reverse<i32>, Instant, u64);
/// The place in the order of timers.
type Timer = (Instant, u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Active(Rank),
    InHand,
    Backoff(Timer),
    Unschedulable(Timer),
}

#[derive(Debug)]
struct Entry {
    pod: Arc<Pod>,
    place: Place,
    since: Instant,
    attempts: u32,
    attempted: Instant,
    /// The checks that failed last.
    checks: BTreeSet<Check>,
}

/// The waiting pods.
#[derive(Debug, Default)]
pub struct Waiting {
    entries: HashMap<ObjectKey, Entry>,
    active: BTreeMap<Rank, ObjectKey>,
    timers: BTreeMap<Timer, ObjectKey>,
    sequence: u64,
}

impl Waiting {
    /// Adds a pod, or takes over its new state; a change of what it asks for makes it active.
    pub fn set(&mut self, pod: Arc<Pod>, now: Instant) {
        let key = ObjectKey::of(&*pod);
        if let Some(entry) = self.entries.get_mut(&key) {
            if uid_of(&entry.pod.metadata) == uid_of(&pod.metadata) {
                let asks_otherwise =
                    entry.pod.spec != pod.spec || entry.pod.metadata.labels != pod.metadata.labels;
                entry.pod = pod;
                if asks_otherwise && matches!(entry.place, Place::Unschedulable(_)) {
                    self.activate(&key, now);
                }
                return;
            }
            self.remove(&key);
        }
        let entry = Entry {
            pod,
            place: Place::InHand,
            since: now,
            attempts: 0,
            attempted: now,
            checks: BTreeSet::new(),
        };
        self.entries.insert(key.clone(), entry);
        self.move_to_active(&key);
    }

    /// Whether the waiting pod of that name is the one of that uid.
    pub fn holds(&self, key: &ObjectKey, uid: &str) -> bool {
        self.entries.get(key).is_some_and(|entry| uid_of(&entry.pod.metadata) == uid)
    }

    pub fn remove(&mut self, key: &ObjectKey) {
        if let Some(entry) = self.entries.remove(key) {
            self.unlink(entry.place);
        }
    }

    /// The next pod to try; it is in hand until it is failed, parked or removed.
    pub fn pop(&mut self, now: Instant) -> Option<Arc<Pod>> {
        self.promote(now);
        let (_, key) = self.active.pop_first()?;
        let entry = self.entries.get_mut(&key)?;
        entry.place = Place::InHand;
        entry.attempts = entry.attempts.saturating_add(1);
        entry.attempted = now;
        Some(entry.pod.clone())
    }

    /// Parks a pod that no node can take.
    pub fn park(&mut self, key: &ObjectKey, checks: BTreeSet<Check>, now: Instant) {
        let timer = self.timer(now + LEFTOVER_AFTER);
        self.relocate(key, Place::Unschedulable(timer));
        if let Some(entry) = self.entries.get_mut(key) {
            entry.checks = checks;
        }
    }

    /// Tries a pod again after its back-off: an attempt failed for a reason that is not the nodes'.
    pub fn fail(&mut self, key: &ObjectKey, now: Instant) {
        let Some(at) = self.entries.get(key).map(Entry::backoff_until) else { return };
        let timer = self.timer(at.max(now));
        self.relocate(key, Place::Backoff(timer));
    }

    /// Wakes the pods that the change may help.
    pub fn wake(&mut self, change: &Change, now: Instant) {
        let helped = |entry: &Entry| match change {
            Change::Node => true,
            Change::Checks(checks) => !entry.checks.is_disjoint(checks),
        };
        let parked = |entry: &Entry| matches!(entry.place, Place::Unschedulable(_));
        let woken: Vec<ObjectKey> = self
            .entries
            .iter()
            .filter(|(_, entry)| parked(entry) && helped(entry))
            .map(|(key, _)| key.clone())
            .collect();
        for key in woken {
            self.activate(&key, now);
        }
    }

    /// When the next timer ends.
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.first_key_value().map(|((at, _), _)| *at)
    }

    /// Pods that wait, wherever they are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Makes a pod active, or lets its back-off end first.
    fn activate(&mut self, key: &ObjectKey, now: Instant) {
        let Some(until) = self.entries.get(key).map(Entry::backoff_until) else { return };
        if until <= now {
            self.move_to_active(key);
        } else {
            let timer = self.timer(until);
            self.relocate(key, Place::Backoff(timer));
        }
    }

    fn promote(&mut self, now: Instant) {
        while let Some((at, _)) = self.timers.first_key_value().map(|(timer, _)| *timer) {
            if at > now {
                return;
            }
            let Some((_, key)) = self.timers.pop_first() else { return };
            self.move_to_active(&key);
        }
    }

    fn move_to_active(&mut self, key: &ObjectKey) {
        self.sequence += 1;
        let sequence = self.sequence;
        let Some(entry) = self.entries.get(key) else { return };
        let priority = entry.pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        let rank = (Reverse(priority), entry.since, sequence);
        self.relocate(key, Place::Active(rank));
    }

    fn relocate(&mut self, key: &ObjectKey, place: Place) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let former = std::mem::replace(&mut entry.place, place);
        self.unlink(former);
        match place {
            Place::Active(rank) => {
                self.active.insert(rank, key.clone());
            }
            Place::Backoff(timer) | Place::Unschedulable(timer) => {
                self.timers.insert(timer, key.clone());
            }
            Place::InHand => {}
        }
    }

    fn unlink(&mut self, place: Place) {
        match place {
            Place::Active(rank) => {
                self.active.remove(&rank);
            }
            Place::Backoff(timer) | Place::Unschedulable(timer) => {
                self.timers.remove(&timer);
            }
            Place::InHand => {}
        }
    }

    fn timer(&mut self, at: Instant) -> Timer {
        self.sequence += 1;
        (at, self.sequence)
    }
}

impl Entry {
    fn backoff_until(&self) -> Instant {
        if self.attempts == 0 {
            return self.attempted;
        }
        self.attempted + crate::queue::backoff(BACKOFF_BASE, BACKOFF_MAX, self.attempts - 1)
    }
}
