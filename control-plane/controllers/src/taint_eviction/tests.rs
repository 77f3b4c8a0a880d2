//! Tables for the time that pods may stay.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodSpec, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::{Verdict, plan};

const DEFAULT: Duration = Duration::from_secs(300);

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_000_000)
}

fn taint(key: &str, effect: &str, added: i64) -> Taint {
    Taint {
        key: key.into(),
        effect: effect.into(),
        time_added: Some(Time(now() - SignedDuration::from_secs(added))),
        value: None,
    }
}

fn pod(tolerations: &[(&str, Option<i64>)]) -> Pod {
    let tolerations = tolerations.iter().map(|(key, seconds)| Toleration {
        key: Some((*key).into()),
        operator: Some("Exists".into()),
        toleration_seconds: *seconds,
        ..Toleration::default()
    });
    Pod {
        spec: Some(PodSpec { tolerations: Some(tolerations.collect()), ..PodSpec::default() }),
        ..Pod::default()
    }
}

#[test]
fn pods_leave_when_their_time_is_over() {
    const NOT_READY: &str = "node.kubernetes.io/not-ready";
    let after = |seconds| Verdict::LeavesAfter(Duration::from_secs(seconds));
    let table = [
        (pod(&[]), vec![], Verdict::Stays),
        (pod(&[]), vec![taint("example.com/a", "NoSchedule", 0)], Verdict::Stays),
        (pod(&[]), vec![taint("example.com/a", "NoExecute", 0)], Verdict::LeavesNow),
        (pod(&[("example.com/a", None)]), vec![taint("example.com/a", "NoExecute", 0)], Verdict::Stays),
        (pod(&[("example.com/a", Some(60))]), vec![taint("example.com/a", "NoExecute", 20)], after(40)),
        (
            pod(&[("example.com/a", Some(60))]),
            vec![taint("example.com/a", "NoExecute", 60)],
            Verdict::LeavesNow,
        ),
        (
            pod(&[("example.com/a", Some(0))]),
            vec![taint("example.com/a", "NoExecute", 0)],
            Verdict::LeavesNow,
        ),
        (pod(&[]), vec![taint(NOT_READY, "NoExecute", 100)], after(200)),
        (pod(&[(NOT_READY, Some(10))]), vec![taint(NOT_READY, "NoExecute", 4)], after(6)),
        (pod(&[(NOT_READY, None)]), vec![taint(NOT_READY, "NoExecute", 10_000)], Verdict::Stays),
        (
            pod(&[("example.com/a", Some(100))]),
            vec![taint("example.com/a", "NoExecute", 0), taint(NOT_READY, "NoExecute", 250)],
            after(50),
        ),
    ];
    for (pod, taints, expected) in table {
        assert_eq!(plan(&pod, &taints, DEFAULT, now()), expected, "{taints:?}");
    }
}

#[test]
fn pods_that_go_anyway_are_left_alone() {
    let mut going = pod(&[]);
    going.metadata.deletion_timestamp = Some(Time(now()));
    assert_eq!(plan(&going, &[taint("example.com/a", "NoExecute", 0)], DEFAULT, now()), Verdict::Stays);
}
