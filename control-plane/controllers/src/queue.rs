//! The work queue of every controller: bounded, without duplicates, with delays and per-key back-off.
//!
//! Input: keys, from cache handlers (`add`), from timers (`add_after`) and from failed passes (`retry`). Output: `next`,
//! one key at a time. A key that is being worked on is never handed out twice at once: what arrives meanwhile waits until
//! `done`. Back-off doubles from 5 ms to 1000 s per key, the figures of client-go's item limiter.
//!
//! ```text
//!            add                    next                 done, nothing new
//!   (absent) ---> waiting (dirty) -------> active -------------------------> (absent)
//!      ^  add_after |    ^                    | add while active, then done
//!      |  / retry   |    '--------------------'
//!      '-- delayed --'  (when its time has come)
//! ```
//!
//! A full queue refuses keys and remembers that it did; the worker then adds everything from its cache again, so a refused
//! key is late, never lost. Refuses to know what the keys mean.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

#[cfg(test)]
mod tests;

/// Keys that one queue holds at most, ready or delayed.
pub const QUEUE_CAPACITY: usize = 100_000;
/// The delay after a key's first failure.
pub const RETRY_BASE: Duration = Duration::from_millis(5);
/// The longest delay between two attempts.
pub const RETRY_MAX: Duration = Duration::from_secs(1000);

/// What a queue is called and how much it holds.
#[derive(Clone, Copy, Debug)]
pub struct QueueOptions {
    pub name: &'static str,
    /// Keys, ready and delayed counted apart.
    pub capacity: usize,
    pub retry_base: Duration,
    pub retry_max: Duration,
}

impl QueueOptions {
    /// The usual limits under a name.
    pub fn named(name: &'static str) -> Self {
        Self { name, capacity: QUEUE_CAPACITY, retry_base: RETRY_BASE, retry_max: RETRY_MAX }
    }
}

/// A queue of keys; see the module's text for its states.
#[derive(Debug)]
pub struct Queue<K> {
    options: QueueOptions,
    state: Mutex<State<K>>,
    wake: Notify,
}

#[derive(Debug)]
struct State<K> {
    /// Keys to hand out, in order.
    ready: VecDeque<K>,
    /// Keys that need a pass; a superset of `ready`.
    dirty: HashSet<K>,
    /// Keys that were handed out and are not done.
    active: HashSet<K>,
    /// Keys that become dirty later, by time.
    delayed: BTreeMap<(Instant, u64), K>,
    due: HashMap<K, (Instant, u64)>,
    failures: HashMap<K, u32>,
    sequence: u64,
    overflowed: bool,
}

/// What `next` found when it looked.
enum Look<K> {
    Ready(K),
    Until(Instant),
    Idle,
}

impl<K: Clone + Eq + Hash> Queue<K> {
    pub fn new(options: QueueOptions) -> Self {
        Self {
            options,
            state: Mutex::new(State {
                ready: VecDeque::new(),
                dirty: HashSet::new(),
                active: HashSet::new(),
                delayed: BTreeMap::new(),
                due: HashMap::new(),
                failures: HashMap::new(),
                sequence: 0,
                overflowed: false,
            }),
            wake: Notify::new(),
        }
    }

    pub fn name(&self) -> &'static str {
        self.options.name
    }

    /// Asks for a pass over `key` as soon as possible.
    pub fn add(&self, key: K) {
        let mut state = self.lock();
        state.mark(key, self.options.capacity);
        drop(state);
        self.wake.notify_one();
    }

    /// Asks for a pass over `key` after `delay`; of two delays the earlier one holds.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let at = Instant::now() + delay;
        let mut state = self.lock();
        state.delay(key, at, self.options.capacity);
        drop(state);
        self.wake.notify_one();
    }

    /// Asks for another attempt after the key's back-off, which doubles; returns the delay.
    pub fn retry(&self, key: K) -> Duration {
        let delay = {
            let mut state = self.lock();
            let failures = state.failures.entry(key.clone()).or_insert(0);
            let delay = backoff(self.options.retry_base, self.options.retry_max, *failures);
            *failures = failures.saturating_add(1);
            delay
        };
        self.add_after(key, delay);
        delay
    }

    /// Ends a key's back-off: its last pass went well.
    pub fn forget(&self, key: &K) {
        self.lock().failures.remove(key);
    }

    /// Says that the pass over `key` is over.
    pub fn done(&self, key: &K) {
        let mut state = self.lock();
        state.active.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.wake.notify_one();
        }
    }

    /// The next key to work on; waits until there is one. Cancel-safe: a key is taken only in the poll that returns it.
    pub async fn next(&self) -> K {
        loop {
            let woken = self.wake.notified();
            match self.look(Instant::now()) {
                Look::Ready(key) => return key,
                Look::Until(at) => {
                    tokio::select! {
                        () = woken => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                Look::Idle => woken.await,
            }
        }
    }

    /// The next key if there is one now.
    pub fn try_next(&self) -> Option<K> {
        match self.look(Instant::now()) {
            Look::Ready(key) => Some(key),
            Look::Until(_) | Look::Idle => None,
        }
    }

    /// Forgets what is being worked on: a worker that starts again has nothing in hand.
    pub fn restart(&self) {
        let mut state = self.lock();
        let active = std::mem::take(&mut state.active);
        for key in active {
            // An active key is never in `ready`, dirty or not.
            state.dirty.insert(key.clone());
            state.ready.push_back(key);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// True once after keys were refused, when there is room again.
    pub fn take_overflow(&self) -> bool {
        let mut state = self.lock();
        let room = state.dirty.len() < self.options.capacity / 2;
        room && std::mem::take(&mut state.overflowed)
    }

    /// Keys that wait for a pass now.
    pub fn len(&self) -> usize {
        self.lock().dirty.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn look(&self, now: Instant) -> Look<K> {
        let mut state = self.lock();
        state.promote(now, self.options.capacity);
        if let Some(key) = state.ready.pop_front() {
            state.dirty.remove(&key);
            state.active.insert(key.clone());
            return Look::Ready(key);
        }
        match state.delayed.first_key_value() {
            Some(((at, _), _)) => Look::Until(*at),
            None => Look::Idle,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        // Nothing panics while the lock is held, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    fn mark(&mut self, key: K, capacity: usize) {
        if self.dirty.contains(&key) {
            return;
        }
        if self.dirty.len() >= capacity {
            self.overflowed = true;
            return;
        }
        self.dirty.insert(key.clone());
        if !self.active.contains(&key) {
            self.ready.push_back(key);
        }
    }

    fn delay(&mut self, key: K, at: Instant, capacity: usize) {
        match self.due.get(&key) {
            Some((earlier, _)) if *earlier <= at => return,
            Some(slot) => {
                let slot = *slot;
                self.delayed.remove(&slot);
            }
            None if self.due.len() >= capacity => {
                self.overflowed = true;
                return;
            }
            None => {}
        }
        self.sequence += 1;
        let slot = (at, self.sequence);
        self.due.insert(key.clone(), slot);
        self.delayed.insert(slot, key);
    }

    fn promote(&mut self, now: Instant, capacity: usize) {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let key = entry.remove();
            self.due.remove(&key);
            self.mark(key, capacity);
        }
    }
}

/// The delay before attempt number `failures` + 1.
pub fn backoff(base: Duration, max: Duration, failures: u32) -> Duration {
    let factor = 1_u32.checked_shl(failures).unwrap_or(u32::MAX);
    base.checked_mul(factor).map_or(max, |delay| delay.min(max))
}
