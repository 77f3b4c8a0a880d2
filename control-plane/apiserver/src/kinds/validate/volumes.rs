//! Volumes of a pod or a template, the files in them, and where containers mount them.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::error::FieldError;
use crate::names;
use crate::object::{items, text};

/// Permission bits of a file.
const MODES: std::ops::RangeInclusive<i64> = 0..=0o777;

/// Checks volumes and gives their names.
pub(super) fn volumes<'a>(spec: &'a Value, path: &str, errors: &mut Vec<FieldError>) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    for (index, volume) in items(spec, "/volumes").iter().enumerate() {
        let path = format!("{path}.volumes[{index}]");
        let name = text(volume, "/name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else {
            let problems = names::dns_label(name);
            errors.extend(
                problems.iter().map(|problem| FieldError::invalid(format!("{path}.name"), name, problem)),
            );
            if !seen.insert(name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
        }
        source(volume, &path, errors);
    }
    seen
}

fn source(volume: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let sources: Vec<&String> = volume.as_object().into_iter().flatten().map(|(key, _)| key).collect();
    for extra in sources.iter().filter(|key| **key != "name").skip(1) {
        errors.push(FieldError::forbidden(
            format!("{path}.{extra}"),
            "may not specify more than 1 volume type",
        ));
    }
    for (source, field) in [("hostPath", "path"), ("secret", "secretName"), ("configMap", "name")] {
        if volume.get(source).is_some() && text(volume, &format!("/{source}/{field}")).is_empty() {
            errors.push(FieldError::required(format!("{path}.{source}.{field}"), ""));
        }
    }
    files(volume, path, errors);
    mode(&volume["projected"], "defaultMode", &format!("{path}.projected"), errors);
    for (index, source) in items(volume, "/projected/sources").iter().enumerate() {
        let path = format!("{path}.projected.sources[{index}]");
        files(source, &path, errors);
        if let Some(token) = source.get("serviceAccountToken") {
            file_path(token, &format!("{path}.serviceAccountToken"), errors);
        }
    }
}

/// The files that a volume or a projected source makes of keys or fields.
fn files(source: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for kind in ["secret", "configMap", "downwardAPI"] {
        let path = format!("{path}.{kind}");
        mode(&source[kind], "defaultMode", &path, errors);
        for (index, file) in items(&source[kind], "/items").iter().enumerate() {
            let path = format!("{path}.items[{index}]");
            if kind != "downwardAPI" && text(file, "/key").is_empty() {
                errors.push(FieldError::required(format!("{path}.key"), ""));
            }
            file_path(file, &path, errors);
            mode(file, "mode", &path, errors);
        }
    }
}

/// A path below a volume's root. What begins with two dots is the volume's own: it swaps such a directory to update.
fn file_path(file: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let value = text(file, "/path");
    let path = format!("{path}.path");
    if value.is_empty() {
        errors.push(FieldError::required(path.clone(), ""));
    }
    descending(value, &path, errors);
    if value.starts_with("..") && !value.starts_with("../") {
        errors.push(FieldError::invalid(path, value, "must not start with '..'"));
    }
}

/// A path that does not leave the directory it is taken from.
fn descending(value: &str, path: &str, errors: &mut Vec<FieldError>) {
    if value.starts_with('/') {
        errors.push(FieldError::invalid(path, value, "must be a relative path"));
    }
    if value.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, value, "must not contain '..'"));
    }
}

fn mode(object: &Value, field: &str, path: &str, errors: &mut Vec<FieldError>) {
    let mode = object.get(field).and_then(Value::as_i64);
    if let Some(mode) = mode.filter(|mode| !MODES.contains(mode)) {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(FieldError::invalid(format!("{path}.{field}"), mode, detail));
    }
}

/// Checks what a container mounts.
pub(super) fn mounts(container: &Value, path: &str, volumes: &BTreeSet<&str>, errors: &mut Vec<FieldError>) {
    let list = format!("{path}.volumeMounts");
    let mut seen = BTreeSet::new();
    for (index, mount) in items(container, "/volumeMounts").iter().enumerate() {
        let path = format!("{list}[{index}]");
        let (volume, at) = (text(mount, "/name"), text(mount, "/mountPath"));
        if volume.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if !volumes.contains(volume) {
            errors.push(FieldError::not_found(format!("{path}.name"), volume));
        }
        if at.is_empty() {
            errors.push(FieldError::required(format!("{path}.mountPath"), ""));
        }
        if !seen.insert(at) {
            errors.push(FieldError::invalid(format!("{path}.mountPath"), at, "must be unique"));
        }
        let (below, expression) = (text(mount, "/subPath"), text(mount, "/subPathExpr"));
        // Upstream names the list here, not the mount.
        descending(below, &format!("{list}.subPath"), errors);
        if !below.is_empty() && !expression.is_empty() {
            let detail = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(format!("{path}.subPathExpr"), expression, detail));
        }
        descending(expression, &format!("{list}.subPathExpr"), errors);
    }
}
