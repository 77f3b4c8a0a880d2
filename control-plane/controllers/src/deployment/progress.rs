//! A Deployment's status: counts and the conditions Available, Progressing and ReplicaFailure.
//!
//! Input: the Deployment, its sets after this pass's decisions, the present. Output: the new status and when to look
//! again. Pure. Reasons and messages are upstream's, since `kubectl rollout status` reads them.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::limits::Limits;
use super::scaling::{actual, available, wanted};
use crate::replicaset::plan::CONDITION_REPLICA_FAILURE;

pub const AVAILABLE: &str = "Available";
pub const PROGRESSING: &str = "Progressing";
pub const REASON_AVAILABLE: &str = "NewReplicaSetAvailable";
pub const REASON_UPDATED: &str = "ReplicaSetUpdated";
pub const REASON_TIMED_OUT: &str = "ProgressDeadlineExceeded";
pub const REASON_CREATED: &str = "NewReplicaSetCreated";
pub const REASON_FOUND: &str = "FoundNewReplicaSet";
pub const REASON_PAUSED: &str = "DeploymentPaused";
pub const REASON_RESUMED: &str = "DeploymentResumed";

/// What a condition says.
pub struct Statement {
    pub kind: &'static str,
    pub status: &'static str,
    pub reason: &'static str,
    pub message: String,
}

impl Statement {
    pub fn progressing(status: &'static str, reason: &'static str, message: String) -> Self {
        Self { kind: PROGRESSING, status, reason, message }
    }

    fn condition(self, now: Timestamp) -> DeploymentCondition {
        DeploymentCondition {
            type_: self.kind.to_owned(),
            status: self.status.to_owned(),
            reason: Some(self.reason.to_owned()),
            message: Some(self.message),
            last_update_time: Some(Time(now)),
            last_transition_time: Some(Time(now)),
        }
    }
}

pub fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.as_deref()?.iter().find(|condition| condition.type_ == kind)
}

/// Puts a condition in; one that says the same already is left alone, one of the same status keeps its transition time.
pub fn set(status: &mut DeploymentStatus, mut condition: DeploymentCondition) {
    let conditions = status.conditions.get_or_insert_default();
    let Some(old) = conditions.iter_mut().find(|old| old.type_ == condition.type_) else {
        conditions.push(condition);
        return;
    };
    if old.status == condition.status && old.reason == condition.reason {
        return;
    }
    if old.status == condition.status {
        condition.last_transition_time = old.last_transition_time.clone();
    }
    *old = condition;
}

/// Puts what a statement says in.
pub fn state(status: &mut DeploymentStatus, statement: Statement, now: Timestamp) {
    set(status, statement.condition(now));
}

pub fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != kind);
    }
}

/// The seconds that a rollout may stand still, where there is a limit.
pub fn deadline(deployment: &Deployment) -> Option<i32> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds;
    seconds.filter(|seconds| *seconds != i32::MAX)
}

/// The counts and the condition Available. `base` is the stored status with what this pass said already.
pub fn counts(
    deployment: &Deployment,
    limits: &Limits,
    base: &DeploymentStatus,
    new: Option<&ReplicaSet>,
    old: &[ReplicaSet],
    now: Timestamp,
) -> DeploymentStatus {
    let all: Vec<&ReplicaSet> = old.iter().chain(new).collect();
    let total = |count: fn(&ReplicaSet) -> i32| all.iter().map(|set| count(set)).sum::<i32>();
    let available = total(available);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(total(actual)),
        updated_replicas: Some(new.map_or(0, actual)),
        ready_replicas: Some(total(ready)),
        available_replicas: Some(available),
        unavailable_replicas: Some((total(wanted) - available).max(0)),
        terminating_replicas: Some(total(terminating)),
        collision_count: base.collision_count,
        conditions: base.conditions.clone(),
    };
    let statement = if available >= limits.least() {
        Statement {
            kind: AVAILABLE,
            status: "True",
            reason: "MinimumReplicasAvailable",
            message: "Deployment has minimum availability.".to_owned(),
        }
    } else {
        Statement {
            kind: AVAILABLE,
            status: "False",
            reason: "MinimumReplicasUnavailable",
            message: "Deployment does not have minimum availability.".to_owned(),
        }
    };
    state(&mut status, statement, now);
    status
}

fn ready(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0)
}

fn terminating(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.terminating_replicas).unwrap_or(0)
}

/// Whether every wanted pod is of the new template and available, and no other is left.
pub fn is_complete(deployment: &Deployment, limits: &Limits, status: &DeploymentStatus) -> bool {
    status.updated_replicas.unwrap_or(0) == limits.replicas
        && status.replicas.unwrap_or(0) == limits.replicas
        && status.available_replicas.unwrap_or(0) == limits.replicas
        && status.observed_generation.unwrap_or(0) >= deployment.metadata.generation.unwrap_or(0)
}

/// Whether anything moved since the stored status.
fn has_progressed(stored: &DeploymentStatus, status: &DeploymentStatus) -> bool {
    let old_pods =
        |status: &DeploymentStatus| status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0);
    let more =
        |count: fn(&DeploymentStatus) -> Option<i32>| count(status).unwrap_or(0) > count(stored).unwrap_or(0);
    more(|status| status.updated_replicas)
        || old_pods(status) < old_pods(stored)
        || more(|status| status.ready_replicas)
        || more(|status| status.available_replicas)
}

/// Whether the rollout has stood still for longer than it may.
fn has_timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    let (Some(seconds), Some(current)) = (deadline(deployment), condition(status, PROGRESSING)) else {
        return false;
    };
    match current.reason.as_deref() {
        Some(REASON_AVAILABLE) => false,
        Some(REASON_TIMED_OUT) => true,
        _ => expires(current, seconds).is_some_and(|at| at < now),
    }
}

fn expires(current: &DeploymentCondition, seconds: i32) -> Option<Timestamp> {
    let since = current.last_update_time.as_ref()?.0;
    since.checked_add(SignedDuration::from_secs(seconds.into())).ok()
}

/// The status of a pass that rolled: counts, Available, Progressing, ReplicaFailure.
pub fn rollout(
    deployment: &Deployment,
    limits: &Limits,
    base: &DeploymentStatus,
    new: Option<&ReplicaSet>,
    old: &[ReplicaSet],
    now: Timestamp,
) -> DeploymentStatus {
    let mut status = counts(deployment, limits, base, new, old, now);
    let current = condition(base, PROGRESSING).cloned();
    if deadline(deployment).is_none() {
        remove(&mut status, PROGRESSING);
    } else {
        let settled = status.replicas == status.updated_replicas
            && current.as_ref().is_some_and(|current| current.reason.as_deref() == Some(REASON_AVAILABLE));
        if !settled {
            progress(deployment, limits, base, current, new, &mut status, now);
        }
    }
    match replica_failure(new, old) {
        Some(failure) => set(&mut status, failure),
        None => remove(&mut status, CONDITION_REPLICA_FAILURE),
    }
    status
}

fn progress(
    deployment: &Deployment,
    limits: &Limits,
    base: &DeploymentStatus,
    current: Option<DeploymentCondition>,
    new: Option<&ReplicaSet>,
    status: &mut DeploymentStatus,
    now: Timestamp,
) {
    let subject = match new {
        Some(set) => format!("ReplicaSet {:?}", set.metadata.name.as_deref().unwrap_or_default()),
        None => format!("Deployment {:?}", deployment.metadata.name.as_deref().unwrap_or_default()),
    };
    if is_complete(deployment, limits, status) {
        let message = format!("{subject} has successfully progressed.");
        state(status, Statement::progressing("True", REASON_AVAILABLE, message), now);
    } else if has_progressed(base, status) {
        let message = format!("{subject} is progressing.");
        let mut condition = Statement::progressing("True", REASON_UPDATED, message).condition(now);
        if let Some(current) = current.filter(|current| current.status == "True") {
            condition.last_transition_time = current.last_transition_time;
        }
        // The update time counts here even where nothing else changes: the deadline runs from it.
        remove(status, PROGRESSING);
        set(status, condition);
    } else if has_timed_out(deployment, status, now) {
        let message = format!("{subject} has timed out progressing.");
        state(status, Statement::progressing("False", REASON_TIMED_OUT, message), now);
    }
}

/// The sets' own failure, the new one's before the old ones'.
fn replica_failure(new: Option<&ReplicaSet>, old: &[ReplicaSet]) -> Option<DeploymentCondition> {
    let failure = |set: &ReplicaSet| {
        let conditions = set.status.as_ref()?.conditions.as_deref()?;
        conditions.iter().find(|condition| condition.type_ == CONDITION_REPLICA_FAILURE).cloned()
    };
    let found = new.into_iter().chain(old).find_map(failure)?;
    Some(DeploymentCondition {
        type_: found.type_,
        status: found.status,
        reason: found.reason,
        message: found.message,
        last_update_time: found.last_transition_time.clone(),
        last_transition_time: found.last_transition_time,
    })
}

/// When the rollout may have stood still for too long.
pub fn recheck(
    deployment: &Deployment,
    limits: &Limits,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let seconds = deadline(deployment)?;
    let current = condition(status, PROGRESSING)?;
    if is_complete(deployment, limits, status) || current.reason.as_deref() == Some(REASON_TIMED_OUT) {
        return None;
    }
    let left = expires(current, seconds)?.duration_since(now).max(SignedDuration::ZERO);
    // One second more, because times in conditions have whole seconds.
    Some(left.unsigned_abs() + Duration::from_secs(1))
}

/// Whether two statuses say the same: an absent count is a zero.
pub fn same(left: &DeploymentStatus, right: &DeploymentStatus) -> bool {
    explicit(left) == explicit(right)
}

fn explicit(status: &DeploymentStatus) -> DeploymentStatus {
    let zero = |count: Option<i32>| Some(count.unwrap_or(0));
    DeploymentStatus {
        available_replicas: zero(status.available_replicas),
        collision_count: zero(status.collision_count),
        conditions: status.conditions.clone().filter(|conditions| !conditions.is_empty()),
        observed_generation: status.observed_generation,
        ready_replicas: zero(status.ready_replicas),
        replicas: zero(status.replicas),
        terminating_replicas: zero(status.terminating_replicas),
        unavailable_replicas: zero(status.unavailable_replicas),
        updated_replicas: zero(status.updated_replicas),
    }
}
