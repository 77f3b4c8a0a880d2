//! Ends UDP sockets whose backend has gone, each time the dataplane may have left some.
//!
//! In: [`Wake`], after writes. Out: sockets of any pod and of the node itself that sent to nobody are told, so that their owners
//! connect again. What it takes is looked for only then; several changes at once are one look. A socket that was noted and is not
//! connected yet is looked for once more.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use dataplane::{Ended, MapError, Orphan};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::Dataplane;
use crate::api::chain;

/// When sockets that could not be ended are looked for again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// The longest pause while the kernel refuses: it doubles up to this.
const AGAIN_AT_LAST: Duration = Duration::from_secs(60);

/// Says that a look is worth its while.
#[derive(Debug, Clone, Default)]
pub struct Wake(Arc<Notify>);

impl Wake {
    /// Has the dataplane looked through, if it took a backend away.
    pub fn after_writes(&self, dataplane: &Dataplane) {
        if dataplane.with(|dataplane| dataplane.may_have_orphans()) {
            self.0.notify_one();
        }
    }
}

/// Runs until it is dropped; a look that is under way then goes on to its end.
pub async fn run(dataplane: Option<Dataplane>, wake: Wake) {
    let Some(dataplane) = dataplane else { return std::future::pending().await };
    let mut pace = Pace::default();
    loop {
        match pace.again_after {
            // Either way it is time to look.
            Some(pause) => drop(timeout(pause, wake.0.notified()).await),
            None => wake.0.notified().await,
        }
        let dataplane = dataplane.clone();
        let found = match tokio::task::spawn_blocking(move || sweep(&dataplane)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => Found { failure: Some(chain(&error)), ..Found::default() },
            Err(panicked) => Found { failure: Some(panicked.to_string()), ..Found::default() },
        };
        if let Some(error) = found.failure.as_ref().filter(|_| !pace.failing) {
            tracing::warn!(error, "UDP sockets may go on sending to a backend that has gone; trying again");
        }
        pace.set(&found);
    }
}

/// When to look next without being woken.
#[derive(Debug, Default)]
struct Pace {
    /// Sockets that were not ended the last time.
    left: HashSet<u64>,
    failing: bool,
    again_after: Option<Duration>,
}

impl Pace {
    fn set(&mut self, found: &Found) {
        let left: HashSet<u64> = found.left.iter().copied().collect();
        self.failing = found.failure.is_some();
        self.again_after = match self.again_after {
            Some(pause) if self.failing => Some((2 * pause).min(AGAIN_AT_LAST)),
            _ if self.failing => Some(AGAIN_AFTER),
            // What was there the last time too has lost its peer, and is forgotten when it is closed.
            _ => (!left.is_subset(&self.left)).then_some(AGAIN_AFTER),
        };
        self.left = left;
    }
}

/// What came of a look.
#[derive(Default)]
struct Found {
    /// What is not ended, by cookie.
    left: Vec<u64>,
    failure: Option<String>,
}

fn sweep(dataplane: &Dataplane) -> Result<Found, MapError> {
    dataplane::wait_for_readers()?;
    let orphans = dataplane.with(|dataplane| dataplane.orphans())?;
    if orphans.is_empty() {
        return Ok(Found::default());
    }
    let Ended { ended, failure } = dataplane::end(&orphans);
    if !ended.is_empty() {
        tracing::info!(sockets = ended.len(), "UDP sockets whose backend has gone were told");
    }
    dataplane.with(|dataplane| dataplane.forget(&ended))?;
    let ended: HashSet<u64> = ended.iter().map(Orphan::cookie).collect();
    let left = orphans.iter().map(Orphan::cookie).filter(|cookie| !ended.contains(cookie)).collect();
    Ok(Found { left, failure: failure.map(|error| chain(&error)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_ended_is_looked_for_again_and_not_for_ever() {
        let mut pace = Pace::default();
        let mut look = |left: &[u64], failed: bool| {
            pace.set(&Found { left: left.to_vec(), failure: failed.then(|| "refused".to_owned()) });
            pace.again_after.map(|pause| pause.as_secs())
        };
        assert_eq!(look(&[], false), None);
        assert_eq!(look(&[1], false), Some(1), "it may be about to connect");
        assert_eq!(look(&[1], false), None, "it has lost its peer");
        assert_eq!(look(&[1, 2], false), Some(1));
        assert_eq!(look(&[2], false), None);
        let pauses: Vec<_> = (0..8).map(|_| look(&[2], true)).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60].map(Some));
        assert_eq!(look(&[], false), None);
    }
}
