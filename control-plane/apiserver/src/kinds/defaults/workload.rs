//! Deployments and ReplicaSets.

use serde_json::{Value, json};

use super::pod::pod_spec;
use crate::object::{child, set_default};

fn template(spec: &mut serde_json::Map<String, Value>) {
    if let Some(template) = spec.get_mut("template") {
        pod_spec(child(template, "spec"));
    }
}

pub(in crate::kinds) fn deployment(deployment: &mut Value) {
    let spec = child(deployment, "spec");
    set_default(spec, "replicas", 1);
    set_default(spec, "revisionHistoryLimit", 10);
    set_default(spec, "progressDeadlineSeconds", 600);
    set_default(spec, "strategy", json!({}));
    if let Some(strategy) = spec.get_mut("strategy").and_then(Value::as_object_mut) {
        set_default(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate" {
            let rolling = strategy.entry("rollingUpdate").or_insert_with(|| json!({}));
            if let Some(rolling) = rolling.as_object_mut() {
                set_default(rolling, "maxUnavailable", "25%");
                set_default(rolling, "maxSurge", "25%");
            }
        }
    }
    template(spec);
}

pub(in crate::kinds) fn replica_set(set: &mut Value) {
    let spec = child(set, "spec");
    set_default(spec, "replicas", 1);
    template(spec);
}
