use serde_json::json;

use super::*;

fn counter(success: i32, failure: i32) -> Counter {
    let probe = json!({"successThreshold": success, "failureThreshold": failure});
    Counter::new(&serde_json::from_value(probe).unwrap())
}

#[test]
fn thresholds_are_counted_in_a_row() {
    let mut counter = counter(2, 3);
    let results = [true, true, false, false, true, false, false, false, false, true, true];
    let counted: Vec<_> = results.into_iter().map(|result| counter.count(result)).collect();
    assert_eq!(
        counted,
        [None, Some(true), None, None, None, None, None, Some(false), Some(false), None, Some(true)]
    );
}

#[test]
fn defaults_are_those_of_the_api() {
    let mut counter = Counter::new(&Probe::default());
    assert_eq!(counter.count(true), Some(true));
    assert_eq!([counter.count(false), counter.count(false), counter.count(false)], [None, None, Some(false)]);
}

fn state(started: bool, failed: Option<ProbeFailure>) -> ProbeState {
    ProbeState { container: ContainerId::from("1".to_owned()), started, ready: false, failed }
}

#[test]
fn startup_comes_before_the_others() {
    let container: Container = serde_json::from_value(
        json!({"name": "c", "startupProbe": {}, "readinessProbe": {}, "livenessProbe": {}}),
    )
    .unwrap();
    assert_eq!(kinds(&container, &state(false, None), false), [Kind::Startup]);
    assert_eq!(kinds(&container, &state(true, None), false), [Kind::Readiness, Kind::Liveness]);
    assert_eq!(
        kinds(&container, &state(true, None), true),
        [Kind::Readiness],
        "a pod that ends is not restarted"
    );
    let failed = ProbeFailure { startup: false, grace: None };
    assert_eq!(kinds(&container, &state(true, Some(failed)), false), [Kind::Readiness]);
}

#[test]
fn a_report_about_an_earlier_container_changes_nothing() {
    let mut states: BTreeMap<_, _> = [("c".to_owned(), state(true, None))].into();
    let report = |id: &str| Report {
        container: ContainerId::from(id.to_owned()),
        name: "c".into(),
        update: Update::Ready(true),
    };
    report("0").apply(&mut states);
    assert!(!states["c"].ready);
    report("1").apply(&mut states);
    assert!(states["c"].ready);
}

#[test]
fn health_answers() {
    assert_eq!(dial::health_status(&[0, 0, 0, 0, 2, 0x08, 1]), Some(1));
    assert_eq!(dial::health_status(&[0, 0, 0, 0, 0]), Some(0));
    assert_eq!(dial::health_status(&[1, 0, 0, 0, 2, 0x08, 1]), None);
    assert_eq!(dial::health_status(&[]), None);
}
