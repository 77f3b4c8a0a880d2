//! Deployments and ReplicaSets.

use serde_json::Value;

use super::{AGE, Column, NAME, age, column, or_none, wide};
use crate::object::{entries, items, name, text};

pub(in crate::kinds) const DEPLOYMENT: &[Column] = &[
    NAME,
    column("Ready", "string"),
    column("Up-to-date", "string"),
    column("Available", "string"),
    AGE,
    wide("Containers", "string"),
    wide("Images", "string"),
    wide("Selector", "string"),
];

pub(in crate::kinds) const REPLICA_SET: &[Column] = &[
    NAME,
    column("Desired", "integer"),
    column("Current", "integer"),
    column("Ready", "integer"),
    AGE,
    wide("Containers", "string"),
    wide("Images", "string"),
    wide("Selector", "string"),
];

fn number(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

fn wide_cells(object: &Value) -> [Value; 3] {
    let joined = |field: &str| {
        let list = items(object, "/spec/template/spec/containers");
        list.iter().map(|container| text(container, field)).collect::<Vec<_>>().join(",").into()
    };
    [joined("/name"), joined("/image"), selector(&object["spec"]["selector"]).into()]
}

/// A label selector object in its text form.
fn selector(selector: &Value) -> String {
    let mut terms: Vec<String> =
        entries(selector, "/matchLabels").map(|(key, value)| format!("{key}={value}")).collect();
    for requirement in items(selector, "/matchExpressions") {
        let key = text(requirement, "/key");
        let values: Vec<&str> = items(requirement, "/values").iter().filter_map(Value::as_str).collect();
        terms.push(match text(requirement, "/operator") {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    or_none(terms.join(","))
}

pub(in crate::kinds) fn deployment(deployment: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let ready =
        format!("{}/{}", number(deployment, "/status/readyReplicas"), number(deployment, "/spec/replicas"));
    let mut cells = vec![
        name(deployment).into(),
        ready.into(),
        number(deployment, "/status/updatedReplicas").into(),
        number(deployment, "/status/availableReplicas").into(),
        age(deployment, now),
    ];
    cells.extend(wide_cells(deployment));
    cells
}

pub(in crate::kinds) fn replica_set(set: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let mut cells = vec![
        name(set).into(),
        number(set, "/spec/replicas").into(),
        number(set, "/status/replicas").into(),
        number(set, "/status/readyReplicas").into(),
        age(set, now),
    ];
    cells.extend(wide_cells(set));
    cells
}
