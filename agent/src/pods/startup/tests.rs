use std::collections::BTreeMap;

use runtime::ContainerState;
use serde_json::json;

use super::*;
use crate::pods::observed::fixtures::fresh;

fn pod() -> Observed {
    fresh(json!({"containers": [{"name": "a", "image": "busybox"}, {"name": "b", "image": "busybox"}]}))
}

fn reported(observed: Observed, phase: &str) -> Observed {
    observed.reported_status(json!({"phase": phase}))
}

#[test]
fn a_pod_waits_for_the_furthest_thing_that_is_under_way() {
    let mut observed = pod();
    assert_eq!(step(&observed), Step::At(Phase::Wait));
    observed.volumes = VolumeState::Preparing;
    assert_eq!(step(&observed), Step::At(Phase::Volumes));
    observed.images.insert("a".into(), ImageState::Pulling);
    assert_eq!(step(&observed), Step::At(Phase::Image));
    observed.sandbox_creating = true;
    assert_eq!(step(&observed), Step::At(Phase::Sandbox));
}

#[test]
fn a_pod_is_created_until_all_of_its_containers_are() {
    let mut observed = pod().ready("s").container("a", "1", 0, None);
    observed.records[0].status.state = ContainerState::Created;
    observed.busy = BTreeMap::from([("a".into(), Operation::Start), ("b".into(), Operation::Start)]);
    assert_eq!(step(&observed), Step::At(Phase::Create));
    observed = observed.container("b", "2", 0, None);
    assert_eq!(step(&observed), Step::At(Phase::Start));
}

#[test]
fn a_start_is_over_when_the_api_server_knows() {
    let mut observed = reported(pod(), "Running");
    observed.status_written = false;
    assert_eq!(step(&observed), Step::At(Phase::Status));
    observed.status_written = true;
    assert_eq!(step(&observed), Step::Told);
    assert_eq!(step(&reported(pod(), "Succeeded")), Step::Abandoned);
    let mut gone = pod();
    gone.gone = true;
    assert_eq!(step(&gone), Step::Abandoned);
}

#[test]
fn phases_add_up_to_the_whole() {
    let begin = Instant::now();
    let at = |milliseconds| begin + Duration::from_millis(milliseconds);
    let mut startup = Startup::new(begin);
    assert_eq!(startup.advance(Phase::Sandbox, at(3)), Progress::Starting);
    assert_eq!(startup.advance(Phase::Sandbox, at(40)), Progress::Starting);
    assert_eq!(startup.advance(Phase::Start, at(60)), Progress::Starting);
    assert_eq!(startup.advance(Phase::Wait, at(65)), Progress::Starting);
    assert_eq!(startup.advance(Phase::Start, at(70)), Progress::Starting);
    assert_eq!(startup.advance(Phase::Status, at(90)), Progress::Runs(Duration::from_millis(90)));
    assert_eq!(startup.advance(Phase::Status, at(95)), Progress::Starting);
    let spent: Vec<(&str, u128)> =
        startup.finish(at(100)).map(|(phase, took)| (phase.as_str(), took.as_millis())).collect();
    let expected = [
        ("wait", 8),
        ("volumes", 0),
        ("image", 0),
        ("sandbox", 57),
        ("create", 0),
        ("start", 25),
        ("status", 10),
    ];
    assert_eq!(spent, expected);
}
