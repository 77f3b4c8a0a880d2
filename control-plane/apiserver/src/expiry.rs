//! Events live for an hour, so that a busy cluster's store stays bounded.
//!
//! Input: the cache. Output: deletes. The task sleeps until the oldest Event is due; an Event that is written meanwhile
//! is due later than that, so nothing has to be looked at before.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::cache::{Filter, Page};
use crate::object::text;
use crate::storage::{Compare, Expect, StorageError, Transaction, Write};

/// Upstream's `--event-ttl`.
pub const EVENT_TTL: SignedDuration = SignedDuration::from_hours(1);
/// Between two passes, at least: what expires within it goes together.
const MIN_PAUSE: Duration = Duration::from_secs(10);
/// Between two passes, at most: a clock that jumped is noticed.
const MAX_PAUSE: Duration = Duration::from_secs(600);

/// When an event is due: an hour after it was last written, by its creation and by its writer's times. A writer's clock
/// may be ahead by an hour at most; later times are not believed, else an event could live for ever.
fn due(event: &Value, now: Timestamp) -> Timestamp {
    let time = |pointer: &&str| text(event, pointer).parse::<Timestamp>().ok();
    let believed = now.checked_add(EVENT_TTL).unwrap_or(Timestamp::MAX);
    let written = ["/lastTimestamp", "/eventTime", "/series/lastObservedTime"];
    let written = written.iter().filter_map(time).filter(|time| *time <= believed);
    let last = written.chain(time(&"/metadata/creationTimestamp")).max().unwrap_or(Timestamp::UNIX_EPOCH);
    last.checked_add(EVENT_TTL).unwrap_or(Timestamp::MAX)
}

/// How long to sleep when the next event is due at `next`.
fn pause(next: Option<Timestamp>, now: Timestamp) -> Duration {
    let wait =
        next.map_or(MAX_PAUSE, |next| Duration::try_from(next.duration_since(now)).unwrap_or(MIN_PAUSE));
    wait.clamp(MIN_PAUSE, MAX_PAUSE)
}

/// Deletes events that are due, until `stop`.
pub async fn run(api: Arc<Api>, stop: CancellationToken) {
    loop {
        let next = pass(&api, Timestamp::now()).await;
        // Both may be dropped: a sleep has no state, and the token keeps its own.
        tokio::select! {
            () = tokio::time::sleep(pause(next, Timestamp::now())) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Deletes what is due; gives the time of the next.
async fn pass(api: &Api, now: Timestamp) -> Option<Timestamp> {
    let listed = api.cache.list("events", &Filter::default(), &Page::default()).ok()?;
    let mut next: Option<Timestamp> = None;
    for entry in listed.entries {
        let due = due(&entry.value(), now);
        if due > now {
            next = Some(next.map_or(due, |known| known.min(due)));
            continue;
        }
        let compares = vec![Compare { key: entry.key.clone(), expect: Expect::At(entry.revision) }];
        let writes = vec![Write::Delete { key: entry.key.clone(), last: entry.tail() }];
        match api.store.commit(Transaction { compares, writes }).await {
            // A conflict says that the event was written again or deleted: then it is not due, or not there.
            Ok(_) | Err(StorageError::Conflict { .. }) => {}
            Err(error) => tracing::warn!(%error, "delete expired event"),
        }
    }
    next
}

#[cfg(test)]
mod tests {
    //! Due times and pauses.

    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_is_due_an_hour_after_its_last_time() {
        let event = json!({"metadata": {"creationTimestamp": "2024-01-01T00:00:00Z"}, "lastTimestamp": "2024-01-01T00:30:00Z"});
        let now = "2024-01-01T00:40:00Z".parse().unwrap();
        assert_eq!(due(&event, now), "2024-01-01T01:30:00Z".parse().unwrap());
        assert!(due(&json!({}), now) < now);
    }

    #[test]
    fn an_event_of_the_far_future_does_not_live_for_ever() {
        let now = "2024-01-01T00:10:00Z".parse().unwrap();
        for (field, time, expected) in [
            ("lastTimestamp", "9999-01-01T00:00:00Z", "2024-01-01T01:00:00Z"),
            ("eventTime", "2024-01-01T01:10:01.000000Z", "2024-01-01T01:00:00Z"),
            ("eventTime", "2024-01-01T00:10:05.000000Z", "2024-01-01T01:10:05Z"),
        ] {
            let event = json!({"metadata": {"creationTimestamp": "2024-01-01T00:00:00Z"}, field: time});
            assert_eq!(due(&event, now), expected.parse().unwrap(), "{field} {time}");
        }
    }

    #[test]
    fn pauses_are_bounded() {
        let now: Timestamp = "2024-01-01T00:00:00Z".parse().unwrap();
        let at = |seconds: i64| Some(now.checked_add(SignedDuration::from_secs(seconds)).unwrap());
        assert_eq!(pause(at(60), now), Duration::from_secs(60));
        assert_eq!((pause(at(-5), now), pause(at(1), now)), (MIN_PAUSE, MIN_PAUSE));
        assert_eq!((pause(None, now), pause(at(90_000), now)), (MAX_PAUSE, MAX_PAUSE));
    }
}
