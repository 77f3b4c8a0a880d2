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
    writer.finish(WriteEnd::Written { status: write.status, answer: None });
    assert!(writer.has(&running));
}

fn version(number: &str, status: Value) -> Pod {
    let mut pod = pod(status);
    pod.metadata.resource_version = Some(number.into());
    pod
}

/// A writer that has written `{"phase": "Running"}`; the API server answered with a field of its own besides, as version 8.
fn written() -> (StatusWriter, PodStatus) {
    let pod = pod(json!({"phase": "Pending"}));
    let mut writer = StatusWriter::new(&pod);
    let running = status(json!({"phase": "Running"}));
    let write = writer.begin(&pod, &running).unwrap();
    let answer = version("8", json!({"phase": "Running", "resize": "Proposed"}));
    writer.finish(WriteEnd::Written { status: write.status, answer: Some(Box::new(answer)) });
    (writer, running)
}

#[test]
fn what_somebody_else_wrote_over_it_is_written_again() {
    let (mut writer, running) = written();
    let theirs = version("9", json!({"phase": "Unknown", "resize": "Proposed"}));
    writer.seen(&theirs);
    assert!(!writer.has(&running));
    let write = writer.begin(&theirs, &running).unwrap();
    assert_eq!(write.patch["status"]["phase"], "Running");
}

#[test]
fn our_own_write_coming_back_by_the_watch_is_no_news() {
    let (mut writer, running) = written();
    writer.seen(&version("8", json!({"phase": "Running", "resize": "Proposed"})));
    writer.seen(&version("9", json!({"phase": "Running", "resize": "Infeasible"})));
    assert!(writer.has(&running));
}

#[test]
fn a_version_seen_during_a_write_counts_when_it_is_later_than_the_write() {
    for (seen, again) in [("10", false), ("11", false), ("12", true), ("x", true)] {
        let (mut writer, _) = written();
        let base = pod(json!({}));
        let failed = status(json!({"phase": "Failed"}));
        let write = writer.begin(&base, &failed).unwrap();
        writer.seen(&version(seen, json!({"phase": "Unknown"})));
        let answer = Some(Box::new(version("11", json!({"phase": "Failed"}))));
        writer.finish(WriteEnd::Written { status: write.status, answer });
        assert_eq!(writer.begin(&base, &failed).is_some(), again, "seen {seen}");
    }
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

#[test]
fn conditions_of_others_are_neither_written_nor_compared() {
    let pod = pod(json!({"conditions": [
        {"type": "example.com/gate", "status": "False"}, {"type": "Ready", "status": "False", "reason": "X"},
    ]}));
    let ours = |ready| {
        status(json!({"conditions": [
            {"type": "Ready", "status": ready, "reason": "X"}, {"type": "example.com/gate", "status": "True"},
        ]}))
    };
    let mut writer = StatusWriter::new(&pod);
    assert!(writer.has(&ours("False")));
    let write = writer.begin(&pod, &ours("True")).unwrap();
    assert_eq!(
        write.patch["status"]["conditions"],
        json!([{"type": "Ready", "status": "True", "reason": "X", "message": null, "lastProbeTime": null}])
    );
}

#[test]
fn addresses_replace_those_of_before() {
    let patch = patch(&pod(json!({})), &json!({}), &json!({"podIPs": [{"ip": "10.0.0.2"}]}));
    assert_eq!(patch["status"]["podIPs"], json!([{"ip": "10.0.0.2"}, {"$patch": "replace"}]));
}
