//! What a pod asks for and may use: quantities, QoS class, CPU shares and quota, oom scores, the limits of the pod's control group.
//!
//! Pure. The formulas are the kubelet's (`pkg/kubelet/cm/helpers_linux.go`, `pkg/kubelet/qos/policy.go`, `pkg/apis/core/v1/helper/qos`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::settings::quantity;

#[cfg(test)]
mod tests;

/// CFS period, microseconds.
pub const CPU_PERIOD: u64 = 100_000;
/// Smallest CFS quota that the kernel takes, microseconds.
const CPU_QUOTA_MINIMUM: i64 = 1_000;
/// Smallest and largest cpu.shares.
const SHARES: (u64, u64) = (2, 262_144);
/// oom_score_adj of Guaranteed and node-critical pods.
const OOM_GUARANTEED: i64 = -997;
/// oom_score_adj of BestEffort pods.
const OOM_BEST_EFFORT: i64 = 1_000;
/// Priority from which on a pod is critical.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// A quantity in whole units, rounded up; 0 when it does not parse.
pub fn units(quantity: &Quantity) -> i64 {
    quantity::parse(&quantity.0).map_or(0, quantity::Amount::units)
}

/// A quantity in thousandths, rounded up; 0 when it does not parse.
pub fn milli(quantity: &Quantity) -> i64 {
    quantity::parse(&quantity.0).map_or(0, quantity::Amount::saturating_millis)
}

/// Amounts of resources: thousandths for `cpu`, units for everything else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts(pub BTreeMap<String, i64>);

impl Amounts {
    /// One amount; 0 when it is not there.
    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Parses a list of quantities.
    pub fn parse(list: Option<&BTreeMap<String, Quantity>>) -> Amounts {
        let amount = |(name, quantity): (&String, &Quantity)| {
            (name.clone(), if name == "cpu" { milli(quantity) } else { units(quantity) })
        };
        Amounts(list.into_iter().flatten().map(amount).collect())
    }

    /// Adds each of `other`.
    pub fn add(&mut self, other: &Amounts) {
        for (name, value) in &other.0 {
            let sum = self.0.entry(name.clone()).or_insert(0);
            *sum = sum.saturating_add(*value);
        }
    }

    /// Raises each to at least that of `other`.
    fn raise(&mut self, other: &Amounts) {
        for (name, value) in &other.0 {
            let here = self.0.entry(name.clone()).or_insert(0);
            *here = (*here).max(*value);
        }
    }
}

/// What a container asks for: its requests, and its limits for what it only limits.
pub fn requests(container: &Container) -> Amounts {
    requests_of(container.resources.as_ref())
}

fn requests_of(resources: Option<&ResourceRequirements>) -> Amounts {
    let mut amounts = limits_of(resources);
    amounts.0.extend(Amounts::parse(resources.and_then(|r| r.requests.as_ref())).0);
    amounts
}

/// What a container may use.
pub fn limits(container: &Container) -> Amounts {
    limits_of(container.resources.as_ref())
}

fn limits_of(resources: Option<&ResourceRequirements>) -> Amounts {
    Amounts::parse(resources.and_then(|r| r.limits.as_ref()))
}

/// Whether an init container runs beside the others for the pod's whole life.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// What the whole pod asks for: containers and sidecars together, or more while an init container runs, plus the overhead.
pub fn pod_requests(spec: &PodSpec) -> Amounts {
    let mut total = combine(spec, requests);
    if let Some(pod_level) = spec.resources.as_ref() {
        total.0.extend(requests_of(Some(pod_level)).0);
    }
    total.add(&Amounts::parse(spec.overhead.as_ref()));
    total
}

/// What the whole pod may use at most; meaningful only for resources that every container limits.
pub fn pod_limits(spec: &PodSpec) -> Amounts {
    let mut total = combine(spec, limits);
    if let Some(pod_level) = spec.resources.as_ref() {
        total.0.extend(limits_of(Some(pod_level)).0);
    }
    total.add(&Amounts::parse(spec.overhead.as_ref()));
    total
}

fn combine(spec: &PodSpec, amounts: fn(&Container) -> Amounts) -> Amounts {
    let mut sidecars = Amounts::default();
    let mut init = Amounts::default();
    for container in spec.init_containers.iter().flatten() {
        let own = amounts(container);
        if is_sidecar(container) {
            sidecars.add(&own);
            init.raise(&sidecars);
        } else {
            let mut with_sidecars = sidecars.clone();
            with_sidecars.add(&own);
            init.raise(&with_sidecars);
        }
    }
    let mut total = sidecars;
    for container in &spec.containers {
        total.add(&amounts(container));
    }
    total.raise(&init);
    total
}

/// The QoS class of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// Every container limits CPU and memory to what it asks for.
    Guaranteed,
    /// Something in between.
    Burstable,
    /// Nobody asks for anything.
    BestEffort,
}

impl Qos {
    /// As `status.qosClass` says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

/// The class of a pod.
pub fn qos(spec: &PodSpec) -> Qos {
    let pairs: Vec<(Amounts, Amounts)> = match &spec.resources {
        Some(pod_level) => vec![(requests_of(Some(pod_level)), limits_of(Some(pod_level)))],
        None => all_containers(spec).map(|container| (requests(container), limits(container))).collect(),
    };
    let asks = |amounts: &Amounts| amounts.get("cpu") > 0 || amounts.get("memory") > 0;
    if !pairs.iter().any(|(requests, limits)| asks(requests) || asks(limits)) {
        return Qos::BestEffort;
    }
    let fixed = |(requests, limits): &(Amounts, Amounts)| {
        ["cpu", "memory"].iter().all(|name| limits.get(name) > 0 && requests.get(name) == limits.get(name))
    };
    if pairs.iter().all(fixed) { Qos::Guaranteed } else { Qos::Burstable }
}

/// Init containers and containers.
pub fn all_containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

/// cpu.shares for thousandths of a CPU.
pub fn shares(milli_cpu: i64) -> u64 {
    let wanted = u64::try_from(milli_cpu).unwrap_or(0).saturating_mul(1_024) / 1_000;
    wanted.clamp(SHARES.0, SHARES.1)
}

/// CFS quota per [`CPU_PERIOD`] for thousandths of a CPU; 0 for none.
pub fn quota(milli_cpu: i64) -> i64 {
    if milli_cpu <= 0 {
        return 0;
    }
    milli_cpu.saturating_mul(CPU_PERIOD as i64).saturating_div(1_000).max(CPU_QUOTA_MINIMUM)
}

/// Whether a pod must not be refused or evicted for others' sake.
pub fn is_critical(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.priority).is_some_and(|priority| priority >= CRITICAL_PRIORITY)
}

/// oom_score_adj of a container on a node with so many bytes of memory.
pub fn oom_score_adj(pod: &Pod, container: &Container, node_memory: i64) -> i32 {
    let Some(spec) = &pod.spec else { return OOM_BEST_EFFORT as i32 };
    if is_critical(pod) && spec.priority_class_name.as_deref() == Some("system-node-critical") {
        return OOM_GUARANTEED as i32;
    }
    let own = class_score(spec, container, node_memory);
    let score = if is_sidecar(container) {
        // A sidecar goes down no earlier than the container that needs it most.
        spec.containers.iter().map(|main| class_score(spec, main, node_memory)).fold(own, i64::min)
    } else {
        own
    };
    i32::try_from(score).unwrap_or(OOM_BEST_EFFORT as i32)
}

fn class_score(spec: &PodSpec, container: &Container, node_memory: i64) -> i64 {
    match qos(spec) {
        Qos::Guaranteed => OOM_GUARANTEED,
        Qos::BestEffort => OOM_BEST_EFFORT,
        Qos::Burstable => {
            let share =
                i128::from(requests(container).get("memory")) * 1_000 / i128::from(node_memory.max(1));
            let score = 1_000 - i64::try_from(share).unwrap_or(i64::MAX);
            score.clamp(1_000 + OOM_GUARANTEED, OOM_BEST_EFFORT - 1)
        }
    }
}

/// The pod's control group below `parent`: `<parent>/kubepods[/burstable|/besteffort]/pod<uid>`.
pub fn cgroup_path(parent: &str, class: Qos, uid: &str) -> String {
    format!("{}/pod{uid}", qos_cgroup_path(parent, class))
}

/// The group of a class below `parent`.
pub fn qos_cgroup_path(parent: &str, class: Qos) -> String {
    let root = format!("/{}/kubepods", parent.trim_matches('/')).replace("//", "/");
    match class {
        Qos::Guaranteed => root,
        Qos::Burstable => format!("{root}/burstable"),
        Qos::BestEffort => format!("{root}/besteffort"),
    }
}

/// The limits of the pod's control group.
pub fn pod_cgroup_limits(spec: &PodSpec) -> linux::cgroup::Limits {
    let mut limits = linux::cgroup::Limits::default();
    let class = qos(spec);
    if class == Qos::BestEffort {
        limits.cpu_shares = Some(SHARES.0);
        return limits;
    }
    limits.cpu_shares = Some(shares(pod_requests(spec).get("cpu")));
    let total = pod_limits(spec);
    let pod_level = limits_of(spec.resources.as_ref());
    let everybody = |name: &str| {
        pod_level.get(name) > 0 || all_containers(spec).all(|container| self::limits(container).get(name) > 0)
    };
    if everybody("cpu") {
        limits.cpu_quota = Some(quota(total.get("cpu")));
        limits.cpu_period = Some(CPU_PERIOD);
    }
    if everybody("memory") {
        limits.memory = Some(total.get("memory"));
    }
    limits
}
