//! The scheduler: finds a node for every pod that has none.
//!
//! Input: the caches of pods and nodes. Output: bindings, the condition PodScheduled, and events, all with the scheduler's
//! identity. One task owns the picture of the cluster (`scheduler/cluster.rs`) and the waiting pods
//! (`scheduler/queue.rs`); decisions are in `scheduler/plan.rs`, on `filter.rs` and `score.rs`. A pod counts on its node
//! from the decision on, while the binding is written beside the next decisions. Waiting pods are woken by relevant
//! changes, never by polling. Refuses pods that name another scheduler or carry scheduling gates. No preemption.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::events::{Recorder, Severity};
use crate::failure::{self, Failure};
use crate::key::ObjectKey;
use crate::options::Context;
use crate::ownership::{is_deleting, uid_of};
use crate::pods::{self, CONDITION_SCHEDULED};
use crate::queue::{Queue, QueueOptions};

pub mod cluster;
pub mod filter;
pub mod plan;
pub mod queue;
pub mod resources;
pub mod score;
#[cfg(test)]
mod tests;

use cluster::{Cluster, NodeInfo};
use filter::Check;
use plan::Decision;
use queue::{Change, Waiting};

/// The name that pods ask for, and under which events come.
pub const SCHEDULER_NAME: &str = "default-scheduler";

/// What changed in the caches.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Changed {
    Pod(ObjectKey),
    Node(String),
}

impl fmt::Display for Changed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => write!(formatter, "pod {key}"),
            Self::Node(name) => write!(formatter, "node {name}"),
        }
    }
}

/// What a write beside the loop came to.
enum Written {
    Bound { pod: Arc<Pod>, node: String, result: Result<(), kube::Error> },
    Marked { pod: Arc<Pod>, result: Result<(), kube::Error> },
}

type Writes = FuturesUnordered<Pin<Box<dyn Future<Output = Written> + Send>>>;

/// What the one task owns.
#[derive(Default)]
struct State {
    cluster: Cluster,
    waiting: Waiting,
    decisions: u64,
}

pub struct Scheduler {
    context: Context,
    events: Recorder,
    changes: Arc<Queue<Changed>>,
}

impl Scheduler {
    /// Makes the scheduler and hangs it on the caches.
    pub fn new(context: Context) -> Arc<Self> {
        let changes = Arc::new(Queue::new(QueueOptions::named("scheduler")));
        let pods = changes.clone();
        context.caches.pods.on_change(move |change| {
            if let Some(pod) = change.latest() {
                pods.add(Changed::Pod(ObjectKey::of(&**pod)));
            }
        });
        let nodes = changes.clone();
        context.caches.nodes.on_change(move |change| {
            if let Some(node) = change.latest() {
                nodes.add(Changed::Node(node.metadata.name.clone().unwrap_or_default()));
            }
        });
        let events = context.events.named(SCHEDULER_NAME);
        Arc::new(Self { context, events, changes })
    }

    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) -> Result<(), Failure> {
        let mut state = State::default();
        let mut writes: Writes = FuturesUnordered::new();
        self.changes.restart();
        self.add_all();
        let limit = self.context.options.concurrency.bindings;
        loop {
            self.take_changes(&mut state);
            let now = Instant::now();
            if writes.len() < limit
                && let Some(pod) = state.waiting.pop(now)
            {
                self.decide(&mut state, &mut writes, pod);
                continue;
            }
            let timer = state.waiting.deadline().filter(|_| writes.len() < limit);
            tokio::select! {
                // Cancel-safe: a token stays cancelled.
                () = shutdown.cancelled() => return Ok(()),
                // Cancel-safe: a finished write leaves the set only in the poll that returns it.
                Some(written) = writes.next(), if !writes.is_empty() => self.settle(&mut state, written),
                // Cancel-safe: see `Queue::next`.
                changed = self.changes.next() => {
                    self.take_change(&mut state, &changed);
                    self.changes.done(&changed);
                }
                // Cancel-safe: nothing is lost with a timer.
                () = sleep_until(timer) => {}
            }
        }
    }

    fn add_all(&self) {
        for name in self.context.caches.nodes.keys() {
            self.changes.add(Changed::Node(name.name));
        }
        for key in self.context.caches.pods.keys() {
            self.changes.add(Changed::Pod(key));
        }
    }

    /// Brings the picture up to date before a decision.
    fn take_changes(&self, state: &mut State) {
        while let Some(changed) = self.changes.try_next() {
            self.take_change(state, &changed);
            self.changes.done(&changed);
        }
        if self.changes.take_overflow() {
            tracing::warn!("the scheduler's queue was full, looking at every pod and node again");
            self.add_all();
        }
    }

    fn take_change(&self, state: &mut State, changed: &Changed) {
        match changed {
            Changed::Node(name) => {
                let node = self.context.caches.nodes.get(&ObjectKey::cluster(name));
                state.take_node(name, node.as_deref(), Instant::now());
            }
            Changed::Pod(key) => {
                state.take_pod(key, self.context.caches.pods.get(key), Instant::now());
            }
        }
    }

    /// Decides about one pod and starts the write that follows.
    fn decide(&self, state: &mut State, writes: &mut Writes, pod: Arc<Pod>) {
        state.decisions += 1;
        let key = ObjectKey::of(&*pod);
        match plan::plan(&pod, &state.cluster, state.decisions) {
            Decision::Bind(node) => {
                state.cluster.assume(&pod, &node);
                let api = self.api(&key);
                writes.push(Box::pin(async move {
                    let result = bind(&api, &pod, &node).await;
                    Written::Bound { pod, node, result }
                }));
            }
            Decision::Unschedulable { message, checks } => {
                state.waiting.park(&key, checks, Instant::now());
                self.events.record(&*pod, Severity::Warning, "FailedScheduling", message.clone());
                if says(&pod, &message) {
                    return;
                }
                let api = self.api(&key);
                writes.push(Box::pin(async move {
                    let result = mark(&api, &pod, &message).await;
                    Written::Marked { pod, result }
                }));
            }
        }
    }

    fn settle(&self, state: &mut State, written: Written) {
        match written {
            Written::Bound { pod, node, result: Ok(()) } => {
                let key = ObjectKey::of(&*pod);
                if state.waiting.holds(&key, uid_of(&pod.metadata)) {
                    state.waiting.remove(&key);
                }
                let message = format!("Successfully assigned {key} to {node}");
                self.events.record(&*pod, Severity::Normal, "Scheduled", message);
            }
            Written::Bound { pod, node, result: Err(error) } => self.unbind(state, &pod, &node, &error),
            Written::Marked { result: Ok(()), .. } => {}
            Written::Marked { pod, result: Err(error) } => {
                let pod = ObjectKey::of(&*pod);
                tracing::debug!(%pod, error = failure::chain(&error), "condition not written");
            }
        }
    }

    /// Takes a pod back whose binding was refused; it is tried again unless it is gone.
    fn unbind(&self, state: &mut State, pod: &Pod, node: &str, error: &kube::Error) {
        let key = ObjectKey::of(pod);
        let now = Instant::now();
        let uid = uid_of(&pod.metadata);
        if state.cluster.forget(&key, uid) {
            state.waiting.wake(&freed(), now);
        }
        // A younger pod of the same name waits for itself.
        if state.waiting.holds(&key, uid) {
            state.waiting.fail(&key, now);
        }
        tracing::warn!(pod = %key, node, error = failure::chain(error), "binding failed");
        let message = format!("binding rejected: {}", failure::message(error));
        self.events.record(pod, Severity::Warning, "FailedScheduling", message);
        // What the cache shows by now decides, be it a new pod or one that somebody else bound.
        self.changes.add(Changed::Pod(key));
    }

    fn api(&self, key: &ObjectKey) -> Api<Pod> {
        Api::namespaced(self.context.client.clone(), &key.namespace)
    }
}

impl State {
    /// Takes over a node's state and wakes the pods that it may help.
    fn take_node(&mut self, name: &str, node: Option<&Node>, now: Instant) {
        let Some(node) = node else { return self.cluster.remove_node(name) };
        let before = self.cluster.node(name).cloned();
        self.cluster.set_node(node);
        let Some(after) = self.cluster.node(name) else { return };
        let change = match before {
            None => Change::Node,
            Some(before) => Change::Checks(differences(&before, after)),
        };
        if change != Change::Checks(BTreeSet::new()) {
            self.waiting.wake(&change, now);
        }
    }

    /// Takes over a pod's state: it waits, it stands on a node, or it is gone.
    fn take_pod(&mut self, key: &ObjectKey, pod: Option<Arc<Pod>>, now: Instant) {
        let Some(pod) = pod else {
            self.waiting.remove(key);
            if self.cluster.remove_pod(key) {
                self.waiting.wake(&freed(), now);
            }
            return;
        };
        let uid = uid_of(&pod.metadata);
        let was_placed = self.cluster.is_placed(key, uid);
        self.cluster.set_pod(&pod);
        let is_placed = self.cluster.is_placed(key, uid);
        if was_placed && !is_placed {
            self.waiting.wake(&freed(), now);
        }
        let has_node = pods::node_name(&pod).is_some();
        if has_node || pods::is_terminal(&pod) || is_deleting(&pod.metadata) || !is_ours(&pod) {
            self.waiting.remove(key);
        } else {
            // An assumed pod is in hand; its new state is taken over for the case that its binding fails.
            self.waiting.set(pod, now);
        }
    }
}

/// Room on a node, or a port of it, is free again.
fn freed() -> Change {
    Change::Checks(BTreeSet::from([Check::Resources, Check::Ports]))
}

/// The checks that a node's change may turn.
fn differences(before: &NodeInfo, after: &NodeInfo) -> BTreeSet<Check> {
    let mut checks = BTreeSet::new();
    if before.unschedulable != after.unschedulable {
        checks.insert(Check::Unschedulable);
    }
    if before.taints != after.taints {
        checks.insert(Check::Taints);
    }
    if before.labels != after.labels {
        checks.insert(Check::Affinity);
    }
    if before.allocatable != after.allocatable {
        checks.insert(Check::Resources);
    }
    checks
}

/// Whether the pod is this scheduler's to place, now.
fn is_ours(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let named = spec.scheduler_name.as_deref().filter(|name| !name.is_empty());
    let gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
    named.is_none_or(|name| name == SCHEDULER_NAME) && !gated
}

/// Whether the pod's condition says already that it cannot be scheduled, in these words.
fn says(pod: &Pod, message: &str) -> bool {
    pods::condition(pod, CONDITION_SCHEDULED).is_some_and(|condition| {
        condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
            && condition.message.as_deref() == Some(message)
    })
}

async fn bind(api: &Api<Pod>, pod: &Pod, node: &str) -> Result<(), kube::Error> {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let binding = Binding {
        metadata: ObjectMeta {
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let answer: Value = api.create_subresource("binding", &name, &PostParams::default(), &binding).await?;
    tracing::trace!(pod = name, node, %answer, "bound");
    Ok(())
}

/// Writes why the pod waits into its conditions.
async fn mark(api: &Api<Pod>, pod: &Pod, message: &str) -> Result<(), kube::Error> {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let now = Time(Timestamp::now());
    let former = pods::condition(pod, CONDITION_SCHEDULED).filter(|former| former.status == "False");
    let since = former.and_then(|former| former.last_transition_time.clone()).unwrap_or(now);
    let patch = json!({
        "metadata": { "uid": pod.metadata.uid },
        "status": { "conditions": [{
            "type": CONDITION_SCHEDULED,
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastTransitionTime": since,
        }] },
    });
    api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(&patch)).await.map(drop)
}

/// Waits until a moment, or for ever where there is none.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
