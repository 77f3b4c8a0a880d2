//! ConfigMaps and Secrets.

use base64::Engine;
use serde_json::Value;

use super::IMMUTABLE;
use crate::error::FieldError;
use crate::names;
use crate::object::{entries, text};

/// Bytes of all values of one ConfigMap or Secret.
const MAX_DATA: usize = 1 << 20;

fn keys(object: &Value, field: &str, errors: &mut Vec<FieldError>) -> usize {
    let mut size = 0;
    for (key, value) in entries(object, &format!("/{field}")) {
        let path = format!("{field}[{key}]");
        errors.extend(
            names::config_key(key).iter().map(|problem| FieldError::invalid(path.clone(), key, problem)),
        );
        size += value.len();
    }
    size
}

pub(in crate::kinds) fn config_map(map: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let size = keys(map, "data", &mut errors) + keys(map, "binaryData", &mut errors);
    for (key, _) in entries(map, "/binaryData").filter(|(key, _)| map["data"].get(key).is_some()) {
        errors.push(FieldError::invalid(
            format!("binaryData[{key}]"),
            key,
            "duplicate of key present in data",
        ));
    }
    if size > MAX_DATA {
        errors.push(FieldError::too_long("", MAX_DATA));
    }
    errors
}

pub(in crate::kinds) fn secret(secret: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if keys(secret, "data", &mut errors) / 4 * 3 > MAX_DATA {
        errors.push(FieldError::too_long("data", MAX_DATA));
    }
    let required: &[&str] = match text(secret, "/type") {
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    };
    for key in required {
        let path = format!("data[{key}]");
        match secret["data"].get(*key).and_then(Value::as_str) {
            None => errors.push(FieldError::required(path, "")),
            Some(value) if key.starts_with(".docker") && !is_json(value) => {
                errors.push(FieldError::invalid(path, "<secret contents redacted>", "must be valid json"));
            }
            Some(_) => {}
        }
    }
    errors
}

fn is_json(base64: &str) -> bool {
    let bytes = base64::engine::general_purpose::STANDARD.decode(base64).unwrap_or_default();
    serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok()
}

pub(in crate::kinds) fn immutable(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if old["immutable"] != true {
        return errors;
    }
    if new["immutable"] != true {
        errors.push(FieldError::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    for field in ["data", "binaryData"] {
        if new.get(field) != old.get(field) {
            errors.push(FieldError::forbidden(field, "field is immutable when `immutable` is set"));
        }
    }
    errors
}

pub(in crate::kinds) fn secret_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = immutable(new, old);
    if new["type"] != old["type"] {
        errors.push(FieldError::invalid("type", new["type"].clone(), IMMUTABLE));
    }
    errors
}
