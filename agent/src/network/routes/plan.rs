//! What leads to the pods of other nodes. Pure.
//!
//! In: what all Nodes say, how packets travel ([`Way`]), the networks that this node is on, what the kernel has of ours. Out: what
//! to change, and what cannot be done. Something is taken away before its place is used anew, and a route is set last: packets
//! wait for an end that is known.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use linux::netlink::MacAddress;
use linux::wireguard::{PublicKey, Tunnel};

use crate::network::lease::{self, End, Lease};

#[cfg(test)]
mod tests;

/// What a Node says about where its pods are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// When the API server made it: of two that claim the same, the older one has it.
    pub created: Option<Timestamp>,
    /// Its first InternalIP of each family.
    pub addresses: Vec<IpAddr>,
    pub pods: Vec<IpNetwork>,
    pub lease: Lease,
}

impl Peer {
    fn address(&self, is_ipv4: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv4() == is_ipv4)
    }
}

/// How packets travel to other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// As they are, to neighbours.
    Plain,
    /// Wrapped, by a link of this index.
    Vxlan {
        link: u32,
    },
    Wireguard {
        link: u32,
    },
}

impl Way {
    /// The name that a lease has it under.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => lease::HOST_GW,
            Self::Vxlan { .. } => lease::VXLAN,
            Self::Wireguard { .. } => lease::WIREGUARD,
        }
    }

    /// The link that wraps.
    pub fn overlay(self) -> Option<u32> {
        match self {
            Self::Plain => None,
            Self::Vxlan { link } | Self::Wireguard { link } => Some(link),
        }
    }
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    pub gateway: Option<IpAddr>,
    /// Index of the link.
    pub link: u32,
    /// The gateway is there though no address of the link says so.
    pub onlink: bool,
}

/// What of ours is in the kernel, or should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    pub routes: BTreeMap<IpNetwork, Hop>,
    /// Addresses of the overlay's link.
    pub addresses: BTreeSet<IpNetwork>,
    /// Permanent neighbours on it.
    pub neighbours: BTreeMap<IpAddr, MacAddress>,
    /// Which node a hardware address is behind.
    pub forwarding: BTreeMap<MacAddress, IpAddr>,
    pub tunnels: BTreeMap<PublicKey, Tunnel>,
}

/// What a pass sees.
pub struct View<'a> {
    pub way: Way,
    /// This node, and its pods.
    pub node: &'a str,
    pub own: &'a [IpNetwork],
    pub peers: &'a BTreeMap<String, Peer>,
    /// All pods of the cluster, where that is known: a Node cannot claim anything else.
    pub cluster: &'a [IpNetwork],
    /// This node's addresses with their prefixes, by link.
    pub networks: &'a [(u32, IpNetwork)],
    /// Where routes lead that are not ours and that ours would replace.
    pub foreign: &'a BTreeSet<IpNetwork>,
    pub state: &'a State,
}

/// What a pass does.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub problems: BTreeSet<Problem>,
}

/// One thing in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    Route(IpNetwork, Hop),
    Address(IpNetwork),
    Neighbour(IpAddr, MacAddress),
    Forwarding(MacAddress, IpAddr),
    Tunnel(PublicKey, Tunnel),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Set(Item),
    Remove(Item),
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route(pods, Hop { gateway: Some(gateway), .. }) => write!(f, "route {pods} via {gateway}"),
            Self::Route(pods, Hop { link, .. }) => write!(f, "route {pods} by link {link}"),
            Self::Address(address) => write!(f, "address {address}"),
            Self::Neighbour(address, mac) => write!(f, "neighbour {address} at {mac}"),
            Self::Forwarding(mac, node) => write!(f, "forwarding of {mac} to {node}"),
            Self::Tunnel(key, _) => write!(f, "peer {key}"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(item) => write!(f, "set {item}"),
            Self::Remove(item) => write!(f, "remove {item}"),
        }
    }
}

impl State {
    /// What an action did.
    pub fn note(&mut self, action: &Action) {
        match action.clone() {
            Action::Set(Item::Route(pods, hop)) => drop(self.routes.insert(pods, hop)),
            Action::Set(Item::Address(address)) => drop(self.addresses.insert(address)),
            Action::Set(Item::Neighbour(address, mac)) => drop(self.neighbours.insert(address, mac)),
            Action::Set(Item::Forwarding(mac, node)) => drop(self.forwarding.insert(mac, node)),
            Action::Set(Item::Tunnel(key, tunnel)) => drop(self.tunnels.insert(key, tunnel)),
            Action::Remove(Item::Route(pods, _)) => drop(self.routes.remove(&pods)),
            Action::Remove(Item::Address(address)) => drop(self.addresses.remove(&address)),
            Action::Remove(Item::Neighbour(address, _)) => drop(self.neighbours.remove(&address)),
            Action::Remove(Item::Forwarding(mac, _)) => drop(self.forwarding.remove(&mac)),
            Action::Remove(Item::Tunnel(key, _)) => drop(self.tunnels.remove(&key)),
        }
    }
}

/// Why the pods of a node cannot be reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// Its address is not a neighbour's.
    NotOnLink { node: String, address: IpAddr },
    /// Its address is this node's own.
    OwnAddress { node: String, address: IpAddr },
    /// It has no address that wrapped packets could go to.
    NoIpv4 { node: String },
    /// It has pods of a family that it has no address of.
    NoAddress { node: String, pods: IpNetwork },
    /// It wraps packets in another way.
    OtherBackend { node: String, theirs: String, ours: &'static str },
    /// It does not say where wrapped packets are to go.
    NoEnd { node: String, backend: &'static str },
    /// It claims addresses that are not pods'.
    Outside { node: String, pods: IpNetwork, cluster: IpNetwork },
    /// A route that somebody else made leads there.
    ForeignRoute { node: String, pods: IpNetwork },
    /// Another node has them already.
    Taken { node: String, pods: IpNetwork, other: String },
    /// Its hardware address or key is another node's.
    EndTaken { node: String, other: String },
}

impl Problem {
    /// The name of the node that it is about.
    pub fn node(&self) -> &str {
        match self {
            Self::NotOnLink { node, .. }
            | Self::OwnAddress { node, .. }
            | Self::NoIpv4 { node }
            | Self::NoAddress { node, .. }
            | Self::OtherBackend { node, .. }
            | Self::NoEnd { node, .. }
            | Self::Outside { node, .. }
            | Self::ForeignRoute { node, .. }
            | Self::Taken { node, .. }
            | Self::EndTaken { node, .. } => node,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOnLink { address, .. } => write!(
                f,
                "no link of this node is on the network of {address}: routes between nodes need a network that \
                 they share, or the network backend vxlan or wireguard"
            ),
            Self::OwnAddress { address, .. } => write!(f, "its InternalIP {address} is this node's own"),
            Self::NoIpv4 { .. } => f.write_str("the node has no IPv4 InternalIP to wrap packets for"),
            Self::NoAddress { pods, .. } => {
                let family = if pods.is_ipv4() { "IPv4" } else { "IPv6" };
                write!(f, "podCIDR {pods}: the node has no {family} InternalIP to route to")
            }
            Self::OtherBackend { theirs, ours, .. } => {
                write!(f, "its network backend is {theirs}, this node's is {ours}: they have to be the same")
            }
            Self::NoEnd { backend, .. } => {
                write!(f, "annotation {} has no end of the network backend {backend}", lease::BACKEND_DATA)
            }
            Self::Outside { pods, cluster, .. } => {
                write!(f, "podCIDR {pods} is not within the cluster's {cluster}")
            }
            Self::ForeignRoute { pods, .. } => {
                write!(
                    f,
                    "podCIDR {pods} has a route that is not this agent's: see `ip route show {pods}`, and delete it"
                )
            }
            Self::Taken { pods, other, .. } => write!(f, "podCIDR {pods} overlaps with that of node {other}"),
            Self::EndTaken { other, .. } => {
                write!(f, "annotation {} is that of node {other} too, which is older", lease::BACKEND_DATA)
            }
        }
    }
}

/// The networks of a Node's pods: the first of each family. What is no network counts as not said.
pub fn pods(node: &Node) -> Vec<IpNetwork> {
    let spec = node.spec.as_ref();
    let single = spec.and_then(|spec| spec.pod_cidr.as_ref());
    let all = spec.and_then(|spec| spec.pod_cidrs.as_ref()).into_iter().flatten();
    let mut pods: Vec<IpNetwork> = Vec::new();
    for network in single.into_iter().chain(all).filter_map(|text| text.parse::<IpNetwork>().ok()) {
        // The kernel shows routes without host bits, and a default route would take the node off the network.
        let network = IpNetwork::new(network.network(), network.prefix()).ok();
        let is_known =
            pods.iter().any(|known| Some(known.is_ipv4()) == network.map(|network| network.is_ipv4()));
        pods.extend(network.filter(|network| network.prefix() > 0 && !is_known));
    }
    pods
}

/// What a Node says.
pub fn peer(node: &Node) -> Peer {
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref()).into_iter().flatten();
    let internal = addresses.filter(|address| address.type_ == "InternalIP");
    let internal: Vec<IpAddr> = internal.filter_map(|address| address.address.parse().ok()).collect();
    let first = |is_ipv4: bool| internal.iter().copied().find(|address| address.is_ipv4() == is_ipv4);
    let addresses = [first(true), first(false)].into_iter().flatten().collect();
    let created = node.metadata.creation_timestamp.as_ref().map(|time| time.0);
    Peer { created, addresses, pods: pods(node), lease: Lease::of(node) }
}

/// Decides one pass.
pub fn plan(view: &View<'_>) -> Plan {
    let mut wanted = Wanted::new(view);
    let mut by_age: Vec<(&String, &Peer)> = view.peers.iter().collect();
    by_age.sort_by_key(|(node, peer)| (peer.created, *node));
    for (node, peer) in by_age {
        // A Node that is only half there yet is no problem.
        if !peer.addresses.is_empty() && !peer.pods.is_empty() {
            wanted.add(node, peer);
        }
    }
    let Wanted { state, problems, .. } = wanted;
    Plan { actions: difference(view.state, &state), problems }
}

/// What there should be, as far as the Nodes were looked at.
struct Wanted<'a> {
    view: &'a View<'a>,
    state: State,
    problems: BTreeSet<Problem>,
    /// Whose pods are where.
    owners: BTreeMap<IpNetwork, &'a str>,
    /// Whose the ends of the overlay are.
    ends: HashMap<End, &'a str>,
}

impl<'a> Wanted<'a> {
    fn new(view: &'a View<'a>) -> Self {
        let mut state = State::default();
        if view.way.overlay().is_some() {
            let own = view.own.iter().filter_map(|pods| IpNetwork::new(pods.network(), whole(*pods)).ok());
            state.addresses.extend(own);
        }
        Self { view, state, problems: BTreeSet::new(), owners: BTreeMap::new(), ends: HashMap::new() }
    }

    fn add(&mut self, node: &'a str, peer: &Peer) {
        if let Err(problem) = self.try_add(node, peer) {
            self.problems.insert(problem);
        }
    }

    fn try_add(&mut self, node: &'a str, peer: &Peer) -> Result<(), Problem> {
        let ours = self.view.way.name();
        if let Some(theirs) = peer.lease.backend.as_ref().filter(|theirs| *theirs != ours) {
            return Err(Problem::OtherBackend { node: node.to_owned(), theirs: theirs.clone(), ours });
        }
        let is_own =
            |address: &&IpAddr| self.view.networks.iter().any(|(_, network)| network.ip() == **address);
        if let Some(address) = peer.addresses.iter().find(is_own) {
            return Err(Problem::OwnAddress { node: node.to_owned(), address: *address });
        }
        let missing = || Problem::NoEnd { node: node.to_owned(), backend: ours };
        match self.view.way {
            Way::Plain => self.add_plain(node, peer),
            Way::Vxlan { link } => {
                let Some(End::Vxlan(mac)) = peer.lease.end else { return Err(missing()) };
                let remote = self.other_end(node, peer, End::Vxlan(mac))?;
                for pods in self.accepted(node, peer) {
                    let gateway = pods.network();
                    self.state.neighbours.insert(gateway, mac);
                    self.state.forwarding.insert(mac, remote);
                    self.state.routes.insert(pods, Hop { gateway: Some(gateway), link, onlink: true });
                }
            }
            Way::Wireguard { link } => {
                let Some(End::Wireguard(key)) = peer.lease.end else { return Err(missing()) };
                let remote = self.other_end(node, peer, End::Wireguard(key))?;
                let networks: BTreeSet<IpNetwork> = self.accepted(node, peer).into_iter().collect();
                if networks.is_empty() {
                    return Ok(());
                }
                let hop = Hop { gateway: None, link, onlink: false };
                self.state.routes.extend(networks.iter().map(|pods| (*pods, hop)));
                let endpoint = Some(SocketAddr::new(remote, lease::WIREGUARD_PORT));
                self.state.tunnels.insert(key, Tunnel { endpoint, networks });
            }
        }
        Ok(())
    }

    /// Where wrapped packets go; the end is the node's from now on.
    fn other_end(&mut self, node: &'a str, peer: &Peer, end: End) -> Result<IpAddr, Problem> {
        if let Some(other) = self.ends.get(&end) {
            return Err(Problem::EndTaken { node: node.to_owned(), other: (*other).to_owned() });
        }
        let remote = peer.address(true).ok_or_else(|| Problem::NoIpv4 { node: node.to_owned() })?;
        self.ends.insert(end, node);
        Ok(remote)
    }

    fn add_plain(&mut self, node: &'a str, peer: &Peer) {
        for pods in self.accepted(node, peer) {
            let Some(address) = peer.address(pods.is_ipv4()) else {
                self.problems.insert(Problem::NoAddress { node: node.to_owned(), pods });
                continue;
            };
            match link_to(address, self.view.networks) {
                Some(link) => {
                    let hop = Hop { gateway: Some(address), link, onlink: false };
                    self.state.routes.insert(pods, hop);
                }
                None => drop(self.problems.insert(Problem::NotOnLink { node: node.to_owned(), address })),
            }
        }
    }

    /// Those of a node's networks that it may have.
    fn accepted(&mut self, node: &'a str, peer: &Peer) -> Vec<IpNetwork> {
        let mut accepted = Vec::new();
        for pods in &peer.pods {
            match self.refusal(node, *pods) {
                Some(problem) => drop(self.problems.insert(problem)),
                None => {
                    self.owners.insert(*pods, node);
                    accepted.push(*pods);
                }
            }
        }
        accepted
    }

    fn refusal(&self, node: &str, pods: IpNetwork) -> Option<Problem> {
        let node = node.to_owned();
        let cluster = self.view.cluster;
        if let Some(first) = cluster.first()
            && !cluster.iter().any(|cluster| is_within(pods, *cluster))
        {
            let of_family = cluster.iter().find(|cluster| cluster.is_ipv4() == pods.is_ipv4());
            return Some(Problem::Outside { node, pods, cluster: *of_family.unwrap_or(first) });
        }
        let is_here =
            cluster.is_empty() && self.view.networks.iter().any(|(_, network)| pods.contains(network.ip()));
        if is_here || self.view.own.iter().any(|own| overlap(*own, pods)) {
            return Some(Problem::Taken { node, pods, other: self.view.node.to_owned() });
        }
        if self.view.foreign.contains(&pods) {
            return Some(Problem::ForeignRoute { node, pods });
        }
        // Those accepted so far do not overlap each other, so only the neighbours in their order can overlap this one.
        let neighbours =
            self.owners.range(..=pods).next_back().into_iter().chain(self.owners.range(pods..).next());
        let (_, other) = neighbours.into_iter().find(|(other, _)| overlap(**other, pods))?;
        Some(Problem::Taken { node, pods, other: (*other).to_owned() })
    }
}

/// The length of a prefix that is one address.
fn whole(network: IpNetwork) -> u8 {
    if network.is_ipv4() { 32 } else { 128 }
}

fn is_within(inner: IpNetwork, outer: IpNetwork) -> bool {
    inner.is_ipv4() == outer.is_ipv4() && inner.prefix() >= outer.prefix() && outer.contains(inner.network())
}

fn overlap(one: IpNetwork, other: IpNetwork) -> bool {
    one.contains(other.network()) || other.contains(one.network())
}

/// The link that has `address` as a neighbour; the narrowest network wins.
fn link_to(address: IpAddr, networks: &[(u32, IpNetwork)]) -> Option<u32> {
    let near = networks.iter().filter(|(_, network)| network.contains(address) && network.ip() != address);
    near.max_by_key(|(_, network)| network.prefix()).map(|(link, _)| *link)
}

/// The actions that make `wanted` of `found`.
fn difference(found: &State, wanted: &State) -> Vec<Action> {
    let addresses = |state: &State| state.addresses.iter().map(|address| (*address, ())).collect();
    let (found_addresses, wanted_addresses) = (addresses(found), addresses(wanted));
    let mut removed = Vec::new();
    let mut set = Vec::new();
    compare(&found.routes, &wanted.routes, Item::Route, &mut removed, &mut Vec::new());
    compare(&found.neighbours, &wanted.neighbours, Item::Neighbour, &mut removed, &mut set);
    compare(&found.forwarding, &wanted.forwarding, Item::Forwarding, &mut removed, &mut set);
    compare(&found.tunnels, &wanted.tunnels, Item::Tunnel, &mut removed, &mut set);
    compare(
        &found_addresses,
        &wanted_addresses,
        |address, ()| Item::Address(address),
        &mut removed,
        &mut set,
    );
    compare(&found.routes, &wanted.routes, Item::Route, &mut Vec::new(), &mut set);
    removed.into_iter().map(Action::Remove).chain(set.into_iter().map(Action::Set)).collect()
}

fn compare<K: Ord + Clone, V: PartialEq + Clone>(
    found: &BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
    item: impl Fn(K, V) -> Item,
    removed: &mut Vec<Item>,
    set: &mut Vec<Item>,
) {
    let gone = found.iter().filter(|(key, _)| !wanted.contains_key(key));
    removed.extend(gone.map(|(key, value)| item(key.clone(), value.clone())));
    let changed = wanted.iter().filter(|(key, value)| found.get(key) != Some(value));
    set.extend(changed.map(|(key, value)| item(key.clone(), value.clone())));
}
