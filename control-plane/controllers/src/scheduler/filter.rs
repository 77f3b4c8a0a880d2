//! Which nodes can take a pod, and why others cannot.
//!
//! Input: a pod and a node with what is left of it. Output: the reasons against it, in upstream's words. Pure.

use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, Pod, PreferredSchedulingTerm, Taint, Toleration,
};

use super::cluster::{HostPort, NodeInfo, host_ports};
use super::resources::{Request, request};
use crate::taints::{compare, tolerates, untolerated};

/// What stands against a node. The order is that of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Check {
    Unschedulable,
    NodeName,
    Taints,
    Affinity,
    Ports,
    Resources,
}

/// A check that failed, with the words for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objection {
    pub check: Check,
    pub reasons: Vec<String>,
}

/// What the checks need to know of a pod, read once.
#[derive(Debug)]
pub struct Subject<'a> {
    pub pod: &'a Pod,
    pub request: Request,
    pub ports: Vec<HostPort>,
    pub tolerations: &'a [Toleration],
}

impl<'a> Subject<'a> {
    pub fn new(pod: &'a Pod) -> Self {
        let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref());
        Self {
            pod,
            request: request(pod),
            ports: host_ports(pod),
            tolerations: tolerations.unwrap_or_default(),
        }
    }
}

/// The first check that fails; absent where the node can take the pod.
pub fn check(subject: &Subject<'_>, node: &NodeInfo) -> Option<Objection> {
    let one = |check: Check, reason: &str| Some(Objection { check, reasons: vec![reason.to_owned()] });
    if node.unschedulable && !tolerates_unschedulable(subject.tolerations) {
        return one(Check::Unschedulable, "node(s) were unschedulable");
    }
    let wanted_name = subject.pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    if wanted_name.is_some_and(|wanted| !wanted.is_empty() && wanted != node.name) {
        return one(Check::NodeName, "node(s) didn't match the requested node name");
    }
    if untolerated(subject.tolerations, &node.taints, &["NoSchedule", "NoExecute"]).is_some() {
        return one(Check::Taints, "node(s) had untolerated taint(s)");
    }
    if !matches_affinity(subject.pod, node) {
        return one(Check::Affinity, "node(s) didn't match Pod's node affinity/selector");
    }
    if subject.ports.iter().any(|port| node.ports.iter().any(|taken| taken.conflicts(port))) {
        return one(Check::Ports, "node(s) didn't have free ports for the requested pod ports");
    }
    let reasons = insufficient(&subject.request, node);
    if reasons.is_empty() { None } else { Some(Objection { check: Check::Resources, reasons }) }
}

/// `kubectl cordon` sets a field and, through the node controller, a taint: whoever tolerates the one is let through both.
fn tolerates_unschedulable(tolerations: &[Toleration]) -> bool {
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    tolerations.iter().any(|toleration| tolerates(toleration, &taint))
}

/// Whether the node has the labels of the pod's nodeSelector and satisfies one of its required affinity terms.
pub fn matches_affinity(pod: &Pod, node: &NodeInfo) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let selected =
        spec.node_selector.iter().flatten().all(|(key, value)| node.labels.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required =
        affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    let allowed = required
        .is_none_or(|required| required.node_selector_terms.iter().any(|term| matches_term(term, node)));
    selected && allowed
}

/// The pod's preferences among nodes.
pub fn preferences(pod: &Pod) -> &[PreferredSchedulingTerm] {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
    affinity
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_deref())
        .unwrap_or_default()
}

/// Whether the node satisfies all requirements of a term; a term without requirements is satisfied by none.
pub fn matches_term(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let labelled = |own: &NodeSelectorRequirement| {
        matches_requirement(own, node.labels.get(&own.key).map(String::as_str))
    };
    let named = |own: &NodeSelectorRequirement| {
        own.key == "metadata.name" && matches_requirement(own, Some(&node.name))
    };
    expressions.iter().all(labelled) && fields.iter().all(named)
}

fn matches_requirement(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|own| own == value));
    let against = || compare(value?, values.first()?);
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => against().is_some_and(std::cmp::Ordering::is_gt),
        "Lt" => against().is_some_and(std::cmp::Ordering::is_lt),
        _ => false,
    }
}

/// What the node has too little of.
fn insufficient(request: &Request, node: &NodeInfo) -> Vec<String> {
    let (wanted, taken, all) = (&request.wanted, &node.requested, &node.allocatable);
    let mut reasons = Vec::new();
    if taken.pods + wanted.pods > all.pods {
        reasons.push("Too many pods".to_owned());
    }
    let lacks = |wanted: i128, taken: i128, all: i128| wanted > 0 && wanted > all - taken;
    if lacks(wanted.cpu, taken.cpu, all.cpu) {
        reasons.push("Insufficient cpu".to_owned());
    }
    if lacks(wanted.memory, taken.memory, all.memory) {
        reasons.push("Insufficient memory".to_owned());
    }
    if lacks(wanted.ephemeral, taken.ephemeral, all.ephemeral) {
        reasons.push("Insufficient ephemeral-storage".to_owned());
    }
    for (name, amount) in &wanted.other {
        let amount_of =
            |list: &std::collections::BTreeMap<String, i128>| list.get(name).copied().unwrap_or(0);
        if lacks(*amount, amount_of(&taken.other), amount_of(&all.other)) {
            reasons.push(format!("Insufficient {name}"));
        }
    }
    reasons
}
