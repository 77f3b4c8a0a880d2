//! Which rulesets the pods of this node have, and what of them changed. Pure: no API types, no kernel, no clock.
//!
//! In: policies, namespaces and pods as plain values, and the pods that run here ([`Planner::set_endpoint`]). Out: [`Change`]s since
//! the last call. What policies mean is networking.k8s.io/v1's: a pod that none selects is open; of those that select it, in the
//! direction that they are about, whatever one of them allows is allowed.
//!
//! The rules that hold for a pod in one direction are its [`Spec`]. Equal specs are one ruleset, so pods that the same policies select
//! share it. A spec never changes: when a policy does, its pods move to another ruleset, which was written whole before. Pods that
//! come and go, and labels, change the entries of a ruleset in place.
//!
//! Nothing here is kept of what the API or the node does not have any more, so their limits are the planner's. What the kernel's maps can
//! take is `dataplane`'s to say; entries that make no difference are not made.
//!
//! A peer's uid is what tells pods apart: two may have one name or one address for a moment. An address allows what any of the pods
//! allows that have it. A namespace that is not known has no labels that a selector could be sure of: none selects it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use dataplane::policy::{Isolation, Ports, Protocol, RulesetId};
use ipnetwork::IpNetwork;

mod peers;
mod ruleset;
mod spec;

#[cfg(test)]
mod tests;

use peers::{Cluster, Peers};
use ruleset::Ruleset;
use spec::Spec;

use super::selector::{Labels, Selector};
pub use crate::services::plan::Key;

/// The uid of a pod.
pub type Uid = Arc<str>;

/// A NetworkPolicy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// The pods of its namespace that it is about.
    pub selector: Selector,
    /// `None`: it says nothing of the direction. Without rules nothing is allowed.
    pub ingress: Option<Vec<Rule>>,
    pub egress: Option<Vec<Rule>>,
}

/// Each of the peers may be talked with at what is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub peers: Vec<Peer>,
    pub allowed: Allowed,
}

/// Whom a rule is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    Everybody,
    Pods { namespaces: Namespaces, pods: Selector },
    Block(Block),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Namespaces {
    One(Arc<str>),
    Matching(Selector),
}

/// Addresses, whoever has them. Networks are without bits of a host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    pub network: IpNetwork,
    /// Parts of it that do not belong to it; sorted, each once.
    pub except: Arc<[IpNetwork]>,
}

/// At which ports of the server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Allowed {
    pub ports: Ports,
    /// Of the pod that is the server.
    pub named: BTreeSet<PortName>,
}

impl Default for Allowed {
    /// Nowhere.
    fn default() -> Self {
        Self { ports: Ports::none(), named: BTreeSet::new() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortName {
    pub protocol: Protocol,
    pub name: Arc<str>,
}

/// A pod's port that has a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedPort {
    pub name: PortName,
    pub number: u16,
}

/// A pod, here or elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    pub uid: Uid,
    pub labels: Arc<Labels>,
    pub ips: Vec<IpAddr>,
    /// Several may have one name.
    pub ports: Arc<[NamedPort]>,
    /// Selectors reach it: it has not ended, and its addresses are not its node's.
    pub is_peer: bool,
}

/// What to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Peers in `network` may use `ports`, unless a smaller network of the ruleset holds them. All that a new ruleset allows comes before
    /// the first isolation that names it; one that is named without any allows nothing.
    Allow { ruleset: RulesetId, network: IpNetwork, ports: Ports },
    /// The ruleset says nothing of this very network any more.
    Forget { ruleset: RulesetId, network: IpNetwork },
    /// What holds for a pod of this node. Comes for each that was set, also if it is open.
    Isolate { endpoint: Uid, isolation: Isolation },
    /// No pod uses the ruleset. Its number does not come again.
    Drop { ruleset: RulesetId },
}

/// The policies that select a pod, by direction; none: it is open.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selecting {
    pub ingress: Vec<Key>,
    pub egress: Vec<Key>,
}

/// A pod that runs on this node.
#[derive(Debug)]
struct Endpoint {
    key: Key,
    /// As the watch showed it last, if it did.
    pod: Pod,
    isolation: Isolation,
    /// The caller knows `isolation`.
    told: bool,
}

/// The objects, and what was last decided for them.
#[derive(Debug)]
pub struct Planner {
    next: NonZeroU32,
    /// By namespace and name.
    policies: HashMap<String, BTreeMap<String, Policy>>,
    namespaces: HashMap<String, Arc<Labels>>,
    /// As the API shows them.
    pods: HashMap<Key, Pod>,
    endpoints: HashMap<Uid, Endpoint>,
    /// Out of `pods` and `endpoints`.
    peers: Peers,
    rulesets: BTreeMap<RulesetId, Ruleset>,
    ids: HashMap<Arc<Spec>, RulesetId>,
    dirty_endpoints: BTreeSet<Uid>,
    dirty_addresses: BTreeSet<IpAddr>,
    /// Namespaces whose labels may have changed, with those before.
    dirty_namespaces: BTreeMap<String, Option<Arc<Labels>>>,
}

impl Planner {
    /// Rulesets are numbered from `first`.
    pub fn new(first: NonZeroU32) -> Self {
        Self {
            next: first,
            policies: HashMap::new(),
            namespaces: HashMap::new(),
            pods: HashMap::new(),
            endpoints: HashMap::new(),
            peers: Peers::default(),
            rulesets: BTreeMap::new(),
            ids: HashMap::new(),
            dirty_endpoints: BTreeSet::new(),
            dirty_addresses: BTreeSet::new(),
            dirty_namespaces: BTreeMap::new(),
        }
    }

    /// Whether there is any in the cluster.
    pub fn has_policies(&self) -> bool {
        !self.policies.is_empty()
    }

    pub fn set_policy(&mut self, key: Key, policy: Policy) {
        let policies = self.policies.entry(key.namespace.clone()).or_default();
        if policies.get(&key.name) != Some(&policy) {
            policies.insert(key.name, policy);
            self.reconsider(&key.namespace);
        }
    }

    pub fn remove_policy(&mut self, key: &Key) {
        let Some(policies) = self.policies.get_mut(&key.namespace) else { return };
        if policies.remove(&key.name).is_some() {
            if policies.is_empty() {
                self.policies.remove(&key.namespace);
            }
            self.reconsider(&key.namespace);
        }
    }

    /// Removes the policies that a full list did not show.
    pub fn retain_policies(&mut self, seen: &HashSet<Key>) {
        let keys = self.policies.iter().flat_map(|(namespace, policies)| {
            policies.keys().map(|name| Key { namespace: namespace.clone(), name: name.clone() })
        });
        let gone: Vec<Key> = keys.filter(|key| !seen.contains(key)).collect();
        gone.iter().for_each(|key| self.remove_policy(key));
    }

    fn reconsider(&mut self, namespace: &str) {
        let concerned = self.endpoints.iter().filter(|(_, endpoint)| endpoint.key.namespace == namespace);
        self.dirty_endpoints.extend(concerned.map(|(uid, _)| uid.clone()));
    }

    pub fn set_namespace(&mut self, name: &str, labels: Arc<Labels>) {
        if self.namespaces.get(name) != Some(&labels) {
            let before = self.namespaces.insert(name.to_owned(), labels);
            self.dirty_namespaces.entry(name.to_owned()).or_insert(before);
        }
    }

    pub fn remove_namespace(&mut self, name: &str) {
        if let Some(before) = self.namespaces.remove(name) {
            self.dirty_namespaces.entry(name.to_owned()).or_insert(Some(before));
        }
    }

    /// Removes the namespaces that a full list did not show.
    pub fn retain_namespaces(&mut self, seen: &HashSet<String>) {
        let gone: Vec<String> =
            self.namespaces.keys().filter(|name| !seen.contains(*name)).cloned().collect();
        gone.iter().for_each(|name| self.remove_namespace(name));
    }

    /// A pod as the API shows it.
    pub fn set_pod(&mut self, key: Key, pod: Pod) {
        if self.pods.get(&key) == Some(&pod) {
            return;
        }
        if let Some(endpoint) = self.endpoints.get_mut(&pod.uid)
            && endpoint.learn(&pod)
        {
            self.dirty_endpoints.insert(pod.uid.clone());
        }
        let uid = pod.uid.clone();
        let before = self.pods.insert(key.clone(), pod);
        self.settle(&key, &uid);
        if let Some(before) = before.filter(|before| before.uid != uid) {
            self.settle(&key, &before.uid);
        }
    }

    pub fn remove_pod(&mut self, key: &Key) {
        if let Some(pod) = self.pods.remove(key) {
            self.settle(key, &pod.uid);
        }
    }

    /// Removes the pods that a full list did not show.
    pub fn retain_pods(&mut self, seen: &HashSet<Key>) {
        let gone: Vec<Key> = self.pods.keys().filter(|key| !seen.contains(key)).cloned().collect();
        gone.iter().for_each(|key| self.remove_pod(key));
    }

    /// A pod runs here, or has another link: its isolation is told again. What the API shows of the same uid, before or after, counts
    /// more than `pod`; but for addresses, which it may not show yet.
    pub fn set_endpoint(&mut self, key: Key, pod: Pod) {
        let uid = pod.uid.clone();
        let isolation = self.endpoints.get(&uid).map(|before| before.isolation).unwrap_or_default();
        let mut endpoint = Endpoint { key: key.clone(), pod, isolation, told: false };
        if let Some(shown) = self.pods.get(&key).filter(|shown| shown.uid == uid) {
            endpoint.learn(shown);
        }
        self.endpoints.insert(uid.clone(), endpoint);
        self.dirty_endpoints.insert(uid.clone());
        self.settle(&key, &uid);
    }

    /// The pod's link has gone: rulesets that only it used are dropped.
    pub fn remove_endpoint(&mut self, uid: &str) {
        if let Some((uid, endpoint)) = self.endpoints.remove_entry(uid) {
            self.settle(&endpoint.key, &uid);
        }
    }

    /// Puts together what is known of a pod, for those that have it as a peer.
    fn settle(&mut self, key: &Key, uid: &Uid) {
        let here = self.endpoints.get(uid).map(|endpoint| &endpoint.pod);
        let known = here.or_else(|| self.pods.get(key).filter(|pod| pod.uid == *uid));
        let touched = match known.filter(|pod| pod.is_peer) {
            Some(pod) => self.peers.set(&key.namespace, pod),
            None => self.peers.remove(uid),
        };
        self.dirty_addresses.extend(touched);
    }

    /// The policies that select a pod of this node; `None`: it is not known.
    pub fn explain(&self, uid: &str) -> Option<Selecting> {
        let endpoint = self.endpoints.get(uid)?;
        let mut selecting = Selecting::default();
        for (name, policy) in self.selecting(endpoint) {
            let key = || Key { namespace: endpoint.key.namespace.clone(), name: name.to_owned() };
            selecting.ingress.extend(policy.ingress.is_some().then(key));
            selecting.egress.extend(policy.egress.is_some().then(key));
        }
        Some(selecting)
    }

    fn selecting<'a>(
        &'a self,
        endpoint: &'a Endpoint,
    ) -> impl Iterator<Item = (&'a str, &'a Policy)> + Clone {
        let policies = self.policies.get(&endpoint.key.namespace).into_iter().flatten();
        policies
            .filter(|(_, policy)| policy.selector.matches(&endpoint.pod.labels))
            .map(|(name, policy)| (name.as_str(), policy))
    }

    /// What holds for a pod of this node, by the changes so far.
    pub fn isolation(&self, uid: &str) -> Option<Isolation> {
        self.endpoints.get(uid).map(|endpoint| endpoint.isolation)
    }

    /// The rulesets that the dataplane should have, by the changes so far.
    pub fn rulesets(&self) -> impl Iterator<Item = RulesetId> {
        self.rulesets.keys().copied()
    }

    /// What a ruleset should hold, by the changes so far.
    pub fn entries(&self, ruleset: RulesetId) -> impl Iterator<Item = (IpNetwork, &Ports)> {
        self.rulesets.get(&ruleset).into_iter().flat_map(Ruleset::entries)
    }

    /// Decides what has become of everything that was set or removed since the last call.
    pub fn take_changes(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        let new = RulesetId(self.next);
        let isolations = self.isolate(&mut changes);
        changes.extend(isolations);
        let unused = self.drop_unused();
        let namespaces = std::mem::take(&mut self.dirty_namespaces);
        let addresses = std::mem::take(&mut self.dirty_addresses);
        let cluster = Cluster { namespaces: &self.namespaces, peers: &self.peers };
        for (id, ruleset) in self.rulesets.range_mut(..new) {
            let relabelled = namespaces.iter().filter(|(name, before)| {
                ruleset.spec().tells_apart(before.as_ref(), cluster.namespaces.get(*name))
            });
            let moved = relabelled.flat_map(|(name, _)| cluster.peers.addresses(name));
            let touched: BTreeSet<IpAddr> = moved.chain(addresses.iter().copied()).collect();
            for address in touched {
                changes.extend(ruleset.update(address, &cluster).map(|(network, ports)| match ports {
                    Some(ports) => Change::Allow { ruleset: *id, network, ports },
                    None => Change::Forget { ruleset: *id, network },
                }));
            }
        }
        changes.extend(unused.into_iter().map(|ruleset| Change::Drop { ruleset }));
        changes
    }

    /// Decides anew for the endpoints that something happened to; `changes` gets what new rulesets hold.
    fn isolate(&mut self, changes: &mut Vec<Change>) -> Vec<Change> {
        let mut isolations = Vec::new();
        for uid in std::mem::take(&mut self.dirty_endpoints) {
            let Some(endpoint) = self.endpoints.get(&uid) else { continue };
            let (ingress, egress) = self.specs(endpoint);
            let isolation = Isolation {
                ingress: ingress.map(|spec| self.ruleset(spec, changes)),
                egress: egress.map(|spec| self.ruleset(spec, changes)),
            };
            let Some(endpoint) = self.endpoints.get_mut(&uid) else { continue };
            if !endpoint.told || endpoint.isolation != isolation {
                (endpoint.isolation, endpoint.told) = (isolation, true);
                isolations.push(Change::Isolate { endpoint: uid, isolation });
            }
        }
        isolations
    }

    fn specs(&self, endpoint: &Endpoint) -> (Option<Spec>, Option<Spec>) {
        let selecting = self.selecting(endpoint).map(|(_, policy)| policy);
        let ingress = selecting.clone().filter_map(|policy| policy.ingress.as_ref());
        let egress = selecting.filter_map(|policy| policy.egress.as_ref());
        (
            ingress.clone().next().map(|_| Spec::ingress(ingress.flatten(), &endpoint.pod.ports)),
            egress.clone().next().map(|_| Spec::egress(egress.flatten())),
        )
    }

    /// The ruleset of these rules; `changes` gets what it holds if it is new.
    fn ruleset(&mut self, spec: Spec, changes: &mut Vec<Change>) -> RulesetId {
        if let Some(id) = self.ids.get(&spec) {
            return *id;
        }
        let id = RulesetId(self.next);
        // Never reached: one a second lasts 136 years.
        self.next = self.next.saturating_add(1);
        let spec = Arc::new(spec);
        let cluster = Cluster { namespaces: &self.namespaces, peers: &self.peers };
        let ruleset = Ruleset::new(spec.clone(), &cluster);
        let mut entries: Vec<(IpNetwork, &Ports)> = ruleset.entries().collect();
        entries.sort_unstable_by_key(|(network, _)| *network);
        changes.extend(entries.into_iter().map(|(network, ports)| Change::Allow {
            ruleset: id,
            network,
            ports: ports.clone(),
        }));
        self.ids.insert(spec, id);
        self.rulesets.insert(id, ruleset);
        id
    }

    fn drop_unused(&mut self) -> Vec<RulesetId> {
        let isolations = self.endpoints.values().map(|endpoint| endpoint.isolation);
        let used: HashSet<RulesetId> =
            isolations.flat_map(|isolation| [isolation.ingress, isolation.egress]).flatten().collect();
        let unused: Vec<RulesetId> = self.rulesets.keys().filter(|id| !used.contains(id)).copied().collect();
        for id in &unused {
            if let Some(ruleset) = self.rulesets.remove(id) {
                self.ids.remove(ruleset.spec());
            }
        }
        unused
    }
}

impl Endpoint {
    /// Takes over what the API shows of the pod. Whether that may make a difference to its isolation.
    fn learn(&mut self, shown: &Pod) -> bool {
        let ips = if shown.ips.is_empty() { self.pod.ips.clone() } else { shown.ips.clone() };
        let before = std::mem::replace(&mut self.pod, Pod { ips, ..shown.clone() });
        before.labels != self.pod.labels || before.ports != self.pod.ports
    }
}
