//! Which frontends lead to which endpoints, and what of that changed. Pure: no API types, no kernel, no clock.
//!
//! In: Services and their EndpointSlices as plain values. Out: [`Change`]s since the last call. The rules are kube-proxy's:
//! ready endpoints, of these the ones that hints mean for this node or its zone; if none is ready, those that still serve while
//! they terminate; with a Local policy only this node's. An external policy is for traffic from outside: clients on the node are
//! led to any endpoint, by whatever address they ask.
//! What the node itself knows of the end of its own pods ([`Departure`]) counts before the slices say so. An address and port that two Services claim belongs to the older one (then to the lower name), whatever the order in
//! which they became known; the other one is reported.

use core::net::{IpAddr, Ipv6Addr, SocketAddr};
use core::num::NonZeroU32;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use dataplane::{Frontend, Identity, Names, Protocol, Scheduler, Target};
use ipnetwork::IpNetwork;

use super::scheduling::{self, Scheduling};

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

/// Something for each address family.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ByFamily<T> {
    pub v4: T,
    pub v6: T,
}

impl<T> ByFamily<T> {
    fn map<U>(self, change: impl Fn(T) -> U) -> ByFamily<U> {
        ByFamily { v4: change(self.v4), v6: change(self.v6) }
    }

    fn of(&self, address: IpAddr) -> &T {
        if address.is_ipv4() { &self.v4 } else { &self.v6 }
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
    pub cluster_ips: Vec<IpAddr>,
    pub external_ips: Vec<IpAddr>,
    /// The addresses of load balancers.
    pub balancer_ips: Vec<IpAddr>,
    /// Who may ask there, sorted and each once; none: everybody.
    pub source_ranges: ByFamily<Option<Arc<[IpNetwork]>>>,
    pub ports: Vec<Port>,
    pub internal_policy: TrafficPolicy,
    pub external_policy: TrafficPolicy,
    /// Of ClientIP affinity: how long a client stays with its endpoint.
    pub affinity_seconds: Option<NonZeroU32>,
    /// Where load balancers ask whether this node has an endpoint.
    pub health_check_port: Option<u16>,
    /// Its endpoints count as ready whatever their pods are, also while those terminate.
    pub publish_not_ready: bool,
    /// Endpoints on other nodes answer clients outside from there.
    pub direct_return: bool,
    pub scheduling: Scheduling,
}

impl Service {
    /// An endpoint's shares of what is new.
    fn weight(&self, endpoint: &Endpoint) -> u16 {
        self.scheduling.weight(endpoint.address, endpoint.node.as_deref())
    }
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
    fn pods(&self) -> impl Iterator<Item = &str> {
        self.endpoints.iter().filter_map(|endpoint| endpoint.pod.as_deref().map(String::as_str))
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
    pub address: IpAddr,
    pub usable: Usable,
    /// The same once its pod is being ended, before the slice says so.
    pub departing: Usable,
    /// On this node.
    pub local: bool,
    /// The node that it is on, where that is said.
    pub node: Option<Arc<str>>,
    /// The zones that it is meant for; none: no hint.
    pub zones: Option<Arc<[Box<str>]>>,
    /// Whether it is meant for clients on this node; none: no hint.
    pub meant_for_node: Option<bool>,
    /// The uid of the pod behind it, where that may be one of this node. A thin pointer: most endpoints are elsewhere.
    pub pod: Option<Arc<String>>,
    /// What it is known by while its address may change: the pod's name.
    pub identity: Option<Identity>,
}

// A node holds those of the whole cluster.
const _: () = assert!(size_of::<Endpoint>() <= 72);

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
    Set { frontend: Frontend, target: Target, service: Key },
}

/// What load balancers are told of a Service's endpoints on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheck {
    pub port: u16,
    /// Those that are ready and get something new, each address once; of a Service of both families, of the one that has more.
    pub local_endpoints: usize,
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
    /// Services with another health check; `None`: with none any more.
    pub health_checks: Vec<(Key, Option<HealthCheck>)>,
}

type Lists = BTreeMap<Frontend, Target>;
/// Age first, then name.
type Claimant = (i64, Key);

/// The objects, and what was last decided for them.
#[derive(Debug, Default)]
pub struct Planner {
    node_addresses: Vec<IpAddr>,
    /// Where this node is, as far as it is known.
    zone: Option<Box<str>>,
    services: HashMap<Key, Arc<Service>>,
    /// How many of these ask for direct return.
    direct_returns: usize,
    /// Slices by Service and name.
    slices: HashMap<Key, BTreeMap<String, Slice>>,
    /// The Service of each slice.
    slice_service: HashMap<Key, Key>,
    /// The names of nodes that endpoints are on, once each.
    node_names: HashSet<Arc<str>>,
    /// The slices that name a pod, by its uid.
    pod_slices: HashMap<Box<str>, BTreeSet<Key>>,
    departed: Departed,
    dirty: BTreeSet<Key>,
    /// What each Service wants.
    wanted: HashMap<Key, (i64, Lists)>,
    claims: HashMap<Frontend, BTreeMap<Claimant, Target>>,
    desired: HashMap<Frontend, (Key, Target)>,
    /// How many of these are of SCTP.
    sctp: usize,
    health_checks: HashMap<Key, HealthCheck>,
}

impl Planner {
    /// `node_addresses`: where node ports answer.
    pub fn new(node_addresses: Vec<IpAddr>) -> Self {
        Self { node_addresses, ..Self::default() }
    }

    /// The node's zone is another one: that concerns the Services whose endpoints have hints.
    pub fn set_zone(&mut self, zone: Option<&str>) {
        if self.zone.as_deref() == zone {
            return;
        }
        self.zone = zone.map(Into::into);
        let hinted = |slice: &Slice| slice.endpoints.iter().any(|endpoint| endpoint.zones.is_some());
        let concerned = self.slices.iter().filter(|(_, slices)| slices.values().any(hinted));
        self.dirty.extend(concerned.map(|(service, _)| service.clone()));
    }

    pub fn service(&self, key: &Key) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    pub fn set_service(&mut self, key: Key, service: Service) {
        if self.services.get(&key).is_none_or(|before| **before != service) {
            self.dirty.insert(key.clone());
            self.direct_returns += usize::from(service.direct_return);
            let before = self.services.insert(key, Arc::new(service));
            self.direct_returns -= usize::from(before.is_some_and(|before| before.direct_return));
        }
    }

    pub fn remove_service(&mut self, key: &Key) {
        if let Some(before) = self.services.remove(key) {
            self.dirty.insert(key.clone());
            self.direct_returns -= usize::from(before.direct_return);
        }
    }

    /// Removes the Services that a full list did not show.
    pub fn retain_services(&mut self, seen: &HashSet<Key>) -> Vec<Key> {
        let gone: Vec<Key> = self.services.keys().filter(|key| !seen.contains(key)).cloned().collect();
        gone.iter().for_each(|key| self.remove_service(key));
        gone
    }

    pub fn set_slice(&mut self, slice_key: Key, service: Key, mut slice: Slice) {
        self.share_names(&mut slice);
        if self.slice_service.get(&slice_key).is_some_and(|before| *before != service) {
            self.remove_slice(&slice_key);
        }
        let slices = self.slices.entry(service.clone()).or_default();
        if slices.get(&slice_key.name) != Some(&slice) {
            for pod in slice.pods() {
                self.pod_slices.entry(pod.into()).or_default().insert(slice_key.clone());
            }
            let before = slices.insert(slice_key.name.clone(), slice);
            self.dirty.insert(service.clone());
            self.forget_pods(&slice_key, &service, before);
        }
        self.slice_service.insert(slice_key, service);
    }

    /// Endpoints are many, and nodes few.
    fn share_names(&mut self, slice: &mut Slice) {
        for name in slice.endpoints.iter_mut().filter_map(|endpoint| endpoint.node.as_mut()) {
            match self.node_names.get(name) {
                Some(known) => *name = known.clone(),
                None => drop(self.node_names.insert(name.clone())),
            }
        }
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
        let kept: HashSet<&str> = now.into_iter().flat_map(Slice::pods).collect();
        for pod in before.iter().flat_map(Slice::pods).filter(|pod| !kept.contains(pod)) {
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
        self.node_names.retain(|name| Arc::strong_count(name) > 1);
    }

    /// What the dataplane should hold, by the changes so far.
    pub fn desired(&self, frontend: &Frontend) -> Option<(&Key, &Target)> {
        self.desired.get(frontend).map(|(key, target)| (key, target))
    }

    /// Whether a Service asks for direct return.
    pub fn returns_directly(&self) -> bool {
        self.direct_returns > 0
    }

    /// Whether a Service of SCTP is served.
    pub fn leads_sctp(&self) -> bool {
        self.sctp > 0
    }

    /// Every frontend that the dataplane should have.
    pub fn frontends(&self) -> HashSet<Frontend> {
        self.desired.keys().copied().collect()
    }

    /// Decides for the Services that changed since the last call.
    pub fn take_changes(&mut self) -> Changes {
        let mut touched = BTreeSet::new();
        let mut result = Changes::default();
        for key in std::mem::take(&mut self.dirty) {
            result.health_checks.extend(self.update_health_check(&key));
            self.update_claims(key, &mut touched);
        }
        let mut sets = Vec::new();
        for frontend in touched {
            match self.claims.get(&frontend).and_then(|claims| claims.first_key_value()) {
                None => {
                    if self.desired.remove(&frontend).is_some() {
                        self.sctp -= usize::from(frontend.protocol == Protocol::Sctp);
                        result.changes.push(Change::Remove { frontend });
                    }
                }
                Some(((_, key), target)) => {
                    self.report_losers(frontend, key, &mut result.conflicts);
                    let next = (key.clone(), target.clone());
                    // Another Service that leads to the same is news, too: whoever counts and explains says whose it is.
                    if self.desired.get(&frontend) != Some(&next) {
                        let (service, target) = next.clone();
                        sets.push(Change::Set { frontend, target, service });
                    }
                    if self.desired.insert(frontend, next).is_none() {
                        self.sctp += usize::from(frontend.protocol == Protocol::Sctp);
                    }
                }
            }
        }
        result.changes.append(&mut sets);
        result
    }

    /// What load balancers are told now.
    pub fn health_check(&self, service: &Key) -> Option<HealthCheck> {
        self.health_checks.get(service).copied()
    }

    fn update_health_check(&mut self, key: &Key) -> Option<(Key, Option<HealthCheck>)> {
        let service = self.services.get(key);
        let next = service.and_then(|service| service.health_check_port.map(|port| (service, port))).map(
            |(service, port)| {
                let slices = self.slices.get(key).into_iter().flat_map(BTreeMap::values);
                let ready = |endpoint: &&Endpoint| {
                    let usable = self.departed.usable(endpoint, service.publish_not_ready);
                    endpoint.local && usable == Usable::Ready && service.weight(endpoint) > 0
                };
                let endpoints = slices.flat_map(|slice| &slice.endpoints).filter(ready);
                let addresses: HashSet<IpAddr> = endpoints.map(|endpoint| endpoint.address).collect();
                let v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
                HealthCheck { port, local_endpoints: v4.max(addresses.len() - v4) }
            },
        );
        let before = match next {
            Some(next) => self.health_checks.insert(key.clone(), next),
            None => self.health_checks.remove(key),
        };
        (before != next).then(|| (key.clone(), next))
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
            let node = View {
                departed: &self.departed,
                addresses: &self.node_addresses,
                zone: self.zone.as_deref(),
            };
            (service.created, frontends(service, slices, node))
        });
        let before = self.wanted.remove(&key);
        if let Some((created, lists)) = &before {
            let kept = |frontend: &Frontend, target: &Target| {
                next.as_ref().is_some_and(|(age, next)| age == created && next.get(frontend) == Some(target))
            };
            for (frontend, _) in lists.iter().filter(|(frontend, target)| !kept(frontend, target)) {
                self.drop_claim(frontend, &(*created, key.clone()));
                touched.insert(*frontend);
            }
        }
        let Some((created, lists)) = next else { return };
        for (frontend, target) in &lists {
            let claims = self.claims.entry(*frontend).or_default();
            let claimant = (created, key.clone());
            if claims.get(&claimant) != Some(target) {
                claims.insert(claimant, target.clone());
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

/// What this node knows of itself.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub departed: &'a Departed,
    /// Where node ports answer.
    pub addresses: &'a [IpAddr],
    pub zone: Option<&'a str>,
}

/// The frontends of one Service and where each leads; endpoints sorted, each as often as its share of the weights.
pub fn frontends<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    node: View<'_>,
) -> Lists {
    let mut lists = Lists::new();
    for port in &service.ports {
        let all = merge(port, slices.clone(), service, node);
        let by_family = all.map(|endpoints| {
            let [cluster, internal, external] =
                [TrafficPolicy::Cluster, service.internal_policy, service.external_policy]
                    .map(|policy| choose(&endpoints, policy));
            let draining = if port.protocol == Protocol::Udp { draining(&endpoints) } else { Arc::default() };
            let affinity_seconds = service.affinity_seconds;
            let public = Target {
                inside: cluster,
                outside: external,
                affinity_seconds,
                draining,
                scheduler: service.scheduling.scheduler,
                names: names(&endpoints, service.scheduling.scheduler),
                set_aside_after: service.scheduling.set_aside_after,
                direct_return: service.direct_return,
                ..Target::default()
            };
            let private = Target { inside: internal.clone(), outside: internal, ..public.clone() };
            (public, private)
        });
        // A Service that has no cluster IP of a family does not answer in it.
        let answers_at =
            |address: &&IpAddr| service.cluster_ips.iter().any(|ip| ip.is_ipv4() == address.is_ipv4());
        let public = |address: &IpAddr| by_family.of(*address).0.clone();
        let at = |address: IpAddr, number: u16| Frontend { address, port: number, protocol: port.protocol };
        for address in service.external_ips.iter().filter(answers_at) {
            lists.insert(at(*address, port.port), public(address));
        }
        if let Some(number) = port.node_port {
            for address in node.addresses.iter().filter(answers_at) {
                lists.insert(at(*address, number), Target { own_address: true, ..public(address) });
            }
        }
        for address in service.balancer_ips.iter().filter(answers_at) {
            let sources = service.source_ranges.of(*address).clone();
            lists.insert(at(*address, port.port), Target { sources, ..public(address) });
        }
        for address in &service.cluster_ips {
            lists.insert(at(*address, port.port), by_family.of(*address).1.clone());
        }
    }
    lists
}

/// What all slices say of one address and port.
#[derive(Debug, Clone, Copy)]
struct Merged {
    usable: Usable,
    local: bool,
    /// Whether it is meant for this node's zone, and for this node; none: no hint.
    for_zone: Option<bool>,
    for_node: Option<bool>,
    /// Its shares of what is new.
    weight: u16,
    identity: Option<Identity>,
}

type Endpoints = BTreeMap<SocketAddr, Merged>;

/// The endpoints of one port, over all slices, by what each is worth now.
fn merge<'a>(
    port: &Port,
    slices: impl Iterator<Item = &'a Slice>,
    service: &Service,
    node: View<'_>,
) -> ByFamily<Endpoints> {
    let mut all = Endpoints::new();
    for slice in slices {
        let same =
            |candidate: &&SlicePort| candidate.name == port.name && candidate.protocol == port.protocol;
        for target in slice.ports.iter().filter(same) {
            for endpoint in &slice.endpoints {
                let address = SocketAddr::new(endpoint.address, target.port);
                let weight = service.weight(endpoint);
                let unknown = Merged {
                    usable: Usable::No,
                    local: false,
                    for_zone: None,
                    for_node: None,
                    weight,
                    identity: None,
                };
                let merged = all.entry(address).or_insert(unknown);
                let in_zone = |zones: &Arc<[Box<str>]>| zones.iter().any(|zone| node.zone == Some(zone));
                merged.usable = node.departed.usable(endpoint, service.publish_not_ready).max(merged.usable);
                merged.local |= endpoint.local;
                if endpoint.node.is_some() {
                    merged.weight = weight;
                }
                merged.for_zone = endpoint.zones.as_ref().map(in_zone).max(merged.for_zone);
                merged.for_node = endpoint.meant_for_node.max(merged.for_node);
                merged.identity = endpoint.identity.max(merged.identity);
            }
        }
    }
    // In the order of addresses those of IPv6 come last.
    let v6 = all.split_off(&SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0));
    ByFamily { v4: all, v6 }
}

/// Those that serve, terminating or not, here or elsewhere: as for kube-proxy, a change of policies or hints moves no socket that is
/// connected to them over UDP.
fn draining(endpoints: &Endpoints) -> Arc<[SocketAddr]> {
    let serving = endpoints.iter().filter(|(_, merged)| merged.usable != Usable::No);
    serving.map(|(address, _)| *address).collect()
}

/// What those are known by that may be chosen, where that makes a difference.
fn names(endpoints: &Endpoints, scheduler: Scheduler) -> Option<Arc<Names>> {
    if !scheduler.is_hashed() {
        return None;
    }
    let chosen = |merged: &Merged| merged.usable != Usable::No && merged.weight > 0;
    let named = endpoints.iter().filter(|(_, merged)| chosen(merged));
    Names::new(named.filter_map(|(address, merged)| Some((*address, merged.identity?)))).map(Arc::new)
}

fn choose(endpoints: &Endpoints, policy: TrafficPolicy) -> Arc<[SocketAddr]> {
    let with = |wanted: Usable| {
        let allowed = |merged: &Merged| policy == TrafficPolicy::Cluster || merged.local;
        endpoints.iter().filter(move |(_, merged)| merged.usable == wanted && allowed(merged))
    };
    let any_ready = with(Usable::Ready).next().is_some();
    let usable = if any_ready { Usable::Ready } else { Usable::Fallback };
    // One that is to get nothing new is still ready: those that terminate do not stand in for it.
    let candidates = || with(usable).filter(|(_, merged)| merged.weight > 0);
    let weight = |(address, merged): (&SocketAddr, &Merged)| (*address, merged.weight);
    if any_ready && policy == TrafficPolicy::Cluster {
        for hint in [|merged: &Merged| merged.for_node, |merged: &Merged| merged.for_zone] {
            let mut hints = candidates().map(|(_, merged)| hint(merged));
            // An endpoint without a hint means that the hints are not for everybody; with none for here, nobody would be left.
            if hints.clone().all(|hint| hint.is_some()) && hints.any(|hint| hint == Some(true)) {
                let meant = candidates().filter(|(_, merged)| hint(merged) == Some(true));
                return scheduling::by_weight(meant.map(weight));
            }
        }
    }
    scheduling::by_weight(candidates().map(weight))
}
