//! How those who end pods tell the services, and wait until nobody is sent to a pod any more.
//!
//! In: a pod's uid and how far it has come. Out: the answer of the task that owns the dataplane, within [`LIMIT`]: a pod's end
//! waits no longer for it, whatever state the dataplane is in. A notice whose sender stopped waiting is still
//! applied; only a full queue loses one. Decides nothing; `plan` knows what an end means.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::plan::{Departure, PODS};

#[cfg(test)]
mod tests;

/// How long the end of a pod waits for the dataplane.
const LIMIT: Duration = Duration::from_secs(1);
/// Notices that wait for the services task: both stages of as many pods as it remembers.
const NOTICES: usize = 2 * PODS;

/// What the services task is told.
#[derive(Debug)]
pub enum Notice {
    /// How far a pod's end has come.
    Departs {
        pod: String,
        stage: Departure,
        /// Told when the dataplane follows; none: nobody waits.
        applied: Option<oneshot::Sender<()>>,
    },
    /// All pods that were ending when the agent began have been told of.
    CaughtUp,
}

/// Tells the services about pods that end. Clones reach the same task.
#[derive(Debug, Clone)]
pub struct Departures {
    notices: mpsc::Sender<Notice>,
    limit: Duration,
}

/// Why nobody knows whether connections still go to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unheard {
    #[error("the dataplane did not follow within {LIMIT:?}")]
    Late,
    #[error("{NOTICES} notices wait for the dataplane already")]
    Full,
    #[error("the services task has ended")]
    Ended,
}

/// The two ends.
pub fn channel() -> (Departures, mpsc::Receiver<Notice>) {
    let (sender, receiver) = mpsc::channel(NOTICES);
    (Departures { notices: sender, limit: LIMIT }, receiver)
}

impl Departures {
    /// Returns once the dataplane of this node treats the pod by `stage`, or after [`LIMIT`].
    pub async fn tell(&self, pod: String, stage: Departure) -> Result<(), Unheard> {
        let (applied, seen) = oneshot::channel();
        self.put(Notice::Departs { pod, stage, applied: Some(applied) })?;
        let answer = timeout(self.limit, seen).await.map_err(|_elapsed| Unheard::Late)?;
        answer.map_err(|_dropped| Unheard::Ended)
    }

    /// Tells of a pod that was ending before this agent began, as it is found; nobody waits.
    pub fn found(&self, pod: String, stage: Departure) {
        if let Err(error) = self.put(Notice::Departs { pod, stage, applied: None }) {
            tracing::warn!(%error, ?stage, "a pod that ends may get connections");
        }
    }

    /// All that were ending have been found.
    pub fn caught_up(&self) {
        if let Err(error) = self.put(Notice::CaughtUp) {
            tracing::warn!(%error, "services are programmed late");
        }
    }

    fn put(&self, notice: Notice) -> Result<(), Unheard> {
        self.notices.try_send(notice).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Unheard::Full,
            mpsc::error::TrySendError::Closed(_) => Unheard::Ended,
        })
    }
}
