use super::*;

fn pod(status: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u", "resourceVersion": "7"}, "status": status,
    }))
    .unwrap()
}

fn status(value: Value) -> PodStatus {
    serde_json::from_value(value).unwrap()
}

#[test]
fn only_a_change_is_written_and_one_at_a_time() {
    let pod = pod(json!({"phase": "Pending"}));
    let mut writer = StatusWriter::new(&pod);
    assert!(writer.begin(&pod, &status(json!({"phase": "Pending"}))).is_none());
    let running = status(json!({"phase": "Running"}));
    let write = writer.begin(&pod, &running).unwrap();
    assert!(writer.begin(&pod, &status(json!({"phase": "Failed"}))).is_none());
    writer.finish(WriteEnd::Written(write.status));
    assert!(writer.has(&running));
}

#[test]
fn a_failed_write_is_repeated_with_a_longer_delay() {
    let pod = pod(json!({}));
    let mut writer = StatusWriter::new(&pod);
    let running = status(json!({"phase": "Running"}));
    let mut delays = Vec::new();
    for _ in 0..8 {
        delays.push(writer.begin(&pod, &running).unwrap().delay.as_millis());
        writer.finish(WriteEnd::Failed);
    }
    assert_eq!(delays, [200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);
    assert!(!writer.has(&running));
}

#[test]
fn a_patch_removes_what_is_ours_and_names_the_pod() {
    let pod = pod(json!({}));
    let before = json!({"phase": "Pending", "reason": "X", "resize": "Y"});
    let patch = patch(&pod, &before, &json!({"phase": "Running"}));
    assert_eq!(patch, json!({"metadata": {"uid": "u"}, "status": {"phase": "Running", "reason": null}}));
}
