//! What the agent measures of its own work: how long pods take to start and where that time goes, and its work on control groups.
//!
//! In: durations from those who did the work. Out: families for a registry; the kubelet API serves them. The names are the kubelet's
//! where it measures the same. Bounded: a fixed set of kinds, never a pod's name.

use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use runtime::metrics::{Durations, seconds};

/// The measures. Clones share the figures.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// From the first sight of a pod to its running.
    pub pod_start: Histogram,
    /// The same and the report of it, divided into phases.
    pub pod_start_phases: Durations,
    /// Pods' control groups: made, removed.
    pub cgroups: Durations,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            pod_start: seconds(),
            pod_start_phases: Durations::by("phase"),
            cgroups: Durations::by("operation_type"),
        }
    }
}

impl Metrics {
    /// Adds the families.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "kubelet_pod_start_duration",
            "Duration in seconds from the node seeing a pod for the first time to the pod running",
            Unit::Seconds,
            self.pod_start.clone(),
        );
        self.pod_start_phases.register(
            registry,
            "orlop_pod_start_phase_duration",
            "Duration in seconds from the node seeing a pod to the API server having it as Running, by what the pod waited for",
        );
        self.cgroups.register(
            registry,
            "kubelet_cgroup_manager_duration",
            "Duration in seconds of the work on pods' control groups by type",
        );
    }
}
