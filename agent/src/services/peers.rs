//! Other nodes' addresses, in the dataplane: what those tell of flows to endpoints here is believed (direct server return).
//!
//! In: whether a Service asks for that ([`Wanted`]), and a watch of all Nodes while one does: clusters without one are spared it. Out: the dataplane's set.
//!
//! ```text
//! Unknown --a Service asks--> Listing --first full list of Nodes--> Following --Node changed--> Following
//!    \--all Services known, none asks--> Idle --one asks--> Listing        \--none asks any more--> Idle
//! ```
//! While Unknown and in the Listing after it, what an earlier agent wrote stays. On the way to Idle the set is emptied: flows that were told before go
//! on, nobody tells of others. What the kernel refuses is tried again after [`RETRY`].

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use dataplane::PolicyError;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::Dataplane;
use crate::api::{Kept, chain, watched};
use crate::network::routes::pods;

#[cfg(test)]
mod tests;

/// How long what the kernel refused waits.
const RETRY: Duration = Duration::from_secs(10);
/// Watch events that are taken in before the dataplane is written once.
const BATCH_EVENTS: usize = 1024;

/// Says whether a Service asks for it; nothing until one does or all are known. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Wanted(watch::Sender<Option<bool>>);

impl Wanted {
    pub fn set(&self, wanted: bool) {
        self.0.send_if_modified(|known| known.replace(wanted) != Some(wanted));
    }

    /// As it was last said.
    #[cfg(test)]
    pub fn get(&self) -> Option<bool> {
        *self.0.borrow()
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
    /// Whether a Service asks for it; none: not all are known.
    wanted: Option<bool>,
    nodes: Kept<BTreeSet<IpAddr>>,
    /// The dataplane may have another set.
    dirty: bool,
}

impl Peers {
    fn of(own_name: String) -> Self {
        Self { own_name, ..Self::default() }
    }

    fn on_wanted(&mut self, wanted: bool) {
        if !wanted {
            // Whoever asks next has all Nodes listed anew.
            (self.nodes, self.dirty) = (Kept::default(), true);
        }
        self.wanted = Some(wanted);
    }

    fn on_event(&mut self, event: Result<Event<Node>, watcher::Error>) {
        match event {
            Ok(event) => {
                let is_other = |node: &&Node| node.name_any() != self.own_name;
                self.dirty |= self.nodes.on_event(event, |node| Some(node).filter(is_other).map(addresses));
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "watch of Nodes failed, retrying with back-off")
            }
        }
    }

    /// What to write, if that is another set.
    fn take_changed(&mut self) -> Option<Vec<IpAddr>> {
        let is_known = self.nodes.is_listed() || self.wanted == Some(false);
        (is_known && std::mem::take(&mut self.dirty)).then(|| {
            let all: BTreeSet<IpAddr> = self.nodes.items().values().flatten().copied().collect();
            all.into_iter().collect()
        })
    }
}

/// Runs until it is dropped.
pub async fn run(client: kube::Client, own_name: String, dataplane: Option<Dataplane>, wanted: Wanted) {
    let Some(dataplane) = dataplane else { return std::future::pending().await };
    let watch = || watched(watcher(Api::<Node>::all(client.clone()), watcher::Config::default())).boxed();
    let write = |addresses: &[IpAddr]| dataplane.with(|dataplane| dataplane.set_peers(addresses));
    follow(Peers::of(own_name), wanted.0.subscribe(), watch, write).await;
}

type Nodes = BoxStream<'static, Result<Event<Node>, watcher::Error>>;

async fn follow(
    mut peers: Peers,
    mut wanted: watch::Receiver<Option<bool>>,
    watch: impl Fn() -> Nodes,
    write: impl Fn(&[IpAddr]) -> Result<(), PolicyError>,
) {
    // What was said before this is news, too.
    wanted.mark_changed();
    let mut nodes: Option<Nodes> = None;
    let mut retry_at: Option<Instant> = None;
    loop {
        // `next` takes an item only when it returns it, `changed` and a timer have nothing to lose: each arm is cancel-safe.
        tokio::select! {
            Ok(()) = wanted.changed() => {
                let Some(wanted) = *wanted.borrow_and_update() else { continue };
                peers.on_wanted(wanted);
                nodes = wanted.then(&watch);
            }
            Some(event) = next(&mut nodes) => peers.on_event(event),
            () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => retry_at = None,
            else => return,
        }
        for _ in 0..BATCH_EVENTS {
            let Some(Some(event)) = next(&mut nodes).now_or_never() else { break };
            peers.on_event(event);
        }
        if retry_at.is_some() {
            continue;
        }
        if let Some(addresses) = peers.take_changed()
            && let Err(error) = write(&addresses)
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

/// The next event of a watch; of none, none ever.
async fn next(nodes: &mut Option<Nodes>) -> Option<Result<Event<Node>, watcher::Error>> {
    match nodes {
        Some(nodes) => nodes.next().await,
        None => std::future::pending().await,
    }
}
