//! The pod garbage collector: removes pods that no node will ever finish.
//!
//! Input: the caches of pods and nodes. Output: pods marked Failed and deleted at once. Three cases, decided in
//! `pod_gc/plan.rs`: pods of nodes that are gone (after a quarantine, and after asking the API server itself), pods that
//! are to be deleted and were never bound, and the oldest pods that are over where there are too many. Refuses to delete
//! pods of nodes that exist.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::caches::{Caches, POD_BY_NODE};
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

/// How long a node may be missing from the cache before its pods are looked at.
pub const QUARANTINE: Duration = Duration::from_secs(40);
/// How often the pods that are over are counted while they come and go.
const COUNT_PERIOD: Duration = Duration::from_secs(20);

/// What a pass is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    /// The pods of a node that may be gone.
    Node(String),
    /// A pod that was never bound and is to be deleted.
    Unbound(ObjectKey),
    /// All pods that are over.
    Terminated,
}

impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(formatter, "pods of node {name}"),
            Self::Unbound(key) => write!(formatter, "unbound pod {key}"),
            Self::Terminated => formatter.write_str("terminated pods"),
        }
    }
}

pub struct Controller {
    context: Context,
    queue: Arc<Queue<Subject>>,
}

impl Controller {
    /// Makes the controller and hangs it on the caches.
    pub fn new(context: Context) -> Arc<Self> {
        let queue = Arc::new(Queue::new(QueueOptions::named("pod-gc")));
        let nodes = queue.clone();
        context.caches.nodes.on_change(move |change| {
            if let (Some(node), None) = (&change.old, &change.new) {
                let name = node.metadata.name.clone().unwrap_or_default();
                nodes.add_after(Subject::Node(name), QUARANTINE);
            }
        });
        let (pods, caches) = (queue.clone(), context.caches.clone());
        context.caches.pods.on_change(move |change| pod_changed(change, &pods, &caches));
        Arc::new(Self { context, queue })
    }

    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) -> Result<(), Failure> {
        let resync = || {
            self.queue.add(Subject::Terminated);
            for pod in self.context.caches.pods.all() {
                look(&pod, &self.queue, &self.context.caches);
            }
        };
        let concurrency = self.context.options.concurrency.pod_garbage;
        drive(&self.queue, concurrency, &shutdown, &resync, |subject| self.pass(subject)).await;
        Ok(())
    }

    async fn pass(&self, subject: Subject) -> Result<Outcome, Failure> {
        match subject {
            Subject::Node(name) => self.collect_node(&name).await,
            Subject::Unbound(key) => {
                if let Some(pod) =
                    self.context.caches.pods.get(&key).filter(|pod| plan::is_unbound_leftover(pod))
                {
                    self.delete(&pod).await?;
                }
                Ok(Outcome::Done)
            }
            Subject::Terminated => {
                let threshold = self.context.options.terminated_pod_threshold;
                for pod in plan::surplus(self.context.caches.pods.all(), threshold) {
                    self.delete(&pod).await?;
                }
                Ok(Outcome::Done)
            }
        }
    }

    async fn collect_node(&self, name: &str) -> Result<Outcome, Failure> {
        let caches = &self.context.caches;
        let pods = caches.pods.by_index(POD_BY_NODE, name);
        if pods.is_empty() || caches.nodes.contains(&ObjectKey::cluster(name)) {
            return Ok(Outcome::Done);
        }
        let nodes: Api<Node> = Api::all(self.context.client.clone());
        if nodes.get_opt(name).await.map_err(Failure::api("get node", name))?.is_some() {
            return Ok(Outcome::Done);
        }
        for pod in pods {
            self.mark_orphaned(&pod).await?;
            self.delete(&pod).await?;
        }
        Ok(Outcome::Done)
    }

    /// Says that the pod failed and why: nobody else can any more.
    async fn mark_orphaned(&self, pod: &Pod) -> Result<(), Failure> {
        if pods::is_terminal(pod) {
            return Ok(());
        }
        let key = ObjectKey::of(pod);
        let patch = json!({
            "metadata": { "uid": pod.metadata.uid },
            "status": {
                "phase": pods::PHASE_FAILED,
                "conditions": [pods::disruption(
                    "DeletionByPodGC",
                    "PodGC: node no longer exists",
                    Timestamp::now(),
                )],
            },
        });
        let result =
            self.api(&key).patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(&patch)).await;
        failure::ignore_replaced(result).map_err(Failure::api("mark pod failed", &key))?;
        Ok(())
    }

    async fn delete(&self, pod: &Pod) -> Result<(), Failure> {
        let key = ObjectKey::of(pod);
        let uid = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let parameters = DeleteParams::default().grace_period(0).preconditions(uid);
        let deleted = self.api(&key).delete(&key.name, &parameters).await;
        let deleted = failure::ignore_replaced(deleted).map_err(Failure::api("delete pod", &key))?;
        if deleted.is_some() {
            tracing::info!(pod = %key, "pod collected");
        }
        Ok(())
    }

    fn api(&self, key: &ObjectKey) -> Api<Pod> {
        Api::namespaced(self.context.client.clone(), &key.namespace)
    }
}

fn pod_changed(change: &Change<Pod>, queue: &Queue<Subject>, caches: &Caches) {
    if let Some(pod) = &change.new {
        look(pod, queue, caches);
        let was_over = change.old.as_ref().is_some_and(|old| pods::is_terminal(old));
        if pods::is_terminal(pod) && !was_over {
            queue.add_after(Subject::Terminated, COUNT_PERIOD);
        }
    }
}

/// Adds what one pod may need.
fn look(pod: &Pod, queue: &Queue<Subject>, caches: &Caches) {
    if plan::is_unbound_leftover(pod) {
        queue.add(Subject::Unbound(ObjectKey::of(pod)));
    }
    if let Some(node) = pods::node_name(pod)
        && !caches.nodes.contains(&ObjectKey::cluster(node))
    {
        queue.add_after(Subject::Node(node.to_owned()), QUARANTINE);
    }
}
