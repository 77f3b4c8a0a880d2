//! Which pods are garbage.
//!
//! Input: pods. Output: those to delete. Pure.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::pods;

/// Whether the pod is to be deleted and was never bound: no node will finish the deletion.
pub fn is_unbound_leftover(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some() && pods::node_name(pod).is_none()
}

/// The oldest pods that are over, as many as there are beyond the threshold; none where the threshold is 0.
pub fn surplus(all: Vec<Arc<Pod>>, threshold: usize) -> Vec<Arc<Pod>> {
    if threshold == 0 {
        return Vec::new();
    }
    let mut over: Vec<Arc<Pod>> = all.into_iter().filter(|pod| pods::is_terminal(pod)).collect();
    let count = over.len().saturating_sub(threshold);
    over.sort_by(|left, right| {
        pods::created(left)
            .cmp(&pods::created(right))
            .then_with(|| left.metadata.name.cmp(&right.metadata.name))
    });
    over.truncate(count);
    over
}
