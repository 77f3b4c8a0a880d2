//! Other nodes' addresses, in the dataplane: what those tell of flows to endpoints here is believed (direct server return).
//!
//! In: a watch of all Nodes, from the first Service on that asks for it ([`Wanted`]); clusters without one are spared it. Out: the dataplane's set. Until
//! the first full list, what an earlier agent wrote stays.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::Dataplane;
use crate::api::{chain, watched};
use crate::network::routes::pods;

#[cfg(test)]
mod tests;

/// How long what the kernel refused waits.
const RETRY: Duration = Duration::from_secs(10);
/// Watch events that are taken in before the dataplane is written once.
const BATCH_EVENTS: usize = 1024;

/// Says that a Service asks for it.
#[derive(Debug, Clone, Default)]
pub struct Wanted(Arc<Notify>);

impl Wanted {
    pub fn set(&self) {
        self.0.notify_one();
    }
}

/// Where packets of a Node come from: its own addresses, and that of its link to other nodes' pods.
fn addresses(node: &Node) -> BTreeSet<IpAddr> {
    let listed = node.status.as_ref().and_then(|status| status.addresses.as_ref()).into_iter().flatten();
    let internal = listed.filter(|address| address.type_ == "InternalIP");
    let internal =
        internal.filter_map(|address| address.address.parse().as_ref().map(IpAddr::to_canonical).ok());
    internal.chain(pods(node).iter().map(|pods| pods.network())).collect()
}

/// What all Nodes but the own one say.
#[derive(Default)]
struct Peers {
    own_name: String,
    nodes: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Names in the full list that is being read.
    seen: HashSet<String>,
    listed: bool,
    /// The dataplane may have another set.
    dirty: bool,
}

impl Peers {
    fn on_event(&mut self, event: Result<Event<Node>, watcher::Error>) {
        match event {
            Ok(Event::Init) => self.seen.clear(),
            Ok(Event::InitApply(node)) => {
                self.seen.insert(node.name_any());
                self.apply(&node);
            }
            Ok(Event::Apply(node)) => self.apply(&node),
            Ok(Event::Delete(node)) => self.dirty |= self.nodes.remove(&node.name_any()).is_some(),
            Ok(Event::InitDone) => {
                let (seen, before) = (std::mem::take(&mut self.seen), self.nodes.len());
                self.nodes.retain(|name, _| seen.contains(name));
                self.dirty |= !self.listed || self.nodes.len() != before;
                self.listed = true;
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "watch of Nodes failed, retrying with back-off")
            }
        }
    }

    fn apply(&mut self, node: &Node) {
        let (name, addresses) = (node.name_any(), addresses(node));
        if name != self.own_name && self.nodes.get(&name) != Some(&addresses) {
            self.nodes.insert(name, addresses);
            self.dirty = true;
        }
    }

    /// What to write, if that is another set.
    fn take_changed(&mut self) -> Option<Vec<IpAddr>> {
        (self.listed && std::mem::take(&mut self.dirty)).then(|| {
            let all: BTreeSet<IpAddr> = self.nodes.values().flatten().copied().collect();
            all.into_iter().collect()
        })
    }
}

/// Runs until it is dropped.
pub async fn run(client: kube::Client, own_name: String, dataplane: Option<Dataplane>, wanted: Wanted) {
    let Some(dataplane) = dataplane else { return std::future::pending().await };
    wanted.0.notified().await;
    let mut nodes = pin!(watched(watcher(Api::<Node>::all(client), watcher::Config::default())));
    let mut peers = Peers { own_name, ..Peers::default() };
    let mut retry_at: Option<Instant> = None;
    loop {
        // `next` takes an item only when it returns it, and a timer has nothing to lose: each arm is cancel-safe.
        tokio::select! {
            Some(event) = nodes.next() => peers.on_event(event),
            () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => retry_at = None,
            else => return,
        }
        for _ in 0..BATCH_EVENTS {
            let Some(Some(event)) = nodes.next().now_or_never() else { break };
            peers.on_event(event);
        }
        if retry_at.is_some() {
            continue;
        }
        if let Some(addresses) = peers.take_changed()
            && let Err(error) = dataplane.with(|dataplane| dataplane.set_peers(&addresses))
        {
            tracing::error!(
                error = chain(&error),
                "other nodes' addresses cannot be written, trying again: answers past those nodes may fail"
            );
            peers.dirty = true;
            retry_at = Some(Instant::now() + RETRY);
        }
    }
}
