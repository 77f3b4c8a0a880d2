//! How long to wait before something is tried again, and how the kubelet writes durations.
//!
//! Pure: `now` is an argument. One [`Backoff`] belongs to one container's restarts or one container's image.

use jiff::{SignedDuration, Timestamp};

#[cfg(test)]
mod tests;

/// First delay (kubelet: `backOffPeriod`, `initialBackOff`).
pub const INITIAL: SignedDuration = SignedDuration::from_secs(10);
/// Longest delay (kubelet: `MaxCrashLoopBackOff`, `imageBackOffPeriod`'s limit).
pub const MAXIMUM: SignedDuration = SignedDuration::from_secs(300);
/// After so long without another failure the delay starts from the beginning.
pub const RESET_AFTER: SignedDuration = SignedDuration::from_secs(600);

/// The state of one back-off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The delay that follows the last failure.
    pub delay: SignedDuration,
    /// When the delay was last raised.
    pub raised_at: Timestamp,
}

impl Backoff {
    /// The state after one more attempt that follows a failure: 10 s at first, then doubled up to 300 s; from the beginning when the last
    /// one is long ago. `failed_at` is when the attempt before this one failed.
    pub fn next(previous: Option<Backoff>, failed_at: Timestamp, now: Timestamp) -> Backoff {
        let delay = match previous {
            Some(previous) if failed_at.duration_since(previous.raised_at) <= RESET_AFTER => {
                previous.delay.saturating_mul(2).min(MAXIMUM)
            }
            _ => INITIAL,
        };
        Backoff { delay, raised_at: now }
    }

    /// Until when to wait after a failure at `failed_at`; `None` when that time has come.
    pub fn waits_until(&self, failed_at: Timestamp, now: Timestamp) -> Option<Timestamp> {
        if failed_at.duration_since(self.raised_at) > RESET_AFTER {
            return None;
        }
        let until = after(failed_at, self.delay);
        (until > now).then_some(until)
    }
}

/// `time + delay`, at most the last representable moment.
pub fn after(time: Timestamp, delay: SignedDuration) -> Timestamp {
    time.checked_add(delay).unwrap_or(Timestamp::MAX)
}

/// A duration as Go prints it: `10s`, `1m20s`, `1h0m0s`, `1.234s`, `250ms`.
pub fn go_duration(duration: SignedDuration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".into();
    }
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    let text = if nanos < 1_000 {
        format!("{nanos}ns")
    } else if nanos < 1_000_000 {
        format!("{}µs", fraction(nanos, 1_000))
    } else if nanos < 1_000_000_000 {
        format!("{}ms", fraction(nanos, 1_000_000))
    } else {
        let minutes = nanos / 60_000_000_000;
        let seconds = fraction(nanos % 60_000_000_000, 1_000_000_000);
        match (minutes / 60, minutes % 60) {
            (0, 0) => format!("{seconds}s"),
            (0, minutes) => format!("{minutes}m{seconds}s"),
            (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
        }
    };
    format!("{sign}{text}")
}

/// `value / unit` with as many decimals as it needs.
fn fraction(value: u128, unit: u128) -> String {
    let whole = value / unit;
    let rest = value % unit;
    if rest == 0 {
        return whole.to_string();
    }
    let digits = unit.ilog10() as usize;
    let decimals = format!("{rest:0digits$}");
    format!("{whole}.{}", decimals.trim_end_matches('0'))
}
