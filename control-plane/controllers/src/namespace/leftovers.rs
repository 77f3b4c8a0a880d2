//! What outlives its deletion in a dying namespace, watched until it is gone.
//!
//! Input: a namespace and a kind of which objects are left behind a finalizer. Output: the namespace's key in the controller's
//! queue, at once when the last object of the kind is gone, and after a short delay when fewer are left or their finalizers
//! changed, so that the conditions stay true. One watch per namespace and kind, from a look that found something to the
//! last object's end. Refuses to delete anything.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kube::Api;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use tokio_util::sync::CancellationToken;

use crate::bare::Bare;
use crate::failure::chain;
use crate::key::ObjectKey;
use crate::queue::Queue;

/// Watches at a time, over all namespaces; what finds no room is looked at again after a while.
const MAX_WATCHES: usize = 256;
/// How long changes that do not empty a kind are gathered before the conditions are written again.
pub const REPORT_DELAY: Duration = Duration::from_secs(1);

/// What an event means for the kind's objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    Nothing,
    Changed,
    Gone,
}

/// The objects that are left of one kind in one namespace: names and finalizers.
#[derive(Debug, Default)]
pub struct Left {
    objects: HashMap<String, Vec<String>>,
    /// What the list under way has brought so far.
    incoming: HashMap<String, Vec<String>>,
}

impl Left {
    /// Takes one event of the watch. Pure.
    pub fn observe(&mut self, event: Event<Bare>) -> News {
        match event {
            Event::Init => {
                self.incoming.clear();
                News::Nothing
            }
            Event::InitApply(object) => {
                let (name, finalizers) = entry(object);
                self.incoming.insert(name, finalizers);
                News::Nothing
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.incoming);
                let changed = !self.objects.is_empty() && self.objects != listed;
                self.objects = listed;
                self.news(changed)
            }
            Event::Apply(object) => {
                let (name, finalizers) = entry(object);
                let former = self.objects.insert(name, finalizers.clone());
                self.news(former.is_some_and(|former| former != finalizers))
            }
            Event::Delete(object) => {
                let (name, _) = entry(object);
                let changed = self.objects.remove(&name).is_some();
                self.news(changed)
            }
        }
    }

    fn news(&self, changed: bool) -> News {
        match (self.objects.is_empty(), changed) {
            (true, _) => News::Gone,
            (false, true) => News::Changed,
            (false, false) => News::Nothing,
        }
    }
}

fn entry(object: Bare) -> (String, Vec<String>) {
    let meta = object.metadata;
    (meta.name.unwrap_or_default(), meta.finalizers.unwrap_or_default())
}

/// The watches that are open; they end when this is dropped.
pub struct Leftovers {
    queue: Arc<Queue<ObjectKey>>,
    open: Arc<Mutex<HashSet<(ObjectKey, String)>>>,
    stop: CancellationToken,
}

impl Leftovers {
    /// `queue` is the controller's.
    pub fn new(queue: Arc<Queue<ObjectKey>>) -> Self {
        Self { queue, open: Arc::default(), stop: CancellationToken::new() }
    }

    /// Watches what `api` shows of `kind` in the namespace, if nobody does yet. False when there are too many watches.
    pub fn watch(&self, namespace: &ObjectKey, kind: String, api: Api<Bare>) -> bool {
        let subject = (namespace.clone(), kind);
        {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            if open.contains(&subject) {
                return true;
            }
            if open.len() >= MAX_WATCHES {
                tracing::warn!(%namespace, kind = subject.1, MAX_WATCHES, "too many leftovers are watched");
                return false;
            }
            open.insert(subject.clone());
        }
        let (queue, open, stop) = (self.queue.clone(), self.open.clone(), self.stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = follow(api, &subject, &queue) => {}
            }
            // Before the key is added: the pass that it leads to may have to watch the kind again.
            open.lock().unwrap_or_else(PoisonError::into_inner).remove(&subject);
            queue.add(subject.0);
        });
        true
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Returns when nothing is left.
async fn follow(api: Api<Bare>, (namespace, kind): &(ObjectKey, String), queue: &Queue<ObjectKey>) {
    let mut left = Left::default();
    let mut events = pin!(watcher(api, watcher::Config::default()).default_backoff());
    while let Some(event) = events.next().await {
        let news = match event {
            Ok(event) => left.observe(event),
            Err(error) => {
                tracing::warn!(%namespace, kind, error = chain(&error), "watch failed, resuming");
                continue;
            }
        };
        match news {
            News::Nothing => {}
            News::Changed => queue.add_after(namespace.clone(), REPORT_DELAY),
            News::Gone => return,
        }
    }
}
