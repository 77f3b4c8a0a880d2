//! What a pod asks for and what a node has.
//!
//! Input: pod specs and node statuses. Output: [`Resources`] in thousandths of a CPU and bytes. Pure. A pod's request is
//! the sum of its containers or the peak of its init containers, whichever is more, plus its overhead; a pod-level request
//! replaces the containers', as upstream has it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Node, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::quantity::{thousandths, units};

/// What the scheduler assumes for scoring where a container requests nothing: thousandths of a CPU.
pub const DEFAULT_CPU: i128 = 100;
/// What the scheduler assumes for scoring where a container requests nothing: bytes.
pub const DEFAULT_MEMORY: i128 = 200 * 1024 * 1024;

type List = BTreeMap<String, Quantity>;

/// Amounts of resources. Pods name amounts of up to 2^63; the wider type holds the sum of any number of them, so that what was added
/// can be subtracted again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths.
    pub cpu: i128,
    /// Bytes.
    pub memory: i128,
    /// Bytes.
    pub ephemeral: i128,
    pub pods: i128,
    /// Huge pages and whatever else nodes offer, in whole units.
    pub other: BTreeMap<String, i128>,
}

impl Resources {
    /// Reads a list of quantities; what does not read counts as nothing.
    pub fn read(list: &List) -> Self {
        let mut resources = Self::default();
        for (name, quantity) in list {
            match name.as_str() {
                "cpu" => resources.cpu = thousandths(quantity).unwrap_or(0).into(),
                "memory" => resources.memory = units(quantity).unwrap_or(0).into(),
                "ephemeral-storage" => resources.ephemeral = units(quantity).unwrap_or(0).into(),
                "pods" => resources.pods = units(quantity).unwrap_or(0).into(),
                _ => {
                    resources.other.insert(name.clone(), units(quantity).unwrap_or(0).into());
                }
            }
        }
        resources
    }

    pub fn add(&mut self, more: &Self) {
        self.cpu += more.cpu;
        self.memory += more.memory;
        self.ephemeral += more.ephemeral;
        self.pods += more.pods;
        for (name, amount) in &more.other {
            *self.other.entry(name.clone()).or_insert(0) += amount;
        }
    }

    pub fn subtract(&mut self, less: &Self) {
        self.cpu -= less.cpu;
        self.memory -= less.memory;
        self.ephemeral -= less.ephemeral;
        self.pods -= less.pods;
        for (name, amount) in &less.other {
            if let Some(own) = self.other.get_mut(name) {
                *own -= amount;
            }
        }
        self.other.retain(|_, amount| *amount != 0);
    }

    /// Of each resource the larger amount.
    fn most(&mut self, other: &Self) {
        self.cpu = self.cpu.max(other.cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral = self.ephemeral.max(other.ephemeral);
        for (name, amount) in &other.other {
            let own = self.other.entry(name.clone()).or_insert(0);
            *own = (*own).max(*amount);
        }
    }
}

/// What a pod asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    pub wanted: Resources,
    /// CPU and memory for scoring: containers without a request count with the defaults.
    pub weight: Resources,
}

/// Reads what a pod asks for; one pod is part of it.
pub fn request(pod: &Pod) -> Request {
    let spec = pod.spec.as_ref();
    let mut wanted = spec.map(|spec| total(spec, requests)).unwrap_or_default();
    let mut weight = spec.map(|spec| total(spec, weighted)).unwrap_or_default();
    if let Some(list) = spec.and_then(|spec| spec.resources.as_ref()).and_then(|own| own.requests.as_ref()) {
        let own = Resources::read(list);
        replace(&mut wanted, list, &own);
        replace(&mut weight, list, &own);
    }
    if let Some(overhead) = spec.and_then(|spec| spec.overhead.as_ref()) {
        wanted.add(&Resources::read(overhead));
        weight.add(&Resources::read(overhead));
    }
    wanted.pods = 1;
    Request { wanted, weight }
}

/// What a node has for pods.
pub fn allocatable(node: &Node) -> Resources {
    let status = node.status.as_ref();
    let list = status.and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref()));
    list.map(Resources::read).unwrap_or_default()
}

/// Containers that run together, or the peak while init containers run one after another beside the sidecars that were
/// started before them.
fn total(spec: &PodSpec, read: fn(&Container) -> Resources) -> Resources {
    let mut running = Resources::default();
    let mut peak = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let own = read(container);
        if container.restart_policy.as_deref() == Some("Always") {
            running.add(&own);
            peak.most(&running);
        } else {
            let mut beside = running.clone();
            beside.add(&own);
            peak.most(&beside);
        }
    }
    for container in &spec.containers {
        running.add(&read(container));
    }
    running.most(&peak);
    running
}

fn requests(container: &Container) -> Resources {
    let list = container.resources.as_ref().and_then(|own| own.requests.as_ref());
    list.map(Resources::read).unwrap_or_default()
}

fn weighted(container: &Container) -> Resources {
    let own = requests(container);
    Resources {
        cpu: if own.cpu == 0 { DEFAULT_CPU } else { own.cpu },
        memory: if own.memory == 0 { DEFAULT_MEMORY } else { own.memory },
        ..Resources::default()
    }
}

fn replace(resources: &mut Resources, named: &List, own: &Resources) {
    if named.contains_key("cpu") {
        resources.cpu = own.cpu;
    }
    if named.contains_key("memory") {
        resources.memory = own.memory;
    }
    for (name, amount) in &own.other {
        resources.other.insert(name.clone(), *amount);
    }
}
