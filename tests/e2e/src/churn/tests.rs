use serde_json::json;

use super::*;

const BOUNDS: Bounds = Bounds {
    pods: 10,
    start: Duration::from_secs(60),
    end: Duration::from_secs(60),
    stay: Duration::from_secs(40),
};

fn named<'a>(pods: &'a [Value], kind: &str) -> &'a str {
    let names = pods.iter().map(|pod| pod["metadata"]["name"].as_str().expect("a name"));
    names
        .into_iter()
        .find(|name| name.rsplit_once('-').is_some_and(|(own, _)| own == kind))
        .expect("the kind")
}

fn event(name: &str, status: Value) -> Value {
    json!({"type": "MODIFIED", "object": {"metadata": {"name": name}, "status": status}})
}

fn running(address: &str) -> Value {
    json!({"phase": "Running", "podIP": address, "conditions": [{"type": "Ready", "status": "True"}],
           "containerStatuses": [{"name": "main", "restartCount": 0, "containerID": "orlop://a", "state": {"running": {}}}]})
}

fn after(start: Instant, seconds: u64) -> Instant {
    start + Duration::from_secs(seconds)
}

#[test]
fn there_are_as_many_pods_as_wanted_and_each_goes_when_its_time_has_come() {
    let start = Instant::now();
    let mut churn = Churn::new(BOUNDS);
    let pods = churn.fill(start);
    assert_eq!(pods.len(), BOUNDS.pods);
    assert!(churn.fill(start).is_empty());
    let (hasty, forced) = (named(&pods, "hasty"), named(&pods, "hasty-forced"));
    let due = churn.due(start);
    assert_eq!(due, Due { usual: vec![hasty.to_owned()], forced: vec![forced.to_owned()] });

    let (plain, stays) = (named(&pods, "plain"), named(&pods, "stays"));
    churn.note(after(start, 1), &event(plain, running("10.0.0.1"))).expect("fine");
    churn.note(after(start, 1), &event(stays, running("10.0.0.2"))).expect("fine");
    assert_eq!(churn.due(after(start, 40)).usual, [plain]);
    assert_eq!(churn.due(after(start, 41)).usual, [stays]);

    let gone = json!({"type": "DELETED", "object": {"metadata": {"name": plain}}});
    churn.note(after(start, 42), &gone).expect("fine");
    assert_eq!(churn.fill(after(start, 42)).len(), 1);
    assert!(churn.report().contains("plain              1 pods; start p50 0.00 s"), "{}", churn.report());
}

#[test]
fn what_must_not_be_is_said() {
    let start = Instant::now();
    let mut restarted = running("10.0.0.1");
    restarted["containerStatuses"][0]["restartCount"] = json!(1);
    let mut other = running("10.0.0.1");
    other["containerStatuses"][0]["containerID"] = json!("orlop://b");
    let failed = json!({"phase": "Failed", "podIP": "10.0.0.1", "reason": "Because"});
    for (status, said) in [
        (restarted, "started again"),
        (other, "was orlop://a and is orlop://b"),
        (running("10.0.0.9"), "its address 10.0.0.1 became"),
        (failed.clone(), "its phase is Failed: \"Because\""),
        (json!({"phase": "Succeeded", "podIP": "10.0.0.1"}), "its phase is Succeeded"),
    ] {
        let mut churn = Churn::new(BOUNDS);
        let pods = churn.fill(start);
        let name = named(&pods, "plain");
        churn.note(start, &event(name, running("10.0.0.1"))).expect("fine");
        let wrong = churn.note(start, &event(name, status.clone())).expect_err(said);
        assert!(wrong.pod == name && wrong.what.contains(said), "{wrong:?}");
    }
    let mut churn = Churn::new(BOUNDS);
    let pods = churn.fill(start);
    churn.due(start);
    // What is being deleted may fail, and has no claim to its address any more.
    churn.note(start, &event(named(&pods, "hasty"), failed)).expect("fine");
    churn.note(start, &event(named(&pods, "plain"), running("10.0.0.1"))).expect("fine");
    let wrong = churn.note(start, &event(named(&pods, "stays"), running("10.0.0.1"))).expect_err("twice");
    assert!(wrong.what.contains("10.0.0.1, which plain-6 has too"), "{wrong:?}");
    let gone = json!({"type": "DELETED", "object": {"metadata": {"name": named(&pods, "stays")}}});
    assert!(churn.note(start, &gone).expect_err("gone").what.contains("nobody deleted it"));
}

#[test]
fn a_pod_is_late_when_it_does_not_become_what_it_should_or_does_not_go() {
    let start = Instant::now();
    let mut churn = Churn::new(BOUNDS);
    let pods = churn.fill(start);
    churn.due(start);
    churn.check(after(start, 60)).expect("in time");
    for pod in &pods {
        let name = pod["metadata"]["name"].as_str().expect("a name");
        let ends = pod["spec"]["restartPolicy"] == "Never";
        let status = if ends { json!({"phase": "Succeeded"}) } else { running("") };
        churn.note(after(start, 60), &event(name, status)).expect("fine");
    }
    // The default grace counts too.
    churn.check(after(start, 90)).expect("in time");
    let late = churn.check(after(start, 91)).expect_err("late");
    assert!(late.pod.starts_with("hasty") && late.what.contains("not gone"), "{late:?}");

    let mut churn = Churn::new(BOUNDS);
    churn.fill(start);
    assert!(churn.check(after(start, 61)).expect_err("late").what.contains("after 60s"));
}

#[test]
fn a_list_tells_what_the_watch_missed() {
    let start = Instant::now();
    let mut churn = Churn::new(BOUNDS);
    let pods = churn.fill(start);
    churn.due(start);
    let left: Vec<Value> =
        pods.iter().filter(|pod| pod["metadata"]["name"] != named(&pods, "hasty")).cloned().collect();
    churn.note_all(start, &left).expect("fine");
    assert_eq!(churn.len(), BOUNDS.pods - 1);
    assert!(churn.note_all(start, &[]).expect_err("gone").what.contains("nobody deleted it"));
}
