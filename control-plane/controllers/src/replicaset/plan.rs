//! What a ReplicaSet pass decides: how many pods to make, which to delete, and the status.
//!
//! Input: a set, its pods, the present. Output: values. Pure.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use crate::ownership::controller_reference;
use crate::pods;
use crate::selector::Matcher;

use super::ranking;

/// The condition that tells that pods cannot be created or deleted.
pub const CONDITION_REPLICA_FAILURE: &str = "ReplicaFailure";

/// What to do about the number of pods.
#[derive(Clone, Debug)]
pub enum Scale {
    Nothing,
    Create(usize),
    Delete(Vec<Arc<Pod>>),
}

impl Scale {
    /// Whether pods are missing.
    pub fn is_growth(&self) -> bool {
        matches!(self, Self::Create(_))
    }
}

/// The set's compiled selector.
pub fn selector(set: &ReplicaSet) -> Result<Matcher, String> {
    match &set.spec {
        Some(spec) => Matcher::new(&spec.selector),
        None => Err("the spec is missing".to_owned()),
    }
}

/// How many pods the set asks for.
pub fn desired(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn min_ready_seconds(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
}

/// Decides how many pods to create, or which of the active ones to delete. `related` counts the active pods of the set
/// and its siblings per node; at most `burst` pods are changed at once.
pub fn scale(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    related: &HashMap<String, usize>,
    now: Timestamp,
    burst: usize,
) -> Scale {
    let wanted = usize::try_from(desired(set)).unwrap_or(0);
    if active.len() < wanted {
        return Scale::Create((wanted - active.len()).min(burst));
    }
    let surplus = (active.len() - wanted).min(burst);
    if surplus == 0 {
        return Scale::Nothing;
    }
    let mut candidates = active.to_vec();
    if surplus < candidates.len() {
        ranking::sort(&mut candidates, related, now);
    }
    candidates.truncate(surplus);
    Scale::Delete(candidates)
}

/// A pod as the set's template says; absent where the set has no template.
pub fn pod(set: &ReplicaSet) -> Option<Pod> {
    let template = set.spec.as_ref()?.template.as_ref()?;
    let meta = template.metadata.clone().unwrap_or_default();
    Some(Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.metadata.name.as_deref().unwrap_or_default())),
            namespace: set.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_reference(set)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    })
}

/// The status that the pods and the outcome of this pass (`failed`: whether pods were missing, and why it failed) give.
pub fn status(
    set: &ReplicaSet,
    claimed: &[Arc<Pod>],
    failed: Option<(bool, &str)>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let template_labels = set
        .spec
        .as_ref()
        .and_then(|spec| spec.template.as_ref())
        .and_then(|template| template.metadata.as_ref())
        .and_then(|meta| meta.labels.clone())
        .unwrap_or_default();
    let mut status = ReplicaSetStatus {
        observed_generation: set.metadata.generation,
        conditions: set.status.as_ref().and_then(|status| status.conditions.clone()),
        ..ReplicaSetStatus::default()
    };
    let (mut labelled, mut ready, mut available, mut terminating) = (0, 0, 0, 0);
    for pod in claimed {
        if pods::is_terminating(pod) {
            terminating += 1;
        }
        if !pods::is_active(pod) {
            continue;
        }
        status.replicas += 1;
        let labels = pod.metadata.labels.as_ref();
        let carries =
            |(key, value): (&String, &String)| labels.is_some_and(|own| own.get(key) == Some(value));
        labelled += i32::from(template_labels.iter().all(carries));
        ready += i32::from(pods::is_ready(pod));
        available += i32::from(pods::is_available(pod, min_ready_seconds(set), now));
    }
    status.fully_labeled_replicas = Some(labelled);
    status.ready_replicas = Some(ready);
    status.available_replicas = Some(available);
    status.terminating_replicas = Some(terminating);
    set_failure(&mut status, failed, now);
    keep_equal_zeroes(&mut status, set.status.as_ref());
    status
}

fn set_failure(status: &mut ReplicaSetStatus, failed: Option<(bool, &str)>, now: Timestamp) {
    let conditions = status.conditions.get_or_insert_default();
    let present = conditions.iter().any(|condition| condition.type_ == CONDITION_REPLICA_FAILURE);
    match failed {
        Some((growing, message)) if !present => conditions.push(ReplicaSetCondition {
            type_: CONDITION_REPLICA_FAILURE.to_owned(),
            status: "True".to_owned(),
            reason: Some(if growing { "FailedCreate" } else { "FailedDelete" }.to_owned()),
            message: Some(message.to_owned()),
            last_transition_time: Some(Time(now)),
        }),
        Some(_) => {}
        None => conditions.retain(|condition| condition.type_ != CONDITION_REPLICA_FAILURE),
    }
    if status.conditions.as_ref().is_some_and(Vec::is_empty) {
        status.conditions = None;
    }
}

/// Zero and absent mean the same: where the stored status leaves a zero out, so does the new one, so that equal statuses
/// compare equal.
fn keep_equal_zeroes(status: &mut ReplicaSetStatus, stored: Option<&ReplicaSetStatus>) {
    let stored = stored.cloned().unwrap_or_default();
    for (new, old) in [
        (&mut status.fully_labeled_replicas, stored.fully_labeled_replicas),
        (&mut status.ready_replicas, stored.ready_replicas),
        (&mut status.available_replicas, stored.available_replicas),
        (&mut status.terminating_replicas, stored.terminating_replicas),
    ] {
        if *new == Some(0) && old.is_none() {
            *new = None;
        }
    }
}

/// When the status changes by time alone: the moment at which the next ready pod becomes available.
pub fn recheck(set: &ReplicaSet, claimed: &[Arc<Pod>], now: Timestamp) -> Option<Duration> {
    let seconds = min_ready_seconds(set);
    let moments = claimed.iter().filter(|pod| pods::is_active(pod));
    let moments = moments.filter_map(|pod| pods::available_at(pod, seconds)).filter(|at| *at > now);
    moments.min().map(|at| at.duration_since(now).unsigned_abs())
}
