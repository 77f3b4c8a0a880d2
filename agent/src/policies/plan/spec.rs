//! The rules that hold for a pod in one direction, whichever, in a form in which equal ones are equal. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use dataplane::policy::{PortRange, Ports};
use ipnetwork::IpNetwork;

use super::{Allowed, Block, NamedPort, Namespaces, Peer, PortName, Rule};
use crate::policies::selector::Labels;

/// Each peer once, with everything that is allowed to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Spec(BTreeMap<Peer, Allowed>);

impl Spec {
    /// Names of ports are those of `ports`, the selected pod's.
    pub fn ingress<'a>(rules: impl Iterator<Item = &'a Rule>, ports: &[NamedPort]) -> Self {
        let mut spec = Self(BTreeMap::new());
        for rule in rules {
            let mut allowed = Allowed { ports: rule.allowed.ports.clone(), ..Allowed::default() };
            add(&mut allowed.ports, &numbers(&rule.allowed.named, ports));
            spec.allow(&rule.peers, &allowed);
        }
        spec.normal()
    }

    /// Names of ports are those of each peer.
    pub fn egress<'a>(rules: impl Iterator<Item = &'a Rule>) -> Self {
        let mut spec = Self(BTreeMap::new());
        for rule in rules {
            spec.allow(&rule.peers, &rule.allowed);
        }
        spec.normal()
    }

    fn allow<'a>(&mut self, peers: impl IntoIterator<Item = &'a Peer>, allowed: &Allowed) {
        for peer in peers {
            let all = self.0.entry(peer.clone()).or_default();
            add(&mut all.ports, &allowed.ports);
            // Nobody is behind the addresses of a block whose ports could have names.
            if !matches!(peer, Peer::Block(_)) {
                all.named.extend(allowed.named.iter().cloned());
            }
        }
    }

    /// Without what makes no difference.
    fn normal(mut self) -> Self {
        for allowed in self.0.values_mut().filter(|allowed| allowed.ports == Ports::All) {
            allowed.named.clear();
        }
        self.0.retain(|_, allowed| *allowed != Allowed::default());
        if self.everybody() == Ports::All {
            self.0.retain(|peer, _| *peer == Peer::Everybody);
        }
        self
    }

    /// Those whose selectors look at pods.
    pub fn pods(&self) -> impl Iterator<Item = (&Peer, &Allowed)> {
        self.0.iter().filter(|(peer, allowed)| match peer {
            Peer::Everybody => !allowed.named.is_empty(),
            Peer::Pods { .. } => true,
            Peer::Block(_) => false,
        })
    }

    /// Whether a selector of namespaces takes one of these and not the other.
    pub fn tells_apart(&self, one: Option<&Arc<Labels>>, other: Option<&Arc<Labels>>) -> bool {
        self.0.keys().any(|peer| match peer {
            Peer::Pods { namespaces: Namespaces::Matching(selector), .. } => {
                let [one, other] =
                    [one, other].map(|labels| labels.is_some_and(|labels| selector.matches(labels)));
                one != other
            }
            _ => false,
        })
    }

    fn everybody(&self) -> Ports {
        self.0.get(&Peer::Everybody).map_or_else(Ports::none, |allowed| allowed.ports.clone())
    }

    /// What the most specific network that holds an address allows to it, unless a pod is looked at. A network is there for each block
    /// and each exception where something begins or ends.
    pub fn networks(&self) -> BTreeMap<IpNetwork, Ports> {
        let everybody = self.everybody();
        let whole = [(Ipv4Addr::UNSPECIFIED.into(), 0), (Ipv6Addr::UNSPECIFIED.into(), 0)]
            .map(|(address, prefix)| IpNetwork::new(address, prefix).ok());
        let blocks: Vec<(&Block, &Ports)> = self
            .0
            .iter()
            .filter_map(|(peer, allowed)| match peer {
                Peer::Block(block) => Some((block, &allowed.ports)),
                Peer::Everybody | Peer::Pods { .. } => None,
            })
            .collect();
        // Which blocks begin at a network, and which do not go on there.
        let mut edges: BTreeMap<IpNetwork, Edge> =
            whole.into_iter().flatten().map(|network| (network, Edge::default())).collect();
        for (index, (block, _)) in blocks.iter().enumerate() {
            edges.entry(block.network).or_default().begin.insert(index);
            for except in &*block.except {
                edges.entry(*except).or_default().end.insert(index);
            }
        }
        let mut networks = BTreeMap::new();
        // From the outermost network that holds the one looked at to the innermost: what is open there, and what that allows. In the
        // order of networks one comes before those within it.
        let mut around: Vec<(IpNetwork, BTreeSet<usize>, Ports)> = Vec::new();
        for (network, edge) in edges {
            while around.last().is_some_and(|(outer, ..)| !outer.contains(network.ip())) {
                around.pop();
            }
            let outer = around.last();
            let mut open = outer.map(|(_, open, _)| open.clone()).unwrap_or_default();
            open.extend(edge.begin);
            open.retain(|index| !edge.end.contains(index));
            let mut ports = everybody.clone();
            open.iter().for_each(|index| add(&mut ports, blocks[*index].1));
            if outer.map_or(ports != Ports::none(), |(_, _, before)| *before != ports) {
                networks.insert(network, ports.clone());
            }
            around.push((network, open, ports));
        }
        networks
    }
}

#[derive(Debug, Default)]
struct Edge {
    begin: BTreeSet<usize>,
    end: BTreeSet<usize>,
}

/// The ports of a pod that have these names.
pub fn numbers(names: &BTreeSet<PortName>, ports: &[NamedPort]) -> Ports {
    let named = ports.iter().filter(|port| names.contains(&port.name));
    Ports::new(named.map(|port| PortRange {
        protocol: port.name.protocol,
        first: port.number,
        last: port.number,
    }))
}

/// As [`Ports::union`], without a new list where one of the two will do: rulesets have thousands of entries with few lists.
pub fn add(ports: &mut Ports, more: &Ports) {
    if *ports == Ports::none() {
        *ports = more.clone();
    } else if *more != Ports::none() && ports != more {
        *ports = ports.union(more);
    }
}
