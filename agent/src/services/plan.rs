//! Which frontends lead to which endpoints, and what of that changed. Pure: no API types, no kernel, no clock.
//!
//! In: Services and their EndpointSlices as plain values. Out: [`Change`]s since the last call. The rules are kube-proxy's:
//! ready endpoints; if there are none, those that still serve while they terminate; with a Local policy only this node's.
//! What the node itself knows of the end of its own pods ([`Departure`]) counts before the slices say so. An address and port that two Services claim belongs to the older one (then to the lower name), whatever the order in
//! which they became known; the other one is reported.

use core::net::{Ipv4Addr, SocketAddrV4};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use dataplane::{Frontend, Protocol};

mod departed;

use departed::Departed;
pub use departed::PODS;

#[cfg(test)]
mod tests;

/// Namespace and name of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Which endpoints traffic may go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrafficPolicy {
    #[default]
    Cluster,
    /// Those on this node.
    Local,
}

/// A Service, as far as the dataplane goes. Headless and ExternalName Services have no address here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Service {
    pub uid: String,
    /// Seconds since 1970.
    pub created: i64,
    pub cluster_ips: Vec<Ipv4Addr>,
    /// `spec.externalIPs` and the addresses of load balancers.
    pub external_ips: Vec<Ipv4Addr>,
    pub ports: Vec<Port>,
    pub internal_policy: TrafficPolicy,
    pub external_policy: TrafficPolicy,
    /// ClientIP affinity was asked for.
    pub affinity: bool,
    /// Its endpoints count as ready whatever their pods are, also while those terminate.
    pub publish_not_ready: bool,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Empty for the only port of a Service.
    pub name: String,
    pub port: u16,
    pub protocol: Protocol,
    pub node_port: Option<u16>,
}

/// An EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Slice {
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<Endpoint>,
}

impl Slice {
    /// The pods that it names, where those may be this node's.
    fn pods(&self) -> impl Iterator<Item = &Box<str>> {
        self.endpoints.iter().filter_map(|endpoint| endpoint.pod.as_ref())
    }
}

/// A port of an EndpointSlice: named target ports are resolved here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    pub name: String,
    pub port: u16,
    pub protocol: Protocol,
}

/// One address of an EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub address: Ipv4Addr,
    pub usable: Usable,
    /// The same once its pod is being ended, before the slice says so.
    pub departing: Usable,
    /// On this node.
    pub local: bool,
    /// The uid of the pod behind it, where that may be one of this node.
    pub pod: Option<Box<str>>,
}

/// Whether an endpoint takes traffic; a larger value wins when slices disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Usable {
    No,
    /// Serving and terminating: only when nothing is ready.
    Fallback,
    Ready,
}

/// How far a pod of this node has come to its end, as the node knows it; a later stage is larger. Nothing leads back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Departure {
    /// It is about to be stopped: as an endpoint that its slice calls terminating.
    Terminating,
    /// None of its containers runs: nobody is sent to it.
    Gone,
}

/// What to do to the dataplane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Remove { frontend: Frontend },
    Set { frontend: Frontend, endpoints: Arc<[SocketAddrV4]>, service: Key },
}

/// A Service did not get an address and port because an older one has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    pub frontend: Frontend,
    pub loser: Key,
    pub winner: Key,
}

/// What came out of one pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Removals first.
    pub changes: Vec<Change>,
    pub conflicts: Vec<Conflict>,
}

type Lists = BTreeMap<Frontend, Arc<[SocketAddrV4]>>;
/// Age first, then name.
type Claimant = (i64, Key);

/// The objects, and what was last decided for them.
#[derive(Debug, Default)]
pub struct Planner {
    node_addresses: Vec<Ipv4Addr>,
    services: HashMap<Key, Service>,
    /// Slices by Service and name.
    slices: HashMap<Key, BTreeMap<String, Slice>>,
    /// The Service of each slice.
    slice_service: HashMap<Key, Key>,
    /// The slices that name a pod, by its uid.
    pod_slices: HashMap<Box<str>, BTreeSet<Key>>,
    departed: Departed,
    dirty: BTreeSet<Key>,
    /// What each Service wants.
    wanted: HashMap<Key, (i64, Lists)>,
    claims: HashMap<Frontend, BTreeMap<Claimant, Arc<[SocketAddrV4]>>>,
    desired: HashMap<Frontend, (Key, Arc<[SocketAddrV4]>)>,
}

impl Planner {
    /// `node_addresses`: where node ports answer.
    pub fn new(node_addresses: Vec<Ipv4Addr>) -> Self {
        Self { node_addresses, ..Self::default() }
    }

    pub fn service(&self, key: &Key) -> Option<&Service> {
        self.services.get(key)
    }

    pub fn set_service(&mut self, key: Key, service: Service) {
        if self.services.get(&key) != Some(&service) {
            self.dirty.insert(key.clone());
            self.services.insert(key, service);
        }
    }

    pub fn remove_service(&mut self, key: &Key) {
        if self.services.remove(key).is_some() {
            self.dirty.insert(key.clone());
        }
    }

    /// Removes the Services that a full list did not show.
    pub fn retain_services(&mut self, seen: &HashSet<Key>) -> Vec<Key> {
        let gone: Vec<Key> = self.services.keys().filter(|key| !seen.contains(key)).cloned().collect();
        gone.iter().for_each(|key| self.remove_service(key));
        gone
    }

    pub fn set_slice(&mut self, slice_key: Key, service: Key, slice: Slice) {
        if self.slice_service.get(&slice_key).is_some_and(|before| *before != service) {
            self.remove_slice(&slice_key);
        }
        let slices = self.slices.entry(service.clone()).or_default();
        if slices.get(&slice_key.name) != Some(&slice) {
            for pod in slice.pods() {
                self.pod_slices.entry(pod.clone()).or_default().insert(slice_key.clone());
            }
            let before = slices.insert(slice_key.name.clone(), slice);
            self.dirty.insert(service.clone());
            self.forget_pods(&slice_key, &service, before);
        }
        self.slice_service.insert(slice_key, service);
    }

    pub fn remove_slice(&mut self, slice_key: &Key) {
        let Some(service) = self.slice_service.remove(slice_key) else { return };
        if let Some(slices) = self.slices.get_mut(&service) {
            let before = slices.remove(&slice_key.name);
            if slices.is_empty() {
                self.slices.remove(&service);
            }
            self.forget_pods(slice_key, &service, before);
        }
        self.dirty.insert(service);
    }

    /// Takes a slice from the index of pods, for those that it names no more.
    fn forget_pods(&mut self, slice_key: &Key, service: &Key, before: Option<Slice>) {
        let now = self.slices.get(service).and_then(|slices| slices.get(&slice_key.name));
        let kept: HashSet<&str> = now.into_iter().flat_map(Slice::pods).map(|pod| &**pod).collect();
        for pod in before.iter().flat_map(Slice::pods).filter(|pod| !kept.contains(&***pod)) {
            if let Some(slices) = self.pod_slices.get_mut(pod) {
                slices.remove(slice_key);
                if slices.is_empty() {
                    self.pod_slices.remove(pod);
                }
            }
        }
    }

    /// A pod of this node comes to its end. A stage before the one that is known changes nothing.
    pub fn depart(&mut self, pod: &str, stage: Departure) {
        let changed = self.departed.put(pod, stage);
        for pod in changed.into_iter().flatten() {
            let slices = self.pod_slices.get(&pod).into_iter().flatten();
            self.dirty.extend(slices.filter_map(|slice| self.slice_service.get(slice)).cloned());
        }
    }

    /// Removes the slices that a full list did not show.
    pub fn retain_slices(&mut self, seen: &HashSet<Key>) {
        let gone: Vec<Key> = self.slice_service.keys().filter(|key| !seen.contains(key)).cloned().collect();
        gone.iter().for_each(|key| self.remove_slice(key));
    }

    /// What the dataplane should hold, by the changes so far.
    pub fn desired(&self, frontend: &Frontend) -> Option<(&Key, &Arc<[SocketAddrV4]>)> {
        self.desired.get(frontend).map(|(key, endpoints)| (key, endpoints))
    }

    /// Every frontend that the dataplane should have.
    pub fn frontends(&self) -> HashSet<Frontend> {
        self.desired.keys().copied().collect()
    }

    /// Decides for the Services that changed since the last call.
    pub fn take_changes(&mut self) -> Changes {
        let mut touched = BTreeSet::new();
        for key in std::mem::take(&mut self.dirty) {
            self.update_claims(key, &mut touched);
        }
        let mut result = Changes::default();
        let mut sets = Vec::new();
        for frontend in touched {
            match self.claims.get(&frontend).and_then(|claims| claims.first_key_value()) {
                None => {
                    if self.desired.remove(&frontend).is_some() {
                        result.changes.push(Change::Remove { frontend });
                    }
                }
                Some(((_, key), endpoints)) => {
                    self.report_losers(frontend, key, &mut result.conflicts);
                    let next = (key.clone(), endpoints.clone());
                    let unchanged = self.desired.get(&frontend).is_some_and(|(_, before)| *before == next.1);
                    if !unchanged {
                        let (service, endpoints) = next.clone();
                        sets.push(Change::Set { frontend, endpoints, service });
                    }
                    self.desired.insert(frontend, next);
                }
            }
        }
        result.changes.append(&mut sets);
        result
    }

    fn report_losers(&self, frontend: Frontend, winner: &Key, conflicts: &mut Vec<Conflict>) {
        let losers = self.claims.get(&frontend).into_iter().flat_map(|claims| claims.keys().skip(1));
        for (_, loser) in losers {
            conflicts.push(Conflict { frontend, loser: loser.clone(), winner: winner.clone() });
        }
    }

    /// Replaces what one Service wants; `touched` gets the frontends for which that makes a difference.
    fn update_claims(&mut self, key: Key, touched: &mut BTreeSet<Frontend>) {
        let next = self.services.get(&key).map(|service| {
            let slices = self.slices.get(&key).into_iter().flat_map(BTreeMap::values);
            (service.created, frontends(service, slices, &self.departed, &self.node_addresses))
        });
        let before = self.wanted.remove(&key);
        if let Some((created, lists)) = &before {
            let kept = |frontend: &Frontend, list: &Arc<[SocketAddrV4]>| {
                next.as_ref().is_some_and(|(age, next)| age == created && next.get(frontend) == Some(list))
            };
            for (frontend, _) in lists.iter().filter(|(frontend, list)| !kept(frontend, list)) {
                self.drop_claim(frontend, &(*created, key.clone()));
                touched.insert(*frontend);
            }
        }
        let Some((created, lists)) = next else { return };
        for (frontend, list) in &lists {
            let claims = self.claims.entry(*frontend).or_default();
            let claimant = (created, key.clone());
            if claims.get(&claimant) != Some(list) {
                claims.insert(claimant, list.clone());
                touched.insert(*frontend);
            }
        }
        self.wanted.insert(key, (created, lists));
    }

    fn drop_claim(&mut self, frontend: &Frontend, claimant: &Claimant) {
        if let Some(claims) = self.claims.get_mut(frontend) {
            claims.remove(claimant);
            if claims.is_empty() {
                self.claims.remove(frontend);
            }
        }
    }
}

/// The frontends of one Service with their endpoints, sorted and without duplicates.
pub fn frontends<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    departed: &Departed,
    node_addresses: &[Ipv4Addr],
) -> Lists {
    let mut lists = Lists::new();
    for port in &service.ports {
        let now = |endpoint: &Endpoint| departed.usable(endpoint, service.publish_not_ready);
        let endpoints = merge(port, slices.clone(), now);
        let internal = choose(&endpoints, service.internal_policy);
        let external = choose(&endpoints, service.external_policy);
        let at = |address: Ipv4Addr, number: u16| Frontend { address, port: number, protocol: port.protocol };
        let node_ports = port.node_port.into_iter().flat_map(|number| {
            // Connections to the loopback are the machine's own business.
            node_addresses.iter().filter(|address| !address.is_loopback()).map(move |ip| (*ip, number))
        });
        for (address, number) in node_ports.chain(service.external_ips.iter().map(|ip| (*ip, port.port))) {
            lists.insert(at(address, number), external.clone());
        }
        for address in &service.cluster_ips {
            lists.insert(at(*address, port.port), internal.clone());
        }
    }
    lists
}

/// The endpoints of one port, over all slices, by what each is worth now.
fn merge<'a>(
    port: &Port,
    slices: impl Iterator<Item = &'a Slice>,
    now: impl Fn(&Endpoint) -> Usable,
) -> BTreeMap<SocketAddrV4, (Usable, bool)> {
    let mut merged = BTreeMap::new();
    for slice in slices {
        let same =
            |candidate: &&SlicePort| candidate.name == port.name && candidate.protocol == port.protocol;
        for target in slice.ports.iter().filter(same) {
            for endpoint in &slice.endpoints {
                let address = SocketAddrV4::new(endpoint.address, target.port);
                let (usable, local) = merged.entry(address).or_insert((Usable::No, false));
                *usable = now(endpoint).max(*usable);
                *local |= endpoint.local;
            }
        }
    }
    merged
}

fn choose(endpoints: &BTreeMap<SocketAddrV4, (Usable, bool)>, policy: TrafficPolicy) -> Arc<[SocketAddrV4]> {
    let allowed = |local: bool| policy == TrafficPolicy::Cluster || local;
    let with = |wanted: Usable| -> Arc<[SocketAddrV4]> {
        let matching = endpoints.iter().filter(|(_, (usable, local))| *usable == wanted && allowed(*local));
        matching.map(|(address, _)| *address).collect()
    };
    let ready = with(Usable::Ready);
    if ready.is_empty() { with(Usable::Fallback) } else { ready }
}
