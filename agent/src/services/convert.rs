//! Services and EndpointSlices of the API, read into the planner's plain values and the table's entries.
//!
//! Pure. What cannot be used is left out and said in words, so that the rest of the object still works.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use dataplane::{Identity, Protocol};
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::{ObjectReference, Service as ApiService, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint as ApiEndpoint, EndpointHints, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::plan::{ByFamily, Endpoint, Key, Port, Service, Slice, SlicePort, TrafficPolicy, Usable};
use super::scheduling::Scheduling;
use super::{Entry, EntryPort};

#[cfg(test)]
mod tests;

/// The label of a slice that names its Service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Names another implementation that serves a Service, or its slices; kube-proxy leaves those alone, and so do we.
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// What nobody serves, whatever addresses it has.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// The slices of Services that are served here.
pub const SERVED: &str = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";
/// The annotation that says how a flow from outside goes on to another node: `snat` under this node's address, `dsr` under the client's, and is answered
/// from there.
const FORWARDING_MODE: &str = "orlop.dev/forwarding-mode";
/// What the API writes for a Service without a cluster IP.
const HEADLESS: &str = "None";
/// `spec.sessionAffinityConfig.clientIP.timeoutSeconds`.
const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;

/// `None` for an object without a name, which the API does not send.
pub fn key(meta: &ObjectMeta) -> Option<Key> {
    Some(Key { namespace: meta.namespace.clone()?, name: meta.name.clone()? })
}

/// What events about a Service point at.
pub fn reference(key: &Key, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Service".to_owned()),
        namespace: Some(key.namespace.clone()),
        name: Some(key.name.clone()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}

/// The table's entry; `None` for a Service that has no cluster IP.
pub fn entry(service: &ApiService) -> Option<Entry> {
    let spec = service.spec.as_ref()?;
    let cluster_ip = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != HEADLESS)?;
    let port = |port: &ServicePort| EntryPort {
        name: port.name.clone(),
        port: port.port,
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
    };
    let ports = spec.ports.iter().flatten().map(port).collect();
    Some(Entry { cluster_ip: cluster_ip.to_owned(), ports })
}

/// The planner's Service, and what had to be left out of it.
pub fn service(object: &ApiService) -> (Service, Vec<String>) {
    let mut problems = Vec::new();
    let Some(spec) = &object.spec else { return (Service::default(), problems) };
    let meta = &object.metadata;
    let mut service = Service {
        uid: meta.uid.clone().unwrap_or_default(),
        created: meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        internal_policy: policy(spec.internal_traffic_policy.as_deref()),
        external_policy: policy(spec.external_traffic_policy.as_deref()),
        affinity_seconds: affinity(spec),
        health_check_port: port_number(spec.health_check_node_port),
        publish_not_ready: spec.publish_not_ready_addresses == Some(true),
        direct_return: is_direct_return(meta.annotations.as_ref(), &mut problems),
        scheduling: Scheduling::read(meta.annotations.as_ref(), &mut problems),
        ..Service::default()
    };
    let is_headless =
        spec.type_.as_deref() == Some("ExternalName") || spec.cluster_ip.as_deref() == Some(HEADLESS);
    if is_headless || is_left_alone(meta) {
        service.health_check_port = None;
        return (service, problems);
    }
    let listed = spec.cluster_ips.iter().flatten().chain(spec.cluster_ip.iter());
    service.cluster_ips = addresses("spec.clusterIPs", listed, &mut problems);
    let balancer = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    // With ipMode Proxy traffic has to pass the load balancer itself.
    let ingress = balancer
        .iter()
        .flat_map(|balancer| balancer.ingress.iter().flatten())
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_ref());
    service.balancer_ips = addresses("status.loadBalancer.ingress", ingress, &mut problems);
    service.external_ips = addresses("spec.externalIPs", spec.external_ips.iter().flatten(), &mut problems);
    service.source_ranges = source_ranges(spec.load_balancer_source_ranges.iter().flatten(), &mut problems);
    service.ports =
        spec.ports.iter().flatten().filter_map(|port| service_port(port, &mut problems)).collect();
    (service, problems)
}

/// Whether the annotation asks for direct server return.
fn is_direct_return(annotations: Option<&BTreeMap<String, String>>, problems: &mut Vec<String>) -> bool {
    let mode = annotations.and_then(|all| all.get(FORWARDING_MODE)).map_or("", |text| text.trim());
    if !["", "snat", "dsr"].contains(&mode) {
        problems.push(format!("{FORWARDING_MODE}: \"{mode}\" is neither snat nor dsr; snat is used"));
    }
    mode == "dsr"
}

/// The label is what counts, not its value.
fn is_left_alone(meta: &ObjectMeta) -> bool {
    meta.labels.as_ref().is_some_and(|labels| {
        [PROXY_NAME_LABEL, HEADLESS_LABEL].iter().any(|label| labels.contains_key(*label))
    })
}

/// The API server fills in the time of those who asked for none.
fn affinity(spec: &ServiceSpec) -> Option<NonZeroU32> {
    let wanted = spec.session_affinity.as_deref() == Some("ClientIP");
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|client| client.timeout_seconds).unwrap_or(DEFAULT_AFFINITY_SECONDS);
    wanted.then_some(NonZeroU32::new(u32::try_from(seconds).ok()?)?)
}

fn policy(text: Option<&str>) -> TrafficPolicy {
    if text == Some("Local") { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
}

/// Once each; a mapped address is the one of IPv4 that it maps, as for kube-proxy.
fn addresses<'a>(
    field: &str,
    texts: impl Iterator<Item = &'a String>,
    problems: &mut Vec<String>,
) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for text in texts.filter(|text| !text.is_empty()) {
        match text.parse().as_ref().map(IpAddr::to_canonical) {
            Ok(address) => {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            Err(_) => problems.push(format!("{field}: \"{text}\" is not an IP address")),
        }
    }
    addresses
}

/// Where all are of one family, they say nothing about the other, as for kube-proxy. What cannot be read lets nobody in.
fn source_ranges<'a>(
    texts: impl Iterator<Item = &'a String>,
    problems: &mut Vec<String>,
) -> ByFamily<Option<Arc<[IpNetwork]>>> {
    let (mut all, mut unread) = (BTreeSet::new(), false);
    for text in texts {
        match text.trim().parse() {
            Ok(range) => drop(all.insert(normal(range))),
            Err(_) => {
                unread = true;
                problems.push(format!("spec.loadBalancerSourceRanges: \"{text}\" is not a network"));
            }
        }
    }
    let of = |is_ipv4: bool| {
        let ranges: Arc<[IpNetwork]> =
            all.iter().copied().filter(|range| range.is_ipv4() == is_ipv4).collect();
        (unread || !ranges.is_empty()).then_some(ranges)
    };
    ByFamily { v4: of(true), v6: of(false) }
}

/// Without the bits of a host.
fn normal(range: IpNetwork) -> IpNetwork {
    IpNetwork::new(range.network(), range.prefix()).unwrap_or(range)
}

fn service_port(port: &ServicePort, problems: &mut Vec<String>) -> Option<Port> {
    let Ok(number) = u16::try_from(port.port) else {
        problems.push(format!("spec.ports: {} is not a port", port.port));
        return None;
    };
    let Some(protocol) = protocol(port.protocol.as_deref()) else {
        let protocol = port.protocol.as_deref().unwrap_or_default();
        problems.push(format!(
            "spec.ports: port {number} has protocol {protocol}, only TCP, UDP and SCTP are translated"
        ));
        return None;
    };
    let node_port = port_number(port.node_port);
    Some(Port { name: port.name.clone().unwrap_or_default(), port: number, protocol, node_port })
}

/// 0 is no port, as the API has it.
fn port_number(number: Option<i32>) -> Option<u16> {
    number.and_then(|number| u16::try_from(number).ok()).filter(|number| *number != 0)
}

fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text {
        None | Some("TCP" | "") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}

/// The Service that a slice belongs to.
pub fn slice_service(meta: &ObjectMeta) -> Option<Key> {
    let name = meta.labels.as_ref()?.get(SERVICE_NAME_LABEL).filter(|name| !name.is_empty())?;
    Some(Key { namespace: meta.namespace.clone()?, name: name.clone() })
}

/// The planner's slice, and what had to be left out of it. One of names is empty.
pub fn slice(object: &EndpointSlice, node_name: &str) -> (Slice, Vec<String>) {
    let mut problems = Vec::new();
    let is_ipv4 = match object.address_type.as_str() {
        "IPv4" => true,
        "IPv6" => false,
        other => {
            let name = object.metadata.name.as_deref().unwrap_or_default();
            tracing::debug!(slice = name, address_type = other, "only addresses are endpoints");
            return (Slice::default(), problems);
        }
    };
    let ports = object.ports.iter().flatten().filter_map(slice_port).collect();
    let all = object.endpoints.iter().flatten();
    let home = Home { node: node_name, namespace: object.metadata.namespace.as_deref().unwrap_or_default() };
    let endpoints = all.filter_map(|endpoint| one_endpoint(endpoint, is_ipv4, home, &mut problems));
    let endpoints = endpoints.collect();
    (Slice { ports, endpoints }, problems)
}

/// A port without a number means all ports, which no Service can lead to.
fn slice_port(port: &EndpointPort) -> Option<SlicePort> {
    Some(SlicePort {
        name: port.name.clone().unwrap_or_default(),
        port: u16::try_from(port.port?).ok()?,
        protocol: protocol(port.protocol.as_deref())?,
    })
}

/// Where a slice is read, and where it is from.
#[derive(Clone, Copy)]
struct Home<'a> {
    node: &'a str,
    namespace: &'a str,
}

fn one_endpoint(
    endpoint: &ApiEndpoint,
    is_ipv4: bool,
    home: Home<'_>,
    problems: &mut Vec<String>,
) -> Option<Endpoint> {
    // More than one address has no defined meaning; all take the first.
    let text = endpoint.addresses.first()?;
    let address = text.parse().as_ref().map(IpAddr::to_canonical).ok();
    let Some(address) = address.filter(|address| address.is_ipv4() == is_ipv4) else {
        let family = if is_ipv4 { "IPv4" } else { "IPv6" };
        problems.push(format!("endpoints: \"{text}\" is not an {family} address"));
        return None;
    };
    let (usable, departing) = usable(endpoint);
    // A pod elsewhere ends without this node's knowledge: its uid is not worth its bytes.
    let may_be_here = endpoint.node_name.as_deref().is_none_or(|node| node == home.node);
    let pod = pod(endpoint);
    let name = pod.and_then(|pod| pod.name.as_deref()).filter(|name| !name.is_empty());
    let uid = pod.and_then(|pod| pod.uid.as_ref()).filter(|uid| !uid.is_empty() && may_be_here);
    Some(Endpoint {
        address,
        usable,
        departing,
        local: endpoint.node_name.as_deref() == Some(home.node),
        node: endpoint.node_name.as_deref().map(Into::into),
        zones: endpoint.hints.as_ref().and_then(zones),
        meant_for_node: endpoint.hints.as_ref().and_then(|hints| meant_for(hints, home.node)),
        pod: uid.map(|uid| Arc::new(uid.clone())),
        identity: name.map(|name| Identity::of_pod(home.namespace, name)),
    })
}

fn zones(hints: &EndpointHints) -> Option<Arc<[Box<str>]>> {
    let zones = hints.for_zones.as_ref().filter(|zones| !zones.is_empty())?;
    Some(zones.iter().map(|zone| zone.name.as_str().into()).collect())
}

fn meant_for(hints: &EndpointHints, node_name: &str) -> Option<bool> {
    let nodes = hints.for_nodes.as_ref().filter(|nodes| !nodes.is_empty())?;
    Some(nodes.iter().any(|node| node.name == node_name))
}

/// The pod that an endpoint stands for, which is of the slice's own namespace.
fn pod(endpoint: &ApiEndpoint) -> Option<&ObjectReference> {
    endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"))
}

/// Whether traffic may go there, by the slice and once the pod is being ended. Absent conditions mean ready and serving, and
/// not terminating; a slice that says terminating knows already.
fn usable(endpoint: &ApiEndpoint) -> (Usable, Usable) {
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
    let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(true);
    let terminating = conditions.and_then(|conditions| conditions.terminating).unwrap_or(false);
    let usable = match (ready, serving && terminating) {
        (true, _) => Usable::Ready,
        (false, true) => Usable::Fallback,
        (false, false) => Usable::No,
    };
    let departing = match (terminating, serving) {
        (true, _) => usable,
        (false, true) => usable.min(Usable::Fallback),
        (false, false) => Usable::No,
    };
    (usable, departing)
}
