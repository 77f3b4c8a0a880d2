//! Validation: field errors as upstream words them. Pure: the object and, for updates, the old object.

mod cidr;
pub(super) mod config;
pub(super) mod network_policy;
pub(super) mod pod;
pub(super) mod rbac;
pub(super) mod service;
pub(super) mod simple;
mod volumes;
pub(super) mod workload;

use serde_json::Value;

use super::Kind;
use crate::error::FieldError;
use crate::names;
use crate::object::{self, items, text};

/// Bytes of all annotations of an object.
const MAX_ANNOTATIONS: usize = 256 << 10;
const IMMUTABLE: &str = "field is immutable";

pub(super) fn nothing(_: &Value) -> Vec<FieldError> {
    Vec::new()
}

pub(super) fn no_change(_: &Value, _: &Value) -> Vec<FieldError> {
    Vec::new()
}

/// The metadata that every kind has.
pub fn metadata(kind: &Kind, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = object::name(object);
    if name.is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else {
        let problems = (kind.name_rule)(name);
        errors.extend(problems.iter().map(|problem| FieldError::invalid("metadata.name", name, problem)));
    }
    labels(object, "/metadata/labels", "metadata.labels", &mut errors);
    annotations(object, &mut errors);
    for (index, owner) in items(object, "/metadata/ownerReferences").iter().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, &format!("/{field}")).is_empty() {
                let path = format!("metadata.ownerReferences[{index}].{field}");
                errors.push(FieldError::invalid(path, "", "must not be empty"));
            }
        }
    }
    for finalizer in object::finalizers(object) {
        for problem in names::qualified_name(finalizer) {
            errors.push(FieldError::invalid("metadata.finalizers", finalizer, &problem));
        }
    }
    errors
}

pub(super) fn labels(object: &Value, pointer: &str, path: &str, errors: &mut Vec<FieldError>) {
    for (key, value) in object::entries(object, pointer) {
        errors
            .extend(names::qualified_name(key).iter().map(|problem| FieldError::invalid(path, key, problem)));
        errors.extend(
            names::label_value(value).iter().map(|problem| FieldError::invalid(path, value, problem)),
        );
    }
}

fn annotations(object: &Value, errors: &mut Vec<FieldError>) {
    let mut size = 0;
    for (key, value) in object::entries(object, "/metadata/annotations") {
        let problems = names::qualified_name(&key.to_ascii_lowercase());
        errors
            .extend(problems.iter().map(|problem| FieldError::invalid("metadata.annotations", key, problem)));
        size += key.len() + value.len();
    }
    if size > MAX_ANNOTATIONS {
        errors.push(FieldError::too_long("metadata.annotations", MAX_ANNOTATIONS));
    }
}

/// What an update of metadata may not do. What only the server sets, it has kept before.
pub fn metadata_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if object::is_deleting(old) {
        let added: Vec<&str> = object::finalizers(new)
            .filter(|added| !object::finalizers(old).any(|known| known == *added))
            .collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
            );
            errors.push(FieldError::forbidden("metadata.finalizers", &detail));
        }
    }
    errors
}

/// A label selector object: operators and their values.
pub(super) fn label_selector(selector: &Value, path: &str, errors: &mut Vec<FieldError>) {
    labels(selector, "/matchLabels", &format!("{path}.matchLabels"), errors);
    for (index, requirement) in items(selector, "/matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        let count = items(requirement, "/values").len();
        match text(requirement, "/operator") {
            "In" | "NotIn" if count == 0 => {
                let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(format!("{path}.values"), detail));
            }
            "Exists" | "DoesNotExist" if count > 0 => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(format!("{path}.values"), detail));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                let detail = "not a valid selector operator";
                errors.push(FieldError::invalid(format!("{path}.operator"), other, detail));
            }
        }
        for problem in names::qualified_name(text(requirement, "/key")) {
            errors.push(FieldError::invalid(format!("{path}.key"), text(requirement, "/key"), &problem));
        }
        for (index, value) in items(requirement, "/values").iter().filter_map(Value::as_str).enumerate() {
            let problems = names::label_value(value);
            let path = format!("{path}.values[{index}]");
            errors.extend(problems.iter().map(|problem| FieldError::invalid(path.clone(), value, problem)));
        }
    }
}

/// Whether a label selector object matches labels.
pub(super) fn selects(selector: &Value, labels: &Value) -> bool {
    let label = |key: &str| labels.get(key).and_then(Value::as_str);
    let pairs = object::entries(selector, "/matchLabels").all(|(key, value)| label(key) == Some(value));
    let expressions = items(selector, "/matchExpressions").iter().all(|requirement| {
        let value = label(text(requirement, "/key"));
        let listed =
            value.is_some_and(|value| items(requirement, "/values").iter().any(|wanted| wanted == value));
        match text(requirement, "/operator") {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    });
    pairs && expressions
}

pub(super) fn port_number(value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let number = value.as_i64().unwrap_or(0);
    if !(1..=65535).contains(&number) {
        errors.push(FieldError::invalid(path, value.clone(), "must be between 1 and 65535, inclusive"));
    }
}

/// A port of a container, by number or by name.
pub(super) fn port_number_or_name(value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    match value {
        Value::String(name) => {
            let problems = names::port_name(name);
            errors.extend(problems.iter().map(|problem| FieldError::invalid(path, name.as_str(), problem)));
        }
        number => port_number(number, path, errors),
    }
}

pub(super) fn protocol(port: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let protocol = text(port, "/protocol");
    if !matches!(protocol, "TCP" | "UDP" | "SCTP") {
        errors.push(FieldError::not_supported(format!("{path}.protocol"), protocol, &["SCTP", "TCP", "UDP"]));
    }
}

pub(super) fn unchanged(new: &Value, old: &Value, pointer: &str, errors: &mut Vec<FieldError>) {
    let (new, old) = (new.pointer(pointer), old.pointer(pointer));
    if new != old {
        let path = pointer.trim_start_matches('/').replace('/', ".");
        errors.push(FieldError::invalid(path, new.cloned().unwrap_or_default(), IMMUTABLE));
    }
}
