//! What a spec comes to with the pods that there are: the entries of one ruleset. Pure.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::policy::Ports;
use ipnetwork::IpNetwork;

use super::Peer;
use super::peers::Cluster;
use super::spec::{Spec, add, numbers};

#[derive(Debug)]
pub struct Ruleset {
    spec: Arc<Spec>,
    /// For addresses whoever has them; never changed.
    networks: HashMap<IpNetwork, Ports>,
    /// The lengths of the prefixes of `networks`, of either family, the longest first.
    lengths: Vec<u8>,
    /// For the addresses of pods to which selectors allow more.
    pods: HashMap<IpAddr, Ports>,
}

impl Ruleset {
    pub fn new(spec: Arc<Spec>, cluster: &Cluster<'_>) -> Self {
        let networks: HashMap<IpNetwork, Ports> = spec.networks().into_iter().collect();
        let lengths: BTreeSet<u8> = networks.keys().map(IpNetwork::prefix).collect();
        let lengths = lengths.into_iter().rev().collect();
        let mut ruleset = Self { spec, networks, lengths, pods: HashMap::new() };
        let concerned = cluster.peers.namespaces().filter(|namespace| {
            ruleset.spec.pods().any(|(peer, _)| match peer {
                Peer::Pods { namespaces, .. } => cluster.holds(namespaces, namespace),
                Peer::Everybody | Peer::Block(_) => true,
            })
        });
        let addresses: BTreeSet<IpAddr> =
            concerned.flat_map(|namespace| cluster.peers.addresses(namespace)).collect();
        let pods =
            addresses.into_iter().filter_map(|address| Some((address, ruleset.for_pods(address, cluster)?)));
        ruleset.pods = pods.collect();
        ruleset
    }

    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Each network once.
    pub fn entries(&self) -> impl Iterator<Item = (IpNetwork, &Ports)> {
        let networks = self.networks.iter().map(|(network, ports)| (*network, ports));
        let shadowed = |network: &IpNetwork| is_one(network) && self.pods.contains_key(&network.ip());
        networks
            .filter(move |(network, _)| !shadowed(network))
            .chain(self.pods.iter().map(|(address, ports)| ((*address).into(), ports)))
    }

    /// What becomes of an address, after something happened to the pods that have it or had it: its entry and what that holds now, `None`
    /// if it is no more.
    pub fn update(&mut self, address: IpAddr, cluster: &Cluster<'_>) -> Option<(IpNetwork, Option<Ports>)> {
        let next = self.for_pods(address, cluster);
        if self.pods.get(&address) == next.as_ref() {
            return None;
        }
        match next.clone() {
            Some(ports) => drop(self.pods.insert(address, ports)),
            None => drop(self.pods.remove(&address)),
        }
        let network = address.into();
        Some((network, next.or_else(|| self.networks.get(&network).cloned())))
    }

    /// What is allowed to an address that pods have; `None` if that is what is allowed to it anyway.
    fn for_pods(&self, address: IpAddr, cluster: &Cluster<'_>) -> Option<Ports> {
        let mut ports = Ports::none();
        for (namespace, pod) in cluster.peers.at(address) {
            let reaching = self.spec.pods().filter(|(peer, _)| cluster.reaches(peer, namespace, pod));
            for (_, allowed) in reaching {
                add(&mut ports, &allowed.ports);
                add(&mut ports, &numbers(&allowed.named, &pod.ports));
            }
        }
        if ports == Ports::none() {
            return None;
        }
        let anyway = self.for_address(address);
        add(&mut ports, &anyway);
        (ports != anyway).then_some(ports)
    }

    /// By the smallest network that holds it.
    fn for_address(&self, address: IpAddr) -> Ports {
        let mut holding = self.lengths.iter().filter_map(|length| {
            let network = IpNetwork::new(address, *length).ok()?;
            self.networks.get(&IpNetwork::new(network.network(), *length).ok()?)
        });
        holding.next().cloned().unwrap_or_else(Ports::none)
    }
}

/// Whether it holds one address.
fn is_one(network: &IpNetwork) -> bool {
    network.prefix() == if network.is_ipv4() { 32 } else { 128 }
}
