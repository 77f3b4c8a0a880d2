//! Routes to the pods of the other nodes: `podCIDR via InternalIP`, as flannel's host-gw backend makes them.
//!
//! In: a watch of all Nodes, this node's addresses and routes (rtnetlink), notifications about its uplinks. Out: routes of the
//! main table with the protocol number [`PROTOCOL`], which is how a restarted agent knows its own, and Events about nodes that
//! cannot be reached. Which routes there should be is decided in `plan` (pure). Routes with another protocol number are never
//! touched. Nothing is encapsulated: nodes have to be neighbours on one link.
//!
//! ```text
//! Listing --first full list of Nodes--> Following --Node or uplink changed, or retry is due--> Following
//! ```
//! While Listing, the routes that an earlier agent left stay as they are. What the kernel has is read once, and again when an
//! uplink changed (the kernel drops the routes of a link that goes down) or a request failed; in between it is remembered.

mod plan;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt};
use ipnetwork::{IpNetwork, Ipv4Network};
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt};
use linux::netlink::{self, LinkEvent, LinkWatch, MAIN_TABLE, Netlink, Route};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::api::{Backoff, chain, watched};
use crate::events::{EventType, Recorder};
use plan::{Action, Hop, Peer, Problem};

/// `rtm_protocol` of our routes: no routing daemon that iproute2 knows has it.
pub const PROTOCOL: u8 = 79;
/// How long a route that the kernel refused waits.
const RETRY: Duration = Duration::from_secs(10);
/// Changes of Nodes that are taken in before routes are planned once.
const BATCH_EVENTS: usize = 1024;
/// Upstream's reason for a route that could not be made.
const FAILED: &str = "FailedToCreateRoute";

/// What the task needs.
pub struct Context {
    pub client: kube::Client,
    pub node_name: String,
    /// All pods of the cluster, where that is known: a Node cannot claim anything else.
    pub cluster: Option<Ipv4Network>,
    /// Names of the links that lead to other nodes.
    pub uplinks: Vec<String>,
    pub recorder: Recorder,
    pub shutdown: CancellationToken,
}

struct Routes {
    context: Context,
    netlink: Netlink,
    peers: BTreeMap<String, Peer>,
    /// Names in the full list that is being read.
    seen: HashSet<String>,
    listed: bool,
    /// Something that routes depend on has changed.
    dirty: bool,
    /// What the kernel has; none: to be read.
    kernel: Option<Kernel>,
    /// Problems that were told and still stand.
    told: BTreeSet<Problem>,
    retry_at: Option<Instant>,
}

/// What the kernel had when it was read, and what was changed since.
struct Kernel {
    /// Networks that this node is on, and by which link.
    networks: Vec<(u32, Ipv4Network)>,
    routes: BTreeMap<Ipv4Network, Hop>,
}

/// Follows Nodes until shutdown. Routes outlive the agent.
pub async fn run(context: Context) {
    let shutdown = context.shutdown.clone();
    let nodes: Api<Node> = Api::all(context.client.clone());
    let nodes = pin!(watched(watcher(nodes, watcher::Config::default())));
    let work = async {
        let open = || Netlink::open().and_then(|netlink| Ok((netlink, LinkWatch::open()?)));
        let (netlink, links) = opened(open, Backoff::default()).await;
        Routes::new(context, netlink).follow(nodes, links).await;
    };
    // Cancel-safe: a request is made or not, and the next agent reads what there is.
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = work => {}
    }
}

/// What the kernel gives at last: it refuses sockets while memory or descriptors are short.
async fn opened<T>(
    mut open: impl FnMut() -> Result<T, netlink::Error>,
    mut pauses: impl Iterator<Item = Duration>,
) -> T {
    loop {
        match open() {
            Ok(opened) => return opened,
            Err(error) => {
                let pause = pauses.next().unwrap_or(RETRY);
                tracing::error!(
                    error = chain(&error),
                    ?pause,
                    "pods of other nodes cannot be reached, retrying"
                );
                sleep(pause).await;
            }
        }
    }
}

type Watched = Result<Event<Node>, watcher::Error>;

impl Routes {
    fn new(context: Context, netlink: Netlink) -> Self {
        Self {
            context,
            netlink,
            peers: BTreeMap::new(),
            seen: HashSet::new(),
            listed: false,
            dirty: false,
            kernel: None,
            told: BTreeSet::new(),
            retry_at: None,
        }
    }

    async fn follow(mut self, mut nodes: impl Stream<Item = Watched> + Unpin, mut links: LinkWatch) {
        let mut watching = true;
        loop {
            let retry_at = self.retry_at;
            // `next` takes an item only when it returns it, and a timer has nothing to lose: each arm is cancel-safe.
            tokio::select! {
                Some(event) = nodes.next() => self.on_node(event),
                event = links.next(), if watching => {
                    watching = event.is_some();
                    self.on_link(event.as_ref());
                }
                () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {
                    self.retry_at = None;
                    (self.kernel, self.dirty) = (None, true);
                }
                else => return,
            }
            for _ in 0..BATCH_EVENTS {
                let Some(Some(event)) = nodes.next().now_or_never() else { break };
                self.on_node(event);
            }
            if self.listed && self.dirty {
                self.dirty = false;
                self.pass().await;
            }
        }
    }

    fn on_node(&mut self, event: Watched) {
        match event {
            Ok(Event::Init) => self.seen.clear(),
            Ok(Event::InitApply(node)) => {
                self.seen.insert(node.name_any());
                self.apply(&node);
            }
            Ok(Event::Apply(node)) => self.apply(&node),
            Ok(Event::Delete(node)) => self.dirty |= self.peers.remove(&node.name_any()).is_some(),
            Ok(Event::InitDone) => {
                let seen = std::mem::take(&mut self.seen);
                let before = self.peers.len();
                self.peers.retain(|name, _| seen.contains(name));
                self.dirty |= !self.listed || self.peers.len() != before;
                self.listed = true;
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "watch of Nodes failed, retrying with back-off")
            }
        }
    }

    fn apply(&mut self, node: &Node) {
        let name = node.name_any();
        if name == self.context.node_name {
            return;
        }
        let peer = plan::peer(node);
        if self.peers.get(&name) != Some(&peer) {
            self.peers.insert(name, peer);
            self.dirty = true;
        }
    }

    /// An uplink that came back has lost its routes; so may one whose change nobody heard of.
    fn on_link(&mut self, event: Option<&LinkEvent>) {
        let concerns = match event {
            Some(LinkEvent::Changed(link)) => self.context.uplinks.contains(&link.name),
            Some(LinkEvent::Removed { name, .. }) => self.context.uplinks.contains(name),
            Some(LinkEvent::Lost) => true,
            None => {
                tracing::error!("links are not watched any more: routes are only checked when Nodes change");
                true
            }
        };
        if concerns {
            (self.kernel, self.dirty) = (None, true);
        }
    }

    /// Brings the kernel's routes to what the Nodes say.
    async fn pass(&mut self) {
        let mut kernel = match self.kernel.take() {
            Some(kernel) => kernel,
            None => match Kernel::read(&self.netlink).await {
                Ok(kernel) => kernel,
                Err(error) => {
                    tracing::error!(error = chain(&error), "cannot read routes, retrying");
                    return self.schedule_retry();
                }
            },
        };
        let planned = plan::plan(&plan::View {
            peers: &self.peers,
            cluster: self.context.cluster,
            networks: &kernel.networks,
            routes: &kernel.routes,
        });
        self.tell(planned.problems);
        for action in planned.actions {
            if let Err(error) = self.execute(&action).await {
                tracing::error!(%action, error = chain(&error), "cannot change a route, retrying");
                // What the kernel has is read again then.
                return self.schedule_retry();
            }
            tracing::info!(%action, "route");
            kernel.note(&action);
        }
        self.kernel = Some(kernel);
    }

    async fn execute(&self, action: &Action) -> Result<(), netlink::Error> {
        match action {
            Action::Set { pods, hop, .. } => self.netlink.replace_route(&route(*pods, *hop)).await,
            Action::Remove { pods, hop } => match self.netlink.del_route(&route(*pods, *hop)).await {
                Err(error) if error.is_gone() => Ok(()),
                done => done,
            },
        }
    }

    /// Each problem is told once while it stands.
    fn tell(&mut self, problems: BTreeSet<Problem>) {
        for problem in problems.difference(&self.told) {
            tracing::error!(node = problem.node(), %problem, "pods of another node cannot be reached");
            let node = ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Node".to_owned()),
                name: Some(problem.node().to_owned()),
                uid: Some(problem.node().to_owned()),
                ..ObjectReference::default()
            };
            self.context.recorder.record(node, EventType::Warning, FAILED, problem.to_string());
        }
        self.told = problems;
    }

    fn schedule_retry(&mut self) {
        self.retry_at.get_or_insert_with(|| Instant::now() + RETRY);
    }
}

impl Kernel {
    async fn read(netlink: &Netlink) -> Result<Self, netlink::Error> {
        let networks =
            netlink.addresses(None).await?.into_iter().filter_map(|address| match address.network {
                IpNetwork::V4(network) => Some((address.link, network)),
                IpNetwork::V6(_) => None,
            });
        let networks = networks.collect();
        let ours = netlink.routes().await?.into_iter().filter(|route| route.protocol == PROTOCOL);
        let routes = ours.filter_map(|route| known(&route)).collect();
        Ok(Self { networks, routes })
    }

    fn note(&mut self, action: &Action) {
        match action {
            Action::Set { pods, hop, .. } => drop(self.routes.insert(*pods, *hop)),
            Action::Remove { pods, .. } => drop(self.routes.remove(pods)),
        }
    }
}

/// A route of ours in the main table, as `plan` sees it.
fn known(route: &Route) -> Option<(Ipv4Network, Hop)> {
    match (route.destination, route.gateway, route.link) {
        (IpNetwork::V4(pods), Some(IpAddr::V4(gateway)), Some(link)) if route.table == MAIN_TABLE => {
            Some((pods, Hop { gateway, link }))
        }
        _ => None,
    }
}

fn route(pods: Ipv4Network, hop: Hop) -> Route {
    Route {
        gateway: Some(hop.gateway.into()),
        link: Some(hop.link),
        protocol: PROTOCOL,
        ..Route::to(pods.into())
    }
}
