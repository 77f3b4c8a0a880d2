//! What a node's silence, or its own word that it is not ready, leads to.
//!
//! Input: a node, when it was heard last, the present, whether a taint that evicts may be added now. Output: conditions,
//! taints and what else to do. Pure. Types, reasons and messages are upstream's.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub const TAINT_NOT_READY: &str = "node.kubernetes.io/not-ready";
pub const TAINT_UNREACHABLE: &str = "node.kubernetes.io/unreachable";
pub const TAINT_UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
pub const NO_SCHEDULE: &str = "NoSchedule";
pub const NO_EXECUTE: &str = "NoExecute";
/// Conditions that become unknown when a node is silent.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Conditions that keep pods away, with the status that does so and the taint.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];
/// Nodes in a zone from which on it counts as large.
pub const LARGE_ZONE: usize = 50;
/// The share of unready nodes from which on a zone counts as disrupted, in hundredths.
pub const UNHEALTHY_PERCENT: usize = 55;

/// How long silence is allowed.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// After a node was heard.
    pub silence: Duration,
    /// Before a node is heard for the first time.
    pub startup: Duration,
    /// Until a node that is not ready is looked at again.
    pub recheck: Duration,
}

/// What was heard of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    pub at: Timestamp,
}

/// What a pass sees.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub node: &'a Node,
    pub heard: Heard,
    pub patience: Patience,
    /// Whether the zone's rate allows one more node to be evicted.
    pub may_evict: bool,
    pub now: Timestamp,
}

/// What a pass does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Conditions to write.
    pub conditions: Option<Vec<NodeCondition>>,
    /// All taints, to write.
    pub taints: Option<Vec<Taint>>,
    /// Whether a taint that evicts is among what is written anew.
    pub evicts: bool,
    /// Whether the node's pods must not count as ready.
    pub unready: bool,
    pub recheck: Option<Duration>,
}

/// Decides one pass.
pub fn plan(view: &View<'_>) -> Plan {
    let stored = conditions(view.node);
    let reported = find(stored, "Ready").is_some();
    let allowed = if reported { view.patience.silence } else { view.patience.startup };
    let silent = to_std(view.now.duration_since(view.heard.at));
    let mut plan = Plan::default();
    let mut current = stored.to_vec();
    if silent >= allowed {
        silence(view, &mut current);
    } else {
        plan.recheck = Some(allowed - silent);
    }
    let is_ready = find(&current, "Ready").is_some_and(|ready| ready.status == "True");
    plan.unready = !is_ready && (reported || silent >= allowed);
    plan.conditions = Some(current.clone()).filter(|current| current != stored);
    let own = view.node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let wanted = taints(view, &current, &own);
    plan.evicts = wanted.iter().any(is_eviction) && !own.iter().any(is_eviction);
    let waits = plan.unready && !wanted.iter().any(is_eviction);
    plan.taints = Some(wanted).filter(|wanted| *wanted != own);
    if waits {
        let soon = view.patience.recheck;
        plan.recheck = Some(plan.recheck.map_or(soon, |recheck| recheck.min(soon)));
    }
    plan
}

fn conditions(node: &Node) -> &[NodeCondition] {
    node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default()
}

pub fn find<'a>(conditions: &'a [NodeCondition], kind: &str) -> Option<&'a NodeCondition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// The status of the node's condition Ready.
pub fn ready_status(node: &Node) -> Option<&str> {
    find(conditions(node), "Ready").map(|ready| ready.status.as_str())
}

/// Makes what a silent node reported unknown.
fn silence(view: &View<'_>, current: &mut Vec<NodeCondition>) {
    for kind in REPORTED {
        match current.iter_mut().find(|condition| condition.type_ == kind) {
            None => current.push(NodeCondition {
                type_: kind.to_owned(),
                status: "Unknown".to_owned(),
                reason: Some("NodeStatusNeverUpdated".to_owned()),
                message: Some("Kubelet never posted node status.".to_owned()),
                last_heartbeat_time: view.node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(Time(view.now)),
            }),
            Some(condition) if condition.status != "Unknown" => {
                condition.status = "Unknown".to_owned();
                condition.reason = Some("NodeStatusUnknown".to_owned());
                condition.message = Some("Kubelet stopped posting node status.".to_owned());
                condition.last_transition_time = Some(Time(view.now));
            }
            Some(_) => {}
        }
    }
}

/// The node's taints: those of others as they are, those of this controller as the conditions say.
fn taints(view: &View<'_>, current: &[NodeCondition], own: &[Taint]) -> Vec<Taint> {
    let wanted = wanted(view, current);
    let mut taints: Vec<Taint> = own
        .iter()
        .filter(|taint| !is_managed(taint) || wanted.iter().any(|want| is_same(want, taint)))
        .cloned()
        .collect();
    let evicting = own.iter().any(is_eviction);
    for want in wanted {
        if taints.iter().any(|taint| is_same(taint, &want)) {
            continue;
        }
        // A node that is evicted already may change its reason; a new eviction needs leave.
        if want.effect == NO_EXECUTE && !evicting && !view.may_evict {
            continue;
        }
        taints.push(Taint { time_added: Some(Time(view.now)), ..want });
    }
    taints
}

/// The taints that the conditions ask for.
fn wanted(view: &View<'_>, current: &[NodeCondition]) -> Vec<Taint> {
    let taint = |key: &str, effect: &str| Taint {
        key: key.to_owned(),
        effect: effect.to_owned(),
        ..Taint::default()
    };
    let mut wanted = Vec::new();
    let key = match find(current, "Ready").map(|ready| ready.status.as_str()) {
        Some("True") => None,
        Some("Unknown") => Some(TAINT_UNREACHABLE),
        // A node that never reported is not ready; only one that did can lose its pods.
        None => {
            wanted.push(taint(TAINT_NOT_READY, NO_SCHEDULE));
            None
        }
        Some(_) => Some(TAINT_NOT_READY),
    };
    if let Some(key) = key {
        wanted.push(taint(key, NO_SCHEDULE));
        wanted.push(taint(key, NO_EXECUTE));
    }
    for (kind, key) in PRESSURES {
        if find(current, kind).is_some_and(|condition| condition.status == "True") {
            wanted.push(taint(key, NO_SCHEDULE));
        }
    }
    if view.node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false) {
        wanted.push(taint(TAINT_UNSCHEDULABLE, NO_SCHEDULE));
    }
    wanted
}

fn is_same(left: &Taint, right: &Taint) -> bool {
    left.key == right.key && left.effect == right.effect
}

fn is_managed(taint: &Taint) -> bool {
    let key = taint.key.as_str();
    match taint.effect.as_str() {
        NO_EXECUTE => is_eviction(taint),
        NO_SCHEDULE => {
            [TAINT_NOT_READY, TAINT_UNREACHABLE, TAINT_UNSCHEDULABLE].contains(&key)
                || PRESSURES.iter().any(|(_, own)| *own == key)
        }
        _ => false,
    }
}

fn is_eviction(taint: &Taint) -> bool {
    taint.effect == NO_EXECUTE && [TAINT_NOT_READY, TAINT_UNREACHABLE].contains(&taint.key.as_str())
}

fn to_std(duration: SignedDuration) -> Duration {
    if duration.is_negative() { Duration::ZERO } else { duration.unsigned_abs() }
}

/// How a zone stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    pub ready: usize,
    pub unready: usize,
}

impl Zone {
    /// Whether no node of it is ready.
    pub fn is_dead(self) -> bool {
        self.ready == 0 && self.unready > 0
    }

    fn is_disrupted(self) -> bool {
        self.unready > 2 && self.unready * 100 >= UNHEALTHY_PERCENT * (self.ready + self.unready)
    }
}

/// Seconds between two evictions of nodes in the zone; absent where none may be evicted. Where every zone is dead it is
/// more likely that this controller cannot hear them than that all nodes are gone.
pub fn eviction_pause(zone: Zone, all_dead: bool) -> Option<Duration> {
    if all_dead {
        return None;
    }
    if zone.is_disrupted() && !zone.is_dead() {
        let large = zone.ready + zone.unready > LARGE_ZONE;
        return large.then_some(Duration::from_secs(100));
    }
    Some(Duration::from_secs(10))
}
