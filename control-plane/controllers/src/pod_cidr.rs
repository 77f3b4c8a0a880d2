//! The pod range allocator: gives every node its part of the cluster's ranges, one of each family.
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

use allocator::Allocators;

/// The name under which events come from this controller.
pub const COMPONENT: &str = "cidrAllocator";
/// Prefix lengths of a node's ranges of IPv4 and of IPv6 (kube-controller-manager: `--node-cidr-mask-size-ipv4` and `-ipv6`).
const NODE_MASK_SIZES: [u8; 2] = [24, 64];
/// One at a time, so that no two nodes get one range.
const CONCURRENCY: usize = 1;

pub struct Controller {
    context: Context,
    events: Recorder,
    queue: Arc<Queue<ObjectKey>>,
    allocator: Arc<Mutex<Allocators>>,
}

impl Controller {
    /// Makes the controller and hangs it on the caches; fails where the configured ranges make no sense.
    pub fn new(context: Context) -> Result<Arc<Self>, allocator::Error> {
        let with_length = |range: &IpNetwork| (*range, NODE_MASK_SIZES[usize::from(range.is_ipv6())]);
        let allocators = Allocators::new(context.options.cluster_cidrs.iter().map(with_length))?;
        let allocator = Arc::new(Mutex::new(allocators));
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
        let Some(ranges) = lock(&self.allocator).allocate() else {
            let message = format!("Node {key} status is now: CIDRNotAvailable");
            self.events.record(&*node, Severity::Normal, "CIDRNotAvailable", message);
            return Err(Failure::Retry {
                operation: "allocate pod range for node",
                object: key.to_string(),
                reason: "no range is free".to_owned(),
            });
        };
        match self.assign(&key, &node, &ranges).await {
            Ok(()) => Ok(Outcome::Done),
            Err(failure) => {
                self.give_back(&ranges);
                if failure.is_not_found() { Ok(Outcome::Done) } else { Err(failure) }
            }
        }
    }

    /// Frees ranges whose assignment failed, unless they reached a node after all: the answer may be all that was lost, and
    /// the node's event may have come before. Events are applied to the cache before they occupy, hence under the lock.
    fn give_back(&self, ranges: &[IpNetwork]) {
        let mut allocator = lock(&self.allocator);
        let held: Vec<IpNetwork> =
            self.context.caches.nodes.all().iter().flat_map(|node| node_ranges(node)).collect();
        let free: Vec<IpNetwork> = ranges.iter().copied().filter(|range| !held.contains(range)).collect();
        allocator.release_all(&free);
    }

    /// Writes the ranges; the resource version makes the API server refuse them where the node changed meanwhile.
    async fn assign(&self, key: &ObjectKey, node: &Node, ranges: &[IpNetwork]) -> Result<(), Failure> {
        let nodes: Api<Node> = Api::all(self.context.client.clone());
        let texts: Vec<String> = ranges.iter().map(ToString::to_string).collect();
        let patch = json!({
            "metadata": { "uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version },
            "spec": { "podCIDR": texts.first(), "podCIDRs": texts },
        });
        let written = nodes.patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        match written {
            Ok(_) => {
                tracing::info!(node = %key, ranges = ?texts, "pod ranges assigned");
                Ok(())
            }
            Err(error) if failure::is_conflict(&error) => self.confirm(&nodes, key, ranges, error).await,
            Err(error) => Err(Failure::api("assign pod range to node", key)(error)),
        }
    }

    /// After a conflict: the ranges may have been written by a request whose answer was lost.
    async fn confirm(
        &self,
        nodes: &Api<Node>,
        key: &ObjectKey,
        ranges: &[IpNetwork],
        error: kube::Error,
    ) -> Result<(), Failure> {
        let live = nodes.get_opt(&key.name).await.map_err(Failure::api("get node", key))?;
        match live {
            Some(live) if node_ranges(&live) == ranges => Ok(()),
            _ => Err(Failure::api("assign pod range to node", key)(error)),
        }
    }
}

fn lock(allocator: &Mutex<Allocators>) -> MutexGuard<'_, Allocators> {
    allocator.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The ranges that a node has; what does not read is left out.
fn node_ranges(node: &Node) -> Vec<IpNetwork> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let listed = spec.pod_cidrs.iter().flatten();
    let mut ranges: Vec<IpNetwork> = Vec::new();
    for range in listed.chain(&spec.pod_cidr).filter_map(|text| text.parse().ok()) {
        if !ranges.contains(&range) {
            ranges.push(range);
        }
    }
    ranges
}
