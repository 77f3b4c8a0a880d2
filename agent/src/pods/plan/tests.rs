use runtime::SandboxState;
use serde_json::{Value, json};

use super::*;
use crate::pods::backoff::Backoff;
use crate::pods::observed::fixtures::{at, fresh};
use crate::pods::observed::{ProbeState, Rejection, StartFailure};

/// Actions in one line each.
fn printed(plan: &Plan) -> Vec<String> {
    let line = |action: &Action| match action {
        Action::PrepareVolumes => "volumes".to_owned(),
        Action::EnsureImage { container } => format!("image {container}"),
        Action::RunSandbox { attempt } => format!("sandbox #{attempt}"),
        Action::StartContainer { container, sandbox, restarts, .. } => {
            format!("start {container} #{restarts} in {sandbox}")
        }
        Action::LeaveServices { stage } => format!("leave services {stage:?}"),
        Action::StopContainer { container, id, grace, cause } => {
            format!("stop {container} {id} {grace}s {cause:?}")
        }
        Action::RemoveContainer { container, id } => format!("remove {container} {id}"),
        Action::StopSandbox { id } => format!("stop sandbox {id}"),
        Action::RemoveSandbox { id } => format!("remove sandbox {id}"),
        Action::RemoveVolumes => "remove volumes".to_owned(),
        Action::RemoveCgroup => "remove cgroup".to_owned(),
        Action::AnnounceBackOff { container, restarts } => format!("back-off {container} #{restarts}"),
        Action::DeletePodObject => "delete object".to_owned(),
        Action::Finish => "finish".to_owned(),
    };
    plan.actions.iter().map(line).collect()
}

#[track_caller]
fn check(observed: &Observed, second: i64, expected: &[&str]) -> Plan {
    let plan = plan(observed, at(second));
    assert_eq!(printed(&plan), expected);
    plan
}

fn one() -> Value {
    json!({"containers": [{"name": "a", "image": "busybox"}]})
}

fn policy(policy: &str) -> Value {
    json!({"restartPolicy": policy, "containers": [{"name": "a"}]})
}

fn waiting(plan: &Plan, container: usize) -> (String, String) {
    let statuses = plan.status.container_statuses.as_ref().unwrap();
    let waiting = statuses[container].state.as_ref().unwrap().waiting.clone().unwrap();
    (waiting.reason.unwrap_or_default(), waiting.message.unwrap_or_default())
}

#[test]
fn a_new_pod_gets_everything_at_once() {
    check(&fresh(one()), 0, &["volumes", "sandbox #0", "image a"]);
    let mut observed = fresh(one()).ready("s");
    check(&observed, 0, &["image a"]);
    observed = observed.images(&["a"]);
    check(&observed, 0, &["start a #0 in s"]);
    observed.volumes = VolumeState::Preparing;
    check(&observed, 0, &[]);
    observed.volumes = VolumeState::Ready;
    observed.busy.insert("a".into(), Operation::Start);
    check(&observed, 0, &[]);
}

#[test]
fn an_adopted_pod_is_left_alone() {
    let mut observed = fresh(one()).ready("s").container("a", "1", 0, None);
    check(&observed, 9, &[]);
    observed.volumes = VolumeState::Unknown;
    check(&observed, 9, &["volumes"]);
}

#[test]
fn a_created_container_that_never_ran_is_made_again() {
    let mut observed = fresh(one()).ready("s").container("a", "1", 2, None);
    observed.records[0].status.state = runtime::ContainerState::Created;
    observed.records[0].status.started_at = 0;
    check(&observed, 9, &["remove a 1"]);
    assert_eq!(observed.next_restarts("a"), 2);
}

#[test]
fn a_created_container_of_a_pod_that_ends_is_removed() {
    let created = |observed: Observed| {
        let mut observed = observed.ready("s").container("a", "1", 0, None).left_services();
        observed.records[0].status.state = runtime::ContainerState::Created;
        observed.records[0].status.started_at = 0;
        observed
    };
    let mut observed = deleting(created(fresh(one())), 30);
    check(&observed, 9, &["remove a 1"]);
    observed.busy.insert("a".into(), Operation::Remove);
    check(&observed, 9, &[]);
    observed.busy.clear();
    observed.cleanup_retry_at = Some(at(12));
    assert_eq!(check(&observed, 9, &[]).wake_at, Some(at(12)));
    // An agent that dies between making a container and starting it finds it like this, and the pod gone.
    let gone = Observed { gone: true, ..created(fresh(one())) };
    check(&gone, 9, &["remove a 1"]);
}

#[test]
fn restart_policies() {
    let over = |name: &str, code| {
        let over = fresh(policy(name)).ready("s").container("a", "1", 0, Some((5, code)));
        over.images(&["a"]).left_services()
    };
    check(&over("Always", 0), 9, &["start a #1 in s"]);
    check(&over("OnFailure", 1), 9, &["start a #1 in s"]);
    let ended = check(&over("OnFailure", 0), 9, &["stop sandbox s"]);
    assert_eq!(ended.status.phase.as_deref(), Some("Succeeded"));
    let ended = check(&over("Never", 1), 9, &["stop sandbox s"]);
    assert_eq!(ended.status.phase.as_deref(), Some("Failed"));
    check(&over("Never", 1).taken_down(), 9, &["remove cgroup"]);
}

#[test]
fn restarts_are_delayed_and_announced_once() {
    let mut observed = fresh(one()).ready("s").container("a", "1", 1, Some((5, 1))).images(&["a"]);
    observed.backoffs.insert("a".into(), Backoff::next(None, at(1), at(1)));
    let planned = check(&observed, 9, &["back-off a #1"]);
    assert_eq!(planned.wake_at, Some(at(15)));
    assert_eq!(
        waiting(&planned, 0),
        ("CrashLoopBackOff".to_owned(), "back-off 10s restarting failed container=a pod=p_ns(u)".to_owned())
    );
    observed.announced.insert(("a".into(), 1));
    check(&observed, 9, &[]);
    check(&observed, 15, &["start a #2 in s"]);
}

#[test]
fn image_failures_back_off() {
    let mut observed = fresh(one()).ready("s");
    let failed = |reason| ImageState::Failed { reason, message: "no".into(), at: at(0), retry_at: at(10) };
    observed.images.insert("a".into(), failed("ErrImagePull"));
    let shown = check(&observed, 1, &[]);
    assert_eq!(waiting(&shown, 0).0, "ErrImagePull");
    assert_eq!(shown.wake_at, Some(at(5)));
    let backs_off = check(&observed, 6, &[]);
    assert_eq!(
        waiting(&backs_off, 0),
        ("ImagePullBackOff".to_owned(), "Back-off pulling image \"busybox\": ErrImagePull: no".to_owned())
    );
    check(&observed, 10, &["image a"]);
    observed.images.insert("a".into(), failed("InvalidImageName"));
    assert_eq!(waiting(&check(&observed, 6, &[]), 0).0, "InvalidImageName");
}

#[test]
fn a_failed_start_is_shown_and_tried_again() {
    let mut observed = fresh(one()).ready("s").images(&["a"]);
    let failure = StartFailure {
        reason: "CreateContainerConfigError",
        message: "configmap \"m\" not found".into(),
        retry_at: at(10),
    };
    observed.failures.insert("a".into(), failure);
    let planned = check(&observed, 1, &[]);
    assert_eq!(
        waiting(&planned, 0),
        ("CreateContainerConfigError".to_owned(), "configmap \"m\" not found".to_owned())
    );
    assert_eq!(planned.wake_at, Some(at(10)));
    check(&observed, 10, &["start a #0 in s"]);
}

fn with_inits() -> Value {
    json!({
        "initContainers": [{"name": "i"}, {"name": "side", "restartPolicy": "Always"}, {"name": "j"}],
        "containers": [{"name": "a"}, {"name": "b"}],
    })
}

#[test]
fn init_containers_come_in_order() {
    let all = ["i", "side", "j", "a", "b"];
    let base = || fresh(with_inits()).ready("s").images(&all);
    check(&base(), 9, &["start i #0 in s"]);
    check(&base().container("i", "1", 0, None), 9, &[]);
    check(&base().container("i", "1", 0, Some((5, 1))), 9, &["start i #1 in s"]);
    let first = || base().container("i", "1", 0, Some((5, 0)));
    check(&first(), 9, &["start side #0 in s"]);
    let side = || first().container("side", "2", 0, None);
    check(&side(), 9, &["start j #0 in s"]);
    let inits = || side().container("j", "3", 0, Some((6, 0)));
    check(&inits(), 9, &["start a #0 in s", "start b #0 in s"]);
    let running = inits().container("a", "4", 0, None).container("b", "5", 0, None);
    check(&running, 9, &[]);
    let mut crashed = running;
    crashed.records[1].status.state = runtime::ContainerState::Exited;
    check(&crashed, 9, &["start side #1 in s"]);
}

#[test]
fn a_sidecar_that_is_not_started_holds_the_next_back() {
    let mut observed = fresh(json!({
        "initContainers": [{"name": "side", "restartPolicy": "Always", "startupProbe": {}}],
        "containers": [{"name": "a"}],
    }))
    .ready("s")
    .images(&["a"])
    .container("side", "1", 0, None);
    check(&observed, 9, &[]);
    let id = observed.records[0].status.id.clone();
    observed
        .probes
        .insert("side".into(), ProbeState { container: id, started: true, ready: true, failed: None });
    check(&observed, 9, &["start a #0 in s"]);
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let observed = fresh(
        json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}),
    )
    .ready("s")
    .container("i", "1", 0, Some((5, 7)))
    .left_services();
    let planned = check(&observed, 9, &["stop sandbox s"]);
    assert_eq!(planned.status.phase.as_deref(), Some("Failed"));
}

#[test]
fn a_lost_sandbox_is_replaced() {
    let lost = || {
        let mut observed = fresh(one()).ready("s").container("a", "1", 0, Some((5, 137))).images(&["a"]);
        observed.sandboxes[0].status.state = SandboxState::NotReady;
        observed
    };
    check(&lost(), 9, &["stop sandbox s"]);
    let mut stopped = lost();
    stopped.sandboxes[0].settled = true;
    check(&stopped, 9, &["sandbox #1"]);
    stopped.sandbox_retry_at = Some(at(20));
    assert_eq!(check(&stopped, 9, &[]).wake_at, Some(at(20)));
    let mut replaced = stopped.sandbox("t", SandboxState::Ready);
    replaced.sandboxes[0].settled = true;
    check(&replaced, 9, &["start a #1 in t"]);
    // Once the new container has an end of its own, nothing holds the old sandbox.
    let over = replaced.container("a", "2", 1, Some((8, 1)));
    let mut over = over;
    over.announced.insert(("a".into(), 1));
    over.backoffs.insert("a".into(), Backoff::next(None, at(7), at(7)));
    check(&over, 9, &["remove a 1"]);
    over.records[0].removed = true;
    check(&over, 9, &["remove sandbox s"]);
}

#[test]
fn probes_and_new_images_stop_containers() {
    let mut observed = fresh(
        json!({"terminationGracePeriodSeconds": 7, "containers": [{"name": "a", "livenessProbe": {}}]}),
    )
    .ready("s")
    .container("a", "1", 0, None);
    let id = observed.records[0].status.id.clone();
    let mut state = ProbeState {
        container: id,
        started: true,
        ready: true,
        failed: Some(ProbeFailure { startup: false, grace: None }),
    };
    observed.probes.insert("a".into(), state.clone());
    check(&observed, 9, &["stop a 1 7s Liveness"]);
    state.failed = Some(ProbeFailure { startup: true, grace: Some(3) });
    observed.probes.insert("a".into(), state);
    check(&observed, 9, &["stop a 1 3s Startup"]);
    observed.busy.insert("a".into(), Operation::Stop { by: at(12) });
    check(&observed, 9, &[]);

    let mut changed = fresh(one()).ready("s").container("a", "1", 0, None);
    let annotations = &mut changed.records[0].status.config.annotations;
    annotations.insert(labels::CONTAINER_HASH.into(), "other".into());
    check(&changed, 9, &["stop a 1 30s Changed"]);
}

#[test]
fn a_pod_leaves_the_services_before_the_first_signal_and_before_its_address_is_free() {
    let mut observed = deleting(fresh(one()).ready("s").container("a", "1", 0, None), 30);
    check(&observed, 9, &["leave services Terminating"]);
    observed.leaving_services = true;
    check(&observed, 9, &[]);
    observed.leaving_services = false;
    observed.left_services = Some(Departure::Terminating);
    check(&observed, 9, &["stop a 1 30s PodEnds"]);
    observed.records[0].status.state = runtime::ContainerState::Exited;
    check(&observed, 9, &["leave services Gone"]);
    observed.left_services = Some(Departure::Gone);
    check(&observed, 9, &["stop sandbox s"]);
    // One that starts at this moment may still be called for by a Service that wants it early.
    let mut starting = deleting(fresh(one()).ready("s"), 30);
    starting.busy.insert("a".into(), Operation::Start);
    check(&starting, 9, &["leave services Terminating"]);
    // Its address is free, and slices may still name it: a sandbox that was lost, or an agent that died before they did not.
    observed.left_services = None;
    observed.sandboxes[0].settled = true;
    check(&observed, 9, &["leave services Gone"]);
    observed.sandboxes.clear();
    observed.records.clear();
    check(&observed.clone().reported_status(json!({"podIP": "10.1.0.2"})), 9, &["leave services Gone"]);
    // It never had one.
    check(&observed, 9, &["remove volumes"]);
}

#[test]
fn what_an_agent_finds_ending_has_left_the_services() {
    let running = fresh(one()).ready("s").container("a", "1", 0, None);
    assert_eq!(departure(&running, at(9)), None);
    assert_eq!(departure(&deleting(running, 30), at(9)), Some(Departure::Terminating));
    let over = fresh(policy("Never")).ready("s").container("a", "1", 0, Some((5, 0)));
    assert_eq!(departure(&over, at(9)), Some(Departure::Gone));
    assert_eq!(departure(&deleting(fresh(one()), 30), at(9)), None);
}

#[test]
fn restarts_and_lost_sandboxes_do_not_leave_the_services() {
    let mut observed = fresh(one()).ready("s").container("a", "1", 0, Some((5, 137))).images(&["a"]);
    check(&observed, 9, &["start a #1 in s"]);
    observed.sandboxes[0].status.state = SandboxState::NotReady;
    check(&observed, 9, &["stop sandbox s"]);
}

fn deleting(observed: Observed, grace: i64) -> Observed {
    observed
        .metadata("deletionTimestamp", json!("2023-11-14T22:13:20Z"))
        .metadata("deletionGracePeriodSeconds", json!(grace))
}

#[test]
fn deletion_step_by_step() {
    let running = fresh(one()).ready("s").container("a", "1", 0, None).left_services();
    let mut observed = deleting(running, 30);
    check(&observed, 9, &["stop a 1 30s PodEnds"]);
    observed.busy.insert("a".into(), Operation::Stop { by: at(39) });
    check(&observed, 9, &[]);
    // A second, shorter deletion does not wait for the first grace.
    let observed_shorter = deleting(observed.clone(), 1);
    check(&observed_shorter, 9, &["stop a 1 1s PodEnds"]);
    observed.busy.clear();
    observed.records[0].status.state = runtime::ContainerState::Exited;
    observed.records[0].status.exit_code = 143;
    check(&observed, 10, &["stop sandbox s"]);
    observed.sandbox_busy.insert("s".into());
    check(&observed, 10, &[]);
    observed.sandbox_busy.clear();
    observed.sandboxes[0].settled = true;
    check(&observed, 10, &["remove volumes"]);
    observed.volumes = VolumeState::Removed;
    check(&observed, 10, &["remove sandbox s"]);
    observed.sandboxes.clear();
    observed.records[0].removed = true;
    check(&observed, 10, &["remove cgroup"]);
    observed.cgroup_removed = true;
    let last = check(&observed, 10, &["delete object"]);
    assert_eq!(last.status.phase.as_deref(), Some("Failed"), "143 is no success");
    observed.status_written = false;
    check(&observed, 10, &[]);
    observed.status_written = true;
    observed.deleting_object = true;
    check(&observed, 10, &[]);
    observed.gone = true;
    check(&observed, 10, &["finish"]);
}

#[test]
fn a_pod_that_was_deleted_before_it_began_leaves_nothing() {
    let mut observed = deleting(fresh(one()), 0);
    check(&observed, 0, &["remove volumes"]);
    observed.sandbox_creating = true;
    check(&observed, 0, &[]);
    observed.sandbox_creating = false;
    observed.volumes = VolumeState::Removed;
    check(&observed, 0, &["remove cgroup"]);
}

#[test]
fn a_pod_that_is_gone_is_ended_with_its_own_grace() {
    let mut observed = fresh(json!({"terminationGracePeriodSeconds": 4, "containers": [{"name": "a"}]}))
        .ready("s")
        .container("a", "1", 0, None)
        .left_services();
    observed.gone = true;
    check(&observed, 9, &["stop a 1 4s PodEnds"]);
}

#[test]
fn sidecars_stop_after_the_containers_and_in_reverse() {
    let spec = json!({
        "initContainers": [{"name": "x", "restartPolicy": "Always"}, {"name": "y", "restartPolicy": "Always"}],
        "containers": [{"name": "a"}],
    });
    let running = fresh(spec)
        .ready("s")
        .container("x", "1", 0, None)
        .container("y", "2", 0, None)
        .container("a", "3", 0, None)
        .left_services();
    let mut observed = deleting(running, 5);
    check(&observed, 9, &["stop a 3 5s PodEnds"]);
    observed.records[2].status.state = runtime::ContainerState::Exited;
    check(&observed, 9, &["stop y 2 5s PodEnds"]);
    observed.records[1].status.state = runtime::ContainerState::Exited;
    check(&observed, 9, &["stop x 1 5s PodEnds"]);
}

#[test]
fn the_deadline_ends_a_pod() {
    let spec = json!({"activeDeadlineSeconds": 60, "containers": [{"name": "a"}]});
    let mut observed = fresh(spec).ready("s").container("a", "1", 0, None).left_services();
    assert_eq!(check(&observed, 59, &[]).wake_at, Some(at(60)));
    let planned = check(&observed, 60, &["stop a 1 30s PodEnds"]);
    assert_eq!(planned.status.reason.as_deref(), Some("DeadlineExceeded"));
    assert_eq!(planned.status.phase.as_deref(), Some("Running"), "until it is over");
    observed.records[0].status.state = runtime::ContainerState::Exited;
    let planned = check(&observed, 61, &["stop sandbox s"]);
    assert_eq!(planned.status.phase.as_deref(), Some("Failed"));
}

#[test]
fn a_rejected_pod_is_never_begun() {
    let mut observed = fresh(one()).taken_down();
    observed.cgroup_removed = true;
    observed.rejected = Some(Rejection { reason: "OutOfcpu".into(), message: "m".into() });
    let planned = check(&observed, 0, &[]);
    assert_eq!(planned.status.phase.as_deref(), Some("Failed"));
    assert_eq!(planned.status.reason.as_deref(), Some("OutOfcpu"));
    assert_eq!(planned.status.container_statuses, None);
}

#[test]
fn an_end_that_was_reported_stays() {
    let observed =
        fresh(one()).reported_status(json!({"phase": "Failed", "reason": "Evicted", "message": "m"}));
    let planned = check(&observed, 0, &["remove volumes"]);
    assert_eq!(planned.status.phase.as_deref(), Some("Failed"));
    assert_eq!(planned.status.reason.as_deref(), Some("Evicted"));
}

#[test]
fn only_the_newest_end_of_a_container_is_kept() {
    let mut observed = fresh(one())
        .ready("s")
        .container("a", "1", 0, Some((3, 1)))
        .container("a", "2", 1, Some((5, 1)))
        .container("a", "3", 2, None);
    check(&observed, 9, &["remove a 1"]);
    observed.removing.insert("1".into());
    check(&observed, 9, &[]);
    observed.removing.clear();
    observed.cleanup_retry_at = Some(at(20));
    assert_eq!(check(&observed, 9, &[]).wake_at, Some(at(20)));
}
