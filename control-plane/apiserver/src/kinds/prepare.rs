//! What a client may not set: status at creation, status and system fields at an ordinary update.

use serde_json::{Value, json};

use crate::object::{self, child, items, text};

pub(super) fn nothing(_: &mut Value) {}

pub(super) fn no_change(_: &mut Value, _: &Value) {}

pub(super) fn drop_status(object: &mut Value) {
    object["status"] = json!({});
}

/// An ordinary update leaves the status as it was.
pub(super) fn keep_status(object: &mut Value, old: &Value) {
    let Some(map) = object.as_object_mut() else { return };
    match old.get("status") {
        Some(status) => map.insert("status".into(), status.clone()),
        None => map.remove("status"),
    };
}

pub(super) fn namespace_create(namespace: &mut Value) {
    namespace["status"] = json!({"phase": "Active"});
    let finalizers = child(namespace, "spec").entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = finalizers.as_array_mut()
        && !list.iter().any(|finalizer| finalizer == "kubernetes")
    {
        list.push("kubernetes".into());
    }
}

/// Finalizers of the spec change by the `finalize` subresource only.
pub(super) fn namespace_update(namespace: &mut Value, old: &Value) {
    keep_status(namespace, old);
    let kept = old.pointer("/spec/finalizers").cloned();
    let spec = child(namespace, "spec");
    match kept {
        Some(finalizers) => spec.insert("finalizers".into(), finalizers),
        None => spec.remove("finalizers"),
    };
}

/// A new pod is Pending, with its quality of service class, and carries what upstream's admission adds.
pub(super) fn pod_create(pod: &mut Value) {
    let class = qos_class(pod);
    pod["status"] = json!({"phase": "Pending", "qosClass": class});
    let spec = child(pod, "spec");
    object::set_default(spec, "serviceAccountName", "default");
    let account = spec["serviceAccountName"].clone();
    spec.insert("serviceAccount".into(), account);
    object::set_default(spec, "priority", 0);
    object::set_default(spec, "preemptionPolicy", "PreemptLowerPriority");
}

/// Guaranteed: every container limits cpu and memory and requests the same. BestEffort: none asks for anything.
fn qos_class(pod: &Value) -> &'static str {
    let containers = items(pod, "/spec/containers").iter().chain(items(pod, "/spec/initContainers"));
    let (mut any, mut guaranteed) = (false, true);
    for container in containers {
        for resource in ["cpu", "memory"] {
            let limit = text(container, &format!("/resources/limits/{resource}"));
            let request = text(container, &format!("/resources/requests/{resource}"));
            any |= !is_zero(limit) || !is_zero(request);
            guaranteed &= !is_zero(limit) && (request.is_empty() || limit == request);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn is_zero(quantity: &str) -> bool {
    quantity.is_empty() || quantity == "0"
}

pub(super) fn service_create(service: &mut Value) {
    service["status"] = json!({"loadBalancer": {}});
    let address = text(service, "/spec/clusterIP").to_owned();
    if !address.is_empty() && items(service, "/spec/clusterIPs").is_empty() {
        service["spec"]["clusterIPs"] = json!([address]);
    }
}

/// An update that leaves the allocated values out keeps them.
pub(super) fn service_update(service: &mut Value, old: &Value) {
    keep_status(service, old);
    let (new_type, old_type) = (text(service, "/spec/type").to_owned(), text(old, "/spec/type"));
    follow_cluster_ip(service, old);
    if new_type == "ExternalName" {
        leave_addresses(service, old);
        return;
    }
    if old_type == "ExternalName" {
        return;
    }
    keep_health_check_port(service, old);
    let old_spec = old["spec"].clone();
    let spec = child(service, "spec");
    for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let missing = match &spec.get(key) {
            None | Some(Value::Null) => true,
            Some(Value::String(text)) => text.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            Some(_) => false,
        };
        if missing && let Some(value) = old_spec.get(key) {
            spec.insert(key.into(), value.clone());
        }
    }
    if new_type == "ClusterIP" {
        return;
    }
    keep_node_ports(spec, &old_spec);
}

/// A Service that becomes a name has no addresses any more; those that the update names anew are refused later.
fn leave_addresses(service: &mut Value, old: &Value) {
    let spec = child(service, "spec");
    let old = &old["spec"];
    for keys in [&["clusterIP", "clusterIPs"][..], &["ipFamilies"], &["ipFamilyPolicy"]] {
        let same =
            |key: &&str| spec.get(*key).is_none_or(|value| value.is_null() || old.get(*key) == Some(value));
        if keys.iter().all(same) {
            keys.iter().for_each(|key| drop(spec.remove(*key)));
        }
    }
}

/// Those who know of one address alone change that, and mean the list.
fn follow_cluster_ip(service: &mut Value, old: &Value) {
    let [now, before] = [&*service, old].map(|service| text(service, "/spec/clusterIP").to_owned());
    let same_list = items(service, "/spec/clusterIPs") == items(old, "/spec/clusterIPs");
    if now == before || !same_list {
        return;
    }
    let spec = child(service, "spec");
    if now.is_empty() {
        spec.remove("clusterIPs");
    } else {
        spec.insert("clusterIPs".into(), json!([now]));
    }
}

/// Whether load balancers ask nodes which of them have an endpoint of this Service.
pub fn needs_health_check_port(service: &Value) -> bool {
    text(service, "/spec/type") == "LoadBalancer" && text(service, "/spec/externalTrafficPolicy") == "Local"
}

/// The port stays as long as it is needed, and goes with the need unless the update names another one.
fn keep_health_check_port(service: &mut Value, old: &Value) {
    const KEY: &str = "healthCheckNodePort";
    let needed = [&*service, old].map(needs_health_check_port);
    let (new_port, old_port) = (service["spec"][KEY].clone(), old["spec"][KEY].clone());
    let spec = child(service, "spec");
    if needed == [true, true] && new_port.as_i64().unwrap_or(0) == 0 {
        spec.insert(KEY.into(), old_port);
    } else if needed == [false, true] && new_port == old_port {
        spec.remove(KEY);
    }
}

/// A port that names no node port keeps the one of the old port with its name, protocol and number.
fn keep_node_ports(spec: &mut serde_json::Map<String, Value>, old_spec: &Value) {
    let same = |a: &Value, b: &Value| {
        a["port"] == b["port"] && a["protocol"] == b["protocol"] && a["name"] == b["name"]
    };
    let old_ports = old_spec["ports"].as_array().cloned().unwrap_or_default();
    let used: Vec<Value> = items(&Value::Object(spec.clone()), "/ports")
        .iter()
        .filter_map(|port| port.get("nodePort").cloned())
        .collect();
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if port.get("nodePort").is_some_and(|value| value.as_i64() != Some(0)) {
            continue;
        }
        let kept = old_ports.iter().find(|old| same(old, port)).and_then(|old| old.get("nodePort"));
        if let Some(kept) = kept.filter(|kept| !used.contains(kept)) {
            port["nodePort"] = kept.clone();
        }
    }
}
