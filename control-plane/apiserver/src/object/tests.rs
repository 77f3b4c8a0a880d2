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
