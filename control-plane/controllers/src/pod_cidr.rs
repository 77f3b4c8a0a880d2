//! The pod range allocator: gives every node its part of the cluster's range.
//!
//! Input: the cache of nodes. Output: `spec.podCIDR` and `spec.podCIDRs`. The allocator (`pod_cidr/allocator.rs`) lives in
//! memory only: at every start it is built again from what the nodes have. Refuses to change a range that a node has.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::events::{Recorder, Severity};
use crate::failure::{self, Failure};
use crate::key::ObjectKey;
use crate::options::Context;
use crate::queue::{Queue, QueueOptions};
use crate::worker::{Outcome, drive};

pub mod allocator;
#[cfg(test)]
mod tests;

use allocator::Allocator;

/// The name under which events come from this controller.
pub const COMPONENT: &str = "cidrAllocator";
/// One at a time, so that no two nodes get one range.
const CONCURRENCY: usize = 1;

pub struct Controller {
    context: Context,
    events: Recorder,
    queue: Arc<Queue<ObjectKey>>,
    allocator: Arc<Mutex<Allocator>>,
}

impl Controller {
    /// Makes the controller and hangs it on the caches; fails where the configured ranges make no sense.
    pub fn new(context: Context) -> Result<Arc<Self>, allocator::Error> {
        let options = &context.options;
        let allocator = Allocator::new(options.cluster_cidr, options.node_cidr_mask_size)?;
        let allocator = Arc::new(Mutex::new(allocator));
        let queue = Arc::new(Queue::new(QueueOptions::named("pod-cidr")));
        let (nodes, ranges) = (queue.clone(), allocator.clone());
        context.caches.nodes.on_change(move |change| match (&change.old, &change.new) {
            (_, Some(node)) => {
                // Occupied before any pass can give it away.
                lock(&ranges).occupy_all(&node_ranges(node));
                if node_ranges(node).is_empty() {
                    nodes.add(ObjectKey::of(&**node));
                }
            }
            (Some(node), None) => lock(&ranges).release_all(&node_ranges(node)),
            (None, None) => {}
        });
        let events = context.events.named(COMPONENT);
        Ok(Arc::new(Self { context, events, queue, allocator }))
    }

    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) -> Result<(), Failure> {
        let resync = || {
            for node in self.context.caches.nodes.all() {
                if node_ranges(&node).is_empty() {
                    self.queue.add(ObjectKey::of(&*node));
                }
            }
        };
        drive(&self.queue, CONCURRENCY, &shutdown, &resync, |key| self.pass(key)).await;
        Ok(())
    }

    async fn pass(&self, key: ObjectKey) -> Result<Outcome, Failure> {
        let Some(node) = self.context.caches.nodes.get(&key) else { return Ok(Outcome::Done) };
        if !node_ranges(&node).is_empty() {
            return Ok(Outcome::Done);
        }
        let Some(range) = lock(&self.allocator).allocate() else {
            let message = format!("Node {key} status is now: CIDRNotAvailable");
            self.events.record(&*node, Severity::Normal, "CIDRNotAvailable", message);
            return Err(Failure::Retry {
                operation: "allocate pod range for node",
                object: key.to_string(),
                reason: "no range is free".to_owned(),
            });
        };
        match self.assign(&key, &node, range).await {
            Ok(()) => Ok(Outcome::Done),
            Err(failure) => {
                self.give_back(&range);
                if failure.is_not_found() { Ok(Outcome::Done) } else { Err(failure) }
            }
        }
    }

    /// Frees a range whose assignment failed, unless it reached a node after all: the answer may be all that was lost, and
    /// the node's event may have come before. Events are applied to the cache before they occupy, hence under the lock.
    fn give_back(&self, range: &IpNetwork) {
        let mut allocator = lock(&self.allocator);
        if !self.context.caches.nodes.all().iter().any(|node| node_ranges(node).contains(range)) {
            allocator.release(range);
        }
    }

    /// Writes the range; the resource version makes the API server refuse it where the node changed meanwhile.
    async fn assign(&self, key: &ObjectKey, node: &Node, range: IpNetwork) -> Result<(), Failure> {
        let nodes: Api<Node> = Api::all(self.context.client.clone());
        let text = range.to_string();
        let patch = json!({
            "metadata": { "uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version },
            "spec": { "podCIDR": text, "podCIDRs": [text] },
        });
        let written = nodes.patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        match written {
            Ok(_) => {
                tracing::info!(node = %key, range = %range, "pod range assigned");
                Ok(())
            }
            Err(error) if failure::is_conflict(&error) => self.confirm(&nodes, key, range, error).await,
            Err(error) => Err(Failure::api("assign pod range to node", key)(error)),
        }
    }

    /// After a conflict: the range may have been written by a request whose answer was lost.
    async fn confirm(
        &self,
        nodes: &Api<Node>,
        key: &ObjectKey,
        range: IpNetwork,
        error: kube::Error,
    ) -> Result<(), Failure> {
        let live = nodes.get_opt(&key.name).await.map_err(Failure::api("get node", key))?;
        match live {
            Some(live) if node_ranges(&live).contains(&range) => Ok(()),
            _ => Err(Failure::api("assign pod range to node", key)(error)),
        }
    }
}

fn lock(allocator: &Mutex<Allocator>) -> MutexGuard<'_, Allocator> {
    allocator.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The ranges that a node has; what does not read is left out.
fn node_ranges(node: &Node) -> Vec<IpNetwork> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let listed = spec.pod_cidrs.iter().flatten();
    let mut ranges: Vec<IpNetwork> =
        listed.chain(&spec.pod_cidr).filter_map(|text| text.parse().ok()).collect();
    ranges.dedup();
    ranges
}
