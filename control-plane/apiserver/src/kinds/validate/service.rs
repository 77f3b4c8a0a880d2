//! Services, Endpoints and EndpointSlices.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::Value;

use super::cidr::NOT_A_NETWORK;
use super::{IMMUTABLE, labels, port_number, port_number_or_name, protocol};
use crate::error::FieldError;
use crate::kinds::needs_health_check_port;
use crate::names;
use crate::object::{items, text};

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const DISTRIBUTIONS: &[&str] = &["PreferClose", "PreferSameNode", "PreferSameZone"];
const FAMILIES: &[&str] = &["IPv4", "IPv6"];
const FAMILY_POLICIES: &[&str] = &["PreferDualStack", "RequireDualStack", "SingleStack"];
const NOT_AN_ADDRESS: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const MAX_AFFINITY_SECONDS: i64 = 86_400;
const MAX_SLICE_ENDPOINTS: usize = 1000;

pub(in crate::kinds) fn service(service: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let kind = text(service, "/spec/type");
    if !TYPES.contains(&kind) {
        errors.push(FieldError::not_supported("spec.type", kind, TYPES));
    }
    let headless = text(service, "/spec/clusterIP") == "None";
    let list = items(service, "/spec/ports");
    if list.is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    ports(list, &mut errors);
    labels(service, "/spec/selector", "spec.selector", &mut errors);
    affinity(service, &mut errors);
    health_check_port(service, &mut errors);
    let distribution = text(service, "/spec/trafficDistribution");
    if !distribution.is_empty() && !DISTRIBUTIONS.contains(&distribution) {
        errors.push(FieldError::not_supported("spec.trafficDistribution", distribution, DISTRIBUTIONS));
    }
    cluster_address(service, kind, &mut errors);
    for (index, address) in items(service, "/spec/externalIPs").iter().enumerate() {
        if address.as_str().is_none_or(|address| address.parse::<IpAddr>().is_err()) {
            errors.push(FieldError::invalid(
                format!("spec.externalIPs[{index}]"),
                address.clone(),
                NOT_AN_ADDRESS,
            ));
        }
    }
    for (index, range) in items(service, "/spec/loadBalancerSourceRanges").iter().enumerate() {
        let path = format!("spec.loadBalancerSourceRanges[{index}]");
        if kind != "LoadBalancer" {
            errors.push(FieldError::forbidden(path, "may only be used when `type` is 'LoadBalancer'"));
        } else if range.as_str().is_none_or(|range| range.trim().parse::<IpNetwork>().is_err()) {
            errors.push(FieldError::invalid(path, range.clone(), NOT_A_NETWORK));
        }
    }
    if kind == "ExternalName" {
        let name = text(service, "/spec/externalName");
        if name.is_empty() {
            errors.push(FieldError::required("spec.externalName", ""));
        }
        let problems = names::dns_subdomain(name.trim_end_matches('.'));
        errors.extend(problems.iter().map(|problem| FieldError::invalid("spec.externalName", name, problem)));
    }
    errors
}

fn health_check_port(service: &Value, errors: &mut Vec<FieldError>) {
    let path = "spec.healthCheckNodePort";
    let port = &service["spec"]["healthCheckNodePort"];
    if port.as_i64().unwrap_or(0) == 0 {
        return;
    }
    port_number(port, path, errors);
    if !needs_health_check_port(service) {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(FieldError::invalid(path, port.clone(), detail));
    }
}

fn affinity(service: &Value, errors: &mut Vec<FieldError>) {
    match text(service, "/spec/sessionAffinity") {
        "None" => {}
        "ClientIP" => {
            let seconds = &service["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"];
            if !seconds.as_i64().is_some_and(|seconds| (1..=MAX_AFFINITY_SECONDS).contains(&seconds)) {
                let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
                let detail = format!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}");
                errors.push(FieldError::invalid(path, seconds.clone(), &detail));
            }
        }
        other => errors.push(FieldError::not_supported("spec.sessionAffinity", other, &["ClientIP", "None"])),
    }
}

fn cluster_address(service: &Value, kind: &str, errors: &mut Vec<FieldError>) {
    let address = text(service, "/spec/clusterIP");
    if kind == "ExternalName" {
        let detail = "may not be set for ExternalName services";
        if !address.is_empty() || !items(service, "/spec/clusterIPs").is_empty() {
            errors.push(FieldError::forbidden("spec.clusterIPs[0]", detail));
        }
        if !items(service, "/spec/ipFamilies").is_empty() {
            errors.push(FieldError::forbidden("spec.ipFamilies", detail));
        }
        if !text(service, "/spec/ipFamilyPolicy").is_empty() {
            errors.push(FieldError::forbidden("spec.ipFamilyPolicy", detail));
        }
        return;
    }
    families(service, errors);
    if address == "None" && kind != "ClusterIP" {
        let detail = format!("may not be set to 'None' for {kind} services");
        errors.push(FieldError::invalid("spec.clusterIPs[0]", address, &detail));
    }
    let list = items(service, "/spec/clusterIPs");
    let texts: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
    let invalid = |detail: &str| FieldError::invalid("spec.clusterIPs", list.to_vec(), detail);
    match (address, texts.first()) {
        ("", Some(_)) => errors.push(invalid("must be empty when `clusterIP` is not specified")),
        (address, Some(first)) if address != *first => {
            errors.push(invalid("first value must match `clusterIP`"));
        }
        _ => {}
    }
    if texts.len() > 2 {
        errors.push(invalid("may only hold up to 2 values"));
    }
    if texts.first() == Some(&"None") {
        if texts.len() > 1 {
            errors.push(invalid("'None' must be the first and only value"));
        }
        return;
    }
    let parsed: Vec<Option<IpAddr>> = texts.iter().map(|text| text.parse().ok()).collect();
    for (index, _) in parsed.iter().enumerate().filter(|(_, parsed)| parsed.is_none()) {
        errors.push(FieldError::invalid(format!("spec.clusterIPs[{index}]"), texts[index], NOT_AN_ADDRESS));
    }
    let Some(parsed) = parsed.into_iter().collect::<Option<Vec<IpAddr>>>() else { return };
    if parsed.len() > 1 && parsed.iter().all(|address| address.is_ipv4() == parsed[0].is_ipv4()) {
        errors.push(invalid("may specify no more than one IP for each IP family"));
    }
    for (index, (address, family)) in parsed.iter().zip(items(service, "/spec/ipFamilies")).enumerate() {
        let own = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        if let Some(family) = family.as_str().filter(|family| FAMILIES.contains(family) && *family != own) {
            let path = format!("spec.clusterIPs[{index}]");
            let detail = format!("expected an {family} value as indicated by `ipFamilies[{index}]`");
            errors.push(FieldError::invalid(path, texts[index], &detail));
        }
    }
}

fn families(service: &Value, errors: &mut Vec<FieldError>) {
    let mut seen = BTreeSet::new();
    for (index, family) in items(service, "/spec/ipFamilies").iter().enumerate() {
        let (path, family) = (format!("spec.ipFamilies[{index}]"), family.as_str().unwrap_or_default());
        if !FAMILIES.contains(&family) {
            errors.push(FieldError::not_supported(path, family, FAMILIES));
        } else if !seen.insert(family) {
            errors.push(FieldError::duplicate(path, family));
        }
    }
    let policy = text(service, "/spec/ipFamilyPolicy");
    if !policy.is_empty() && !FAMILY_POLICIES.contains(&policy) {
        errors.push(FieldError::not_supported("spec.ipFamilyPolicy", policy, FAMILY_POLICIES));
    }
}

fn ports(list: &[Value], errors: &mut Vec<FieldError>) {
    let (mut seen_names, mut seen, mut node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (index, port) in list.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        let name = text(port, "/name");
        if name.is_empty() {
            if list.len() > 1 {
                errors.push(FieldError::required(format!("{path}.name"), ""));
            }
        } else {
            let problems = names::dns_label(name);
            errors.extend(
                problems.iter().map(|problem| FieldError::invalid(format!("{path}.name"), name, problem)),
            );
            if !seen_names.insert(name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
        }
        port_number(&port["port"], &format!("{path}.port"), errors);
        protocol(port, &path, errors);
        port_number_or_name(&port["targetPort"], &format!("{path}.targetPort"), errors);
        if !seen.insert((text(port, "/protocol"), port["port"].as_i64())) {
            errors.push(FieldError::duplicate(path.clone(), port.clone()));
        }
        if let Some(number) = port["nodePort"].as_i64().filter(|number| *number != 0) {
            port_number(&port["nodePort"], &format!("{path}.nodePort"), errors);
            if !node_ports.insert((text(port, "/protocol"), number)) {
                errors.push(FieldError::duplicate(format!("{path}.nodePort"), number));
            }
        }
    }
}

pub(in crate::kinds) fn service_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if text(new, "/spec/type") == "ExternalName" || text(old, "/spec/type") == "ExternalName" {
        return errors;
    }
    let [new_port, old_port] = [new, old].map(|service| &service["spec"]["healthCheckNodePort"]);
    if needs_health_check_port(new) && needs_health_check_port(old) && new_port != old_port {
        errors.push(FieldError::invalid("spec.healthCheckNodePort", new_port.clone(), IMMUTABLE));
    }
    let headless = [new, old].map(|service| text(service, "/spec/clusterIP") == "None");
    if headless != [true, true] {
        keeps(new, old, ["clusterIPs", "clusterIP"], &mut errors);
    }
    if headless == [false, false] {
        keeps(new, old, ["ipFamilies", "ipFamily"], &mut errors);
    }
    errors
}

/// Of the families' values the first is kept for ever, and the second goes only by the policy. `field` is named with its singular.
fn keeps(new: &Value, old: &Value, [field, singular]: [&str; 2], errors: &mut Vec<FieldError>) {
    let [list, before] = [new, old].map(|service| items(service, &format!("/spec/{field}")));
    let invalid = |index: usize, detail: &str| {
        FieldError::invalid(format!("spec.{field}[{index}]"), list.to_vec(), detail)
    };
    // Families that are not named follow from the addresses.
    if list.is_empty() && field == "clusterIPs" && !before.is_empty() {
        errors.push(invalid(0, "primary clusterIP can not be unset"));
    }
    let changed = list.iter().zip(before).enumerate().filter(|(_, (new, old))| new != old);
    errors.extend(changed.map(|(index, _)| invalid(index, "may not change once set")));
    let policy = text(new, "/spec/ipFamilyPolicy");
    if list.len() == 1 && before.len() == 2 && policy != "SingleStack" {
        let detail = format!("must be set to 'SingleStack' when releasing the secondary {singular}");
        errors.push(FieldError::invalid("spec.ipFamilyPolicy", policy, &detail));
    }
}

pub(in crate::kinds) fn endpoints(endpoints: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, subset) in items(endpoints, "/subsets").iter().enumerate() {
        let path = format!("subsets[{index}]");
        for list in ["addresses", "notReadyAddresses"] {
            for (index, address) in items(subset, &format!("/{list}")).iter().enumerate() {
                let ip = text(address, "/ip");
                if ip.parse::<IpAddr>().is_err() {
                    let path = format!("{path}.{list}[{index}].ip");
                    errors.push(FieldError::invalid(path, ip, NOT_AN_ADDRESS));
                }
            }
        }
        if items(subset, "/addresses").is_empty() && items(subset, "/notReadyAddresses").is_empty() {
            errors
                .push(FieldError::required(path.clone(), "must specify `addresses` or `notReadyAddresses`"));
        }
        for (index, port) in items(subset, "/ports").iter().enumerate() {
            let path = format!("{path}.ports[{index}]");
            port_number(&port["port"], &format!("{path}.port"), &mut errors);
            protocol(port, &path, &mut errors);
        }
    }
    errors
}

pub(in crate::kinds) fn endpoint_slice(slice: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let kind = text(slice, "/addressType");
    match kind {
        "" => errors.push(FieldError::required("addressType", "")),
        "IPv4" | "IPv6" | "FQDN" => {}
        other => errors.push(FieldError::not_supported("addressType", other, &["FQDN", "IPv4", "IPv6"])),
    }
    let list = items(slice, "/endpoints");
    if list.len() > MAX_SLICE_ENDPOINTS {
        errors.push(FieldError::too_long("endpoints", MAX_SLICE_ENDPOINTS));
    }
    for (index, endpoint) in list.iter().enumerate() {
        let path = format!("endpoints[{index}].addresses");
        let addresses = items(endpoint, "/addresses");
        if addresses.is_empty() {
            errors.push(FieldError::required(path.clone(), "must contain at least 1 address"));
        }
        for (index, address) in addresses.iter().filter_map(Value::as_str).enumerate() {
            let good = match kind {
                "IPv4" => address.parse::<std::net::Ipv4Addr>().is_ok(),
                "IPv6" => address.parse::<std::net::Ipv6Addr>().is_ok(),
                _ => names::dns_subdomain(address).is_empty(),
            };
            if !good {
                errors.push(FieldError::invalid(format!("{path}[{index}]"), address, NOT_AN_ADDRESS));
            }
        }
    }
    for (index, port) in items(slice, "/ports").iter().enumerate() {
        protocol(port, &format!("ports[{index}]"), &mut errors);
    }
    errors
}

pub(in crate::kinds) fn endpoint_slice_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    super::unchanged(new, old, "/addressType", &mut errors);
    errors
}
