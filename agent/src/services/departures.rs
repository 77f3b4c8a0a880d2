//! How those who end pods tell the services, and wait until nobody is sent to a pod any more.
//!
//! In: a pod's uid and how far it has come. Out: the answer of the task that owns the dataplane, within [`LIMIT`]: a pod's end
//! waits no longer for it, whatever state the dataplane is in. Decides nothing; `plan` knows what an end means.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::plan::Departure;

#[cfg(test)]
mod tests;

/// How long the end of a pod waits for the dataplane.
const LIMIT: Duration = Duration::from_secs(1);
/// Notices that wait for the services task; who brings one more waits too, as long as [`LIMIT`].
const NOTICES: usize = 256;

/// One pod's end, on its way to the services task.
#[derive(Debug)]
pub struct Notice {
    pub pod: String,
    pub stage: Departure,
    /// Told when the dataplane follows.
    pub applied: oneshot::Sender<()>,
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
        let told = async {
            self.notices.send(Notice { pod, stage, applied }).await.map_err(|_| Unheard::Ended)?;
            seen.await.map_err(|_| Unheard::Ended)
        };
        timeout(self.limit, told).await.unwrap_or(Err(Unheard::Late))
    }
}
