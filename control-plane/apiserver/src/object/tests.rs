//! Stored bytes round-trip and carry the revision of the write.

use super::*;
use serde_json::json;

#[test]
fn bytes_carry_the_revision() {
    let object = json!({"kind": "Pod", "apiVersion": "v1", "spec": {"nodeName": "é\"\n"},
        "metadata": {"name": "a", "resourceVersion": "1", "creationTimestamp": null}});
    let tail = encode(&object);
    let read = decode(42, &tail);
    assert_eq!(read["metadata"], json!({"name": "a", "resourceVersion": "42"}));
    assert_eq!(read["spec"], object["spec"]);
    assert_eq!(encode(&read), tail);
}

#[test]
fn an_object_without_metadata_is_still_json() {
    assert_eq!(decode(7, &encode(&json!({}))), json!({"metadata": {"resourceVersion": "7"}}));
}

#[test]
fn an_audit_finds_what_is_not_the_object_of_its_key() {
    let object = json!({"metadata": {"name": "a", "namespace": "x"}});
    let tail = encode(&object);
    assert_eq!(audit(&Key::new("pods", "x", "a"), &tail), None);
    assert_eq!(audit(&Key::new("nodes", "", "n"), &encode(&json!({"metadata": {"name": "n"}}))), None);
    assert_eq!(audit(&Key::new("pods", "x", "b"), &tail).unwrap(), "holds the object \"x\"/\"a\" instead");
    assert!(
        audit(&Key::new("pods", "x", "a"), &tail[..tail.len() - 1]).unwrap().starts_with("not an object: ")
    );
}
