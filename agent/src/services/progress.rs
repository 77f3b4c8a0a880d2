//! How far the dataplane follows the API, for those who ask from outside: load balancers, probes, figures.
//!
//! In: changes as they come, and the ends of writes. Out: whether a write is overdue, and kube-proxy's figures, under its names
//! where they mean the same. What the kernel refused and is tried again does not count as overdue: other Services go on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use runtime::metrics::seconds;

/// How long a change may wait for its write (kube-proxy: twice its syncPeriod).
pub const OVERDUE: Duration = Duration::from_secs(60);

/// Clones share the figures.
#[derive(Debug, Clone)]
pub struct Progress {
    times: Arc<Mutex<Times>>,
    service_changes: Counter,
    endpoint_changes: Counter,
    writes: Histogram,
}

#[derive(Debug, Default)]
struct Times {
    /// Since when the oldest change waits.
    pending: Option<Instant>,
    /// The last write, whatever was refused.
    written: Option<SystemTime>,
    /// The last one after which everything stood as wanted.
    complete: Option<SystemTime>,
}

/// Whether the dataplane follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    pub is_healthy: bool,
    /// None: it has not begun, which is no fault of its own.
    pub last_written: Option<SystemTime>,
}

impl Default for Progress {
    fn default() -> Self {
        let (service_changes, endpoint_changes) = (Counter::default(), Counter::default());
        Self { times: Arc::default(), service_changes, endpoint_changes, writes: seconds() }
    }
}

impl Progress {
    /// A Service came, changed or went.
    pub fn service_changed(&self) {
        self.service_changes.inc();
        self.changed(Instant::now());
    }

    /// An EndpointSlice came, changed or went.
    pub fn endpoints_changed(&self) {
        self.endpoint_changes.inc();
        self.changed(Instant::now());
    }

    fn changed(&self, now: Instant) {
        self.with(|times| {
            times.pending.get_or_insert(now);
        });
    }

    /// The changes so far were written, as far as the kernel took them.
    pub fn written(&self, took: Duration, is_complete: bool) {
        self.writes.observe(took.as_secs_f64());
        let now = Some(SystemTime::now());
        self.with(|times| {
            (times.pending, times.written) = (None, now);
            if is_complete {
                times.complete = now;
            }
        });
    }

    pub fn health(&self, now: Instant) -> Health {
        self.with(|times| Health {
            is_healthy: times.written.is_none()
                || times.pending.is_none_or(|since| now.saturating_duration_since(since) < OVERDUE),
            last_written: times.written,
        })
    }

    /// Adds the families.
    pub fn register(&self, registry: &mut Registry) {
        let complete = self.with(|times| times.complete);
        let complete = complete.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        registry.register(
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "The last time proxy rules were successfully synced",
            ConstGauge::new(complete.as_secs_f64()),
        );
        registry.register_with_unit(
            "kubeproxy_sync_proxy_rules_duration",
            "Duration in seconds of writing what changed to the dataplane",
            Unit::Seconds,
            self.writes.clone(),
        );
        for (name, help, counter) in [
            ("service", "Changes of Services that were seen", &self.service_changes),
            ("endpoint", "Changes of EndpointSlices that were seen", &self.endpoint_changes),
        ] {
            registry.register(format!("kubeproxy_sync_proxy_rules_{name}_changes"), help, counter.clone());
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Times) -> T) -> T {
        work(&mut self.times.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_waits_too_long_is_a_fault_once_the_dataplane_was_written() {
        let progress = Progress::default();
        let begun = Instant::now();
        let healthy = |after: Duration| progress.health(begun + after).is_healthy;
        progress.changed(begun);
        assert!(healthy(OVERDUE), "it has not begun");
        progress.written(Duration::ZERO, true);
        assert!(healthy(2 * OVERDUE), "nothing waits");
        progress.changed(begun);
        progress.changed(begun + OVERDUE / 2);
        assert_eq!([OVERDUE / 2, OVERDUE].map(healthy), [true, false]);
        progress.written(Duration::ZERO, false);
        assert!(healthy(OVERDUE));
    }

    #[test]
    fn only_a_complete_write_counts_as_a_sync() {
        let progress = Progress::default();
        let complete = || progress.with(|times| times.complete);
        progress.written(Duration::ZERO, false);
        assert_eq!(complete(), None);
        progress.written(Duration::ZERO, true);
        let first = complete();
        assert!(first.is_some());
        progress.written(Duration::ZERO, false);
        assert_eq!(complete(), first);
    }
}
