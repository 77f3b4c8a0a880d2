use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::*;
use crate::pods::observed::NodeFacts;
use crate::pods::resources::Amounts;

fn files(volume: Value) -> Result<Vec<(String, String, u32)>, PayloadError> {
    let pod: Pod = serde_json::from_value(
        json!({"metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {"containers": []}}),
    )
    .unwrap();
    let node = NodeFacts { name: "n1".into(), ips: Vec::new(), memory: 1 };
    let allocatable = Amounts::default();
    let source = Source { pod: &pod, pod_ips: &[], node: &node, allocatable: &allocatable };
    let map = json!({"metadata": {}, "data": {"k": "v"}, "binaryData": {"b": "AAE="}});
    let secret = json!({"metadata": {}, "data": {"s": "eHl6"}});
    let objects = Objects {
        config_maps: [("map".to_owned(), Some(Arc::new(serde_json::from_value(map).unwrap())))].into(),
        secrets: [("sec".to_owned(), Some(Arc::new(serde_json::from_value(secret).unwrap())))].into(),
    };
    let tokens = [("token".to_owned(), "jwt".to_owned())].into();
    let payload = build(&serde_json::from_value(volume).unwrap(), source, &objects, &tokens)?;
    let text = |file: File| (String::from_utf8_lossy(&file.data).into_owned(), file.mode);
    Ok(payload
        .into_iter()
        .map(|(path, file)| {
            let (data, mode) = text(file);
            (path.display().to_string(), data, mode)
        })
        .collect())
}

fn file(path: &str, data: &str, mode: u32) -> (String, String, u32) {
    (path.into(), data.into(), mode)
}

#[test]
fn whole_objects_and_items() {
    assert_eq!(
        files(json!({"name": "v", "configMap": {"name": "map", "defaultMode": 0o400}})).unwrap(),
        [file("b", "\0\u{1}", 0o400), file("k", "v", 0o400)]
    );
    assert_eq!(
        files(json!({"name": "v", "secret": {"secretName": "sec", "items": [{"key": "s", "path": "a/b", "mode": 0o600}]}}))
            .unwrap(),
        [file("a/b", "xyz", 0o600)]
    );
    assert_eq!(
        files(json!({"name": "v", "downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]}}))
            .unwrap(),
        [file("l", "a=\"b\"", 0o644)]
    );
}

#[test]
fn projections_come_together() {
    let volume = json!({"name": "v", "projected": {"sources": [
        {"configMap": {"name": "map", "items": [{"key": "k", "path": "k"}]}},
        {"secret": {"name": "gone", "optional": true}},
        {"serviceAccountToken": {"path": "token"}},
    ]}});
    assert_eq!(files(volume).unwrap(), [file("k", "v", 0o644), file("token", "jwt", 0o644)]);
}

#[test]
fn errors_in_the_words_of_the_kubelet() {
    let error = |volume| files(volume).unwrap_err().to_string();
    assert_eq!(error(json!({"name": "v", "configMap": {"name": "gone"}})), "configmap \"gone\" not found");
    assert_eq!(files(json!({"name": "v", "configMap": {"name": "gone", "optional": true}})).unwrap(), []);
    let item = |key: &str, path: &str| json!({"name": "v", "configMap": {"name": "map", "items": [{"key": key, "path": path}]}});
    assert_eq!(error(item("z", "z")), "references non-existent config key: z");
    for path in ["../x", "/x", "a/../../x", "..data", ""] {
        assert_eq!(error(item("k", path)), format!("invalid path: {path}"));
    }
}
