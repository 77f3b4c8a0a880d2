//! NetworkPolicies and Pods of the API, read into the planner's plain values.
//!
//! Pure. What cannot be used of a policy is said in words and left out in a way that it allows nothing: a pod that the policy may mean
//! stays isolated. The API server refuses most of it, an older one or another one may not have.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use dataplane::policy::{PortRange, Ports, Protocol};
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::{ContainerPort, Pod as ApiPod, PodSpec};
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::plan::{Allowed, Block, Key, NamedPort, Namespaces, Peer, Pod, Policy, PortName, Rule};
use super::selector::Selector;

#[cfg(test)]
mod tests;

/// Letters of a port's name, as the API has it.
const PORT_NAME_LENGTH: usize = 15;
/// With 0, which nobody uses, all ports are one range that needs no parts.
const ALL_PORTS: RangeInclusive<u16> = 0..=u16::MAX;

/// `None` for an object without a name, which the API does not send.
pub fn key(meta: &ObjectMeta) -> Option<Key> {
    Some(Key { namespace: meta.namespace.clone()?, name: meta.name.clone()? })
}

/// The planner's policy, and what had to be left out of it: where in the object, and why.
pub fn policy(object: &NetworkPolicy) -> (Policy, Vec<String>) {
    let mut problems = Vec::new();
    let namespace: Arc<str> = object.metadata.namespace.as_deref().unwrap_or_default().into();
    let none = NetworkPolicySpec::default();
    let spec = object.spec.as_ref().unwrap_or(&none);
    let (selector, unread) = spec.pod_selector.as_ref().map(Selector::read).unwrap_or_default();
    // Then it selects more pods than it should, and must not open the others.
    let exact = unread.is_empty();
    problems.extend(unread.into_iter().map(|problem| format!("spec.podSelector.{problem}")));
    let types = policy_types(spec, &mut problems);

    let ingress = spec.ingress.iter().flatten().enumerate().map(|(index, rule)| {
        let mut problem = |text: String| problems.push(format!("spec.ingress[{index}].{text}"));
        Rule {
            peers: read_peers("from", rule.from.as_deref(), &namespace, &mut problem),
            allowed: read_ports(rule.ports.as_deref(), &mut problem),
        }
    });
    let ingress = types[0].rules(exact, ingress.collect());
    let egress = spec.egress.iter().flatten().enumerate().map(|(index, rule)| {
        let mut problem = |text: String| problems.push(format!("spec.egress[{index}].{text}"));
        Rule {
            peers: read_peers("to", rule.to.as_deref(), &namespace, &mut problem),
            allowed: read_ports(rule.ports.as_deref(), &mut problem),
        }
    });
    let egress = types[1].rules(exact, egress.collect());
    (Policy { selector, ingress, egress }, problems)
}

/// What a policy does to pods that it selects, in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Isolates {
    No,
    WithRules,
    /// It may mean the direction: its rules open nothing.
    Whole,
}

impl Isolates {
    /// Those of the planner's policy; `exact`: it selects no pods but those that it should.
    fn rules(self, exact: bool, rules: Vec<Rule>) -> Option<Vec<Rule>> {
        match self {
            Self::No => None,
            Self::WithRules if exact => Some(rules),
            Self::WithRules | Self::Whole => Some(Vec::new()),
        }
    }
}

/// For ingress and egress.
fn policy_types(spec: &NetworkPolicySpec, problems: &mut Vec<String>) -> [Isolates; 2] {
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if types.is_empty() {
        let has_egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
        return [Isolates::WithRules, if has_egress { Isolates::WithRules } else { Isolates::No }];
    }
    let unread = types.iter().enumerate().filter(|(_, name)| !matches!(name.as_str(), "Ingress" | "Egress"));
    let before = problems.len();
    problems.extend(
        unread.map(|(index, name)| {
            format!("spec.policyTypes[{index}]: \"{name}\" is neither Ingress nor Egress")
        }),
    );
    let otherwise = if problems.len() > before { Isolates::Whole } else { Isolates::No };
    ["Ingress", "Egress"]
        .map(|wanted| if types.iter().any(|name| name == wanted) { Isolates::WithRules } else { otherwise })
}

fn read_peers(
    field: &str,
    given: Option<&[NetworkPolicyPeer]>,
    namespace: &Arc<str>,
    problem: &mut impl FnMut(String),
) -> Vec<Peer> {
    let given = given.unwrap_or_default();
    if given.is_empty() {
        return vec![Peer::Everybody];
    }
    let mut peers = Vec::with_capacity(given.len());
    for (index, peer) in given.iter().enumerate() {
        match read_peer(peer, namespace) {
            Ok(peer) => peers.push(peer),
            Err(texts) => texts.iter().for_each(|text| problem(format!("{field}[{index}]{text}"))),
        }
    }
    peers
}

/// On failure what is wrong, each after the rest of the field's path.
fn read_peer(peer: &NetworkPolicyPeer, namespace: &Arc<str>) -> Result<Peer, Vec<String>> {
    if let Some(block) = &peer.ip_block {
        if peer.pod_selector.is_some() || peer.namespace_selector.is_some() {
            return Err(vec![".ipBlock: may not stand beside selectors".to_owned()]);
        }
        return read_block(block).map(Peer::Block).map_err(|text| vec![format!(".ipBlock.{text}")]);
    }
    if peer.pod_selector.is_none() && peer.namespace_selector.is_none() {
        return Err(vec![": names nobody, a selector or an ipBlock is needed".to_owned()]);
    }
    let mut problems = Vec::new();
    let mut read = |field: &str, selector: &LabelSelector| {
        let (selector, unread) = Selector::read(selector);
        problems.extend(unread.into_iter().map(|text| format!(".{field}.{text}")));
        selector
    };
    let namespaces = peer
        .namespace_selector
        .as_ref()
        .map(|selector| read("namespaceSelector", selector))
        .map_or_else(|| Namespaces::One(namespace.clone()), Namespaces::Matching);
    let pods = peer.pod_selector.as_ref().map(|selector| read("podSelector", selector)).unwrap_or_default();
    if problems.is_empty() { Ok(Peer::Pods { namespaces, pods }) } else { Err(problems) }
}

/// A block with an exception that cannot be read would hold too much.
fn read_block(block: &IPBlock) -> Result<Block, String> {
    let network = network(&block.cidr).ok_or_else(|| format!("cidr: \"{}\" is not a network", block.cidr))?;
    let mut except = Vec::new();
    for (index, text) in block.except.iter().flatten().enumerate() {
        let Some(part) = self::network(text) else {
            return Err(format!("except[{index}]: \"{text}\" is not a network"));
        };
        if part.prefix() <= network.prefix() || !network.contains(part.ip()) {
            return Err(format!("except[{index}]: {part} is not a part of {network}"));
        }
        except.push(part);
    }
    except.sort_unstable();
    except.dedup();
    Ok(Block { network, except: except.into() })
}

/// An address without a prefix is none, nor is one with a mask; the bits of a host are left out, as upstream does.
fn network(text: &str) -> Option<IpNetwork> {
    let (address, prefix) = text.split_once('/')?;
    if !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let network = IpNetwork::new(address.parse().ok()?, prefix.parse().ok()?).ok()?;
    // The kernel's tables know IPv4's addresses in this form: it would be a block of both families.
    if matches!(network.ip(), IpAddr::V6(address) if address.to_ipv4_mapped().is_some()) {
        return None;
    }
    IpNetwork::new(network.network(), network.prefix()).ok()
}

fn read_ports(given: Option<&[NetworkPolicyPort]>, problem: &mut impl FnMut(String)) -> Allowed {
    let given = given.unwrap_or_default();
    if given.is_empty() {
        return Allowed { ports: Ports::All, ..Allowed::default() };
    }
    let mut allowed = Allowed::default();
    let mut ranges = Vec::new();
    for (index, port) in given.iter().enumerate() {
        match read_port(port) {
            Ok(AtPort::Numbers(range)) => ranges.push(range),
            Ok(AtPort::Name(name)) => drop(allowed.named.insert(name)),
            Err((field, text)) => problem(format!("ports[{index}].{field}: {text}")),
        }
    }
    allowed.ports = Ports::new(ranges);
    allowed
}

enum AtPort {
    Numbers(PortRange),
    Name(PortName),
}

/// On failure the field that cannot be used, and why.
fn read_port(port: &NetworkPolicyPort) -> Result<AtPort, (&'static str, String)> {
    let name = port.protocol.as_deref().unwrap_or("TCP");
    let protocol =
        protocol(name).ok_or_else(|| ("protocol", format!("\"{name}\" is none of TCP, UDP, SCTP")))?;
    let numbers = |range: RangeInclusive<u16>| {
        AtPort::Numbers(PortRange { protocol, first: *range.start(), last: *range.end() })
    };
    match (&port.port, port.end_port) {
        (None, None) => Ok(numbers(ALL_PORTS)),
        (None, Some(_)) => Err(("endPort", "needs a port to begin at".to_owned())),
        (Some(IntOrString::Int(number)), end) => {
            let first = port_number(*number).ok_or_else(|| ("port", format!("{number} is not a port")))?;
            let end = end.unwrap_or(*number);
            let last = port_number(end).ok_or_else(|| ("endPort", format!("{end} is not a port")))?;
            if last < first {
                return Err(("endPort", format!("{last} is less than the port {first}")));
            }
            Ok(numbers(first..=last))
        }
        (Some(IntOrString::String(_)), Some(_)) => {
            Err(("endPort", "needs a port that is a number".to_owned()))
        }
        (Some(IntOrString::String(name)), None) if is_port_name(name) => {
            Ok(AtPort::Name(PortName { protocol, name: name.as_str().into() }))
        }
        (Some(IntOrString::String(name)), None) => {
            Err(("port", format!("\"{name}\" is neither a number nor the name of a port")))
        }
    }
}

fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number != 0)
}

/// Small letters, digits and single dashes within, with a letter among them.
fn is_port_name(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    name.len() <= PORT_NAME_LENGTH
        && name.split('-').all(part)
        && name.bytes().any(|byte| byte.is_ascii_lowercase())
}

fn protocol(name: &str) -> Option<Protocol> {
    match name {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

/// The planner's pod; `None` for one without name or uid, which the API does not send.
pub fn pod(object: &ApiPod) -> Option<(Key, Pod)> {
    let meta = &object.metadata;
    let status = object.status.as_ref();
    let spec = object.spec.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    let on_host = spec.is_some_and(|spec| spec.host_network == Some(true));
    let listed = status.iter().flat_map(|status| status.pod_ips.iter().flatten()).map(|ip| &ip.ip);
    let first = status.and_then(|status| status.pod_ip.as_ref());
    let mut ips: Vec<IpAddr> = Vec::new();
    for ip in listed.chain(first).filter_map(|text| text.parse::<IpAddr>().ok()) {
        let ip = ip.to_canonical();
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    let pod = Pod {
        uid: meta.uid.as_deref()?.into(),
        labels: Arc::new(meta.labels.clone().unwrap_or_default()),
        ips,
        ports: spec.map(named_ports).unwrap_or_default(),
        is_peer: !on_host && !matches!(phase, Some("Succeeded" | "Failed")),
    };
    Some((key(meta)?, pod))
}

/// Those of containers that run as long as the pod does.
fn named_ports(spec: &PodSpec) -> Arc<[NamedPort]> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let mut ports: Vec<NamedPort> = ports.filter_map(named_port).collect();
    ports.sort_unstable();
    ports.dedup();
    ports.into()
}

fn named_port(port: &ContainerPort) -> Option<NamedPort> {
    let protocol = match port.protocol.as_deref() {
        None | Some("") => Protocol::Tcp,
        Some(name) => protocol(name)?,
    };
    let name = port.name.as_deref().filter(|name| !name.is_empty())?;
    let name = PortName { protocol, name: name.into() };
    Some(NamedPort { name, number: port_number(port.container_port)? })
}
