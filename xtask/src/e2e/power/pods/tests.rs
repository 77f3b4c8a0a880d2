use super::{Event, Pods};

type Said = (&'static str, &'static str, &'static str, &'static str);

fn event(kind: &str, uid: &str, ready: &str, container: &str) -> Event {
    let text = format!(
        r#"{{"type": "{kind}", "object": {{"metadata": {{"name": "p-{uid}", "uid": "{uid}"}}, "status": {{
            "conditions": [{{"type": "Initialized", "status": "True"}}, {{"type": "Ready", "status": "{ready}"}}],
            "containerStatuses": [{{"name": "one", "containerID": "{container}"}}]}}}}}}"#
    );
    serde_json::from_str(&text).unwrap()
}

fn pods(events: &[Said]) -> Pods {
    let mut pods = Pods::default();
    for (kind, uid, ready, container) in events {
        pods.observe(event(kind, uid, ready, container));
    }
    pods
}

#[test]
fn a_pod_runs_again_in_a_new_container() {
    let before = pods(&[("ADDED", "a", "True", "orlop://1")]);
    let cases: &[(&[Said], bool)] = &[
        // As before the cut: nobody has looked since.
        (&[("ADDED", "a", "True", "orlop://1"), ("ADDED", "b", "True", "orlop://2")], false),
        (&[("ADDED", "a", "False", "orlop://3"), ("ADDED", "b", "True", "orlop://2")], false),
        (&[("ADDED", "a", "True", "orlop://3"), ("ADDED", "b", "True", "orlop://2")], true),
        (&[("ADDED", "a", "True", "orlop://1"), ("MODIFIED", "a", "True", "orlop://3")], false),
        // Another pod took its place.
        (&[("ADDED", "c", "True", "orlop://3"), ("ADDED", "b", "True", "orlop://2")], false),
        (
            &[
                ("ADDED", "a", "True", "orlop://3"),
                ("ADDED", "b", "True", "orlop://2"),
                ("ADDED", "c", "False", ""),
            ],
            false,
        ),
        (
            &[
                ("ADDED", "a", "True", "orlop://3"),
                ("ADDED", "c", "False", ""),
                ("DELETED", "c", "False", ""),
                ("ADDED", "b", "True", "orlop://2"),
            ],
            true,
        ),
    ];
    for (events, expected) in cases {
        assert_eq!(pods(events).run_again(&before, 2), *expected, "{events:?}");
    }
}

#[test]
fn a_pod_without_a_status_does_not_run() {
    let text = r#"{"type": "ADDED", "object": {"metadata": {"name": "p", "uid": "a"}}}"#;
    let mut pods = Pods::default();
    pods.observe(serde_json::from_str(text).unwrap());
    assert!(!pods.run_again(&Pods::default(), 1));
}
