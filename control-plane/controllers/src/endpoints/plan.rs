//! A Service's pods as an Endpoints object, for clients that know no EndpointSlices.
//!
//! Input: a Service, its pods, the object that exists. Output: the object to write, or nothing. Pure. Only the Service's
//! primary family is shown, terminating pods are left out, and at most 1000 addresses are listed, as upstream has it.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::backends::{
    self, ANNOTATION_TRIGGER_TIME, Family, families, find_port, is_candidate, protocol, publishes_not_ready,
};
use crate::pods;

/// Addresses in one Endpoints object.
pub const MAX_ADDRESSES: usize = 1000;
/// Says that addresses were left out.
pub const ANNOTATION_OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Says who makes the object.
pub const LABEL_MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGED_BY: &str = "endpoint-controller";

/// One address with its readiness, by IP and pod.
struct Entry {
    address: EndpointAddress,
    ready: bool,
    ports: Vec<EndpointPort>,
}

/// What to write.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    Nothing,
    Create(Box<Endpoints>),
    Replace(Box<Endpoints>),
}

/// Decides one pass.
pub fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    existing: Option<&Endpoints>,
    trigger: Option<Timestamp>,
) -> Write {
    let mut entries = entries(service, pods);
    let over = truncate(&mut entries);
    let subsets = subsets(entries);
    let mut labels = backends::inherited_labels(service, &[LABEL_MANAGED_BY]);
    labels.insert(LABEL_MANAGED_BY.to_owned(), MANAGED_BY.to_owned());
    let stored = existing.cloned().unwrap_or_default();
    let stored_subsets = stored.subsets.clone().unwrap_or_default();
    let marked =
        stored.metadata.annotations.as_ref().is_some_and(|own| own.contains_key(ANNOTATION_OVER_CAPACITY));
    let same =
        stored_subsets == subsets && stored.metadata.labels.as_ref() == Some(&labels) && marked == over;
    if existing.is_some() && same {
        return Write::Nothing;
    }
    let mut annotations = stored.metadata.annotations.clone().unwrap_or_default();
    match trigger {
        Some(time) => annotations.insert(ANNOTATION_TRIGGER_TIME.to_owned(), time.to_string()),
        None => annotations.remove(ANNOTATION_TRIGGER_TIME),
    };
    match over {
        true => annotations.insert(ANNOTATION_OVER_CAPACITY.to_owned(), "truncated".to_owned()),
        false => annotations.remove(ANNOTATION_OVER_CAPACITY),
    };
    let object = Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations).filter(|annotations| !annotations.is_empty()),
            ..stored.metadata
        },
        subsets: Some(subsets).filter(|subsets| !subsets.is_empty()),
    };
    match existing {
        Some(_) => Write::Replace(Box::new(object)),
        None => Write::Create(Box::new(object)),
    }
}

fn entries(service: &Service, pods: &[Arc<Pod>]) -> Vec<Entry> {
    let family = families(service).first().copied().unwrap_or(Family::V4);
    let all = publishes_not_ready(service);
    let mut entries = Vec::new();
    for pod in pods {
        if !is_candidate(pod, all) {
            continue;
        }
        let Some(ip) = pods::addresses(pod).into_iter().find(|ip| Family::of(ip) == Some(family)) else {
            continue;
        };
        let address = EndpointAddress {
            ip: ip.to_owned(),
            hostname: backends::hostname(pod, service),
            node_name: pods::node_name(pod).map(str::to_owned),
            target_ref: Some(backends::target(pod)),
        };
        let ports = ports(service, pod);
        let portless = service.spec.as_ref().and_then(|spec| spec.ports.as_ref()).is_none_or(Vec::is_empty);
        if ports.is_empty() && !portless {
            continue;
        }
        entries.push(Entry { address, ready: all || pods::is_ready(pod), ports });
    }
    entries.sort_by(|left, right| left.address.ip.cmp(&right.address.ip));
    entries
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let wanted = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let found = wanted.iter().filter_map(|port| {
        Some(EndpointPort {
            name: port.name.clone().filter(|name| !name.is_empty()),
            port: find_port(pod, port)?,
            protocol: Some(protocol(port.protocol.as_deref()).to_owned()),
            app_protocol: port.app_protocol.clone(),
        })
    });
    let mut ports: Vec<EndpointPort> = found.collect();
    ports.sort_by_key(port_key);
    ports
}

fn port_key(port: &EndpointPort) -> (String, i32, String) {
    let protocol = protocol(port.protocol.as_deref()).to_owned();
    (port.name.clone().unwrap_or_default(), port.port, protocol)
}

/// Keeps at most [`MAX_ADDRESSES`], ready ones before others; true where some were left out.
fn truncate(entries: &mut Vec<Entry>) -> bool {
    if entries.len() <= MAX_ADDRESSES {
        return false;
    }
    // The sort is stable, so the addresses stay in order within each half.
    entries.sort_by_key(|entry| !entry.ready);
    entries.truncate(MAX_ADDRESSES);
    entries.sort_by(|left, right| left.address.ip.cmp(&right.address.ip));
    true
}

/// One subset per set of ports.
fn subsets(entries: Vec<Entry>) -> Vec<EndpointSubset> {
    let mut by_ports: BTreeMap<Vec<(String, i32, String)>, EndpointSubset> = BTreeMap::new();
    for entry in entries {
        let key = entry.ports.iter().map(port_key).collect();
        let ports = Some(entry.ports).filter(|ports| !ports.is_empty());
        let subset = by_ports.entry(key).or_insert_with(|| EndpointSubset {
            addresses: None,
            not_ready_addresses: None,
            ports,
        });
        let list = if entry.ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(entry.address);
    }
    by_ports.into_values().collect()
}
