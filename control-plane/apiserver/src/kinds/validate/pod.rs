//! Pods and pod templates.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{port_number, protocol, volumes};
use crate::error::FieldError;
use crate::names;
use crate::object::{entries, items, text};
use crate::quantity::Quantity;

pub(in crate::kinds) fn pod(pod: &Value) -> Vec<FieldError> {
    let mut errors = spec(&pod["spec"], "spec");
    // They are added by a subresource, which is not served: no pod has any, and nothing else here checks them.
    if !items(pod, "/spec/ephemeralContainers").is_empty() {
        errors.push(FieldError::forbidden("spec.ephemeralContainers", "cannot be set on create"));
    }
    errors
}

/// The spec of a pod or of a template, at `path`.
pub(super) fn spec(spec: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let volumes = volumes::volumes(spec, path, &mut errors);
    let mut seen = BTreeSet::new();
    if items(spec, "/containers").is_empty() {
        errors.push(FieldError::required(format!("{path}.containers"), ""));
    }
    for list in ["initContainers", "containers"] {
        for (index, container) in items(spec, &format!("/{list}")).iter().enumerate() {
            let path = format!("{path}.{list}[{index}]");
            self::container(container, &path, &volumes, &mut errors);
            let name = text(container, "/name");
            if !name.is_empty() && !seen.insert(name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
        }
    }
    host_ports(spec, path, &mut errors);
    choice(spec, path, "restartPolicy", &["Always", "OnFailure", "Never"], &mut errors);
    choice(
        spec,
        path,
        "dnsPolicy",
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
        &mut errors,
    );
    if text(spec, "/dnsPolicy") == "None" && items(spec, "/dnsConfig/nameservers").is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.push(FieldError::required(format!("{path}.dnsConfig.nameservers"), detail));
    }
    if let Some(grace) = spec["terminationGracePeriodSeconds"].as_i64().filter(|grace| *grace < 0) {
        let path = format!("{path}.terminationGracePeriodSeconds");
        errors.push(FieldError::invalid(path, grace, "must be greater than or equal to 0"));
    }
    super::labels(spec, "/nodeSelector", &format!("{path}.nodeSelector"), &mut errors);
    for (index, toleration) in items(spec, "/tolerations").iter().enumerate() {
        tolerate(toleration, &format!("{path}.tolerations[{index}]"), &mut errors);
    }
    errors
}

fn choice(object: &Value, path: &str, field: &str, supported: &[&str], errors: &mut Vec<FieldError>) {
    let value = text(object, &format!("/{field}"));
    let path = format!("{path}.{field}");
    if value.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else if !supported.contains(&value) {
        errors.push(FieldError::not_supported(path, value, supported));
    }
}

fn tolerate(toleration: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let (key, operator, effect) =
        (text(toleration, "/key"), text(toleration, "/operator"), text(toleration, "/effect"));
    if key.is_empty() && operator != "Exists" {
        let detail =
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        errors.push(FieldError::invalid(format!("{path}.operator"), operator, detail));
    }
    if !matches!(operator, "" | "Equal" | "Exists" | "Lt" | "Gt") {
        errors.push(FieldError::not_supported(format!("{path}.operator"), operator, &["Equal", "Exists"]));
    }
    if !matches!(effect, "" | "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
        let known = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        errors.push(FieldError::not_supported(format!("{path}.effect"), effect, &known));
    }
    if toleration.get("tolerationSeconds").is_some() && effect != "NoExecute" {
        let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        errors.push(FieldError::invalid(format!("{path}.effect"), effect, detail));
    }
}

fn container(container: &Value, path: &str, volumes: &BTreeSet<&str>, errors: &mut Vec<FieldError>) {
    let name = text(container, "/name");
    if name.is_empty() {
        errors.push(FieldError::required(format!("{path}.name"), ""));
    } else {
        let problems = names::dns_label(name);
        errors.extend(
            problems.iter().map(|problem| FieldError::invalid(format!("{path}.name"), name, problem)),
        );
    }
    let image = text(container, "/image");
    if image.is_empty() {
        errors.push(FieldError::required(format!("{path}.image"), ""));
    } else if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(format!("{path}.image"), image, detail));
    }
    choice(container, path, "imagePullPolicy", &["Always", "IfNotPresent", "Never"], errors);
    ports(container, path, errors);
    environment(container, path, errors);
    volumes::mounts(container, path, volumes, errors);
    resources(container, path, errors);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(value) = container.get(probe) {
            self::probe(value, &format!("{path}.{probe}"), probe != "readinessProbe", errors);
        }
    }
}

fn ports(container: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut seen = BTreeSet::new();
    for (index, port) in items(container, "/ports").iter().enumerate() {
        let path = format!("{path}.ports[{index}]");
        let name = text(port, "/name");
        if !name.is_empty() {
            let problems = names::port_name(name);
            errors.extend(
                problems.iter().map(|problem| FieldError::invalid(format!("{path}.name"), name, problem)),
            );
            if !seen.insert(name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
        }
        if port["containerPort"].as_i64().unwrap_or(0) == 0 {
            errors.push(FieldError::required(format!("{path}.containerPort"), ""));
        } else {
            port_number(&port["containerPort"], &format!("{path}.containerPort"), errors);
        }
        if port["hostPort"].as_i64().is_some_and(|number| number != 0) {
            port_number(&port["hostPort"], &format!("{path}.hostPort"), errors);
        }
        protocol(port, &path, errors);
    }
}

fn host_ports(spec: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let host_network = spec["hostNetwork"] == true;
    let mut seen = BTreeSet::new();
    for (at, container) in items(spec, "/containers").iter().enumerate() {
        for (index, port) in items(container, "/ports").iter().enumerate() {
            let number = port["hostPort"].as_i64().unwrap_or(0);
            let path = format!("{path}.containers[{at}].ports[{index}]");
            if host_network && number != port["containerPort"].as_i64().unwrap_or(0) {
                let detail = "must match `hostPort` when `hostNetwork` is true";
                errors.push(FieldError::invalid(
                    format!("{path}.containerPort"),
                    port["containerPort"].clone(),
                    detail,
                ));
            }
            if number != 0 && !seen.insert((text(port, "/protocol"), text(port, "/hostIP"), number)) {
                let value = format!("{}/{}/{number}", text(port, "/protocol"), text(port, "/hostIP"));
                errors.push(FieldError::duplicate(format!("{path}.hostPort"), value));
            }
        }
    }
}

fn environment(container: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (index, variable) in items(container, "/env").iter().enumerate() {
        let path = format!("{path}.env[{index}]");
        let name = text(variable, "/name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if name.contains('=') || !name.bytes().all(|c| (0x20..0x7f).contains(&c)) {
            let detail = "a valid environment variable name must consist only of printable ASCII characters other \
                          than '='";
            errors.push(FieldError::invalid(format!("{path}.name"), name, detail));
        }
        let Some(from) = variable.get("valueFrom").and_then(Value::as_object) else { continue };
        if !text(variable, "/value").is_empty() {
            let detail = "may not be specified when `value` is not empty";
            errors.push(FieldError::invalid(format!("{path}.valueFrom"), "", detail));
        }
        if from.len() != 1 {
            let detail =
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
            errors.push(FieldError::invalid(format!("{path}.valueFrom"), "", detail));
        }
    }
}

fn resources(container: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for list in ["limits", "requests"] {
        for (name, value) in entries(container, &format!("/resources/{list}")) {
            let path = format!("{path}.resources.{list}[{name}]");
            let Some(quantity) = Quantity::parse(value) else { continue };
            if quantity.is_negative() {
                let detail = "must be greater than or equal to 0";
                errors.push(FieldError::invalid(path.clone(), value, detail));
            }
            if !name.contains('/') && !is_standard_resource(name) {
                let detail = "must be a standard resource type or fully qualified";
                errors.push(FieldError::invalid(path.clone(), name, detail));
            }
            if name != "cpu" && list == "limits" && name.contains('/') && quantity.is_fractional() {
                errors.push(FieldError::invalid(path, value, "must be an integer"));
            }
        }
    }
    for (name, request) in entries(container, "/resources/requests") {
        let limit = container["resources"]["limits"].get(name).and_then(Value::as_str);
        let (Some(limit), Some(wanted)) = (limit, Quantity::parse(request)) else { continue };
        let Some(most) = Quantity::parse(limit) else { continue };
        if wanted.nano() > most.nano() {
            let detail = format!("must be less than or equal to {name} limit of {limit}");
            errors.push(FieldError::invalid(format!("{path}.resources.requests"), request, &detail));
        }
    }
}

fn is_standard_resource(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage" | "storage") || name.starts_with("hugepages-")
}

fn probe(probe: &Value, path: &str, single_success: bool, errors: &mut Vec<FieldError>) {
    let handlers =
        ["exec", "httpGet", "tcpSocket", "grpc"].iter().filter(|name| probe.get(**name).is_some()).count();
    if handlers == 0 {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
    if handlers > 1 {
        errors.push(FieldError::forbidden(path, "may not specify more than 1 handler type"));
    }
    let fields =
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"];
    for field in fields {
        if let Some(value) = probe.get(field).filter(|value| value.as_i64().is_some_and(|number| number < 0))
        {
            let detail = "must be greater than or equal to 0";
            errors.push(FieldError::invalid(format!("{path}.{field}"), value.clone(), detail));
        }
    }
    if single_success && probe["successThreshold"].as_i64().is_some_and(|number| number != 1) {
        let value = probe["successThreshold"].clone();
        errors.push(FieldError::invalid(format!("{path}.successThreshold"), value, "must be 1"));
    }
}

/// An ordinary update of a pod may change images, the deadline, and add tolerations; nothing else of the spec.
pub(in crate::kinds) fn pod_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut allowed = new["spec"].clone();
    for list in ["containers", "initContainers"] {
        let old_list = items(old, &format!("/spec/{list}"));
        let Some(new_list) = allowed.get_mut(list).and_then(Value::as_array_mut) else { continue };
        if new_list.len() != old_list.len() {
            let detail = "pod updates may not add or remove containers";
            return vec![FieldError::forbidden(format!("spec.{list}"), detail)];
        }
        for (container, old) in new_list.iter_mut().zip(old_list) {
            container["image"] = old["image"].clone();
        }
    }
    let old_spec = &old["spec"];
    for field in ["activeDeadlineSeconds", "tolerations"] {
        restore(&mut allowed, old_spec, field);
    }
    if allowed["terminationGracePeriodSeconds"] == 1
        && old_spec["terminationGracePeriodSeconds"].as_i64() < Some(0)
    {
        restore(&mut allowed, old_spec, "terminationGracePeriodSeconds");
    }
    let mut errors = Vec::new();
    if allowed != *old_spec {
        let detail = "pod updates may not change fields other than `spec.containers[*].image`,\
                      `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to \
                      existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was \
                      previously negative)";
        errors.push(FieldError::forbidden("spec", detail));
    }
    let kept = items(new, "/spec/tolerations");
    if items(old, "/spec/tolerations").iter().any(|toleration| !kept.contains(toleration)) {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden("spec.tolerations", detail));
    }
    errors
}

fn restore(spec: &mut Value, old: &Value, field: &str) {
    let Some(map) = spec.as_object_mut() else { return };
    match old.get(field) {
        Some(value) => map.insert(field.into(), value.clone()),
        None => map.remove(field),
    };
}
