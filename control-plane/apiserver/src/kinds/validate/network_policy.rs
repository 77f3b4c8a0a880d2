//! NetworkPolicies.

use ipnetwork::IpNetwork;
use serde_json::Value;

use super::{cidr, label_selector, port_number, port_number_or_name};
use crate::error::FieldError;
use crate::object::{items, text};

const PROTOCOLS: &[&str] = &["TCP", "UDP", "SCTP"];
const TYPES: &[&str] = &["Ingress", "Egress"];
/// Where rules are, and what they call the other side.
const DIRECTIONS: [(&str, &str); 2] = [("ingress", "from"), ("egress", "to")];

pub(in crate::kinds) fn network_policy(policy: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    label_selector(&policy["spec"]["podSelector"], "spec.podSelector", &mut errors);
    for (direction, peers) in DIRECTIONS {
        for (index, rule) in items(policy, &format!("/spec/{direction}")).iter().enumerate() {
            let path = format!("spec.{direction}[{index}]");
            for (index, port) in items(rule, "/ports").iter().enumerate() {
                self::port(port, &format!("{path}.ports[{index}]"), &mut errors);
            }
            for (index, peer) in items(rule, &format!("/{peers}")).iter().enumerate() {
                self::peer(peer, &format!("{path}.{peers}[{index}]"), &mut errors);
            }
        }
    }
    types(items(policy, "/spec/policyTypes"), &mut errors);
    errors
}

fn port(port: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let protocol = text(port, "/protocol");
    if !PROTOCOLS.contains(&protocol) {
        errors.push(FieldError::not_supported(format!("{path}.protocol"), protocol, PROTOCOLS));
    }
    let (first, last) = (&port["port"], &port["endPort"]);
    let last_path = format!("{path}.endPort");
    if !last.is_null() && !first.is_number() {
        let state = if first.is_null() { "not specified" } else { "non-numeric" };
        let detail = format!("may not be specified when `port` is {state}");
        errors.push(FieldError::invalid(last_path.clone(), last.clone(), &detail));
    }
    if !first.is_null() {
        port_number_or_name(first, &format!("{path}.port"), errors);
    }
    if let (Some(from), Some(to)) = (first.as_i64(), last.as_i64()) {
        if to < from {
            let detail = "must be greater than or equal to `port`";
            errors.push(FieldError::invalid(last_path.clone(), to, detail));
        }
        port_number(last, &last_path, errors);
    }
}

fn peer(peer: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let given = |field: &str| peer.get(field).filter(|value| !value.is_null());
    let selectors = ["podSelector", "namespaceSelector"].map(|field| (field, given(field)));
    for (field, selector) in selectors {
        if let Some(selector) = selector {
            label_selector(selector, &format!("{path}.{field}"), errors);
        }
    }
    let block = given("ipBlock");
    if let Some(block) = block {
        ip_block(block, &format!("{path}.ipBlock"), errors);
    }
    let selects = selectors.iter().any(|(_, selector)| selector.is_some());
    match (block.is_some(), selects) {
        (false, false) => errors.push(FieldError::required(path, "must specify a peer")),
        (true, true) => {
            errors.push(FieldError::forbidden(path, "may not specify both ipBlock and another peer"));
        }
        _ => {}
    }
}

fn ip_block(block: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let whole = text(block, "/cidr");
    if whole.is_empty() {
        errors.push(FieldError::required(format!("{path}.cidr"), ""));
        return;
    }
    // Without the whole nothing can be said about its parts.
    let Some(whole) = network(whole, &format!("{path}.cidr"), errors) else { return };
    for (index, except) in items(block, "/except").iter().filter_map(Value::as_str).enumerate() {
        let path = format!("{path}.except[{index}]");
        let Some(part) = network(except, &path, errors) else { continue };
        if !whole.contains(part.network()) || whole.prefix() >= part.prefix() {
            errors.push(FieldError::invalid(path, except, "must be a strict subset of `cidr`"));
        }
    }
}

/// What the text is read as, even where it is refused.
fn network(text: &str, path: &str, errors: &mut Vec<FieldError>) -> Option<IpNetwork> {
    let (network, problem) = cidr::read(text);
    errors.extend(problem.map(|problem| FieldError::invalid(path, text, problem)));
    network
}

fn types(list: &[Value], errors: &mut Vec<FieldError>) {
    if list.len() > TYPES.len() {
        let detail = "may not specify more than two policyTypes";
        errors.push(FieldError::invalid("spec.policyTypes", list.to_vec(), detail));
        return;
    }
    for (index, value) in list.iter().filter_map(Value::as_str).enumerate() {
        if !TYPES.contains(&value) {
            errors.push(FieldError::not_supported(format!("spec.policyTypes[{index}]"), value, TYPES));
        }
    }
}
