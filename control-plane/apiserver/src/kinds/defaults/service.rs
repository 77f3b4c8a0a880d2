//! Services, Endpoints and EndpointSlices. Addresses and node ports are allocated elsewhere.

use serde_json::{Value, json};

use super::pod::members;
use crate::object::{child, set_default};

/// Seconds of client-IP affinity.
const AFFINITY_TIMEOUT: i32 = 10800;

pub(in crate::kinds) fn service(service: &mut Value) {
    let spec = child(service, "spec");
    set_default(spec, "sessionAffinity", "None");
    set_default(spec, "type", "ClusterIP");
    if spec["sessionAffinity"] == "None" {
        spec.remove("sessionAffinityConfig");
    }
    if spec["sessionAffinity"] == "ClientIP" {
        let config = spec.entry("sessionAffinityConfig").or_insert_with(|| json!({}));
        set_default(child(config, "clientIP"), "timeoutSeconds", AFFINITY_TIMEOUT);
    }
    for port in members(spec, "ports") {
        set_default(port, "protocol", "TCP");
        let target = port.get("targetPort");
        if target.is_none_or(|target| target == 0 || target == "") {
            let number = port.get("port").cloned().unwrap_or_default();
            port.insert("targetPort".into(), number);
        }
    }
    let kind = spec["type"].as_str().unwrap_or("").to_owned();
    if kind == "ExternalName" {
        return;
    }
    set_default(spec, "internalTrafficPolicy", "Cluster");
    if kind == "NodePort" || kind == "LoadBalancer" {
        set_default(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        set_default(spec, "allocateLoadBalancerNodePorts", true);
    }
}

pub(in crate::kinds) fn endpoints(endpoints: &mut Value) {
    let Some(endpoints) = endpoints.as_object_mut() else { return };
    for subset in members(endpoints, "subsets") {
        for port in members(subset, "ports") {
            set_default(port, "protocol", "TCP");
        }
    }
}

pub(in crate::kinds) fn endpoint_slice(slice: &mut Value) {
    let Some(slice) = slice.as_object_mut() else { return };
    for port in members(slice, "ports") {
        set_default(port, "name", "");
        set_default(port, "protocol", "TCP");
    }
}
