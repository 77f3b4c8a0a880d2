use k8s_openapi::api::core::v1::PodCondition;
use runtime::SandboxState;
use serde_json::{Value, json};

use super::*;
use crate::pods::observed::fixtures::{at, fresh};
use crate::pods::observed::{ProbeState, VolumeState};
use crate::pods::plan;

fn status_of(observed: &Observed, second: i64) -> Value {
    serde_json::to_value(plan::plan(observed, at(second)).status).unwrap()
}

fn one() -> Value {
    json!({"containers": [{"name": "a", "image": "busybox"}]})
}

fn conditions(status: &Value) -> Vec<String> {
    let list: Vec<PodCondition> = serde_json::from_value(status["conditions"].clone()).unwrap();
    list.into_iter()
        .map(|condition| {
            let reason = condition.reason.map(|reason| format!(" {reason}")).unwrap_or_default();
            let message = condition.message.map(|message| format!(": {message}")).unwrap_or_default();
            format!("{}={}{reason}{message}", condition.type_, condition.status)
        })
        .collect()
}

#[test]
fn a_pod_that_is_being_created() {
    let status = status_of(&fresh(one()), 0);
    assert_eq!(status["phase"], "Pending");
    assert_eq!(status["qosClass"], "BestEffort");
    assert_eq!(status["observedGeneration"], 3);
    assert_eq!(status["hostIP"], "10.0.0.1");
    assert_eq!(status["podIP"], Value::Null);
    assert_eq!(status["startTime"], "2023-11-14T22:13:20Z");
    let container = &status["containerStatuses"][0];
    assert_eq!(container["state"], json!({"waiting": {"reason": "ContainerCreating"}}));
    assert_eq!(container["lastState"], json!({}));
    assert_eq!(container["started"], false);
    assert_eq!(
        conditions(&status),
        [
            "PodReadyToStartContainers=False",
            "Initialized=True",
            "Ready=False ContainersNotReady: containers with unready status: [a]",
            "ContainersReady=False ContainersNotReady: containers with unready status: [a]",
            "PodScheduled=True",
        ]
    );
}

#[test]
fn a_running_pod() {
    let status = status_of(&fresh(one()).ready("s").container("a", "1", 0, None), 9);
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["podIP"], "10.1.0.2");
    assert_eq!(status["podIPs"], json!([{"ip": "10.1.0.2"}]));
    let container = &status["containerStatuses"][0];
    assert_eq!(container["containerID"], "orlop://1");
    assert_eq!(container["imageID"], "busybox@sha256:0");
    assert_eq!(container["state"], json!({"running": {"startedAt": "2023-11-14T22:13:22Z"}}));
    assert_eq!((&container["ready"], &container["started"]), (&json!(true), &json!(true)));
    assert_eq!(
        conditions(&status),
        [
            "PodReadyToStartContainers=True",
            "Initialized=True",
            "Ready=True",
            "ContainersReady=True",
            "PodScheduled=True",
        ]
    );
}

#[test]
fn probes_decide_about_readiness() {
    let spec = json!({"containers": [{"name": "a", "readinessProbe": {}}, {"name": "b", "startupProbe": {}}, {"name": "c"}]});
    let mut observed = fresh(spec)
        .ready("s")
        .container("a", "1", 0, None)
        .container("b", "2", 0, None)
        .container("c", "3", 0, None);
    let unready = |status: &Value| conditions(status)[3].clone();
    assert_eq!(
        unready(&status_of(&observed, 9)),
        "ContainersReady=False ContainersNotReady: containers with unready status: [a b]"
    );
    for (index, name) in ["a", "b"].into_iter().enumerate() {
        let container = observed.records[index].status.id.clone();
        observed
            .probes
            .insert(name.into(), ProbeState { container, started: true, ready: true, failed: None });
    }
    assert_eq!(unready(&status_of(&observed, 9)), "ContainersReady=True");
    // A probe of an earlier container says nothing about this one.
    observed.records[0].status.id = runtime::ContainerId::from("9".to_owned());
    assert!(unready(&status_of(&observed, 9)).ends_with("[a]"));
}

#[test]
fn a_restarted_container() {
    let mut observed =
        fresh(one()).ready("s").container("a", "1", 0, Some((5, 3))).container("a", "2", 1, None);
    observed.records[0].message = "last words".into();
    let status = status_of(&observed, 9);
    let container = &status["containerStatuses"][0];
    assert_eq!(container["restartCount"], 1);
    assert_eq!(
        container["lastState"]["terminated"],
        json!({
            "containerID": "orlop://1", "exitCode": 3, "reason": "Error", "message": "last words",
            "startedAt": "2023-11-14T22:13:22Z", "finishedAt": "2023-11-14T22:13:25Z",
        })
    );
}

#[test]
fn a_container_that_waits_for_its_restart_keeps_its_end() {
    let mut observed = fresh(one()).ready("s").container("a", "1", 0, Some((5, 1)));
    observed.backoffs.insert("a".into(), crate::pods::backoff::Backoff::next(None, at(5), at(5)));
    let status = status_of(&observed, 9);
    let container = &status["containerStatuses"][0];
    assert_eq!(container["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!(status["phase"], "Running", "it will run again");
}

#[test]
fn what_only_the_api_server_knows_is_kept() {
    let reported = |state: Value| {
        fresh(one()).reported_status(json!({"phase": "Running", "containerStatuses": [{
            "name": "a", "image": "busybox", "imageID": "x", "ready": true, "restartCount": 4,
            "containerID": "orlop://old", "state": state, "lastState": {},
        }]}))
    };
    let ended = reported(json!({"terminated": {"exitCode": 0, "containerID": "orlop://old"}}));
    assert_eq!(status_of(&ended, 9)["containerStatuses"][0]["state"]["terminated"]["exitCode"], 0);
    assert_eq!(ended.next_restarts("a"), 5);
    let lost = reported(json!({"running": {"startedAt": "2023-11-14T22:13:20Z"}}));
    let container = &status_of(&lost, 9)["containerStatuses"][0];
    assert_eq!(container["restartCount"], 5);
    assert_eq!(container["lastState"]["terminated"]["reason"], "ContainerStatusUnknown");
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 137);
    let deleted = lost.clone().metadata("deletionTimestamp", json!("2023-11-14T22:13:21Z"));
    assert_eq!(status_of(&deleted, 9)["containerStatuses"][0]["restartCount"], 4, "nobody starts it again");
    // The count does not grow with each pass.
    let again = fresh(one()).reported_status(status_of(&lost, 9));
    assert_eq!(status_of(&again, 9)["containerStatuses"][0]["restartCount"], 5);
    assert_eq!(again.next_restarts("a"), 5);
}

#[test]
fn a_container_that_was_made_and_never_ran_does_not_count() {
    let reported = |last: Value| {
        fresh(one()).ready("s").reported_status(json!({"phase": "Pending", "containerStatuses": [{
            "name": "a", "image": "busybox", "imageID": "x", "ready": false, "restartCount": 2,
            "containerID": "orlop://made", "state": {"waiting": {"reason": "ContainerCreating"}}, "lastState": last,
        }]}))
    };
    assert_eq!(reported(json!({})).next_restarts("a"), 2);
    let ended = |id: &str| json!({"terminated": {"exitCode": 1, "containerID": id}});
    assert_eq!(reported(ended("orlop://before")).next_restarts("a"), 2);
    assert_eq!(reported(ended("orlop://made")).next_restarts("a"), 3, "it waits for its restart");
}

#[test]
fn init_containers_and_phases() {
    let spec = |policy: &str| json!({"restartPolicy": policy, "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
    let waiting = status_of(&fresh(spec("Always")).ready("s").container("i", "1", 0, None), 9);
    assert_eq!(waiting["phase"], "Pending");
    assert_eq!(waiting["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
    assert_eq!(
        conditions(&waiting)[1],
        "Initialized=False ContainersNotInitialized: containers with incomplete status: [i]"
    );
    let running =
        fresh(spec("Always")).ready("s").container("i", "1", 0, Some((3, 0))).container("a", "2", 0, None);
    let status = status_of(&running, 9);
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["initContainerStatuses"][0]["ready"], true);
    assert_eq!(status["initContainerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    let failed = status_of(&fresh(spec("Never")).ready("s").container("i", "1", 0, Some((3, 2))), 9);
    assert_eq!(failed["phase"], "Failed");
    assert_eq!(
        failed["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing",
        "it never came so far"
    );
}

#[test]
fn pods_that_are_over() {
    let over = |code| {
        let spec = json!({"restartPolicy": "Never", "containers": [{"name": "a"}]});
        status_of(&fresh(spec).ready("s").container("a", "1", 0, Some((5, code))), 9)
    };
    let succeeded = over(0);
    assert_eq!(succeeded["phase"], "Succeeded");
    assert_eq!(
        conditions(&succeeded)[1..4],
        ["Initialized=True PodCompleted", "Ready=False PodCompleted", "ContainersReady=False PodCompleted"]
    );
    let failed = over(1);
    assert_eq!(failed["phase"], "Failed");
    assert_eq!(conditions(&failed)[2], "Ready=False PodFailed");
}

#[test]
fn an_address_outlives_its_sandbox_and_times_outlive_a_pass() {
    let observed = fresh(one()).ready("s").container("a", "1", 0, None);
    let first = status_of(&observed, 9);
    let mut later = observed.reported_status(first.clone());
    assert_eq!(status_of(&later, 99), first, "nothing changed");
    later.sandboxes[0].status.state = SandboxState::NotReady;
    later.records[0].status.state = RuntimeState::Exited;
    let status = status_of(&later, 99);
    assert_eq!(status["podIP"], "10.1.0.2");
    assert_eq!(conditions(&status)[0], "PodReadyToStartContainers=False");
}

#[test]
fn readiness_gates_and_conditions_of_others() {
    let spec = json!({"readinessGates": [{"conditionType": "x.io/ok"}], "containers": [{"name": "a"}]});
    let running = || fresh(spec.clone()).ready("s").container("a", "1", 0, None);
    assert_eq!(
        conditions(&status_of(&running(), 9))[2],
        "Ready=False ReadinessGatesNotReady: corresponding condition of pod readiness gate \"x.io/ok\" does not exist."
    );
    let gated = running().reported_status(json!({"conditions": [{"type": "x.io/ok", "status": "True"}]}));
    let list = conditions(&status_of(&gated, 9));
    assert_eq!(list[2], "Ready=True");
    assert_eq!(list[5], "x.io/ok=True");
}

#[test]
fn a_pod_that_was_deleted_while_it_ran() {
    let mut observed = fresh(one())
        .metadata("deletionTimestamp", json!("2023-11-14T22:13:20Z"))
        .ready("s")
        .container("a", "1", 0, Some((5, 0)))
        .taken_down();
    observed.volumes = VolumeState::Removed;
    let status = status_of(&observed, 9);
    assert_eq!(status["phase"], "Succeeded");
    assert_eq!(status["containerStatuses"][0]["ready"], false);
}
