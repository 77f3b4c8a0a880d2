//! Whether the node takes a pod that was bound to it. Pure.
//!
//! In: the pod, the pods that the node has, the Node object. Out: nothing, or a reason and a message in the kubelet's words. The scheduler
//! has looked at the same already; this catches pods that were bound by others, or in the same moment.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ContainerPort, Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Taint, Toleration,
};

use super::observed::Rejection;
use super::resources::{self, Amounts};

#[cfg(test)]
mod tests;

/// Kernel parameters that pods may set (kubelet: `safeSysctls`).
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// What is known about the node.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The Node object; `None` while the API server has none: then nothing is checked that needs it.
    pub node: Option<&'a Node>,
    /// What it can give to pods; empty: not known.
    pub allocatable: &'a Amounts,
    /// Pods that it may have.
    pub max_pods: u32,
}

/// Why the node does not take `pod` beside the pods that are `active` on it.
pub fn admit(pod: &Pod, active: &[&Pod], inputs: Inputs<'_>) -> Option<Rejection> {
    let spec = pod.spec.as_ref()?;
    let others: Vec<&PodSpec> = active.iter().filter_map(|other| other.spec.as_ref()).collect();
    let reject = |reason: &str, message: String| {
        Some(Rejection { reason: reason.into(), message: format!("Pod was rejected: {message}") })
    };
    if let Some(name) = forbidden_sysctl(spec) {
        return reject("SysctlForbidden", format!("forbidden sysctl: \"{name}\" not allowlisted"));
    }
    let pods = i64::try_from(active.len()).unwrap_or(i64::MAX);
    if pods >= i64::from(inputs.max_pods) {
        return reject("OutOfpods", insufficient("pods", 1, pods, i64::from(inputs.max_pods)));
    }
    if let Some((name, message)) = out_of(spec, &others, inputs.allocatable) {
        return reject(&format!("OutOf{name}"), message);
    }
    let predicate = |name: &str, text: &str| reject(name, format!("Predicate {name} failed: {text}"));
    if let Some(node) = inputs.node {
        if !matches_node(spec, node) {
            return predicate("NodeAffinity", "node(s) didn't match Pod's node affinity/selector");
        }
        if let Some(taint) = untolerated(spec, node) {
            let text = format!(
                "node(s) had untolerated taint {{{}: {}}}",
                taint.key,
                taint.value.as_deref().unwrap_or_default()
            );
            return predicate("TaintToleration", &text);
        }
    }
    let wanted = host_ports(spec);
    let taken: Vec<HostPort> = others.iter().flat_map(|other| host_ports(other)).collect();
    if wanted.iter().any(|port| taken.iter().any(|other| port.conflicts(other))) {
        return predicate("NodePorts", "node(s) didn't have free ports for the requested pod ports");
    }
    None
}

fn forbidden_sysctl(spec: &PodSpec) -> Option<String> {
    let sysctls = spec.security_context.as_ref()?.sysctls.as_ref()?;
    sysctls
        .iter()
        .map(|sysctl| sysctl.name.replace('/', "."))
        .find(|name| !SAFE_SYSCTLS.contains(&name.as_str()))
}

fn insufficient(name: &str, requested: i64, used: i64, capacity: i64) -> String {
    format!(
        "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
    )
}

/// The first resource that does not suffice, with the message.
fn out_of(spec: &PodSpec, others: &[&PodSpec], allocatable: &Amounts) -> Option<(String, String)> {
    if allocatable.0.is_empty() {
        return None;
    }
    let wanted = resources::pod_requests(spec);
    let mut used = Amounts::default();
    others.iter().for_each(|other| used.add(&resources::pod_requests(other)));
    wanted.0.iter().filter(|(_, amount)| **amount > 0).find_map(|(name, amount)| {
        let capacity = allocatable.get(name);
        let free = capacity.saturating_sub(used.get(name));
        (*amount > free).then(|| (name.clone(), insufficient(name, *amount, used.get(name), capacity)))
    })
}

fn untolerated<'a>(spec: &PodSpec, node: &'a Node) -> Option<&'a Taint> {
    let taints = node.spec.as_ref()?.taints.as_ref()?;
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    taints
        .iter()
        .filter(|taint| taint.effect == "NoExecute")
        .find(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let effect = filled(&toleration.effect).is_none_or(|effect| effect == taint.effect);
    let key = filled(&toleration.key);
    let exists = toleration.operator.as_deref() == Some("Exists");
    let value = toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default();
    effect
        && match key {
            None => exists,
            Some(key) => key == taint.key && (exists || value),
        }
}

// ----- ports

struct HostPort {
    ip: String,
    port: i32,
    protocol: String,
}

impl HostPort {
    fn of(port: &ContainerPort, host_network: bool) -> Option<HostPort> {
        let number = match port.host_port.filter(|port| *port > 0) {
            None if host_network => port.container_port,
            number => number?,
        };
        Some(HostPort {
            ip: port.host_ip.clone().filter(|ip| ip != "0.0.0.0").unwrap_or_default(),
            port: number,
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
        })
    }

    fn conflicts(&self, other: &HostPort) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip.is_empty() || other.ip.is_empty())
    }
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let host_network = spec.host_network == Some(true);
    resources::all_containers(spec)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| HostPort::of(port, host_network))
        .collect()
}

// ----- node selector and affinity

fn matches_node(spec: &PodSpec, node: &Node) -> bool {
    let none = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    let name = node.metadata.name.as_deref().unwrap_or_default();
    selected
        && required.is_none_or(|selector| {
            selector.node_selector_terms.iter().any(|term| matches_term(term, labels, name))
        })
}

/// All of a term's requirements; an empty term matches nothing.
fn matches_term(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let name = name.to_owned();
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|requirement| matches(requirement, labels.get(&requirement.key)))
        && fields.iter().all(|requirement| {
            let value = (requirement.key == "metadata.name").then_some(&name);
            matches(requirement, value)
        })
}

fn matches(requirement: &NodeSelectorRequirement, value: Option<&String>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |text: &String| text.parse::<i64>().ok();
    let compared = || Some((number(value?)?, number(values.first()?)?));
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|value| values.contains(value)),
        "NotIn" => value.is_none_or(|value| !values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared().is_some_and(|(own, other)| own > other),
        "Lt" => compared().is_some_and(|(own, other)| own < other),
        _ => false,
    }
}
