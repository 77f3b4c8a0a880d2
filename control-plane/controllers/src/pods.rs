//! What controllers need to know about a pod: phase, readiness, availability.
//!
//! Input: a Pod. Output: facts. Pure; the present is an argument.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

pub const PHASE_PENDING: &str = "Pending";
pub const PHASE_UNKNOWN: &str = "Unknown";
pub const PHASE_SUCCEEDED: &str = "Succeeded";
pub const PHASE_FAILED: &str = "Failed";
pub const CONDITION_READY: &str = "Ready";
pub const CONDITION_SCHEDULED: &str = "PodScheduled";
pub const CONDITION_DISRUPTION_TARGET: &str = "DisruptionTarget";

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Whether no container of the pod will run again.
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), PHASE_SUCCEEDED | PHASE_FAILED)
}

/// Whether the pod counts as a replica: neither over nor on its way out.
pub fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Whether the pod is on its way out but still has something to stop.
pub fn is_terminating(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_some()
}

pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// The condition of a pod that its controller takes away, as JSON for a patch.
pub fn disruption(reason: &str, message: &str, now: Timestamp) -> Value {
    json!({
        "type": CONDITION_DISRUPTION_TARGET,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": Time(now),
    })
}

pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, CONDITION_READY).is_some_and(|ready| ready.status == "True")
}

/// When the pod became ready (or unready) last.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition(pod, CONDITION_READY)?.last_transition_time.as_ref().map(|time| time.0)
}

pub fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

/// Whether the pod has been ready for at least `min_ready_seconds`.
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    is_ready(pod) && available_at(pod, min_ready_seconds).is_some_and(|at| at <= now)
}

/// When a ready pod becomes available, if it stays ready.
pub fn available_at(pod: &Pod, min_ready_seconds: i32) -> Option<Timestamp> {
    if !is_ready(pod) {
        return None;
    }
    if min_ready_seconds <= 0 {
        return Some(Timestamp::MIN);
    }
    let since = ready_since(pod)?;
    since.checked_add(SignedDuration::from_secs(min_ready_seconds.into())).ok()
}

pub fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// The pod's addresses, the primary one first.
pub fn addresses(pod: &Pod) -> Vec<&str> {
    let Some(status) = pod.status.as_ref() else { return Vec::new() };
    let listed: Vec<&str> =
        status.pod_ips.as_deref().unwrap_or_default().iter().map(|ip| ip.ip.as_str()).collect();
    if !listed.is_empty() {
        return listed;
    }
    status.pod_ip.as_deref().filter(|ip| !ip.is_empty()).into_iter().collect()
}

/// One label of one namespace as a value of an index.
pub fn label_pair(namespace: &str, key: &str, value: &str) -> String {
    // Neither a namespace nor a label key can contain these separators.
    format!("{namespace}\u{0}{key}={value}")
}
