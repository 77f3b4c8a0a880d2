//! One pass over a Deployment, decided.
//!
//! Input: the Deployment, its ReplicaSets, which of them still have running pods, the present. Output: a [`Plan`]: sets to
//! create, change and delete, the Deployment's revision, the status, and when to look again. Pure.
//!
//! ```text
//! deleting ------> status
//! paused --------> rescale, clean up, status         (a template that changed waits)
//! scaling -------> rescale, status                   (replicas changed since the sets were scaled last)
//! RollingUpdate -> make the new set; grow it, or else shrink the old ones; once complete clean up; status
//! Recreate ------> shrink the old ones to 0; when their pods are gone make and grow the new set; clean up; status
//! ```

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};

use super::limits::{Limits, STRATEGY_RECREATE, STRATEGY_ROLLING_UPDATE, strategy};
use super::progress::{self, PROGRESSING, Statement};
use super::revision::{self, ANNOTATION_REVISION};
use super::scaling::{self, actual, wanted};
use crate::key::ObjectKey;
use crate::ownership::{is_deleting, uid_of};

/// What a pass sees.
pub struct View<'a> {
    pub deployment: &'a Deployment,
    /// The Deployment's own sets.
    pub sets: Vec<ReplicaSet>,
    /// Uids of sets that have a pod which is not over.
    pub occupied: &'a HashSet<String>,
    pub now: Timestamp,
}

/// A change to make, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    CreateSet(Box<ReplicaSet>),
    /// Replaces a set; `from` is its former number of replicas where that changes.
    UpdateSet {
        set: Box<ReplicaSet>,
        from: Option<i32>,
    },
    DeleteSet {
        key: ObjectKey,
        uid: String,
    },
    /// Notes the revision on the Deployment.
    Annotate {
        revision: String,
    },
}

/// All that a pass will do.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// Absent where the stored status is right already.
    pub status: Option<DeploymentStatus>,
    pub recheck: Option<Duration>,
}

/// The sets while a pass decides about them.
struct Work<'a> {
    deployment: &'a Deployment,
    occupied: &'a HashSet<String>,
    limits: Limits,
    /// As they are stored, to find what changed.
    stored: Vec<ReplicaSet>,
    new: Option<ReplicaSet>,
    old: Vec<ReplicaSet>,
    doomed: Vec<ReplicaSet>,
    base: DeploymentStatus,
    revision: Option<i64>,
    now: Timestamp,
}

/// Decides one pass; the error says which of the Deployment's values does not read.
pub fn plan(view: View<'_>) -> Result<Plan, String> {
    let limits = Limits::of(view.deployment)?;
    let (new, old) = revision::split(view.deployment, view.sets.clone());
    let mut work = Work {
        deployment: view.deployment,
        occupied: view.occupied,
        limits,
        stored: view.sets,
        new,
        old,
        doomed: Vec::new(),
        base: view.deployment.status.clone().unwrap_or_default(),
        revision: None,
        now: view.now,
    };
    let status = work.decide()?;
    Ok(work.finish(status))
}

impl Work<'_> {
    fn decide(&mut self) -> Result<DeploymentStatus, String> {
        if is_deleting(&self.deployment.metadata) {
            return Ok(self.counts());
        }
        let paused = self.deployment.spec.as_ref().and_then(|spec| spec.paused).unwrap_or(false);
        self.state_pause(paused);
        if paused {
            self.refresh_new();
            self.rescale();
            self.clean_up();
            return Ok(self.counts());
        }
        let all: Vec<&ReplicaSet> = self.old.iter().chain(&self.new).collect();
        if scaling::is_scaling(&self.limits, &all) {
            self.refresh_new();
            self.rescale();
            return Ok(self.counts());
        }
        match strategy(self.deployment) {
            STRATEGY_ROLLING_UPDATE => self.roll(),
            STRATEGY_RECREATE => self.recreate(),
            other => return Err(format!("unexpected deployment strategy type: {other}")),
        }
        Ok(self.rollout())
    }

    fn is_rolling(&self) -> bool {
        strategy(self.deployment) == STRATEGY_ROLLING_UPDATE
    }

    fn counts(&self) -> DeploymentStatus {
        let (new, old) = (self.new.as_ref(), &self.old);
        progress::counts(self.deployment, &self.limits, &self.base, new, old, self.now)
    }

    fn rollout(&self) -> DeploymentStatus {
        let (new, old) = (self.new.as_ref(), &self.old);
        progress::rollout(self.deployment, &self.limits, &self.base, new, old, self.now)
    }

    /// Says in the condition Progressing that the rollout was paused or resumed: its deadline must not run meanwhile.
    fn state_pause(&mut self, paused: bool) {
        if progress::deadline(self.deployment).is_none() {
            return;
        }
        let reason =
            progress::condition(&self.base, PROGRESSING).and_then(|current| current.reason.as_deref());
        if reason == Some(progress::REASON_TIMED_OUT) {
            return;
        }
        let was_paused = reason == Some(progress::REASON_PAUSED);
        let (reason, message) = match (paused, was_paused) {
            (true, false) => (progress::REASON_PAUSED, "Deployment is paused"),
            (false, true) => (progress::REASON_RESUMED, "Deployment is resumed"),
            _ => return,
        };
        let statement = Statement::progressing("Unknown", reason, message.to_owned());
        progress::state(&mut self.base, statement, self.now);
    }

    /// Brings revision, annotations and minReadySeconds of an existing new set up to date.
    fn refresh_new(&mut self) {
        let Some(new) = &mut self.new else { return };
        let next = revision::last_revision(&self.old) + 1;
        revision::annotate(self.deployment, new, next);
        if let (Some(own), Some(spec)) = (&mut new.spec, &self.deployment.spec)
            && own.min_ready_seconds.unwrap_or(0) != spec.min_ready_seconds.unwrap_or(0)
        {
            own.min_ready_seconds = spec.min_ready_seconds;
        }
        self.revision = Some(revision::revision(&new.metadata));
        let silent = progress::condition(&self.base, PROGRESSING).is_none();
        if silent && progress::deadline(self.deployment).is_some() {
            let name = new.metadata.name.as_deref().unwrap_or_default();
            let message = format!("Found new replica set {name:?}");
            let statement = Statement::progressing("True", progress::REASON_FOUND, message);
            progress::state(&mut self.base, statement, self.now);
        }
    }

    /// Makes sure that there is a new set.
    fn ensure_new(&mut self) {
        if self.new.is_some() {
            return self.refresh_new();
        }
        let next = revision::last_revision(&self.old) + 1;
        let Some(mut set) = revision::new_set(self.deployment, &self.limits, next) else { return };
        let replicas = scaling::next_of_new(&self.limits, self.is_rolling(), &set, &self.old);
        scaling::set_replicas(&mut set, replicas, &self.limits);
        self.revision = Some(next);
        if progress::deadline(self.deployment).is_some() {
            let name = set.metadata.name.as_deref().unwrap_or_default();
            let message = format!("Created new replica set {name:?}");
            let statement = Statement::progressing("True", progress::REASON_CREATED, message);
            progress::state(&mut self.base, statement, self.now);
        }
        self.new = Some(set);
    }

    fn rescale(&mut self) {
        let rolling = self.is_rolling();
        scaling::rescale(self.deployment, &self.limits, rolling, self.new.as_mut(), &mut self.old);
    }

    fn roll(&mut self) {
        self.ensure_new();
        if let Some(new) = &mut self.new
            && scaling::step_new(&self.limits, true, new, &self.old)
        {
            return;
        }
        if scaling::step_old(&self.limits, self.new.as_ref(), &mut self.old) {
            return;
        }
        if progress::is_complete(self.deployment, &self.limits, &self.counts()) {
            self.clean_up();
        }
    }

    fn recreate(&mut self) {
        self.refresh_new();
        if scaling::drop_all(&self.limits, &mut self.old) {
            return;
        }
        let occupied = self.occupied;
        if self.old.iter().any(|set| actual(set) > 0 || occupied.contains(uid_of(&set.metadata))) {
            return;
        }
        self.ensure_new();
        if let Some(new) = &mut self.new {
            scaling::step_new(&self.limits, false, new, &self.old);
        }
        if progress::is_complete(self.deployment, &self.limits, &self.counts()) {
            self.clean_up();
        }
    }

    /// Chooses the old sets without pods that exceed the history limit, the oldest revisions first.
    fn clean_up(&mut self) {
        let limit = self.deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit);
        let Some(limit) = limit.filter(|limit| *limit != i32::MAX) else { return };
        let mut alive: Vec<&ReplicaSet> = self.old.iter().filter(|set| !is_deleting(&set.metadata)).collect();
        let surplus = alive.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        alive.sort_by_key(|set| revision::revision(&set.metadata));
        let doomed = alive.into_iter().take(surplus).filter(|set| is_idle(set)).cloned();
        self.doomed = doomed.collect();
    }

    fn finish(self, status: DeploymentStatus) -> Plan {
        let mut actions = Vec::new();
        let doomed: HashSet<&str> = self.doomed.iter().map(|set| uid_of(&set.metadata)).collect();
        for set in self.new.iter().chain(&self.old) {
            if doomed.contains(uid_of(&set.metadata)) {
                continue;
            }
            let stored = self.stored.iter().find(|stored| stored.metadata.uid == set.metadata.uid);
            match stored {
                None => actions.push(Action::CreateSet(Box::new(set.clone()))),
                Some(stored) if stored == set => {}
                Some(stored) => {
                    let from = Some(wanted(stored)).filter(|from| *from != wanted(set));
                    actions.push(Action::UpdateSet { set: Box::new(set.clone()), from });
                }
            }
        }
        if let Some(revision) = self.revision
            && revision != revision::revision(&self.deployment.metadata)
        {
            actions.push(Action::Annotate { revision: revision.to_string() });
        }
        actions.extend(
            self.doomed.iter().map(|set| Action::DeleteSet {
                key: ObjectKey::of(set),
                uid: uid_of(&set.metadata).to_owned(),
            }),
        );
        let recheck = progress::recheck(self.deployment, &self.limits, &status, self.now);
        let stored = self.deployment.status.clone().unwrap_or_default();
        let status = Some(status).filter(|status| !progress::same(status, &stored));
        Plan { actions, status, recheck }
    }
}

/// Whether nothing depends on the set any more.
fn is_idle(set: &ReplicaSet) -> bool {
    let observed = set.status.as_ref().and_then(|status| status.observed_generation).unwrap_or(0);
    actual(set) == 0
        && wanted(set) == 0
        && set.metadata.generation.unwrap_or(0) <= observed
        && !is_deleting(&set.metadata)
}

/// The merge patch that notes the revision on the Deployment.
pub fn annotate_patch(revision: &str) -> serde_json::Value {
    serde_json::json!({ "metadata": { "annotations": { ANNOTATION_REVISION: revision } } })
}
