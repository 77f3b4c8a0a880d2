//! Which pods stand behind a Service, by which addresses and ports; for EndpointSlices and Endpoints alike.
//!
//! Input: Services and pods. Output: facts about them, and the Services that a pod's change concerns (found through
//! indexes, so that the work follows the change). Pure but for cache look-ups.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::caches::{Caches, POD_BY_LABEL, SERVICE_BY_SELECTOR};
use crate::key::ObjectKey;
use crate::pods::{self, label_pair};
use crate::queue::Queue;
use crate::selector::service_selects;
use crate::store::Change;

/// Says when the change happened that an object was written for; read by latency measurements.
pub const ANNOTATION_TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Marks the slices and Endpoints of a Service without a cluster IP.
pub const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// The name in ipFamilies and in an EndpointSlice's addressType.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    pub fn of(address: &str) -> Option<Self> {
        match address.parse().ok()? {
            IpAddr::V4(_) => Some(Self::V4),
            IpAddr::V6(_) => Some(Self::V6),
        }
    }
}

/// Whether pods are chosen for the Service by label; others' endpoints are made by users.
pub fn is_selecting(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    let selector = spec.selector.as_ref().is_some_and(|selector| !selector.is_empty());
    selector && spec.type_.as_deref() != Some("ExternalName")
}

pub fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None"))
}

pub fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false)
}

/// The Service's families, the primary one first.
pub fn families(service: &Service) -> Vec<Family> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let mut families: Vec<Family> = Vec::new();
    for name in spec.ip_families.as_deref().unwrap_or_default() {
        let family = if name == Family::V6.as_str() { Family::V6 } else { Family::V4 };
        if !families.contains(&family) {
            families.push(family);
        }
    }
    if families.is_empty() {
        families.push(spec.cluster_ip.as_deref().and_then(Family::of).unwrap_or(Family::V4));
    }
    families
}

/// Whether the pod can stand behind a Service at all: it has an address and is not over.
pub fn is_candidate(pod: &Pod, with_terminating: bool) -> bool {
    if pods::is_terminal(pod) || pods::addresses(pod).is_empty() {
        return false;
    }
    with_terminating || pod.metadata.deletion_timestamp.is_none()
}

/// The name under which the pod is found in the Service's DNS subdomain.
pub fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.as_ref().filter(|hostname| !hostname.is_empty())?;
    let same =
        spec.subdomain == service.metadata.name && pod.metadata.namespace == service.metadata.namespace;
    same.then(|| hostname.clone())
}

pub fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// The pod's port for a Service's port: a number as it is, a name looked up among the containers' ports. Absent where the
/// pod has no such port.
pub fn find_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let name = match &port.target_port {
        None => return Some(port.port),
        Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let spec = pod.spec.as_ref()?;
    let sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(sidecar);
    let found =
        spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten()).find(
            |own| {
                own.name.as_ref() == Some(name)
                    && protocol(own.protocol.as_deref()) == protocol(port.protocol.as_deref())
            },
        );
    match found {
        Some(own) => Some(own.container_port),
        // A name that is a number is a number.
        None => name.parse().ok(),
    }
}

/// A protocol's name, TCP where none is given.
pub fn protocol(name: Option<&str>) -> &str {
    name.unwrap_or("TCP")
}

/// The labels that slices and Endpoints take over from their Service.
pub fn inherited_labels(service: &Service, reserved: &[&str]) -> BTreeMap<String, String> {
    let own = service.metadata.labels.iter().flatten();
    let mut labels: BTreeMap<String, String> = own
        .filter(|(key, _)| !reserved.contains(&key.as_str()) && key.as_str() != LABEL_HEADLESS)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if is_headless(service) {
        labels.insert(LABEL_HEADLESS.to_owned(), String::new());
    }
    labels
}

/// The pods that the Service's selector selects: the pair with the fewest pods is looked up, the others are compared.
pub fn selected_pods(caches: &Caches, service: &Service) -> Vec<Arc<Pod>> {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let pairs = selector.into_iter().flatten().map(|(key, value)| label_pair(namespace, key, value));
    let Some(rarest) = pairs.min_by_key(|pair| caches.pods.index_len(POD_BY_LABEL, pair)) else {
        return Vec::new();
    };
    let mut found = caches.pods.by_index(POD_BY_LABEL, &rarest);
    found.retain(|pod| service_selects(selector, pod.metadata.labels.as_ref()));
    found.sort_by(|left, right| left.metadata.name.cmp(&right.metadata.name));
    found
}

/// Adds the key of every Service that changes, itself or by its pods, to `queue` from now on.
pub fn queue_services(caches: &Caches, queue: &Arc<Queue<ObjectKey>>) {
    caches.services.queue_changes(queue);
    let (queue, own) = (queue.clone(), caches.clone());
    caches.pods.on_change(move |change| {
        for key in services_of_change(&own, change) {
            queue.add(key);
        }
    });
}

/// The Services that a pod's change concerns, before and after it.
fn services_of_change(caches: &Caches, change: &Change<Pod>) -> HashSet<ObjectKey> {
    let mut keys = HashSet::new();
    if let (Some(old), Some(new)) = (&change.old, &change.new)
        && !matters(old, new)
    {
        return keys;
    }
    for pod in change.states() {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let labels = pod.metadata.labels.as_ref();
        for (key, value) in labels.into_iter().flatten() {
            let pair = label_pair(namespace, key, value);
            for service in caches.services.by_index(SERVICE_BY_SELECTOR, &pair) {
                let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
                if service_selects(selector, labels) {
                    keys.insert(ObjectKey::of(&*service));
                }
            }
        }
    }
    keys
}

/// Whether a pod's change can show in endpoints.
fn matters(old: &Pod, new: &Pod) -> bool {
    let name = |pod: &Pod| {
        let spec = pod.spec.as_ref();
        spec.map(|spec| (spec.hostname.clone(), spec.subdomain.clone(), spec.node_name.clone()))
    };
    pods::addresses(old) != pods::addresses(new)
        || pods::is_ready(old) != pods::is_ready(new)
        || pods::is_terminal(old) != pods::is_terminal(new)
        || old.metadata.deletion_timestamp.is_some() != new.metadata.deletion_timestamp.is_some()
        || old.metadata.labels != new.metadata.labels
        || name(old) != name(new)
}

/// Finds out which change an update is for, from what was seen before: the Service's creation and the pods' last changes
/// of readiness. Bounded by the Service's pods.
#[derive(Debug, Default)]
pub struct TriggerTimes {
    service: Option<Timestamp>,
    pods: HashMap<String, Timestamp>,
}

impl TriggerTimes {
    /// The earliest change since the last call.
    pub fn observe(&mut self, service: &Service, pods: &[Arc<Pod>]) -> Option<Timestamp> {
        let mut earliest: Option<Timestamp> = None;
        let mut note = |time: Timestamp| earliest = Some(earliest.map_or(time, |known| known.min(time)));
        let created = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
        if let Some(created) = created.filter(|created| self.service.is_none_or(|known| *created > known)) {
            note(created);
        }
        let mut seen = HashMap::with_capacity(pods.len());
        for pod in pods {
            let (Some(name), Some(since)) = (&pod.metadata.name, pods::ready_since(pod)) else { continue };
            if self.pods.get(name).is_none_or(|known| since > *known) {
                note(since);
            }
            seen.insert(name.clone(), since);
        }
        self.service = created;
        self.pods = seen;
        earliest
    }
}
