//! Kinds with few defaults.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::object::{self, child, set_default};

/// The label by which selectors find a namespace.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub(in crate::kinds) fn namespace(namespace: &mut Value) {
    let name = object::name(namespace).to_owned();
    if name.is_empty() {
        return;
    }
    let labels = object::metadata(namespace).entry("labels").or_insert_with(|| json!({}));
    if let Some(labels) = labels.as_object_mut() {
        labels.insert(NAME_LABEL.into(), name.into());
    }
}

/// What a node does not say it can allocate is its capacity.
pub(in crate::kinds) fn node(node: &mut Value) {
    let capacity = node.pointer("/status/capacity").cloned();
    if node.pointer("/status/allocatable").is_none()
        && let Some(capacity) = capacity
    {
        child(node, "status").insert("allocatable".into(), capacity);
    }
}

/// `stringData` becomes `data`.
pub(in crate::kinds) fn secret(secret: &mut Value) {
    let Some(map) = secret.as_object_mut() else { return };
    set_default(map, "type", "Opaque");
    let Some(Value::Object(plain)) = map.remove("stringData") else { return };
    let data = child(secret, "data");
    for (key, value) in plain {
        data.insert(key, STANDARD.encode(value.as_str().unwrap_or("")).into());
    }
}
