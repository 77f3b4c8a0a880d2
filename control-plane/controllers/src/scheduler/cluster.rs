//! The scheduler's own picture of nodes and of the pods on them, assumed ones included.
//!
//! Input: nodes and pods as they change. Output: a [`NodeInfo`] per node, kept up to date by additions and subtractions.
//! Pure but for being state. A pod that was placed is counted at once (assumed), long before the cache shows its binding,
//! so that the next pod sees the room that is left. Refuses to decide.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Node, Pod, Taint};

use super::resources::{Request, Resources, allocatable, request};
use crate::key::ObjectKey;
use crate::ownership::{controller_uid, uid_of};
use crate::pods;

/// A port of the node that a pod occupies.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    pub ip: String,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    /// Whether both cannot be had: same port and protocol, and addresses that meet.
    pub fn conflicts(&self, other: &Self) -> bool {
        let any = |ip: &str| ip == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || any(&self.ip) || any(&other.ip))
    }
}

/// The host ports that a pod asks for.
pub fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let containers = spec.containers.iter().chain(sidecars);
    let on_host = spec.host_network.unwrap_or(false);
    let mut ports = Vec::new();
    for port in containers.flat_map(|container| container.ports.iter().flatten()) {
        let number = port.host_port.unwrap_or(if on_host { port.container_port } else { 0 });
        if number <= 0 {
            continue;
        }
        ports.push(HostPort {
            ip: port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned()),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            port: number,
        });
    }
    ports
}

/// A node and what its pods take of it.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    pub name: String,
    /// Whether the node object exists; pods may be known before their node.
    pub present: bool,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub allocatable: Resources,
    pub requested: Resources,
    pub weight: Resources,
    pub ports: Vec<HostPort>,
    /// Pods per controller.
    pub owners: HashMap<String, usize>,
}

/// A pod that is counted on a node.
#[derive(Clone, Debug)]
struct Placed {
    node: String,
    uid: String,
    request: Request,
    ports: Vec<HostPort>,
    owner: Option<String>,
    assumed: bool,
}

/// All nodes and the pods on them.
#[derive(Debug, Default)]
pub struct Cluster {
    nodes: BTreeMap<String, NodeInfo>,
    pods: HashMap<ObjectKey, Placed>,
}

impl Cluster {
    /// The nodes that exist, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes.values().filter(|node| node.present)
    }

    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.nodes.get(name).filter(|node| node.present)
    }

    /// Takes over a node's present state.
    pub fn set_node(&mut self, node: &Node) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let info = self.nodes.entry(name.clone()).or_default();
        let spec = node.spec.as_ref();
        info.name = name;
        info.present = true;
        info.labels = node.metadata.labels.clone().unwrap_or_default();
        info.taints = spec.and_then(|spec| spec.taints.clone()).unwrap_or_default();
        info.unschedulable = spec.and_then(|spec| spec.unschedulable).unwrap_or(false);
        info.allocatable = allocatable(node);
    }

    /// Forgets a node; its pods stay counted until they are gone too.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(info) = self.nodes.get_mut(name) {
            info.present = false;
        }
        self.drop_if_empty(name);
    }

    /// Counts a pod on the node that it is bound to, in place of what was counted or assumed for it.
    pub fn set_pod(&mut self, pod: &Pod) {
        let key = ObjectKey::of(pod);
        let over = pods::is_terminal(pod);
        match pods::node_name(pod) {
            Some(node) if !over => self.place(key, pod, node, false),
            // The cache does not show the binding yet: what is assumed stays.
            None if !over && self.is_placed(&key, uid_of(&pod.metadata)) => {}
            _ => {
                self.remove_pod(&key);
            }
        }
    }

    /// Counts a pod on a node that it is going to be bound to.
    pub fn assume(&mut self, pod: &Pod, node: &str) {
        self.place(ObjectKey::of(pod), pod, node, true);
    }

    /// Takes an assumed pod back; true where it was counted. A pod whose binding the cache shows stays.
    pub fn forget(&mut self, key: &ObjectKey, uid: &str) -> bool {
        if self.pods.get(key).is_some_and(|placed| placed.assumed && placed.uid == uid) {
            return self.remove_pod(key);
        }
        false
    }

    /// Whether the pod of that uid is placed already.
    pub fn is_placed(&self, key: &ObjectKey, uid: &str) -> bool {
        self.pods.get(key).is_some_and(|placed| placed.uid == uid)
    }

    /// Counts a pod no more; true where it was counted.
    pub fn remove_pod(&mut self, key: &ObjectKey) -> bool {
        let Some(placed) = self.pods.remove(key) else { return false };
        if let Some(info) = self.nodes.get_mut(&placed.node) {
            info.requested.subtract(&placed.request.wanted);
            info.weight.subtract(&placed.request.weight);
            for port in &placed.ports {
                if let Some(place) = info.ports.iter().position(|own| own == port) {
                    info.ports.swap_remove(place);
                }
            }
            if let Some(owner) = &placed.owner
                && let Some(count) = info.owners.get_mut(owner)
            {
                *count -= 1;
                if *count == 0 {
                    info.owners.remove(owner);
                }
            }
        }
        self.drop_if_empty(&placed.node);
        true
    }

    fn place(&mut self, key: ObjectKey, pod: &Pod, node: &str, assumed: bool) {
        self.remove_pod(&key);
        let placed = Placed {
            node: node.to_owned(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            request: request(pod),
            ports: host_ports(pod),
            owner: controller_uid(&pod.metadata).map(str::to_owned),
            assumed,
        };
        let info = self.nodes.entry(node.to_owned()).or_default();
        info.requested.add(&placed.request.wanted);
        info.weight.add(&placed.request.weight);
        info.ports.extend(placed.ports.iter().cloned());
        if let Some(owner) = &placed.owner {
            *info.owners.entry(owner.clone()).or_insert(0) += 1;
        }
        self.pods.insert(key, placed);
    }

    fn drop_if_empty(&mut self, name: &str) {
        if self.nodes.get(name).is_some_and(|info| !info.present && info.requested.pods == 0) {
            self.nodes.remove(name);
        }
    }
}
