//! Nodes, Events and Leases.

use serde_json::Value;

use super::cidr::NOT_A_NETWORK;
use crate::error::FieldError;
use crate::object::{items, namespace, text};

pub(in crate::kinds) fn node(node: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, taint) in items(node, "/spec/taints").iter().enumerate() {
        let path = format!("spec.taints[{index}]");
        for problem in crate::names::qualified_name(text(taint, "/key")) {
            errors.push(FieldError::invalid(format!("{path}.key"), text(taint, "/key"), &problem));
        }
        let effect = text(taint, "/effect");
        if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
            let known = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
            errors.push(FieldError::not_supported(format!("{path}.effect"), effect, &known));
        }
    }
    for (index, cidr) in items(node, "/spec/podCIDRs").iter().enumerate() {
        if cidr.as_str().is_none_or(|cidr| cidr.parse::<ipnetwork::IpNetwork>().is_err()) {
            let path = format!("spec.podCIDRs[{index}]");
            errors.push(FieldError::invalid(path, cidr.clone(), NOT_A_NETWORK));
        }
    }
    let cidrs = items(node, "/spec/podCIDRs");
    let networks = cidrs.iter().filter_map(|cidr| cidr.as_str()?.parse::<ipnetwork::IpNetwork>().ok());
    let (four, six): (Vec<_>, Vec<_>) = networks.partition(|network| network.is_ipv4());
    if four.len() > 1 || six.len() > 1 {
        let problem = "may specify no more than one CIDR for each IP family";
        errors.push(FieldError::invalid("spec.podCIDRs", cidrs.to_vec(), problem));
    }
    errors
}

pub(in crate::kinds) fn node_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let old_cidrs = items(old, "/spec/podCIDRs");
    if !old_cidrs.is_empty() && items(new, "/spec/podCIDRs") != old_cidrs {
        errors.push(FieldError::forbidden(
            "spec.podCIDRs",
            "node updates may not change podCIDR except from \"\" to valid",
        ));
    }
    let old_id = text(old, "/spec/providerID");
    if !old_id.is_empty() && text(new, "/spec/providerID") != old_id {
        errors.push(FieldError::forbidden(
            "spec.providerID",
            "node updates may not change providerID except from \"\" to valid",
        ));
    }
    errors
}

pub(in crate::kinds) fn event(event: &Value) -> Vec<FieldError> {
    let involved = text(event, "/involvedObject/namespace");
    let own = namespace(event);
    let mut errors = Vec::new();
    if involved != own && !(involved.is_empty() && own == "default") {
        errors.push(FieldError::invalid(
            "involvedObject.namespace",
            involved,
            "does not match event.namespace",
        ));
    }
    errors
}

pub(in crate::kinds) fn lease(lease: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (field, minimum) in [("leaseDurationSeconds", 1), ("leaseTransitions", 0)] {
        let value = lease["spec"].get(field);
        if let Some(value) = value.filter(|value| value.as_i64().is_some_and(|number| number < minimum)) {
            let detail =
                if minimum == 0 { "must be greater than or equal to 0" } else { "must be greater than 0" };
            errors.push(FieldError::invalid(format!("spec.{field}"), value.clone(), detail));
        }
    }
    errors
}
