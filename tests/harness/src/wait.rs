//! Waiting for a condition that has no event to wait on, with a deadline and a last word on what was seen.

use std::time::{Duration, Instant};

/// How long to rest between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks again and again until `look` gives `Ok`, and panics with its last `Err` after `limit`.
#[track_caller]
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match look() {
            Ok(value) => return value,
            Err(last) if Instant::now() >= deadline => panic!("{what}: not within {limit:?}: {last}"),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}
