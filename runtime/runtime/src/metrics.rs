//! How long operations take: histograms by kind of operation, and the runtime's own families of them.
//!
//! In: the ends of operations, timed by the monotonic clock. Out: families for the caller's registry. The names are the kubelet's,
//! which measures the same at the other end of CRI. Bounded: a label's values are literals of the code; pods have no labels here.

use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

#[cfg(test)]
mod tests;

/// The lowest bucket's bound in seconds; each is twice the one before it.
const FIRST_BUCKET: f64 = 0.001;
/// Up to 65 s.
const BUCKETS: u16 = 17;

type Labels = [(&'static str, &'static str); 1];

/// A histogram of seconds in the buckets that all durations of a node share.
pub fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(FIRST_BUCKET, 2.0, BUCKETS))
}

/// Durations by one label. Clones share the figures.
#[derive(Clone, Debug)]
pub struct Durations {
    label: &'static str,
    family: Family<Labels, Histogram, fn() -> Histogram>,
}

impl Durations {
    /// Nothing measured yet.
    pub fn by(label: &'static str) -> Durations {
        Durations { label, family: Family::new_with_constructor(seconds) }
    }

    /// Takes note of one duration.
    pub fn observe(&self, value: &'static str, took: Duration) {
        self.family.get_or_create(&[(self.label, value)]).observe(took.as_secs_f64());
    }

    /// Does the work and takes note of how long it took, however it ends. What is dropped unfinished is not counted.
    pub async fn time<T>(&self, value: &'static str, work: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let result = work.await;
        self.observe(value, begun.elapsed());
        result
    }

    /// Adds the family; `name` is without the unit.
    pub fn register(&self, registry: &mut Registry, name: &str, help: &str) {
        registry.register_with_unit(name, help, Unit::Seconds, self.family.clone());
    }
}

/// What the runtime measures of itself.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    operations: Durations,
    errors: Family<Labels, Counter>,
    /// Calls of the network's plugins.
    pub network: Durations,
    /// Steps on the way to a sandbox.
    pub sandbox_steps: Durations,
}

impl Metrics {
    pub fn new() -> Metrics {
        Metrics {
            operations: Durations::by("operation_type"),
            errors: Family::default(),
            network: Durations::by("operation_type"),
            sandbox_steps: Durations::by("step"),
        }
    }

    /// Times an operation of the front door and counts its failure.
    pub async fn operation<T, E>(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let result = self.operations.time(name, work).await;
        if result.is_err() {
            self.errors.get_or_create(&[("operation_type", name)]).inc();
        }
        result
    }

    pub fn register(&self, registry: &mut Registry) {
        self.operations.register(
            registry,
            "kubelet_runtime_operations_duration",
            "Duration in seconds of runtime operations by type",
        );
        registry.register(
            "kubelet_runtime_operations_errors",
            "Failed runtime operations by type",
            self.errors.clone(),
        );
        self.network.register(
            registry,
            "kubelet_network_plugin_operations_duration",
            "Duration in seconds of calls of the network's plugins by type",
        );
        self.sandbox_steps.register(
            registry,
            "orlop_sandbox_step_duration",
            "Duration in seconds of the steps on the way to a sandbox",
        );
    }
}
