//! The Deployment controller: rolls ReplicaSets so that pods follow the template.
//!
//! Input: the caches of Deployments, ReplicaSets and pods. Output: ReplicaSets created, scaled and deleted, the revision
//! annotation, the status, and events. Decisions are in `deployment/plan.rs` (the pass), `limits.rs` (numbers),
//! `revision.rs` (which set is new), `scaling.rs` (how many pods where) and `progress.rs` (the status). Every write names
//! the resource version that it was decided from, so a stale cache costs a repetition and never a wrong scale. Refuses to
//! touch pods.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Resource};
use tokio_util::sync::CancellationToken;

use crate::caches::{Caches, DEPLOYMENT_BY_NAMESPACE, POD_BY_CONTROLLER, SET_BY_CONTROLLER, SET_ORPHAN};
use crate::claim::{Claimant, claim};
use crate::events::{Recorder, Severity};
use crate::failure::{self, Failure};
use crate::key::ObjectKey;
use crate::options::Context;
use crate::ownership::{self, controller_of, controller_reference, is_controlled_by, uid_of};
use crate::pods;
use crate::queue::{Queue, QueueOptions};
use crate::selector::Matcher;
use crate::store::Change;
use crate::worker::{Outcome, drive};

pub mod limits;
pub mod plan;
pub mod progress;
pub mod revision;
pub mod scaling;
#[cfg(test)]
mod tests;

use plan::{Action, View};

/// The name under which events come from this controller.
pub const COMPONENT: &str = "deployment-controller";

pub struct Controller {
    context: Context,
    events: Recorder,
    queue: Arc<Queue<ObjectKey>>,
}

impl Controller {
    /// Makes the controller and hangs it on the caches.
    pub fn new(context: Context) -> Arc<Self> {
        let queue = Arc::new(Queue::new(QueueOptions::named("deployment")));
        context.caches.deployments.queue_changes(&queue);
        let (sets, caches) = (queue.clone(), context.caches.clone());
        context.caches.replica_sets.on_change(move |change| set_changed(change, &sets, &caches));
        let (gone, caches) = (queue.clone(), context.caches.clone());
        context.caches.pods.on_change(move |change| pod_changed(change, &gone, &caches));
        let events = context.events.named(COMPONENT);
        Arc::new(Self { context, events, queue })
    }

    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) -> Result<(), Failure> {
        let resync = || {
            for key in self.context.caches.deployments.keys() {
                self.queue.add(key);
            }
        };
        let concurrency = self.context.options.concurrency.deployments;
        drive(&self.queue, concurrency, &shutdown, &resync, |key| self.pass(key)).await;
        Ok(())
    }

    async fn pass(&self, key: ObjectKey) -> Result<Outcome, Failure> {
        let Some(deployment) = self.context.caches.deployments.get(&key) else { return Ok(Outcome::Done) };
        let invalid = |reason: String| Failure::Invalid { object: format!("deployment {key}"), reason };
        let Some(spec) = &deployment.spec else { return Err(invalid("the spec is missing".to_owned())) };
        let selector = Matcher::new(&spec.selector).map_err(invalid)?;
        if selector.selects_all() {
            let message =
                "This deployment is selecting all pods. A non-empty selector is required.".to_owned();
            self.events.record(&*deployment, Severity::Warning, "SelectingAll", message);
            return Ok(Outcome::Done);
        }
        let sets = self.claim(&deployment, &selector).await?;
        let occupied = self.occupied(&sets);
        let view = View {
            deployment: &deployment,
            sets: sets.iter().map(|set| ReplicaSet::clone(set)).collect(),
            occupied: &occupied,
            now: Timestamp::now(),
        };
        let plan = plan::plan(view).map_err(invalid)?;
        let mut current = Deployment::clone(&deployment);
        for action in plan.actions {
            self.execute(&mut current, action).await?;
        }
        if let Some(status) = plan.status {
            self.write_status(&mut current, status).await?;
        }
        Ok(Outcome::after(plan.recheck))
    }

    /// The Deployment's sets: those it controls and those it may adopt; releases those that no longer match.
    async fn claim(
        &self,
        deployment: &Arc<Deployment>,
        selector: &Matcher,
    ) -> Result<Vec<Arc<ReplicaSet>>, Failure> {
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        let cache = &self.context.caches.replica_sets;
        let mut candidates = cache.by_index(SET_BY_CONTROLLER, uid_of(&deployment.metadata));
        candidates.extend(cache.by_index(SET_ORPHAN, namespace));
        let sets: Api<ReplicaSet> = Api::namespaced(self.context.client.clone(), namespace);
        let reference = controller_reference(&**deployment);
        let claimant = Claimant { meta: &deployment.metadata, reference, selector };
        claim(&sets, claimant, candidates, self.may_adopt(deployment)).await
    }

    /// Asks the API server itself whether the Deployment is still there.
    async fn may_adopt(&self, deployment: &Deployment) -> Result<bool, Failure> {
        let key = ObjectKey::of(deployment);
        let live = self.api(&key).get_opt(&key.name).await.map_err(Failure::api("get deployment", &key))?;
        Ok(live.is_some_and(|live| {
            live.metadata.uid == deployment.metadata.uid && !ownership::is_deleting(&live.metadata)
        }))
    }

    /// Uids of the sets that have a pod which is not over.
    fn occupied(&self, sets: &[Arc<ReplicaSet>]) -> HashSet<String> {
        let uids = sets.iter().map(|set| uid_of(&set.metadata));
        uids.filter(|uid| {
            let pods = self.context.caches.pods.by_index(POD_BY_CONTROLLER, uid);
            pods.iter().any(|pod| !pods::is_terminal(pod))
        })
        .map(str::to_owned)
        .collect()
    }

    fn api(&self, key: &ObjectKey) -> Api<Deployment> {
        Api::namespaced(self.context.client.clone(), &key.namespace)
    }

    async fn execute(&self, current: &mut Deployment, action: Action) -> Result<(), Failure> {
        let key = ObjectKey::of(&*current);
        let sets: Api<ReplicaSet> = Api::namespaced(self.context.client.clone(), &key.namespace);
        match action {
            Action::CreateSet(set) => self.create_set(current, &sets, *set).await,
            Action::UpdateSet { set, from } => {
                let name = ObjectKey::of(&*set);
                sets.replace(&name.name, &PostParams::default(), &set)
                    .await
                    .map_err(Failure::api("update replica set", &name))?;
                if let Some(from) = from {
                    self.record_scale(current, &name.name, from, scaling::wanted(&set));
                }
                Ok(())
            }
            Action::DeleteSet { key: set, uid } => {
                let precondition = Preconditions { uid: Some(uid), resource_version: None };
                let parameters = DeleteParams::background().preconditions(precondition);
                let deleted = sets.delete(&set.name, &parameters).await;
                failure::ignore_gone(deleted).map_err(Failure::api("delete replica set", &set))?;
                Ok(())
            }
            Action::Annotate { revision } => {
                let patch = Patch::Merge(plan::annotate_patch(&revision));
                let patched = self.api(&key).patch(&key.name, &PatchParams::default(), &patch).await;
                let patched = patched.map_err(Failure::api("annotate deployment", &key))?;
                current.metadata = patched.metadata;
                Ok(())
            }
        }
    }

    async fn create_set(
        &self,
        current: &mut Deployment,
        sets: &Api<ReplicaSet>,
        set: ReplicaSet,
    ) -> Result<(), Failure> {
        let key = ObjectKey::of(&set);
        match sets.create(&PostParams::default(), &set).await {
            Ok(_) => {
                let replicas = scaling::wanted(&set);
                if replicas > 0 {
                    self.record_scale(current, &key.name, 0, replicas);
                }
                Ok(())
            }
            Err(error) if failure::is_already_exists(&error) => self.collide(current, sets, &set).await,
            Err(error) if failure::is_namespace_terminating(&error) => Ok(()),
            Err(error) => {
                let message =
                    format!("Failed to create new replica set {:?}: {}", key.name, failure::message(&error));
                self.events.record(&*current, Severity::Warning, "ReplicaSetCreateError", message);
                Err(Failure::api("create replica set", &key)(error))
            }
        }
    }

    /// A set of the new name exists: it is ours from a pass that the cache does not show yet, or its name collides; then
    /// the collision count, which goes into the hash, is raised.
    async fn collide(
        &self,
        current: &mut Deployment,
        sets: &Api<ReplicaSet>,
        set: &ReplicaSet,
    ) -> Result<(), Failure> {
        let key = ObjectKey::of(set);
        let live = sets.get_opt(&key.name).await.map_err(Failure::api("get replica set", &key))?;
        let template = |set: &ReplicaSet| set.spec.as_ref().and_then(|spec| spec.template.clone());
        let ours = live.as_ref().is_some_and(|live| {
            is_controlled_by(&live.metadata, uid_of(&current.metadata))
                && matches!(
                    (template(live), template(set)),
                    (Some(left), Some(right)) if revision::same_template(&left, &right)
                )
        });
        if !ours && live.is_some() {
            let mut status = current.status.clone().unwrap_or_default();
            status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
            self.write_status(current, status).await?;
        }
        Err(Failure::Retry {
            operation: "create replica set",
            object: key.to_string(),
            reason: "a replica set of that name exists".to_owned(),
        })
    }

    fn record_scale(&self, deployment: &Deployment, set: &str, from: i32, to: i32) {
        let direction = if to > from { "up" } else { "down" };
        let message = format!("Scaled {direction} replica set {set} from {from} to {to}");
        self.events.record(deployment, Severity::Normal, "ScalingReplicaSet", message);
    }

    async fn write_status(&self, current: &mut Deployment, status: DeploymentStatus) -> Result<(), Failure> {
        let key = ObjectKey::of(&*current);
        current.status = Some(status);
        let written = self.api(&key).replace_status(&key.name, &PostParams::default(), current).await;
        let written =
            failure::ignore_gone(written).map_err(Failure::api("update status of deployment", &key))?;
        if let Some(written) = written {
            *current = written;
        }
        Ok(())
    }
}

/// A set's change concerns its Deployment, old and new; an orphan's concerns every Deployment that may adopt it.
fn set_changed(change: &Change<ReplicaSet>, queue: &Queue<ObjectKey>, caches: &Caches) {
    for set in change.states() {
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        match controller_of(&set.metadata) {
            Some(owner) if owner.kind == Deployment::kind(&()) => {
                queue.add(ObjectKey::new(namespace, &owner.name));
            }
            Some(_) => {}
            None if change.new.is_some() => {
                for deployment in caches.deployments.by_index(DEPLOYMENT_BY_NAMESPACE, namespace) {
                    let selector = deployment.spec.as_ref().map(|spec| Matcher::new(&spec.selector));
                    let labels = set.metadata.labels.as_ref();
                    if selector
                        .is_some_and(|selector| selector.is_ok_and(|selector| selector.matches(labels)))
                    {
                        queue.add(ObjectKey::of(&*deployment));
                    }
                }
            }
            None => {}
        }
    }
}

/// A pod that is over or gone may be the last one that a Recreate rollout waits for.
fn pod_changed(change: &Change<Pod>, queue: &Queue<ObjectKey>, caches: &Caches) {
    let Some(old) = change.old.as_ref() else { return };
    let over = change.new.as_ref().is_none_or(|new| pods::is_terminal(new) && !pods::is_terminal(old));
    if !over {
        return;
    }
    let Some(owner) = controller_of(&old.metadata).filter(|owner| owner.kind == ReplicaSet::kind(&())) else {
        return;
    };
    let namespace = old.metadata.namespace.as_deref().unwrap_or_default();
    let Some(set) = caches.replica_sets.get(&ObjectKey::new(namespace, &owner.name)) else { return };
    let Some(owner) = controller_of(&set.metadata) else { return };
    let key = ObjectKey::new(namespace, &owner.name);
    let recreating = caches
        .deployments
        .get(&key)
        .is_some_and(|deployment| limits::strategy(&deployment) == limits::STRATEGY_RECREATE);
    if recreating {
        queue.add(key);
    }
}
