//! Which pods go first when a set shrinks.
//!
//! Input: pods, the number of related pods per node, the present. Output: the order, first to go first. Pure. The order is
//! upstream's: unassigned, pending, unready, cheap to delete, crowded on their node, ready for a short time, restarted
//! often, young. Times are compared by order of magnitude, so that the choice among pods of about the same age is not
//! biased by when they were made.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::ownership::uid_of;
use crate::pods;

/// The annotation that says how much a pod would be missed; low goes first.
pub const ANNOTATION_DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Sorts pods by who goes first.
pub fn sort(candidates: &mut [Arc<Pod>], related: &HashMap<String, usize>, now: Timestamp) {
    candidates.sort_by(|left, right| compare(left, right, related, now));
}

/// `Less` where `left` goes before `right`.
pub fn compare(left: &Pod, right: &Pod, related: &HashMap<String, usize>, now: Timestamp) -> Ordering {
    let crowd = |pod: &Pod| pods::node_name(pod).and_then(|node| related.get(node)).copied().unwrap_or(0);
    pods::node_name(left)
        .is_some()
        .cmp(&pods::node_name(right).is_some())
        .then_with(|| phase_rank(left).cmp(&phase_rank(right)))
        .then_with(|| pods::is_ready(left).cmp(&pods::is_ready(right)))
        .then_with(|| deletion_cost(left).cmp(&deletion_cost(right)))
        .then_with(|| crowd(right).cmp(&crowd(left)))
        .then_with(|| match (pods::is_ready(left), pods::is_ready(right)) {
            (true, true) => by_age(left, right, pods::ready_since, now),
            _ => Ordering::Equal,
        })
        .then_with(|| restarts(right).cmp(&restarts(left)))
        .then_with(|| by_age(left, right, pods::created, now))
}

fn phase_rank(pod: &Pod) -> u8 {
    match pods::phase(pod) {
        pods::PHASE_PENDING => 0,
        pods::PHASE_UNKNOWN => 1,
        "" => 0,
        _ => 2,
    }
}

fn deletion_cost(pod: &Pod) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    annotations
        .and_then(|annotations| annotations.get(ANNOTATION_DELETION_COST))
        .and_then(|cost| cost.parse().ok())
        .unwrap_or(0)
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref());
    statuses.unwrap_or_default().iter().map(|status| status.restart_count).max().unwrap_or(0)
}

/// The younger one first; pods of about the same age by uid; a missing time counts as youngest.
fn by_age(left: &Pod, right: &Pod, time: fn(&Pod) -> Option<Timestamp>, now: Timestamp) -> Ordering {
    match (time(left), time(right)) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        (Some(left_time), Some(right_time)) if left_time == right_time => Ordering::Equal,
        (Some(left_time), Some(right_time)) => magnitude(left_time, now)
            .cmp(&magnitude(right_time, now))
            .then_with(|| uid_of(&left.metadata).cmp(uid_of(&right.metadata))),
    }
}

/// The order of magnitude of an age, base 2, in nanoseconds; -1 for the future.
fn magnitude(time: Timestamp, now: Timestamp) -> i64 {
    match u128::try_from(now.duration_since(time).as_nanos()) {
        Ok(age) if age > 0 => i64::from(age.ilog2()),
        _ => -1,
    }
}
