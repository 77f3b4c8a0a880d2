//! Where the mean start of a pod goes. Pure.
//!
//! The agent divides the time from its first sight of a pod to its being reported as Running into phases without gap or overlap, and the runtime
//! measures the operations inside of them. Means add up, so what a phase has beyond its operation is waiting (for a processor, for a message,
//! for a place), and what the whole has beyond schedule and phases is the way of the news between API server, agent and kubectl. It is negative where kubectl sees the pod run before
//! the agent has the API server's answer, with which the phase "status" ends.

use std::time::Duration;

use crate::bench::node_metrics::NodeMetrics;
use crate::bench::percentile::mean;
use crate::bench::pods::Times;

#[cfg(test)]
mod tests;

/// Mean milliseconds of a pod.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Shares {
    whole: f64,
    schedule: f64,
    wait: f64,
    volumes: f64,
    image: f64,
    sandbox: Operation,
    network: f64,
    shim: f64,
    cgroup: f64,
    create: Operation,
    start: Operation,
    status: f64,
}

/// A phase, and what was done in it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Operation {
    phase: f64,
    done: f64,
}

impl Shares {
    pub fn of(times: &[Times], before: &NodeMetrics, after: &NodeMetrics) -> Self {
        let all = |time: fn(Times) -> Option<Duration>| {
            let found: Vec<Duration> = times.iter().copied().filter_map(time).collect();
            mean(&found).unwrap_or_default().as_secs_f64() * 1000.0
        };
        let spent = |family: &str, label: &str| {
            let spent = after.spent_since(before, &format!("{family}_duration_seconds"), label);
            spent.as_secs_f64() * 1000.0 / times.len().max(1) as f64
        };
        let phase = |name: &str| spent("orlop_pod_start_phase", &format!("phase=\"{name}\""));
        let typed = |family: &str, name: &str| spent(family, &format!("operation_type=\"{name}\""));
        let operation = |name: &str| typed("kubelet_runtime_operations", name);
        let network = |name: &str| typed("kubelet_network_plugin_operations", name);
        let step = |name: &str| spent("orlop_sandbox_step", &format!("step=\"{name}\""));
        Self {
            whole: all(Times::to_running),
            schedule: all(Times::to_scheduled),
            wait: phase("wait"),
            volumes: phase("volumes"),
            image: phase("image"),
            sandbox: Operation { phase: phase("sandbox"), done: operation("run_podsandbox") },
            network: network("status") + network("set_up_pod"),
            shim: step("start_shim") + step("connect_shim"),
            cgroup: typed("kubelet_cgroup_manager", "create"),
            create: Operation { phase: phase("create"), done: operation("create_container") },
            start: Operation { phase: phase("start"), done: operation("start_container") },
            status: phase("status"),
        }
    }

    /// What a pod's time was spent on; the rows add up to the whole.
    pub fn rows(&self) -> Vec<(&'static str, f64)> {
        let phases = self.sandbox.phase + self.create.phase + self.start.phase;
        let done = self.sandbox.done + self.cgroup + self.create.done + self.start.done;
        let rest = self.wait + self.volumes + self.image + self.status;
        vec![
            ("schedule", self.schedule),
            ("wait for the first step", self.wait),
            ("image", self.image),
            ("volumes", self.volumes),
            ("pod's control group", self.cgroup),
            ("sandbox: shim and namespaces", self.shim),
            ("sandbox: the rest", self.sandbox.done - self.network - self.shim),
            ("CNI", self.network),
            ("create", self.create.done),
            ("start", self.start.done),
            ("between the steps (queueing, files)", phases - done),
            ("status", self.status),
            (
                "unexplained (news; negative: kubectl hears before the agent)",
                self.whole - self.schedule - phases - rest,
            ),
        ]
    }
}

/// Time and share of one row.
pub fn cell(rows: &[(&str, f64)], index: usize) -> String {
    let whole: f64 = rows.iter().map(|(_, time)| time).sum();
    let time = rows.get(index).map_or(0.0, |(_, time)| *time);
    format!("{time:.1} ms, {:.0} %", if whole > 0.0 { time * 100.0 / whole } else { 0.0 })
}
