//! What leads to the pods of the other nodes, as flannel's backends make it.
//!
//! In: a watch of all Nodes, this node's addresses, and what the kernel has of ours (rtnetlink, WireGuard), notifications about
//! uplinks and the overlay's link. Out, with the backend `host-gw`, routes `podCIDR via InternalIP`; with `vxlan`, routes through
//! the overlay's link, and for each node a neighbour and a forwarding entry; with `wireguard`, routes and a peer for each node.
//! And Events about nodes that cannot be reached. What there should be is decided in `plan` (pure).
//!
//! Routes are of the main table and have the protocol number [`PROTOCOL`], which is how a restarted agent knows its own; everything
//! else is on the overlay's link, which is ours whole. Routes with another protocol number are never touched.
//!
//! ```text
//! Listing --first full list of Nodes--> Following --Node or link changed, or retry is due--> Following
//!                                           \--overlay's link removed--> ended: the next agent makes it anew
//! ```
//! While Listing, what an earlier agent left stays as it is. What the kernel has is read once, and again when a link changed
//! (the kernel drops the routes of a link that goes down) or a request failed; in between it is remembered.

mod plan;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt};
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt};
use linux::netlink::{
    self, AddressFlags, FdbEntry, LinkEvent, LinkWatch, MAIN_TABLE, Netlink, NewAddress, Route,
};
use linux::wireguard::Wireguard;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::api::{Backoff, Kept, chain, watched};
use crate::events::{EventType, Recorder};
use crate::network::overlay::Overlay;
use plan::{Action, Hop, Item, Peer, Problem, State};
pub use plan::{Way, pods};

/// `rtm_protocol` of our routes: no routing daemon that iproute2 knows has it.
pub const PROTOCOL: u8 = 79;
/// The priority of a route of IPv6 that has none (`IP6_RT_PRIO_USER`).
const IP6_RT_PRIO_USER: u32 = 1024;
/// How long what the kernel refused waits.
const RETRY: Duration = Duration::from_secs(10);
/// Changes of Nodes that are taken in before a pass.
const BATCH_EVENTS: usize = 1024;
/// Upstream's reason for a route that could not be made.
const FAILED: &str = "FailedToCreateRoute";

/// What the task needs.
pub struct Context {
    pub client: kube::Client,
    pub node_name: String,
    /// All pods of the cluster, where that is known: a Node cannot claim anything else.
    pub cluster: Vec<IpNetwork>,
    /// Names of the links that lead to other nodes.
    pub uplinks: Vec<String>,
    /// Where packets to other nodes are wrapped.
    pub overlay: Option<Overlay>,
    pub recorder: Recorder,
    pub shutdown: CancellationToken,
}

struct Routes {
    context: Context,
    netlink: Netlink,
    /// Pods of this node.
    own: Vec<IpNetwork>,
    peers: Kept<Peer>,
    /// Something that a pass depends on has changed.
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
    networks: Vec<(u32, IpNetwork)>,
    /// Where others' routes lead that ours would replace.
    foreign: BTreeSet<IpNetwork>,
    state: State,
}

/// The overlay's link is not there any more, and with it its identity and the programs on it.
struct OverlayGone;

/// Follows Nodes until shutdown, or until the overlay's link is gone. What was made outlives the agent.
pub async fn run(context: Context) {
    let shutdown = context.shutdown.clone();
    let nodes: Api<Node> = Api::all(context.client.clone());
    let nodes = pin!(watched(watcher(nodes, watcher::Config::default())));
    let work = async {
        let open = || {
            let netlink = Netlink::open()?;
            Ok((netlink.clone(), LinkWatch::beside(&netlink)?))
        };
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
            own: Vec::new(),
            peers: Kept::default(),
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
            if self.peers.is_listed() && self.dirty {
                self.dirty = false;
                if let Err(OverlayGone) = self.pass().await {
                    tracing::error!(
                        "the link of the overlay was removed: ending, to make it anew at the next start"
                    );
                    return;
                }
            }
        }
    }

    fn on_node(&mut self, event: Watched) {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(error = chain(&error), "watch of Nodes failed, retrying with back-off");
                return;
            }
        };
        // One that is deleted has its pods all the same, as long as this agent runs.
        let mut own = None;
        self.dirty |= self.peers.on_event(event, |node| {
            let peer = plan::peer(node);
            if node.name_any() != self.context.node_name {
                return Some(peer);
            }
            own = Some(peer.pods);
            None
        });
        if let Some(pods) = own.filter(|pods| *pods != self.own) {
            (self.own, self.dirty) = (pods, true);
        }
    }

    /// A link that came back has lost its routes; so may one whose change nobody heard of.
    fn on_link(&mut self, event: Option<&LinkEvent>) {
        let overlay = self.context.overlay.as_ref().map(|overlay| overlay.link);
        let is_ours = |index: u32, name: &String| {
            self.context.uplinks.contains(name) || overlay.is_some_and(|link| link == index)
        };
        let concerns = match event {
            Some(LinkEvent::Changed(link)) => is_ours(link.index, &link.name),
            Some(LinkEvent::Removed { index, name }) => is_ours(*index, name),
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

    fn way(&self) -> Way {
        self.context.overlay.as_ref().map_or(Way::Plain, Overlay::way)
    }

    /// Brings the kernel to what the Nodes say.
    async fn pass(&mut self) -> Result<(), OverlayGone> {
        let mut kernel = match self.kernel.take() {
            Some(kernel) => kernel,
            None => match Kernel::read(&self.netlink, self.context.overlay.as_ref()).await {
                Ok(kernel) => kernel.ok_or(OverlayGone)?,
                Err(error) => {
                    tracing::error!(error = chain(&error), "cannot read what leads to other nodes, retrying");
                    self.schedule_retry();
                    return Ok(());
                }
            },
        };
        let planned = plan::plan(&plan::View {
            way: self.way(),
            node: &self.context.node_name,
            own: &self.own,
            peers: self.peers.items(),
            cluster: &self.context.cluster,
            networks: &kernel.networks,
            foreign: &kernel.foreign,
            state: &kernel.state,
        });
        let is_blocked =
            planned.problems.iter().any(|problem| matches!(problem, Problem::ForeignRoute { .. }));
        self.tell(planned.problems);
        // What one node says may be refused; the others' pods are to be reached all the same.
        let mut refused = Vec::new();
        for action in planned.actions {
            match self.execute(&action, &kernel.state).await {
                Ok(()) => {
                    tracing::info!(%action, "to other nodes");
                    kernel.state.note(&action);
                }
                Err(error) => refused.push((action, error)),
            }
        }
        match refused.first() {
            // Whether the route is still there is only known when it is looked for.
            None if is_blocked => self.schedule_retry(),
            None => self.kernel = Some(kernel),
            Some((action, error)) => {
                let (error, count) = (chain(error), refused.len());
                tracing::error!(%action, error, count, "cannot change what leads to nodes, retrying");
                // What the kernel has is read again then.
                self.schedule_retry();
            }
        }
        Ok(())
    }

    async fn execute(&self, action: &Action, found: &State) -> Result<(), netlink::Error> {
        let (item, set) = match action {
            Action::Set(item) => (item, true),
            Action::Remove(item) => (item, false),
        };
        let netlink = &self.netlink;
        let link = self.way().overlay().unwrap_or_default();
        let done = match item {
            Item::Route(pods, hop) if set && found.routes.contains_key(pods) => {
                netlink.replace_route(&route(*pods, *hop)).await
            }
            // One that came since is not ours to replace: the next pass tells of it.
            Item::Route(pods, hop) if set => return netlink.add_route(&route(*pods, *hop)).await,
            Item::Route(pods, hop) => netlink.del_route(&route(*pods, *hop)).await,
            Item::Address(network) if set => {
                // Nobody else on this link could have it.
                let flags = if network.is_ipv6() { AddressFlags::Nodad } else { AddressFlags::empty() };
                netlink.add_address(&NewAddress { flags, ..NewAddress::new(link, *network) }).await
            }
            Item::Address(network) => netlink.del_address(link, *network).await,
            Item::Neighbour(address, mac) if set => netlink.replace_neighbour(link, *address, *mac).await,
            Item::Neighbour(address, _) => netlink.del_neighbour(link, *address).await,
            Item::Forwarding(mac, node) => {
                let entry = FdbEntry { link, mac: *mac, remote: Some(*node) };
                if set { netlink.replace_fdb(&entry).await } else { netlink.del_fdb(&entry).await }
            }
            Item::Tunnel(key, tunnel) => {
                let (key, tunnel) = (*key, tunnel.clone());
                ask_wireguard(self.context.overlay.as_ref(), move |wireguard| match set {
                    true => wireguard.replace_peer(link, key, &tunnel),
                    false => wireguard.remove_peer(link, key),
                })
                .await
            }
        };
        match done {
            Err(error) if !set && error.is_gone() => Ok(()),
            Err(error) if set && error.is_exists() => Ok(()),
            done => done,
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

/// Takes away what this task made for the backend `host-gw`, for one that leaves it to somebody else.
pub async fn remove_all() -> Result<(), netlink::Error> {
    let netlink = Netlink::open()?;
    for route in netlink.routes().await?.into_iter().filter(|route| route.protocol == PROTOCOL) {
        match netlink.del_route(&route).await {
            Err(error) if !error.is_gone() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Asks from a thread that may block; nothing where there is no WireGuard.
async fn ask_wireguard<T: Default + Send + 'static>(
    overlay: Option<&Overlay>,
    work: impl FnOnce(&Wireguard) -> Result<T, netlink::Error> + Send + 'static,
) -> Result<T, netlink::Error> {
    let Some(wireguard) = overlay.and_then(|overlay| overlay.wireguard.clone()) else {
        return Ok(T::default());
    };
    let asked = tokio::task::spawn_blocking(move || work(&wireguard)).await;
    asked.unwrap_or_else(|error| {
        let (operation, object) = ("ask", "WireGuard".to_owned());
        Err(netlink::Error::Protocol { operation, object, detail: error.to_string() })
    })
}

impl Kernel {
    /// None when the overlay's link is gone. One that is down is set up.
    async fn read(netlink: &Netlink, overlay: Option<&Overlay>) -> Result<Option<Self>, netlink::Error> {
        let mut state = State::default();
        if let Some(overlay) = overlay {
            let Some(link) = netlink.find_link_by_index(overlay.link).await? else { return Ok(None) };
            if !link.up {
                netlink.set_link_up(link.index).await?;
            }
            state = read_overlay(netlink, overlay).await?;
        }
        let on_overlay = |link: u32| overlay.is_some_and(|overlay| overlay.link == link);
        let addresses = netlink.addresses(None).await?.into_iter();
        let networks = addresses.map(|address| (address.link, address.network));
        let networks = networks.filter(|(link, _)| !on_overlay(*link)).collect();
        let (ours, others): (Vec<_>, Vec<_>) =
            netlink.routes().await?.into_iter().partition(|route| route.protocol == PROTOCOL);
        state.routes = ours.iter().filter_map(known).collect();
        let foreign = others.iter().filter(|route| route.table == MAIN_TABLE && has_our_priority(route));
        let foreign = foreign.map(|route| route.destination).collect();
        Ok(Some(Self { networks, foreign, state }))
    }
}

/// All that is on the link but its routes. The kernel gives it an IPv6 address of its own, which is not ours to judge.
async fn read_overlay(netlink: &Netlink, overlay: &Overlay) -> Result<State, netlink::Error> {
    let link = overlay.link;
    let addresses = netlink.addresses(Some(link)).await?.into_iter().map(|address| address.network);
    let of_kernel = |network: &IpNetwork| match network {
        IpNetwork::V4(_) => false,
        IpNetwork::V6(network) => network.ip().is_unicast_link_local(),
    };
    let neighbours = netlink.neighbours().await?.into_iter();
    let neighbours = neighbours.filter(|neighbour| neighbour.link == link && neighbour.permanent);
    let forwarding = netlink.forwarding_entries(link).await?.into_iter();
    let device = ask_wireguard(Some(overlay), move |wireguard| wireguard.device(link)).await?;
    Ok(State {
        routes: BTreeMap::new(),
        addresses: addresses.filter(|network| !of_kernel(network)).collect(),
        neighbours: neighbours.filter_map(|neighbour| Some((neighbour.address, neighbour.mac?))).collect(),
        forwarding: forwarding.filter_map(|entry| Some((entry.mac, entry.remote?))).collect(),
        tunnels: device.peers,
    })
}

/// A route of ours in the main table, as `plan` sees it.
fn known(route: &Route) -> Option<(IpNetwork, Hop)> {
    let link = route.link.filter(|_| route.table == MAIN_TABLE)?;
    Some((route.destination, Hop { gateway: route.gateway, link, onlink: route.onlink }))
}

/// The kernel keeps routes to the same place apart by their priority.
fn has_our_priority(route: &Route) -> bool {
    let own = if route.destination.is_ipv4() { 0 } else { IP6_RT_PRIO_USER };
    route.priority.unwrap_or_default() == own
}

fn route(pods: IpNetwork, hop: Hop) -> Route {
    Route {
        gateway: hop.gateway,
        link: Some(hop.link),
        onlink: hop.onlink,
        protocol: PROTOCOL,
        ..Route::to(pods)
    }
}
