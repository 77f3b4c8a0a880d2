//! The ReplicaSet controller: keeps as many pods as a set asks for.
//!
//! Input: the caches of ReplicaSets and pods. Output: pods created, adopted, released and deleted, the set's status, and
//! events. Decisions are in `replicaset/plan.rs` and `replicaset/ranking.rs`. After its own creates and deletes the
//! controller changes no pod of that set until the cache shows them, so it never creates too many. Refuses to touch pods
//! that another controller owns.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::Resource;
use kube::api::{DeleteParams, PostParams, Preconditions};
use tokio_util::sync::CancellationToken;

use crate::caches::{POD_BY_CONTROLLER, POD_ORPHAN, SET_BY_CONTROLLER, SET_BY_NAMESPACE};
use crate::claim::{Claimant, claim};
use crate::events::{Recorder, Severity};
use crate::failure::{self, Failure};
use crate::key::ObjectKey;
use crate::options::Context;
use crate::ownership::{self, controller_reference, controller_uid, uid_of};
use crate::pods;
use crate::queue::{Queue, QueueOptions};
use crate::selector::Matcher;
use crate::store::{Change, Store, WriteMark};
use crate::worker::{Outcome, drive};

pub mod plan;
pub mod ranking;
#[cfg(test)]
mod tests;

use plan::Scale;

/// The name under which events come from this controller.
pub const COMPONENT: &str = "replicaset-controller";
/// Pods created or deleted in one pass at most.
pub const BURST_REPLICAS: usize = 500;
/// The first batch of creates; each batch that went well doubles it.
const SLOW_START_BATCH: usize = 1;
/// Requests that one pass has under way.
const WRITES_AT_ONCE: usize = 32;
/// How long a pass waits for the cache to show its writes before it trusts the cache anyway.
const WRITES_TIMEOUT: Duration = Duration::from_secs(300);

/// Own writes of a set that the cache may not show yet.
#[derive(Default)]
struct Pending {
    created: Vec<WriteMark>,
    /// Key and uid of pods that were asked to go.
    deleted: Vec<(ObjectKey, String)>,
    since: Option<Instant>,
}

pub struct Controller {
    context: Context,
    events: Recorder,
    queue: Arc<Queue<ObjectKey>>,
    pending: Mutex<HashMap<ObjectKey, Pending>>,
}

impl Controller {
    /// Makes the controller and hangs it on the caches.
    pub fn new(context: Context) -> Arc<Self> {
        let queue = Arc::new(Queue::new(QueueOptions::named("replicaset")));
        context.caches.replica_sets.queue_changes(&queue);
        let owners = queue.clone();
        let cache = context.caches.replica_sets.clone();
        context.caches.pods.on_change(move |change| pod_changed(change, &owners, &cache));
        let events = context.events.named(COMPONENT);
        Arc::new(Self { context, events, queue, pending: Mutex::new(HashMap::new()) })
    }

    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) -> Result<(), Failure> {
        let resync = || {
            for key in self.context.caches.replica_sets.keys() {
                self.queue.add(key);
            }
        };
        let concurrency = self.context.options.concurrency.replica_sets;
        drive(&self.queue, concurrency, &shutdown, &resync, |key| self.pass(key)).await;
        Ok(())
    }

    async fn pass(&self, key: ObjectKey) -> Result<Outcome, Failure> {
        let Some(set) = self.context.caches.replica_sets.get(&key) else {
            self.pending_mut(|pending| pending.remove(&key));
            return Ok(Outcome::Done);
        };
        let selector = plan::selector(&set)
            .map_err(|reason| Failure::Invalid { object: format!("replica set {key}"), reason })?;
        let settled = self.settled(&key);
        let claimed = self.claim(&set, &selector).await?;
        let scale = if settled && !ownership::is_deleting(&set.metadata) {
            let active: Vec<Arc<Pod>> = claimed.iter().filter(|pod| pods::is_active(pod)).cloned().collect();
            plan::scale(&set, &active, &self.related(&set), Timestamp::now(), BURST_REPLICAS)
        } else {
            Scale::Nothing
        };
        let result = self.execute(&key, &set, &scale).await;
        let failed = result.as_ref().err().map(|failure| (scale.is_growth(), failure.chain()));
        let now = Timestamp::now();
        let status =
            plan::status(&set, &claimed, failed.as_ref().map(|(grow, text)| (*grow, text.as_str())), now);
        let written = self.write_status(&key, &set, status).await;
        result?;
        written?;
        if !settled {
            return Ok(Outcome::After(WRITES_TIMEOUT));
        }
        Ok(Outcome::after(plan::recheck(&set, &claimed, now)))
    }

    /// Whether the cache shows all own writes of the set.
    fn settled(&self, key: &ObjectKey) -> bool {
        let cache = &self.context.caches.pods;
        self.pending_mut(|all| {
            let Some(pending) = all.get_mut(key) else { return true };
            pending.created.retain(|mark| !cache.has_seen(mark));
            pending.deleted.retain(|(pod, uid)| {
                cache
                    .get(pod)
                    .is_some_and(|pod| uid_of(&pod.metadata) == uid && !ownership::is_deleting(&pod.metadata))
            });
            let waiting = !pending.created.is_empty() || !pending.deleted.is_empty();
            let expired = pending.since.is_none_or(|since| since.elapsed() >= WRITES_TIMEOUT);
            if waiting && !expired {
                return false;
            }
            if waiting {
                tracing::warn!(replica_set = %key, "own writes were not seen in time, going on without");
            }
            all.remove(key);
            true
        })
    }

    fn pending_mut<T>(&self, change: impl FnOnce(&mut HashMap<ObjectKey, Pending>) -> T) -> T {
        change(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The set's pods: those it controls and those it may adopt; releases those that no longer match.
    async fn claim(&self, set: &Arc<ReplicaSet>, selector: &Matcher) -> Result<Vec<Arc<Pod>>, Failure> {
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let mut candidates = self.context.caches.pods.by_index(POD_BY_CONTROLLER, uid_of(&set.metadata));
        candidates.extend(self.context.caches.pods.by_index(POD_ORPHAN, namespace));
        let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), namespace);
        let claimant = Claimant { meta: &set.metadata, reference: controller_reference(&**set), selector };
        claim(&pods, claimant, candidates, self.may_adopt(set)).await
    }

    /// Asks the API server itself whether the set is still there: adopting for a deleted set would lose the pod.
    async fn may_adopt(&self, set: &ReplicaSet) -> Result<bool, Failure> {
        let key = ObjectKey::of(set);
        let sets: Api<ReplicaSet> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let live = sets.get_opt(&key.name).await.map_err(Failure::api("get replica set", &key))?;
        Ok(live.is_some_and(|live| {
            live.metadata.uid == set.metadata.uid && !ownership::is_deleting(&live.metadata)
        }))
    }

    /// How many active pods of the set's siblings (the sets of the same Deployment) each node has.
    fn related(&self, set: &ReplicaSet) -> HashMap<String, usize> {
        let siblings = match controller_uid(&set.metadata) {
            Some(owner) => self.context.caches.replica_sets.by_index(SET_BY_CONTROLLER, owner),
            None => Vec::new(),
        };
        let mut uids: Vec<&str> = siblings.iter().map(|sibling| uid_of(&sibling.metadata)).collect();
        if uids.is_empty() {
            uids.push(uid_of(&set.metadata));
        }
        let mut counts = HashMap::new();
        for uid in uids {
            for pod in self.context.caches.pods.by_index(POD_BY_CONTROLLER, uid) {
                if let Some(node) = pods::node_name(&pod).filter(|_| pods::is_active(&pod)) {
                    *counts.entry(node.to_owned()).or_insert(0) += 1;
                }
            }
        }
        counts
    }

    async fn execute(&self, key: &ObjectKey, set: &Arc<ReplicaSet>, scale: &Scale) -> Result<(), Failure> {
        match scale {
            Scale::Nothing => Ok(()),
            Scale::Create(count) => self.create(key, set, *count).await,
            Scale::Delete(pods) => self.delete(key, set, pods).await,
        }
    }

    /// Creates pods in batches of 1, 2, 4, …, so that a template that the API server refuses is refused once.
    async fn create(&self, key: &ObjectKey, set: &Arc<ReplicaSet>, count: usize) -> Result<(), Failure> {
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let template = plan::pod(set).ok_or_else(|| Failure::Invalid {
            object: format!("replica set {key}"),
            reason: "the pod template is missing".to_owned(),
        })?;
        let mut left = count;
        let mut batch = SLOW_START_BATCH;
        while left > 0 {
            let size = batch.min(left);
            let parameters = PostParams::default();
            let creates: Vec<_> = (0..size).map(|_| api.create(&parameters, &template)).collect();
            let mut results = stream::iter(creates).buffer_unordered(WRITES_AT_ONCE);
            let mut failures = Vec::new();
            while let Some(result) = results.next().await {
                match result {
                    Ok(pod) => self.created(key, set, &pod),
                    Err(error) if failure::is_namespace_terminating(&error) => return Ok(()),
                    Err(error) => failures.push(self.create_failed(key, set, error)),
                }
            }
            if !failures.is_empty() {
                return Err(several(key, failures, size));
            }
            left -= size;
            batch *= 2;
        }
        Ok(())
    }

    fn created(&self, key: &ObjectKey, set: &Arc<ReplicaSet>, pod: &Pod) {
        let mark = self.context.caches.pods.mark(pod.metadata.resource_version.as_deref());
        self.pending_mut(|all| {
            let pending = all.entry(key.clone()).or_default();
            pending.created.push(mark);
            pending.since = Some(Instant::now());
        });
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        self.events.record(&**set, Severity::Normal, "SuccessfulCreate", format!("Created pod: {name}"));
    }

    fn create_failed(&self, key: &ObjectKey, set: &Arc<ReplicaSet>, error: kube::Error) -> Failure {
        let message = format!("Error creating: {}", failure::message(&error));
        self.events.record(&**set, Severity::Warning, "FailedCreate", message);
        Failure::api("create pod for", key)(error)
    }

    async fn delete(&self, key: &ObjectKey, set: &Arc<ReplicaSet>, pods: &[Arc<Pod>]) -> Result<(), Failure> {
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let deletes: Vec<_> = pods.iter().map(|pod| delete_pod(api.clone(), pod.clone())).collect();
        let mut results = stream::iter(deletes).buffer_unordered(WRITES_AT_ONCE);
        let mut failures = Vec::new();
        while let Some((pod, result)) = results.next().await {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            match result {
                Ok(_) => {
                    self.note_deleted(key, &pod);
                    let message = format!("Deleted pod: {name}");
                    self.events.record(&**set, Severity::Normal, "SuccessfulDelete", message);
                }
                // Gone already, or another pod has the name now: the cache will show it.
                Err(error) if failure::is_not_found(&error) || failure::is_conflict(&error) => {
                    self.note_deleted(key, &pod);
                }
                Err(error) => {
                    let message = format!("Error deleting: {}", failure::message(&error));
                    self.events.record(&**set, Severity::Warning, "FailedDelete", message);
                    failures.push(Failure::api("delete pod", &ObjectKey::new(&key.namespace, name))(error));
                }
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(several(key, failures, pods.len())) }
    }

    fn note_deleted(&self, key: &ObjectKey, pod: &Pod) {
        let entry = (ObjectKey::of(pod), uid_of(&pod.metadata).to_owned());
        self.pending_mut(|all| {
            let pending = all.entry(key.clone()).or_default();
            pending.deleted.push(entry);
            pending.since = Some(Instant::now());
        });
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        set: &Arc<ReplicaSet>,
        status: k8s_openapi::api::apps::v1::ReplicaSetStatus,
    ) -> Result<(), Failure> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let sets: Api<ReplicaSet> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let mut changed = ReplicaSet::clone(set);
        changed.status = Some(status);
        let written = sets.replace_status(&key.name, &PostParams::default(), &changed).await;
        failure::ignore_gone(written).map_err(Failure::api("update status of replica set", key))?;
        Ok(())
    }
}

/// A pod's change concerns its controller, old and new; an orphan's concerns every set that may adopt it.
fn pod_changed(change: &Change<Pod>, queue: &Queue<ObjectKey>, sets: &Store<ReplicaSet>) {
    for pod in change.states() {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        match ownership::controller_of(&pod.metadata) {
            Some(owner) if owner.kind == ReplicaSet::kind(&()) => {
                queue.add(ObjectKey::new(namespace, &owner.name));
            }
            Some(_) => {}
            None if change.new.is_some() => {
                for set in sets_of_namespace(sets, namespace) {
                    let labels = pod.metadata.labels.as_ref();
                    if plan::selector(&set).is_ok_and(|selector| selector.matches(labels)) {
                        queue.add(ObjectKey::of(&*set));
                    }
                }
            }
            None => {}
        }
    }
}

fn sets_of_namespace(sets: &Store<ReplicaSet>, namespace: &str) -> Vec<Arc<ReplicaSet>> {
    sets.by_index(SET_BY_NAMESPACE, namespace)
}

/// Deletes exactly this pod, not another one of its name.
async fn delete_pod(api: Api<Pod>, pod: Arc<Pod>) -> (Arc<Pod>, Result<(), kube::Error>) {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let precondition = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
    let parameters = DeleteParams::default().preconditions(precondition);
    let result = api.delete(&name, &parameters).await.map(drop);
    (pod, result)
}

fn several(key: &ObjectKey, mut failures: Vec<Failure>, total: usize) -> Failure {
    let failed = failures.len();
    let first = failures.swap_remove(0);
    if failed == 1 {
        return first;
    }
    Failure::Several { object: format!("replica set {key}"), failed, total, first: Box::new(first) }
}
