//! The node lifecycle controller: notices silent nodes and keeps pods away from unhealthy ones.
//!
//! Input: the caches of nodes, of their Leases and of pods. Output: node conditions (Unknown for silent nodes), taints,
//! pods marked not ready, and events. Decisions are in `node_lifecycle/plan.rs`. What a node's clock says does not matter:
//! a node was heard when its Lease or its status changed, by this controller's own clock. Nothing is polled: each node is
//! looked at when it changes and when its silence would become too long. Evictions by taint are `taint_eviction`'s.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::caches::POD_BY_NODE;
use crate::events::{Recorder, Severity};
use crate::failure::{self, Failure};
use crate::key::ObjectKey;
use crate::options::Context;
use crate::ownership::is_deleting;
use crate::pods;
use crate::queue::{Queue, QueueOptions};
use crate::store::Change;
use crate::taints;
use crate::worker::{Outcome, drive};

pub mod plan;
#[cfg(test)]
mod tests;

use plan::{Heard, Patience, Plan, View, Zone};

/// The name under which events come from this controller.
pub const COMPONENT: &str = "node-controller";

/// What was last heard of a node.
#[derive(Clone, Debug)]
struct Voice {
    at: Timestamp,
    renewed: Option<MicroTime>,
    heartbeat: Option<Time>,
}

#[derive(Default)]
struct Memory {
    voices: HashMap<String, Voice>,
    /// When a node of each zone was evicted last.
    evictions: HashMap<String, Instant>,
}

pub struct Controller {
    context: Context,
    events: Recorder,
    queue: Arc<Queue<ObjectKey>>,
    memory: Arc<Mutex<Memory>>,
}

impl Controller {
    /// Makes the controller and hangs it on the caches.
    pub fn new(context: Context) -> Arc<Self> {
        let queue = Arc::new(Queue::new(QueueOptions::named("node-lifecycle")));
        let memory = Arc::new(Mutex::new(Memory::default()));
        let events = context.events.named(COMPONENT);
        let (nodes, heard, recorder) = (queue.clone(), memory.clone(), events.clone());
        context.caches.nodes.on_change(move |change| node_changed(change, &nodes, &heard, &recorder));
        let heard = memory.clone();
        context.caches.leases.on_change(move |change| lease_changed(change, &heard));
        let (pods, caches) = (queue.clone(), context.caches.clone());
        context.caches.pods.on_change(move |change| {
            // A pod that claims to be ready on a node that is not has to be marked.
            let Some(pod) = change.new.as_ref().filter(|pod| pods::is_ready(pod)) else { return };
            let Some(key) = pods::node_name(pod).map(ObjectKey::cluster) else { return };
            let node = caches.nodes.get(&key);
            if node.is_some_and(|node| plan::ready_status(&node).is_some_and(|status| status == "Unknown")) {
                pods.add(key);
            }
        });
        Arc::new(Self { context, events, queue, memory })
    }

    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) -> Result<(), Failure> {
        let resync = || {
            for key in self.context.caches.nodes.keys() {
                self.queue.add(key);
            }
        };
        resync();
        let concurrency = self.context.options.concurrency.nodes;
        drive(&self.queue, concurrency, &shutdown, &resync, |key| self.pass(key)).await;
        Ok(())
    }

    async fn pass(&self, key: ObjectKey) -> Result<Outcome, Failure> {
        let Some(node) = self.context.caches.nodes.get(&key) else { return Ok(Outcome::Done) };
        if is_deleting(&node.metadata) {
            return Ok(Outcome::Done);
        }
        let now = Timestamp::now();
        let options = &self.context.options;
        let view = View {
            node: &node,
            heard: Heard { at: self.heard(&key.name, now) },
            patience: Patience {
                silence: options.node_monitor_grace_period,
                startup: options.node_startup_grace_period,
                recheck: options.node_monitor_period,
            },
            may_evict: false,
            now,
        };
        let mut plan = plan::plan(&view);
        if plan.unready && self.may_evict(&node) {
            plan = plan::plan(&View { may_evict: true, ..view });
        }
        self.execute(&key, &node, &plan).await?;
        Ok(Outcome::after(plan.recheck))
    }

    fn heard(&self, name: &str, now: Timestamp) -> Timestamp {
        let mut memory = lock(&self.memory);
        let fresh = Voice { at: now, renewed: None, heartbeat: None };
        memory.voices.entry(name.to_owned()).or_insert(fresh).at
    }

    /// Whether the zone's pace allows another node to lose its pods now.
    fn may_evict(&self, node: &Node) -> bool {
        let mut zones: HashMap<String, Zone> = HashMap::new();
        for other in self.context.caches.nodes.all() {
            let zone = zones.entry(zone_of(&other)).or_default();
            match plan::ready_status(&other) {
                Some("True") => zone.ready += 1,
                _ => zone.unready += 1,
            }
        }
        let name = zone_of(node);
        let all_dead = zones.values().all(|zone| zone.is_dead());
        let zone = zones.get(&name).copied().unwrap_or_default();
        let Some(pause) = plan::eviction_pause(zone, all_dead) else { return false };
        lock(&self.memory).evictions.get(&name).is_none_or(|last| last.elapsed() >= pause)
    }

    async fn execute(&self, key: &ObjectKey, node: &Arc<Node>, plan: &Plan) -> Result<(), Failure> {
        let mut version = node.metadata.resource_version.clone();
        if let Some(conditions) = &plan.conditions {
            let Some(written) = self.write_conditions(key, node, conditions).await? else { return Ok(()) };
            version = written.metadata.resource_version;
        }
        if let Some(taints) = &plan.taints {
            self.write_taints(key, version, taints).await?;
            if plan.evicts {
                lock(&self.memory).evictions.insert(zone_of(node), Instant::now());
            }
        }
        if plan.unready {
            self.mark_pods(key).await?;
        }
        Ok(())
    }

    /// The node as it is then; nothing where it is gone.
    async fn write_conditions(
        &self,
        key: &ObjectKey,
        node: &Node,
        conditions: &[k8s_openapi::api::core::v1::NodeCondition],
    ) -> Result<Option<Node>, Failure> {
        let patch =
            json!({ "metadata": { "uid": node.metadata.uid }, "status": { "conditions": conditions } });
        let result =
            self.api().patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(&patch)).await;
        failure::ignore_replaced(result).map_err(Failure::api("update status of node", key))
    }

    /// Replaces the whole list, so the version that it was computed from is named: a taint that somebody else has set
    /// meanwhile makes a conflict, and the next pass sees it.
    async fn write_taints(
        &self,
        key: &ObjectKey,
        version: Option<String>,
        taints: &[k8s_openapi::api::core::v1::Taint],
    ) -> Result<(), Failure> {
        let patch = json!({ "metadata": { "resourceVersion": version }, "spec": { "taints": taints } });
        let result = self.api().patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        failure::ignore_gone(result).map(drop).map_err(Failure::api("update taints of node", key))
    }

    /// Takes the readiness of the node's pods away, so that no Service sends anybody there.
    async fn mark_pods(&self, key: &ObjectKey) -> Result<(), Failure> {
        for pod in self.context.caches.pods.by_index(POD_BY_NODE, &key.name) {
            if pods::is_ready(&pod) {
                self.mark_pod(&pod).await?;
            }
        }
        Ok(())
    }

    async fn mark_pod(&self, pod: &Pod) -> Result<(), Failure> {
        let key = ObjectKey::of(pod);
        let patch = json!({
            "metadata": { "uid": pod.metadata.uid },
            "status": { "conditions": [{
                "type": pods::CONDITION_READY,
                "status": "False",
                "lastTransitionTime": Time(Timestamp::now()),
            }] },
        });
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let result = api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(&patch)).await;
        failure::ignore_replaced(result).map_err(Failure::api("mark pod not ready", &key))?;
        self.events.record(pod, Severity::Warning, "NodeNotReady", "Node is not ready".to_owned());
        Ok(())
    }

    fn api(&self) -> Api<Node> {
        Api::all(self.context.client.clone())
    }
}

fn lock(memory: &Mutex<Memory>) -> std::sync::MutexGuard<'_, Memory> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

fn zone_of(node: &Node) -> String {
    taints::zone(node).unwrap_or_default().to_owned()
}

fn heartbeat(node: &Node) -> Option<Time> {
    let conditions = node.status.as_ref()?.conditions.as_deref()?;
    plan::find(conditions, "Ready")?.last_heartbeat_time.clone()
}

/// A node's change is a sign of life where its heartbeat moved, and always a reason to look.
fn node_changed(change: &Change<Node>, queue: &Queue<ObjectKey>, memory: &Mutex<Memory>, events: &Recorder) {
    let Some(node) = change.latest() else { return };
    let key = ObjectKey::of(&**node);
    if change.new.is_none() {
        lock(memory).voices.remove(&key.name);
        let message = format!("Node {key} event: Removing Node {key} from Controller");
        events.record(&**node, Severity::Normal, "RemovingNode", message);
        return;
    }
    let ready = |node: &Node| plan::ready_status(node) == Some("True");
    if change.old.as_ref().is_some_and(|old| ready(old)) && !ready(node) {
        let message = format!("Node {key} status is now: NodeNotReady");
        events.record(&**node, Severity::Normal, "NodeNotReady", message);
    }
    let mut guard = lock(memory);
    let heartbeat = heartbeat(node);
    let now = Timestamp::now();
    match guard.voices.get_mut(&key.name) {
        Some(voice) if voice.heartbeat == heartbeat => {}
        Some(voice) => {
            voice.at = now;
            voice.heartbeat = heartbeat;
        }
        None => {
            guard.voices.insert(key.name.clone(), Voice { at: now, renewed: None, heartbeat });
            let message = format!("Node {key} event: Registered Node {key} in Controller");
            events.record(&**node, Severity::Normal, "RegisteredNode", message);
        }
    }
    drop(guard);
    queue.add(key);
}

/// A renewed Lease is a sign of life; the node's own timer will find it when it ends.
fn lease_changed(change: &Change<Lease>, memory: &Mutex<Memory>) {
    let Some(lease) = &change.new else { return };
    let name = lease.metadata.name.as_deref().unwrap_or_default();
    let renewed = lease.spec.as_ref().and_then(|spec| spec.renew_time.clone());
    let mut guard = lock(memory);
    if let Some(voice) = guard.voices.get_mut(name)
        && voice.renewed != renewed
    {
        voice.at = Timestamp::now();
        voice.renewed = renewed;
    }
}
