//! Which routes lead to the pods of other nodes. Pure.
//!
//! In: what the other Nodes say, the networks that this node is on, the routes of ours that the kernel has. Out: what to change,
//! removals first, and what cannot be done.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use k8s_openapi::api::core::v1::Node;

#[cfg(test)]
mod tests;

/// What another Node says about where its pods are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// Its first IPv4 InternalIP.
    pub address: Option<Ipv4Addr>,
    pub pods: Vec<Ipv4Network>,
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    pub gateway: Ipv4Addr,
    /// Index of the link.
    pub link: u32,
}

/// What a pass sees.
pub struct View<'a> {
    pub peers: &'a BTreeMap<String, Peer>,
    pub cluster: Option<Ipv4Network>,
    /// This node's addresses with their prefixes, by link.
    pub networks: &'a [(u32, Ipv4Network)],
    pub routes: &'a BTreeMap<Ipv4Network, Hop>,
}

/// What a pass does.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub problems: BTreeSet<Problem>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Set { node: String, pods: Ipv4Network, hop: Hop },
    Remove { pods: Ipv4Network, hop: Hop },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set { node, pods, hop } => write!(f, "set {pods} via {} ({node})", hop.gateway),
            Self::Remove { pods, hop } => write!(f, "remove {pods} via {}", hop.gateway),
        }
    }
}

/// Why the pods of a node cannot be reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// Its address is not a neighbour's.
    NotOnLink { node: String, address: Ipv4Addr },
    /// It claims addresses that are not pods'.
    Outside { node: String, pods: Ipv4Network, cluster: Ipv4Network },
    /// Another node has them already.
    Taken { node: String, pods: Ipv4Network, other: String },
}

impl Problem {
    /// The name of the node that it is about.
    pub fn node(&self) -> &str {
        match self {
            Self::NotOnLink { node, .. } | Self::Outside { node, .. } | Self::Taken { node, .. } => node,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOnLink { address, .. } => write!(
                f,
                "no link of this node is on the network of {address}: routes between nodes need a network that \
                 they share"
            ),
            Self::Outside { pods, cluster, .. } => {
                write!(f, "podCIDR {pods} is not within the cluster's {cluster}")
            }
            Self::Taken { pods, other, .. } => write!(f, "podCIDR {pods} overlaps with that of node {other}"),
        }
    }
}

/// What a Node says. A podCIDR that is no IPv4 network counts as not said.
pub fn peer(node: &Node) -> Peer {
    let spec = node.spec.as_ref();
    let single = spec.and_then(|spec| spec.pod_cidr.as_ref());
    let all = spec.and_then(|spec| spec.pod_cidrs.as_ref()).into_iter().flatten();
    let mut pods: Vec<Ipv4Network> = Vec::new();
    for network in single.into_iter().chain(all).filter_map(|text| text.parse::<Ipv4Network>().ok()) {
        // The kernel shows routes without host bits, and a default route would take the node off the network.
        let network = Ipv4Network::new(network.network(), network.prefix()).ok();
        pods.extend(network.filter(|network| network.prefix() > 0 && !pods.contains(network)));
    }
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref()).into_iter().flatten();
    let mut internal = addresses.filter(|address| address.type_ == "InternalIP");
    Peer { address: internal.find_map(|address| address.address.parse().ok()), pods }
}

/// Decides one pass.
pub fn plan(view: &View<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut wanted: BTreeMap<Ipv4Network, (&str, Hop)> = BTreeMap::new();
    for (node, peer) in view.peers {
        let Some(address) = peer.address.filter(|_| !peer.pods.is_empty()) else { continue };
        let Some(link) = link_to(address, view.networks) else {
            plan.problems.insert(Problem::NotOnLink { node: node.clone(), address });
            continue;
        };
        for pods in &peer.pods {
            match refusal(view.cluster, &wanted, node, *pods) {
                Some(problem) => drop(plan.problems.insert(problem)),
                None => drop(wanted.insert(*pods, (node, Hop { gateway: address, link }))),
            }
        }
    }
    let removed = view.routes.iter().filter(|(pods, _)| !wanted.contains_key(pods));
    plan.actions.extend(removed.map(|(pods, hop)| Action::Remove { pods: *pods, hop: *hop }));
    let changed = wanted.iter().filter(|(pods, (_, hop))| view.routes.get(pods) != Some(hop));
    plan.actions.extend(changed.map(|(pods, (node, hop))| Action::Set {
        node: (*node).to_owned(),
        pods: *pods,
        hop: *hop,
    }));
    plan
}

/// The link that has `address` as a neighbour; the narrowest network wins.
fn link_to(address: Ipv4Addr, networks: &[(u32, Ipv4Network)]) -> Option<u32> {
    let near = networks.iter().filter(|(_, network)| network.contains(address) && network.ip() != address);
    near.max_by_key(|(_, network)| network.prefix()).map(|(link, _)| *link)
}

fn refusal(
    cluster: Option<Ipv4Network>,
    wanted: &BTreeMap<Ipv4Network, (&str, Hop)>,
    node: &str,
    pods: Ipv4Network,
) -> Option<Problem> {
    if let Some(cluster) = cluster.filter(|cluster| !pods.is_subnet_of(*cluster)) {
        return Some(Problem::Outside { node: node.to_owned(), pods, cluster });
    }
    // Those accepted so far do not overlap each other, so only the neighbours in their order can overlap this one.
    let neighbours = wanted.range(..=pods).next_back().into_iter().chain(wanted.range(pods..).next());
    let (_, (other, _)) = neighbours.into_iter().find(|(other, _)| other.overlaps(pods))?;
    Some(Problem::Taken { node: node.to_owned(), pods, other: (*other).to_owned() })
}
