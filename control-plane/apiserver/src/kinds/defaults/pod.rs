//! Pods and pod templates.

use serde_json::{Map, Value, json};

use crate::object::{child, set_default};

pub(in crate::kinds) fn pod(pod: &mut Value) {
    let spec = child(pod, "spec");
    for list in ["containers", "initContainers"] {
        for container in members(spec, list) {
            requests_from_limits(container);
        }
    }
    set_default(spec, "enableServiceLinks", true);
    pod_spec(spec);
}

/// The defaults that a template shares with a pod.
pub(super) fn pod_spec(spec: &mut Map<String, Value>) {
    set_default(spec, "restartPolicy", "Always");
    set_default(spec, "dnsPolicy", "ClusterFirst");
    set_default(spec, "schedulerName", "default-scheduler");
    set_default(spec, "terminationGracePeriodSeconds", 30);
    set_default(spec, "securityContext", json!({}));
    service_account(spec);
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in members(spec, list) {
            self::container(container, host_network);
        }
    }
    for volume in members(spec, "volumes") {
        self::volume(volume);
    }
}

/// The old name and the new name of one field.
fn service_account(spec: &mut Map<String, Value>) {
    let name = ["serviceAccountName", "serviceAccount"].iter().find_map(|key| {
        spec.get(*key).filter(|value| value.as_str().is_some_and(|text| !text.is_empty())).cloned()
    });
    if let Some(name) = name {
        spec.insert("serviceAccountName".into(), name.clone());
        spec.insert("serviceAccount".into(), name);
    }
}

/// The objects in a list; anything else in it is skipped.
pub(super) fn members<'a>(
    map: &'a mut Map<String, Value>,
    key: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> + use<'a> {
    map.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

fn requests_from_limits(container: &mut Map<String, Value>) {
    let limits = container.get("resources").and_then(|resources| resources.get("limits")).cloned();
    let Some(Value::Object(limits)) = limits else { return };
    let Some(resources) = container.get_mut("resources") else { return };
    let requests = child(resources, "requests");
    for (name, limit) in limits {
        set_default(requests, &name, limit);
    }
}

fn container(container: &mut Map<String, Value>, host_network: bool) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or("");
    let policy = if is_latest(image) { "Always" } else { "IfNotPresent" };
    set_default(container, "imagePullPolicy", policy);
    set_default(container, "terminationMessagePath", "/dev/termination-log");
    set_default(container, "terminationMessagePolicy", "File");
    set_default(container, "resources", json!({}));
    for port in members(container, "ports") {
        set_default(port, "protocol", "TCP");
        if host_network && let Some(number) = port.get("containerPort").cloned() {
            set_default(port, "hostPort", number);
        }
    }
    for env in members(container, "env") {
        if let Some(field) = env.get_mut("valueFrom").and_then(|from| from.get_mut("fieldRef")) {
            api_version(field);
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe).and_then(Value::as_object_mut) {
            self::probe(probe);
        }
    }
    for hook in ["postStart", "preStop"] {
        let action = container.get_mut("lifecycle").and_then(|lifecycle| lifecycle.get_mut(hook));
        if let Some(get) = action.and_then(|hook| hook.get_mut("httpGet")).and_then(Value::as_object_mut) {
            http_get(get);
        }
    }
}

fn api_version(field: &mut Value) {
    if let Some(field) = field.as_object_mut() {
        set_default(field, "apiVersion", "v1");
    }
}

/// Whether an image reference means the moving tag: no tag and no digest, or `:latest`.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn probe(probe: &mut Map<String, Value>) {
    set_default(probe, "timeoutSeconds", 1);
    set_default(probe, "periodSeconds", 10);
    set_default(probe, "successThreshold", 1);
    set_default(probe, "failureThreshold", 3);
    if let Some(get) = probe.get_mut("httpGet").and_then(Value::as_object_mut) {
        http_get(get);
    }
    if let Some(grpc) = probe.get_mut("grpc").and_then(Value::as_object_mut) {
        set_default(grpc, "service", "");
    }
}

fn http_get(get: &mut Map<String, Value>) {
    set_default(get, "path", "/");
    set_default(get, "scheme", "HTTP");
}

const DEFAULT_MODE: i32 = 0o644;

fn volume(volume: &mut Map<String, Value>) {
    if volume.len() <= 1 {
        volume.insert("emptyDir".into(), json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(source).and_then(Value::as_object_mut) {
            set_default(source, "defaultMode", DEFAULT_MODE);
        }
    }
    if let Some(path) = volume.get_mut("hostPath").and_then(Value::as_object_mut) {
        set_default(path, "type", "");
    }
    if let Some(downward) = volume.get_mut("downwardAPI").and_then(Value::as_object_mut) {
        downward_items(downward);
    }
    let Some(projected) = volume.get_mut("projected").and_then(Value::as_object_mut) else { return };
    for source in members(projected, "sources") {
        if let Some(token) = source.get_mut("serviceAccountToken").and_then(Value::as_object_mut) {
            set_default(token, "expirationSeconds", 3600);
        }
        if let Some(downward) = source.get_mut("downwardAPI").and_then(Value::as_object_mut) {
            downward_items(downward);
        }
    }
}

fn downward_items(source: &mut Map<String, Value>) {
    for item in members(source, "items") {
        if let Some(field) = item.get_mut("fieldRef") {
            api_version(field);
        }
    }
}
