//! How a Service's pods are packed into EndpointSlices.
//!
//! Input: a Service, its pods, the zones of nodes, the slices that exist. Output: slices to create, replace and delete.
//! Pure. One pod's change touches one slice: endpoints stay where they are, gaps are filled only in slices that change
//! anyway, and slices are never rebalanced, as upstream has it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::backends::{
    self, ANNOTATION_TRIGGER_TIME, Family, families, find_port, is_candidate, protocol, publishes_not_ready,
};
use crate::caches::LABEL_SERVICE_NAME;
use crate::ownership::{controller_reference, is_deleting};
use crate::pods;

/// The label that says who makes a slice.
pub const LABEL_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// What this controller's slices say there.
pub const MANAGED_BY: &str = "endpointslice-controller.k8s.io";
/// Endpoints in one slice.
pub const MAX_ENDPOINTS: usize = 100;
const RESERVED_LABELS: [&str; 2] = [LABEL_SERVICE_NAME, LABEL_MANAGED_BY];

/// What a pass sees.
pub struct View<'a> {
    pub service: &'a Service,
    /// The pods that the Service selects.
    pub pods: &'a [Arc<Pod>],
    /// The zone of each node that has one.
    pub zones: &'a HashMap<String, String>,
    /// The Service's slices that this controller made.
    pub slices: &'a [Arc<EndpointSlice>],
    /// When the change happened that this pass is for.
    pub trigger: Option<Timestamp>,
}

/// What a pass writes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<EndpointSlice>,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.create.is_empty() && self.update.is_empty() && self.delete.is_empty()
    }
}

/// Endpoints by identity, of one set of ports.
struct Group {
    ports: Vec<EndpointPort>,
    endpoints: BTreeMap<String, Endpoint>,
}

/// Decides one pass.
pub fn plan(view: &View<'_>) -> Plan {
    let mut plan = Plan::default();
    let wanted = families(view.service);
    for family in &wanted {
        let own = view.slices.iter().filter(|slice| slice.address_type == family.as_str());
        let own = own.filter(|slice| !is_deleting(&slice.metadata)).map(|slice| EndpointSlice::clone(slice));
        plan_family(view, *family, own.collect(), &mut plan);
    }
    let stale = view.slices.iter().filter(|slice| {
        !is_deleting(&slice.metadata) && !wanted.iter().any(|family| family.as_str() == slice.address_type)
    });
    plan.delete.extend(stale.map(|slice| EndpointSlice::clone(slice)));
    plan
}

fn plan_family(view: &View<'_>, family: Family, existing: Vec<EndpointSlice>, plan: &mut Plan) {
    let mut groups = group(view, family);
    let mut by_ports: BTreeMap<String, Vec<EndpointSlice>> = BTreeMap::new();
    let total = existing.len();
    for slice in existing {
        let key = ports_key(slice.ports.as_deref().unwrap_or_default());
        by_ports.entry(key).or_default().push(slice);
    }
    let mut own = Plan::default();
    for (key, slices) in by_ports {
        match groups.remove(&key) {
            Some(group) => pack(view, family, group, slices, &mut own),
            None => own.delete.extend(slices),
        }
    }
    for group in groups.into_values() {
        pack(view, family, group, Vec::new(), &mut own);
    }
    if own.delete.len() == total && own.create.is_empty() {
        keep_placeholder(view, family, &mut own);
    }
    reuse(&mut own);
    for slice in own.create.iter_mut().chain(&mut own.update) {
        stamp(slice, view.trigger);
    }
    plan.create.append(&mut own.create);
    plan.update.append(&mut own.update);
    plan.delete.append(&mut own.delete);
}

/// The pods' endpoints by the ports that they serve on.
fn group(view: &View<'_>, family: Family) -> BTreeMap<String, Group> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for pod in view.pods {
        if !is_candidate(pod, true) {
            continue;
        }
        let Some(endpoint) = endpoint(view, family, pod) else { continue };
        let ports = ports(view.service, pod);
        let key = ports_key(&ports);
        let group = groups.entry(key).or_insert_with(|| Group { ports, endpoints: BTreeMap::new() });
        group.endpoints.insert(identity(&endpoint), endpoint);
    }
    groups
}

fn endpoint(view: &View<'_>, family: Family, pod: &Pod) -> Option<Endpoint> {
    let of_family = |address: &&str| Family::of(address) == Some(family);
    let addresses: Vec<String> =
        pods::addresses(pod).into_iter().filter(of_family).map(str::to_owned).collect();
    if addresses.is_empty() {
        return None;
    }
    let serving = pods::is_ready(pod);
    let terminating = is_deleting(&pod.metadata);
    let ready = publishes_not_ready(view.service) || (serving && !terminating);
    let node = pods::node_name(pod);
    let zone = node.and_then(|node| view.zones.get(node).map(String::as_str));
    Some(Endpoint {
        addresses,
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: backends::hostname(pod, view.service),
        node_name: node.map(str::to_owned),
        target_ref: Some(backends::target(pod)),
        hints: hints(view.service, node, zone).filter(|_| ready),
        zone: zone.map(str::to_owned),
        ..Endpoint::default()
    })
}

/// For whom an endpoint is meant, as the Service distributes its traffic: clients of its zone, and before these of its node.
fn hints(service: &Service, node: Option<&str>, zone: Option<&str>) -> Option<EndpointHints> {
    let distribution = service.spec.as_ref()?.traffic_distribution.as_deref()?;
    let by_node = match distribution {
        "PreferSameNode" => true,
        "PreferSameZone" | "PreferClose" => false,
        _ => return None,
    };
    let for_zones = zone.map(|zone| vec![ForZone { name: zone.to_owned() }]);
    let for_nodes = node.filter(|_| by_node).map(|node| vec![ForNode { name: node.to_owned() }]);
    (for_zones.is_some() || for_nodes.is_some()).then_some(EndpointHints { for_nodes, for_zones })
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let wanted = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let found = wanted.iter().filter_map(|port| {
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(find_port(pod, port)?),
            protocol: Some(protocol(port.protocol.as_deref()).to_owned()),
            app_protocol: port.app_protocol.clone(),
        })
    });
    found.collect()
}

/// One text per set of ports, whatever their order.
fn ports_key(ports: &[EndpointPort]) -> String {
    let mut texts: Vec<String> = ports
        .iter()
        .map(|port| {
            let name = port.name.as_deref().unwrap_or_default();
            let protocol = protocol(port.protocol.as_deref());
            let application = port.app_protocol.as_deref().unwrap_or_default();
            format!("{name}/{protocol}/{}/{application}", port.port.unwrap_or(0))
        })
        .collect();
    texts.sort();
    texts.join(",")
}

/// What makes two states the same endpoint: address, pod, node and name, but not the conditions.
fn identity(endpoint: &Endpoint) -> String {
    let pod = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref()).unwrap_or_default();
    let node = endpoint.node_name.as_deref().unwrap_or_default();
    let hostname = endpoint.hostname.as_deref().unwrap_or_default();
    format!("{}|{pod}|{node}|{hostname}", endpoint.addresses.join(","))
}

/// Brings the slices of one group of ports to the wanted endpoints.
fn pack(view: &View<'_>, family: Family, group: Group, mut slices: Vec<EndpointSlice>, plan: &mut Plan) {
    slices.sort_by(|left, right| left.metadata.name.cmp(&right.metadata.name));
    let mut wanted = group.endpoints;
    let (mut changed, mut unchanged) = (Vec::new(), Vec::new());
    for mut slice in slices {
        let content = refresh(&mut slice, &mut wanted);
        let labels = relabel(&mut slice, view.service);
        if slice.endpoints.as_ref().is_none_or(Vec::is_empty) {
            plan.delete.push(slice);
        } else if content || labels {
            changed.push(slice);
        } else {
            unchanged.push(slice);
        }
    }
    // The fullest first, so that few slices are left half full.
    changed.sort_by_key(|slice| std::cmp::Reverse(count(slice)));
    for slice in &mut changed {
        fill(slice, &mut wanted);
    }
    while !wanted.is_empty() {
        let mut slice = match take_fitting(&mut unchanged, wanted.len()) {
            Some(slice) => slice,
            None => {
                let mut slice = new_slice(view.service, family, group.ports.clone());
                fill(&mut slice, &mut wanted);
                plan.create.push(slice);
                continue;
            }
        };
        fill(&mut slice, &mut wanted);
        changed.push(slice);
    }
    plan.update.append(&mut changed);
}

/// Drops endpoints that are not wanted, brings the others up to date and takes them out of `wanted`; true where that
/// changed the slice.
fn refresh(slice: &mut EndpointSlice, wanted: &mut BTreeMap<String, Endpoint>) -> bool {
    let mut changed = false;
    let mut kept = Vec::new();
    for endpoint in slice.endpoints.take().unwrap_or_default() {
        match wanted.remove(&identity(&endpoint)) {
            Some(new) if same_endpoint(&new, &endpoint) => kept.push(endpoint),
            Some(new) => {
                changed = true;
                kept.push(new);
            }
            None => changed = true,
        }
    }
    slice.endpoints = Some(kept);
    changed
}

fn same_endpoint(left: &Endpoint, right: &Endpoint) -> bool {
    let facts = |endpoint: &Endpoint| {
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        (
            conditions.ready.unwrap_or(true),
            conditions.serving.unwrap_or(true),
            conditions.terminating.unwrap_or(false),
            endpoint.zone.clone(),
            endpoint.hints.clone(),
        )
    };
    // Everything else is part of the identity.
    facts(left) == facts(right)
}

/// Brings labels and owner up to date; true where that changed the slice.
fn relabel(slice: &mut EndpointSlice, service: &Service) -> bool {
    let labels = Some(labels(service));
    let owners = Some(vec![controller_reference(service)]);
    if slice.metadata.labels == labels && slice.metadata.owner_references == owners {
        return false;
    }
    slice.metadata.labels = labels;
    slice.metadata.owner_references = owners;
    true
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = backends::inherited_labels(service, &RESERVED_LABELS);
    labels.insert(LABEL_SERVICE_NAME.to_owned(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(LABEL_MANAGED_BY.to_owned(), MANAGED_BY.to_owned());
    labels
}

fn count(slice: &EndpointSlice) -> usize {
    slice.endpoints.as_ref().map_or(0, Vec::len)
}

/// Moves wanted endpoints into the slice until it is full.
fn fill(slice: &mut EndpointSlice, wanted: &mut BTreeMap<String, Endpoint>) {
    let endpoints = slice.endpoints.get_or_insert_default();
    while endpoints.len() < MAX_ENDPOINTS {
        let Some((_, endpoint)) = wanted.pop_first() else { return };
        endpoints.push(endpoint);
    }
}

/// Of the slices that need no change, the fullest one that has room for all of `needed`.
fn take_fitting(unchanged: &mut Vec<EndpointSlice>, needed: usize) -> Option<EndpointSlice> {
    let fits = (0..unchanged.len()).filter(|place| count(&unchanged[*place]) + needed <= MAX_ENDPOINTS);
    let place = fits.max_by_key(|place| count(&unchanged[*place]))?;
    Some(unchanged.swap_remove(place))
}

fn new_slice(service: &Service, family: Family, ports: Vec<EndpointPort>) -> EndpointSlice {
    EndpointSlice {
        address_type: family.as_str().to_owned(),
        endpoints: Some(Vec::new()),
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", service.metadata.name.as_deref().unwrap_or_default())),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels(service)),
            owner_references: Some(vec![controller_reference(service)]),
            ..ObjectMeta::default()
        },
        ports: Some(ports),
    }
}

/// A Service without endpoints has one empty slice, so that it can be told from one that nobody looked at yet.
fn keep_placeholder(view: &View<'_>, family: Family, plan: &mut Plan) {
    if let [only] = plan.delete.as_slice() {
        let empty = only.ports.as_ref().is_none_or(Vec::is_empty) && count(only) == 0;
        let labelled = only.metadata.labels == Some(labels(view.service));
        if empty && labelled {
            plan.delete.clear();
            return;
        }
    }
    plan.create.push(new_slice(view.service, family, Vec::new()));
}

/// Replaces a slice that would be deleted by one that would be created: one write instead of two.
fn reuse(plan: &mut Plan) {
    while !plan.create.is_empty() && !plan.delete.is_empty() {
        let (Some(new), Some(mut old)) = (plan.create.pop(), plan.delete.pop()) else { return };
        old.endpoints = new.endpoints;
        old.ports = new.ports;
        old.metadata.labels = new.metadata.labels;
        old.metadata.owner_references = new.metadata.owner_references;
        plan.update.push(old);
    }
}

/// Notes the time of the change on a slice that is written anyway.
fn stamp(slice: &mut EndpointSlice, trigger: Option<Timestamp>) {
    let annotations = slice.metadata.annotations.get_or_insert_default();
    match trigger {
        Some(time) => annotations.insert(ANNOTATION_TRIGGER_TIME.to_owned(), time.to_string()),
        None => annotations.remove(ANNOTATION_TRIGGER_TIME),
    };
    if annotations.is_empty() {
        slice.metadata.annotations = None;
    }
}
