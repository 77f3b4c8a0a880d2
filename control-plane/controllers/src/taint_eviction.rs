//! The taint eviction controller: removes pods from nodes whose taints they do not tolerate.
//!
//! Input: the caches of nodes and pods. Output: pods marked as disrupted and deleted, and events. When a pod leaves is
//! decided in `taint_eviction/plan.rs`; the time counts from when the taint was added, so a restart does not lengthen it.
//! Refuses to set taints: `node_lifecycle` and users do.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::caches::{Caches, POD_BY_NODE};
use crate::events::{Recorder, Severity};
use crate::failure::{self, Failure};
use crate::key::ObjectKey;
use crate::options::Context;
use crate::pods;
use crate::queue::{Queue, QueueOptions};
use crate::store::Change;
use crate::worker::{Outcome, drive};

pub mod plan;
#[cfg(test)]
mod tests;

use plan::Verdict;

/// The name under which events come from this controller.
pub const COMPONENT: &str = "taint-eviction-controller";

pub struct Controller {
    context: Context,
    events: Recorder,
    queue: Arc<Queue<ObjectKey>>,
}

impl Controller {
    /// Makes the controller and hangs it on the caches.
    pub fn new(context: Context) -> Arc<Self> {
        let queue = Arc::new(Queue::new(QueueOptions::named("taint-eviction")));
        let (nodes, caches) = (queue.clone(), context.caches.clone());
        context.caches.nodes.on_change(move |change| node_changed(change, &nodes, &caches));
        let (pods, caches) = (queue.clone(), context.caches.clone());
        context.caches.pods.on_change(move |change| pod_changed(change, &pods, &caches));
        let events = context.events.named(COMPONENT);
        Arc::new(Self { context, events, queue })
    }

    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) -> Result<(), Failure> {
        let resync = || {
            for node in self.context.caches.nodes.all() {
                add_pods(&node, &self.queue, &self.context.caches);
            }
        };
        let concurrency = self.context.options.concurrency.evictions;
        drive(&self.queue, concurrency, &shutdown, &resync, |key| self.pass(key)).await;
        Ok(())
    }

    async fn pass(&self, key: ObjectKey) -> Result<Outcome, Failure> {
        let caches = &self.context.caches;
        let Some(pod) = caches.pods.get(&key) else { return Ok(Outcome::Done) };
        let node = pods::node_name(&pod).and_then(|name| caches.nodes.get(&ObjectKey::cluster(name)));
        let Some(node) = node else { return Ok(Outcome::Done) };
        let default = self.context.options.pod_eviction_toleration;
        match plan::plan(&pod, taints(&node), default, Timestamp::now()) {
            Verdict::Stays => Ok(Outcome::Done),
            Verdict::LeavesAfter(delay) => Ok(Outcome::After(delay)),
            Verdict::LeavesNow => self.evict(&key, &pod).await,
        }
    }

    async fn evict(&self, key: &ObjectKey, pod: &Arc<Pod>) -> Result<Outcome, Failure> {
        let message = format!("Marking for deletion Pod {key}");
        self.events.record(&**pod, Severity::Normal, "TaintManagerEviction", message);
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let patch = json!({
            "metadata": { "uid": pod.metadata.uid },
            "status": { "conditions": [pods::disruption(
                "DeletionByTaintManager",
                "Taint manager: deleting due to NoExecute taint",
                Timestamp::now(),
            )] },
        });
        let marked = api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(&patch)).await;
        failure::ignore_replaced(marked).map_err(Failure::api("mark pod for eviction", key))?;
        let uid = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let deleted = api.delete(&key.name, &DeleteParams::default().preconditions(uid)).await;
        failure::ignore_replaced(deleted).map_err(Failure::api("evict pod", key))?;
        Ok(Outcome::Done)
    }
}

fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

fn node_changed(change: &Change<Node>, queue: &Queue<ObjectKey>, caches: &Caches) {
    let Some(node) = &change.new else { return };
    let before = change.old.as_ref().map(|old| plan::evicting(taints(old))).unwrap_or_default();
    if plan::evicting(taints(node)) != before {
        add_pods(node, queue, caches);
    }
}

fn add_pods(node: &Node, queue: &Queue<ObjectKey>, caches: &Caches) {
    if plan::evicting(taints(node)).is_empty() {
        return;
    }
    let name = node.metadata.name.as_deref().unwrap_or_default();
    for pod in caches.pods.by_index(POD_BY_NODE, name) {
        queue.add(ObjectKey::of(&*pod));
    }
}

fn pod_changed(change: &Change<Pod>, queue: &Queue<ObjectKey>, caches: &Caches) {
    let Some(pod) = &change.new else { return };
    let asks = |pod: &Pod| pod.spec.as_ref().map(|spec| (spec.node_name.clone(), spec.tolerations.clone()));
    if change.old.as_ref().is_some_and(|old| asks(old) == asks(pod)) {
        return;
    }
    let node = pods::node_name(pod).and_then(|name| caches.nodes.get(&ObjectKey::cluster(name)));
    if node.is_some_and(|node| !plan::evicting(taints(&node)).is_empty()) {
        queue.add(ObjectKey::of(&**pod));
    }
}
