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
    let mut left = HashSet::new();
    let mut again = false;
    loop {
        if again {
            // Either way it is time to look.
            let _elapsed = timeout(AGAIN_AFTER, wake.0.notified()).await;
        } else {
            wake.0.notified().await;
        }
        let dataplane = dataplane.clone();
        // A panic there has been told; the next look begins anew.
        let Ok(found) = tokio::task::spawn_blocking(move || look(&dataplane)).await else { continue };
        let still: HashSet<u64> = found.left.iter().map(Orphan::cookie).collect();
        // What was there the last time too has lost its peer, and is forgotten when it is closed.
        again = found.failed || !still.is_subset(&left);
        left = still;
    }
}

#[derive(Default)]
struct Found {
    /// What is not ended.
    left: Vec<Orphan>,
    failed: bool,
}

fn look(dataplane: &Dataplane) -> Found {
    match sweep(dataplane) {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(error = chain(&error), "find UDP sockets whose backend has gone");
            Found { failed: true, ..Found::default() }
        }
    }
}

fn sweep(dataplane: &Dataplane) -> Result<Found, MapError> {
    dataplane::wait_for_readers()?;
    let mut orphans = dataplane.with(|dataplane| dataplane.orphans())?;
    if orphans.is_empty() {
        return Ok(Found::default());
    }
    let Ended { ended, failure } = dataplane::end(&orphans);
    if !ended.is_empty() {
        tracing::info!(sockets = ended.len(), "UDP sockets whose backend has gone were told");
    }
    if let Some(error) = &failure {
        tracing::warn!(error = chain(error), "UDP sockets may go on sending to a backend that has gone");
    }
    dataplane.with(|dataplane| dataplane.forget(&ended))?;
    let ended: HashSet<u64> = ended.iter().map(Orphan::cookie).collect();
    orphans.retain(|orphan| !ended.contains(&orphan.cookie()));
    Ok(Found { left: orphans, failed: failure.is_some() })
}
