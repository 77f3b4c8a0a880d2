//! Deployments and ReplicaSets.

use serde_json::Value;

use super::{AGE, Column, NAME, age, column, or_none, wide};
use crate::object::{items, name, text};
use crate::selectors::text_of;

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
    [joined("/name"), joined("/image"), or_none(text_of(&object["spec"]["selector"])).into()]
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
