use super::*;
use serde_json::json;

fn spec(value: serde_json::Value) -> PodSpec {
    serde_json::from_value(value).unwrap()
}

fn pod(value: serde_json::Value) -> Pod {
    Pod { spec: Some(spec(value)), ..Pod::default() }
}

#[test]
fn quantities() {
    assert_eq!(milli(&Quantity("0.0001".into())), 1, "rounded up");
    assert_eq!(units(&Quantity("64Mi".into())), 64 << 20);
    assert_eq!(units(&Quantity("1.0001".into())), 2, "rounded up");
    assert_eq!(units(&Quantity("1Q".into())), 0);
}

#[test]
fn classes() {
    let guaranteed = json!({"containers": [{"name": "a", "resources": {
        "limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}}]});
    let only_limits =
        json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]});
    let burstable =
        json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}, {"name": "b"}]});
    let best_effort = json!({"containers": [{"name": "a"}]});
    let init_spoils = json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a", "resources": {
        "limits": {"cpu": "1", "memory": "1Gi"}}}]});
    for (value, class) in [
        (guaranteed, Qos::Guaranteed),
        (only_limits, Qos::Guaranteed),
        (burstable, Qos::Burstable),
        (best_effort, Qos::BestEffort),
        (init_spoils, Qos::Burstable),
    ] {
        assert_eq!(qos(&spec(value.clone())), class, "{value}");
    }
}

#[test]
fn shares_and_quota() {
    assert_eq!(
        [shares(0), shares(1), shares(100), shares(1_000), shares(i64::MAX)],
        [2, 2, 102, 1_024, 262_144]
    );
    assert_eq!([quota(0), quota(1), quota(100), quota(1_500)], [0, 1_000, 10_000, 150_000]);
}

#[test]
fn oom_scores() {
    let score = |value| {
        let pod = pod(value);
        oom_score_adj(&pod, &pod.spec.as_ref().unwrap().containers[0], 10 << 30)
    };
    assert_eq!(score(json!({"containers": [{"name": "a"}]})), 1_000);
    assert_eq!(
        score(json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]})),
        -997
    );
    assert_eq!(
        score(json!({"containers": [{"name": "a", "resources": {"requests": {"memory": "1Gi"}}}]})),
        900
    );
    assert_eq!(score(json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}]})), 999);
    assert_eq!(
        score(json!({"containers": [{"name": "a", "resources": {"requests": {"memory": "10Gi"}}}]})),
        3
    );
    assert_eq!(
        score(
            json!({"priority": 2_000_001_000, "priorityClassName": "system-node-critical", "containers": [{"name": "a"}]})
        ),
        -997
    );
}

#[test]
fn pods_ask_for_the_larger_of_init_and_run() {
    let spec = spec(json!({
        "initContainers": [
            {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
            {"name": "big", "resources": {"requests": {"cpu": "2"}}},
        ],
        "containers": [
            {"name": "a", "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}}},
            {"name": "b", "resources": {"requests": {"cpu": "500m"}}},
        ],
        "overhead": {"cpu": "10m"},
    }));
    assert_eq!(pod_requests(&spec).get("cpu"), 2_110);
    assert_eq!(pod_requests(&spec).get("memory"), 1 << 30);
}

#[test]
fn control_groups() {
    assert_eq!(cgroup_path("/orlop", Qos::Burstable, "u"), "/orlop/kubepods/burstable/podu");
    assert_eq!(cgroup_path("/", Qos::Guaranteed, "u"), "/kubepods/podu");
    let limits = pod_cgroup_limits(&spec(json!({"containers": [
        {"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}},
        {"name": "b", "resources": {"limits": {"memory": "1Gi"}}}]})));
    assert_eq!(limits.cpu_shares, Some(1_024));
    assert_eq!(limits.cpu_quota, None, "b has no limit");
    assert_eq!(limits.memory, Some(2 << 30));
}
