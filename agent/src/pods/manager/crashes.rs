//! The pause before a pod's task that panicked begins again: doubled with each time, and what is heard meanwhile.
//!
//! In: moments of panics, the pod's messages. Out: how long to wait, and the pod as it is at the end of the wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;

use crate::pods::worker::Input;

/// The first pause; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// A task that has run for so long begins with the first pause again.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// How often a pod's task panicked in a row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Crashes {
    count: u32,
    last: Option<Instant>,
}

impl Crashes {
    /// One more; how long to wait.
    pub fn count(&mut self, now: Instant) -> Duration {
        if self.last.is_some_and(|last| now.duration_since(last) > FORGOTTEN_AFTER) {
            self.count = 0;
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.count.min(16)).min(LONGEST_PAUSE);
        self.count = self.count.saturating_add(1);
        self.last = Some(now);
        pause
    }
}

/// Waits, and takes messages off, so that nobody waits for a task that is not there. What the runtime tells is asked of it at the end.
pub async fn wait(inbox: &mut mpsc::Receiver<Input>, pod: &mut Arc<Pod>, gone: &mut bool, pause: Duration) {
    let mut over = std::pin::pin!(tokio::time::sleep(pause));
    loop {
        tokio::select! {
            biased;
            // Cancel safe: a message stays in the channel until `recv` is ready.
            Some(input) = inbox.recv() => match input {
                Input::Spec(newer) => *pod = newer,
                Input::Gone => *gone = true,
                Input::Runtime(_) | Input::Snapshot(..) => {}
            },
            () = &mut over => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_and_is_forgotten() {
        let start = Instant::now();
        let mut crashes = Crashes::default();
        let pauses: Vec<u64> = (0..10).map(|_| crashes.count(start).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
        assert_eq!(crashes.count(start + FORGOTTEN_AFTER + Duration::from_secs(1)).as_secs(), 1);
    }

    #[tokio::test]
    async fn what_is_heard_during_the_pause_counts_after_it() {
        let (sender, mut inbox) = mpsc::channel(4);
        let mut newer = Pod::default();
        newer.metadata.name = Some("newer".into());
        sender.send(Input::Spec(Arc::new(newer))).await.unwrap();
        sender.send(Input::Snapshot(Vec::new(), Vec::new())).await.unwrap();
        sender.send(Input::Gone).await.unwrap();
        let (mut pod, mut gone) = (Arc::default(), false);
        wait(&mut inbox, &mut pod, &mut gone, Duration::ZERO).await;
        assert_eq!(pod.metadata.name.as_deref(), Some("newer"));
        assert!(gone);
        assert_eq!(inbox.len(), 0);
    }
}
