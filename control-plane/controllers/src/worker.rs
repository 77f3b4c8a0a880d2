//! The loop that every controller runs: take a key, make a pass over it, decide when it comes again.
//!
//! Input: a [`Queue`] and a pass (`key -> Result<Outcome, Failure>`). Passes over different keys run side by side up to a
//! limit. A pass that fails or panics is logged and tried again with the key's back-off; the controller itself goes on.
//! Refuses to know what a pass does.

use std::any::Any;
use std::fmt::Display;
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::queue::Queue;

/// What a pass that went well asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing until the next change.
    Done,
    /// Another pass after this time, because something becomes true by time alone.
    After(Duration),
}

impl Outcome {
    /// `After` the given time, or `Done` where there is none.
    pub fn after(delay: Option<Duration>) -> Self {
        delay.map_or(Self::Done, Self::After)
    }
}

/// Runs passes over the keys of `queue`, at most `concurrency` at once, until `shutdown`. `resync` adds every key of the
/// controller's cache; it is called when the queue had refused keys.
pub async fn drive<K, P, F>(
    queue: &Queue<K>,
    concurrency: usize,
    shutdown: &CancellationToken,
    resync: &(dyn Fn() + Send + Sync),
    pass: P,
) where
    K: Clone + Eq + Hash + Display,
    P: Fn(K) -> F,
    F: Future<Output = Result<Outcome, Failure>>,
{
    queue.restart();
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            // Cancel-safe: a token stays cancelled.
            () = shutdown.cancelled() => return,
            // Cancel-safe: a finished pass leaves the set only in the poll that returns it.
            Some((key, result)) = running.next(), if !running.is_empty() => {
                settle(queue, &key, result);
                if queue.take_overflow() {
                    tracing::warn!(queue = queue.name(), "queue was full, adding every key again");
                    resync();
                }
            }
            // Cancel-safe: see `Queue::next`.
            key = queue.next(), if running.len() < concurrency => {
                let work = AssertUnwindSafe(pass(key.clone())).catch_unwind();
                running.push(async move { (key, work.await) });
            }
        }
    }
}

type Finished = Result<Result<Outcome, Failure>, Box<dyn Any + Send>>;

fn settle<K: Clone + Eq + Hash + Display>(queue: &Queue<K>, key: &K, result: Finished) {
    match result {
        Ok(Ok(outcome)) => {
            queue.forget(key);
            if let Outcome::After(delay) = outcome {
                queue.add_after(key.clone(), delay);
            }
        }
        Ok(Err(Failure::Invalid { object, reason })) => {
            // Trying again cannot help: only a change of the object can, and that adds the key.
            queue.forget(key);
            tracing::warn!(queue = queue.name(), object, reason, "object cannot be acted upon");
        }
        Ok(Err(failure)) => {
            let delay = queue.retry(key.clone());
            if failure.is_conflict() || matches!(failure, Failure::Retry { .. }) {
                tracing::debug!(queue = queue.name(), %key, ?delay, error = failure.chain(), "pass will be repeated");
            } else {
                tracing::warn!(queue = queue.name(), %key, ?delay, error = failure.chain(), "pass failed");
            }
        }
        Err(panic) => {
            let delay = queue.retry(key.clone());
            tracing::error!(queue = queue.name(), %key, ?delay, panic = panic_text(&*panic), "pass panicked");
        }
    }
    queue.done(key);
}

/// What a panic said, where it said something.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&'static str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "no message"
    }
}
