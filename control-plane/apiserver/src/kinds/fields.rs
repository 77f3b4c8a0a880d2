//! The fields that selectors may name, per kind, and their values.

use serde_json::Value;

use crate::object::text;

pub(super) const POD: &[&str] = &[
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.podIPs",
    "status.nominatedNodeName",
];

pub(super) const EVENT: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "reason",
    "reportingComponent",
    "reportingController",
    "source",
    "type",
];

type Values = Vec<(&'static str, String)>;

fn at(value: &Value, names: &'static [(&'static str, &'static str)]) -> Values {
    names.iter().map(|(name, pointer)| (*name, text(value, pointer).to_owned())).collect()
}

pub(super) fn none(_: &Value) -> Values {
    Vec::new()
}

pub(super) fn phase(value: &Value) -> Values {
    at(value, &[("status.phase", "/status/phase")])
}

pub(super) fn node(value: &Value) -> Values {
    let unschedulable = value.pointer("/spec/unschedulable").and_then(Value::as_bool).unwrap_or(false);
    vec![("spec.unschedulable", unschedulable.to_string())]
}

pub(super) fn pod(value: &Value) -> Values {
    let mut values = at(
        value,
        &[
            ("spec.nodeName", "/spec/nodeName"),
            ("spec.restartPolicy", "/spec/restartPolicy"),
            ("spec.schedulerName", "/spec/schedulerName"),
            ("spec.serviceAccountName", "/spec/serviceAccountName"),
            ("status.phase", "/status/phase"),
            ("status.podIP", "/status/podIP"),
            ("status.podIPs", "/status/podIP"),
            ("status.nominatedNodeName", "/status/nominatedNodeName"),
        ],
    );
    let host_network = value.pointer("/spec/hostNetwork").and_then(Value::as_bool).unwrap_or(false);
    values.push(("spec.hostNetwork", host_network.to_string()));
    values
}

pub(super) fn secret(value: &Value) -> Values {
    at(value, &[("type", "/type")])
}

pub(super) fn service(value: &Value) -> Values {
    at(value, &[("spec.clusterIP", "/spec/clusterIP"), ("spec.type", "/spec/type")])
}

pub(super) fn replica_set(value: &Value) -> Values {
    let replicas = value.pointer("/status/replicas").and_then(Value::as_i64).unwrap_or(0);
    vec![("status.replicas", replicas.to_string())]
}

pub(super) fn event(value: &Value) -> Values {
    let mut values = at(
        value,
        &[
            ("involvedObject.kind", "/involvedObject/kind"),
            ("involvedObject.namespace", "/involvedObject/namespace"),
            ("involvedObject.name", "/involvedObject/name"),
            ("involvedObject.uid", "/involvedObject/uid"),
            ("involvedObject.apiVersion", "/involvedObject/apiVersion"),
            ("involvedObject.resourceVersion", "/involvedObject/resourceVersion"),
            ("involvedObject.fieldPath", "/involvedObject/fieldPath"),
            ("regarding.kind", "/involvedObject/kind"),
            ("regarding.namespace", "/involvedObject/namespace"),
            ("regarding.name", "/involvedObject/name"),
            ("regarding.uid", "/involvedObject/uid"),
            ("reason", "/reason"),
            ("reportingComponent", "/reportingComponent"),
            ("reportingController", "/reportingComponent"),
            ("type", "/type"),
        ],
    );
    let component = text(value, "/source/component");
    let source = if component.is_empty() { text(value, "/reportingComponent") } else { component };
    values.push(("source", source.to_owned()));
    values
}
