//! Whose an address is: the Services as people know them, and which of them each frontend of the dataplane belongs to.
//!
//! In: what the services task saw and wrote, change by change. Out: answers for those who explain or count. Decides nothing.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use dataplane::Frontend;

use super::plan::{Key, Port, Service};

#[cfg(test)]
mod tests;

/// What a Service asks for by its `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

impl Type {
    const NAMES: [(Self, &'static str); 4] = [
        (Self::ClusterIp, "ClusterIP"),
        (Self::NodePort, "NodePort"),
        (Self::LoadBalancer, "LoadBalancer"),
        (Self::ExternalName, "ExternalName"),
    ];

    /// One that is not known is the API's default.
    pub fn named(name: Option<&str>) -> Self {
        let known = Self::NAMES.iter().find(|(_, known)| Some(*known) == name);
        known.map_or(Self::ClusterIp, |(kind, _)| *kind)
    }

    pub fn as_str(self) -> &'static str {
        Self::NAMES.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }
}

/// What an address is of a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressKind {
    ClusterIp,
    LoadBalancer,
    NodePort,
    ExternalIp,
}

impl AddressKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIp => "cluster IP",
            Self::LoadBalancer => "load balancer",
            Self::NodePort => "node port",
            Self::ExternalIp => "external IP",
        }
    }
}

/// A Service of the API.
#[derive(Debug, Clone)]
pub struct Known {
    pub kind: Type,
    pub service: Arc<Service>,
}

/// Whose a frontend is, and which of its addresses and ports.
#[derive(Debug, Clone)]
pub struct Owner {
    pub key: Arc<Key>,
    pub kind: AddressKind,
    pub port: Port,
}

#[derive(Debug, Default)]
struct State {
    services: BTreeMap<Arc<Key>, Known>,
    owners: HashMap<Frontend, Arc<Key>>,
}

/// The directory. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Directory(Arc<RwLock<State>>);

impl Directory {
    pub fn set(&self, key: &Key, known: Known) {
        self.change(|state| match state.services.get_mut(key) {
            Some(before) => *before = known,
            None => drop(state.services.insert(Arc::new(key.clone()), known)),
        });
    }

    pub fn remove(&self, key: &Key) {
        self.change(|state| drop(state.services.remove(key)));
    }

    /// The dataplane is to lead a frontend as this Service says. Whether it was another's before.
    pub fn own(&self, frontend: Frontend, key: &Key) -> bool {
        self.change(|state| {
            let key = state
                .services
                .get_key_value(key)
                .map_or_else(|| Arc::new(key.clone()), |(key, _)| key.clone());
            let before = state.owners.insert(frontend, key.clone());
            before.is_some_and(|before| before != key)
        })
    }

    pub fn disown(&self, frontend: Frontend) {
        self.change(|state| drop(state.owners.remove(&frontend)));
    }

    /// `None` for one that an earlier process left and nobody has claimed yet.
    pub fn owner(&self, frontend: Frontend) -> Option<Owner> {
        self.read(|state| owner(state, frontend))
    }

    /// The owners of all of them, as of one moment.
    pub fn owners<T>(&self, frontends: impl Iterator<Item = (Frontend, T)>) -> Vec<(Frontend, Owner, T)> {
        self.read(|state| {
            frontends.filter_map(|(frontend, with)| Some((frontend, owner(state, frontend)?, with))).collect()
        })
    }

    /// A Service that has this address and port, whether the dataplane leads it there or not. Node ports are not looked for: which addresses
    /// they answer at is not known here.
    pub fn claimant(&self, frontend: Frontend) -> Option<Arc<Key>> {
        let claims = |known: &Known| {
            place(&known.service, frontend).is_some_and(|(kind, _)| kind != AddressKind::NodePort)
        };
        self.read(|state| state.services.iter().find(|(_, known)| claims(known)).map(|(key, _)| key.clone()))
    }

    pub fn get(&self, key: &Key) -> Option<Known> {
        self.read(|state| state.services.get(key).cloned())
    }

    /// All Services, in the order of their names.
    pub fn services(&self) -> Vec<(Arc<Key>, Known)> {
        self.read(|state| state.services.iter().map(|(key, known)| (key.clone(), known.clone())).collect())
    }

    /// The frontends of one Service, in order.
    pub fn frontends(&self, key: &Key) -> Vec<Frontend> {
        self.read(|state| {
            let own = state.owners.iter().filter(|(_, owner)| ***owner == *key);
            let mut own: Vec<Frontend> = own.map(|(frontend, _)| *frontend).collect();
            own.sort_unstable();
            own
        })
    }

    /// The frontends of all Services.
    pub fn all_frontends(&self) -> HashMap<Arc<Key>, Vec<Frontend>> {
        self.read(|state| {
            let mut all: HashMap<Arc<Key>, Vec<Frontend>> = HashMap::new();
            for (frontend, key) in &state.owners {
                all.entry(key.clone()).or_default().push(*frontend);
            }
            all
        })
    }

    fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }
}

fn owner(state: &State, frontend: Frontend) -> Option<Owner> {
    let key = state.owners.get(&frontend)?;
    let (kind, port) = place(&state.services.get(key)?.service, frontend)?;
    Some(Owner { key: key.clone(), kind, port: port.clone() })
}

/// Which address and port of a Service a frontend is. Where it is several, the one that the plan lets win.
fn place(service: &Service, frontend: Frontend) -> Option<(AddressKind, &Port)> {
    let ports = || service.ports.iter().filter(|port| port.protocol == frontend.protocol);
    let at_port = ports().find(|port| port.port == frontend.port);
    let holds = |addresses: &[IpAddr]| addresses.contains(&frontend.address);
    let of_node = || ports().find(|port| port.node_port == Some(frontend.port));
    match at_port {
        Some(port) if holds(&service.cluster_ips) => Some((AddressKind::ClusterIp, port)),
        Some(port) if holds(&service.balancer_ips) => Some((AddressKind::LoadBalancer, port)),
        Some(port) if holds(&service.external_ips) => Some((AddressKind::ExternalIp, port)),
        _ => of_node().map(|port| (AddressKind::NodePort, port)),
    }
}
