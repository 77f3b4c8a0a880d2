//! Keeps one controller running: restarts it with back-off when it fails or panics, and says so.
//!
//! Input: a way to start the controller. Ends when the shutdown token is cancelled. Refuses to end for any other reason.

use std::future::Future;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::queue::backoff;

/// The pause before the first restart.
const RESTART_BASE: Duration = Duration::from_secs(1);
/// The longest pause between two restarts.
const RESTART_MAX: Duration = Duration::from_secs(60);
/// A controller that ran this long counts as healthy: its next restart is quick again.
const HEALTHY_AFTER: Duration = Duration::from_secs(300);

/// Runs what `start` makes, again and again, until `shutdown`.
pub async fn supervise<S, F>(name: &'static str, shutdown: CancellationToken, start: S)
where
    S: Fn() -> F,
    F: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let mut restarts = 0;
    loop {
        let begun = Instant::now();
        let mut task = tokio::spawn(start());
        let ended = tokio::select! {
            // Cancel-safe: a token stays cancelled. The task sees the same token and ends by itself.
            () = shutdown.cancelled() => (&mut task).await,
            // Cancel-safe: a join handle keeps its result until it is taken.
            ended = &mut task => ended,
        };
        if shutdown.is_cancelled() {
            return;
        }
        if begun.elapsed() >= HEALTHY_AFTER {
            restarts = 0;
        }
        let pause = backoff(RESTART_BASE, RESTART_MAX, restarts);
        restarts += 1;
        match ended {
            Ok(Ok(())) => tracing::error!(controller = name, ?pause, "controller ended early, restarting"),
            Ok(Err(failure)) => {
                tracing::error!(
                    controller = name,
                    ?pause,
                    error = failure.chain(),
                    "controller failed, restarting"
                );
            }
            Err(error) => {
                tracing::error!(controller = name, ?pause, %error, "controller panicked, restarting")
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}
