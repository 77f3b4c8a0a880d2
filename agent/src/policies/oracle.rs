//! Whether policies allow that one talks to another, as the Kubernetes documentation says it, word by word and object by object. Pure.
//!
//! For tests: it shares no code with what it is compared to. Sentences in quotes are of
//! <https://kubernetes.io/docs/concepts/services-networking/network-policies/> and of the API reference of networking.k8s.io/v1. What the API
//! server would refuse (a block that is none, an operator that it does not know) matches nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Labels of namespaces, by name.
pub type Namespaces = BTreeMap<String, BTreeMap<String, String>>;

/// One end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a> {
    pub address: IpAddr,
    /// The pod that has the address.
    pub pod: Option<&'a Pod>,
    /// It is the node on which the other end runs.
    pub is_own_node: bool,
}

/// "For a connection from a source pod to a destination pod to be allowed, both the egress policy on the source pod and the ingress
/// policy on the destination pod need to allow the connection."
pub fn allows(
    policies: &[NetworkPolicy],
    namespaces: &Namespaces,
    from: &Peer<'_>,
    to: &Peer<'_>,
    protocol: &str,
    port: u16,
) -> bool {
    allows_egress(policies, namespaces, from, to, protocol, port)
        && allows_ingress(policies, namespaces, from, to, protocol, port)
}

/// What the policies of the source say.
pub fn allows_egress(
    policies: &[NetworkPolicy],
    namespaces: &Namespaces,
    from: &Peer<'_>,
    to: &Peer<'_>,
    protocol: &str,
    port: u16,
) -> bool {
    let Some(pod) = from.pod else { return true };
    if to.is_own_node || is_same(pod, to.pod) {
        return true;
    }
    let mut isolated = false;
    for policy in policies.iter().filter(|policy| is_about(policy, pod)) {
        let spec = policy.spec.clone().unwrap_or_default();
        if !has_type(&spec, "Egress") {
            continue;
        }
        isolated = true;
        for rule in spec.egress.unwrap_or_default() {
            let peers = rule.to.unwrap_or_default();
            let ports = rule.ports.unwrap_or_default();
            // A name is one of the destination's.
            let named = to.pod.filter(|pod| is_on_pod_network(pod));
            let matches = |peer: &NetworkPolicyPeer| {
                let server = if peer.ip_block.is_some() { None } else { named };
                is_peer(peer, policy, namespaces, to) && is_port_of_any(&ports, server, protocol, port)
            };
            if peers.is_empty() && is_port_of_any(&ports, named, protocol, port) || peers.iter().any(matches)
            {
                return true;
            }
        }
    }
    !isolated
}

/// What the policies of the destination say.
pub fn allows_ingress(
    policies: &[NetworkPolicy],
    namespaces: &Namespaces,
    from: &Peer<'_>,
    to: &Peer<'_>,
    protocol: &str,
    port: u16,
) -> bool {
    let Some(pod) = to.pod else { return true };
    if from.is_own_node || is_same(pod, from.pod) {
        return true;
    }
    let mut isolated = false;
    for policy in policies.iter().filter(|policy| is_about(policy, pod)) {
        let spec = policy.spec.clone().unwrap_or_default();
        if !has_type(&spec, "Ingress") {
            continue;
        }
        isolated = true;
        for rule in spec.ingress.unwrap_or_default() {
            let peers = rule.from.unwrap_or_default();
            let from_matches =
                peers.is_empty() || peers.iter().any(|peer| is_peer(peer, policy, namespaces, from));
            if from_matches && is_port_of_any(&rule.ports.unwrap_or_default(), Some(pod), protocol, port) {
                return true;
            }
        }
    }
    !isolated
}

/// "A pod cannot block access to itself."
fn is_same(pod: &Pod, other: Option<&Pod>) -> bool {
    other.is_some_and(|other| other.metadata.uid == pod.metadata.uid)
}

/// "An empty podSelector selects all pods in the namespace."
fn is_about(policy: &NetworkPolicy, pod: &Pod) -> bool {
    let selector = policy.spec.as_ref().and_then(|spec| spec.pod_selector.clone()).unwrap_or_default();
    policy.metadata.namespace == pod.metadata.namespace
        && selects(&selector, &pod.metadata.labels.clone().unwrap_or_default())
}

/// "If no policyTypes are specified on a NetworkPolicy then by default Ingress will always be set and Egress will be set if the
/// NetworkPolicy has any egress rules."
fn has_type(spec: &NetworkPolicySpec, wanted: &str) -> bool {
    match spec.policy_types.as_ref().filter(|types| !types.is_empty()) {
        Some(types) => types.iter().any(|name| name == wanted),
        None => wanted == "Ingress" || spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
    }
}

fn is_peer(
    peer: &NetworkPolicyPeer,
    policy: &NetworkPolicy,
    namespaces: &Namespaces,
    other: &Peer<'_>,
) -> bool {
    if let Some(block) = &peer.ip_block {
        let alone = peer.pod_selector.is_none() && peer.namespace_selector.is_none();
        return alone && is_in_block(block, other.address);
    }
    let Some(pod) = other.pod.filter(|pod| is_on_pod_network(pod)) else { return false };
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    match (&peer.namespace_selector, &peer.pod_selector) {
        (None, None) => false,
        // "Otherwise it selects the pods matching podSelector in the policy's own namespace."
        (None, Some(pods)) => {
            policy.metadata.namespace.as_ref() == Some(&namespace) && selects(pods, &labels)
        }
        (Some(selector), pods) => {
            namespaces.get(&namespace).is_some_and(|labels| selects(selector, labels))
                && pods.as_ref().is_none_or(|pods| selects(pods, &labels))
        }
    }
}

/// A pod that has ended has no address, and one with the host's network has none of its own.
fn is_on_pod_network(pod: &Pod) -> bool {
    let on_host = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
    let phase = pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
    !on_host && phase != "Succeeded" && phase != "Failed"
}

fn is_in_block(block: &IPBlock, address: IpAddr) -> bool {
    let except = block.except.clone().unwrap_or_default();
    let in_except: Option<Vec<bool>> = except.iter().map(|text| is_in_cidr(text, address)).collect();
    is_in_cidr(&block.cidr, address) == Some(true)
        && in_except.is_some_and(|in_except| !in_except.contains(&true))
}

/// `None` for what is no CIDR.
fn is_in_cidr(text: &str, address: IpAddr) -> Option<bool> {
    let (network, prefix) = text.split_once('/')?;
    let (network, prefix): (IpAddr, u32) = (network.parse().ok()?, prefix.parse().ok()?);
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => (32, u128::from(address.to_bits()) << 96),
        IpAddr::V6(address) => (128, address.to_bits()),
    };
    let ((width, network), (other_width, address)) = (bits(network), bits(address));
    if prefix > width {
        return None;
    }
    let differing = network ^ address;
    Some(width == other_width && differing.leading_zeros() >= prefix)
}

/// "If this field is empty or missing, this rule matches all ports (traffic not restricted by port)."
fn is_port_of_any(ports: &[NetworkPolicyPort], server: Option<&Pod>, protocol: &str, port: u16) -> bool {
    ports.is_empty() || ports.iter().any(|wanted| is_port(wanted, server, protocol, port))
}

fn is_port(wanted: &NetworkPolicyPort, server: Option<&Pod>, protocol: &str, port: u16) -> bool {
    if wanted.protocol.as_deref().unwrap_or("TCP") != protocol {
        return false;
    }
    let port = i32::from(port);
    match (&wanted.port, wanted.end_port) {
        // "If this field is not provided, this matches all port names and numbers."
        (None, end) => end.is_none(),
        (Some(IntOrString::Int(first)), end) => {
            let last = end.unwrap_or(*first);
            *first >= 1 && last <= 65_535 && (*first..=last).contains(&port)
        }
        (Some(IntOrString::String(name)), None) => has_named_port(server, name, protocol, port),
        (Some(IntOrString::String(_)), Some(_)) => false,
    }
}

fn has_named_port(server: Option<&Pod>, name: &str, protocol: &str, port: i32) -> bool {
    let Some(spec) = server.and_then(|pod| pod.spec.clone()) else { return false };
    let sidecars = spec.init_containers.unwrap_or_default();
    let sidecars =
        sidecars.into_iter().filter(|container| container.restart_policy.as_deref() == Some("Always"));
    spec.containers.into_iter().chain(sidecars).flat_map(|container| container.ports.unwrap_or_default()).any(
        |candidate| {
            candidate.name.as_deref() == Some(name)
                && candidate.protocol.as_deref().unwrap_or("TCP") == protocol
                && candidate.container_port == port
        },
    )
}

/// "All of the requirements, from both matchLabels and matchExpressions are ANDed together."
fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let pairs = selector.match_labels.clone().unwrap_or_default();
    let expressions = selector.match_expressions.clone().unwrap_or_default();
    pairs.iter().all(|(key, value)| labels.get(key) == Some(value))
        && expressions.iter().all(|expression| is_met(expression, labels))
}

fn is_met(expression: &LabelSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let values = expression.values.clone().unwrap_or_default();
    let label = labels.get(&expression.key);
    let has_one = label.is_some_and(|label| values.contains(label));
    match expression.operator.as_str() {
        "In" => has_one,
        "NotIn" => !values.is_empty() && !has_one,
        "Exists" => label.is_some(),
        "DoesNotExist" => label.is_none(),
        _ => false,
    }
}
