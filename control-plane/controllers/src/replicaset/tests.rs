//! Tables for the ReplicaSet's decisions.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodSpec, PodStatus, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference, Time};

use super::plan::{self, Scale};
use super::ranking;
use crate::claim::{Claim, decide};

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_000_000)
}

fn ago(seconds: i64) -> Time {
    Time(now() - SignedDuration::from_secs(seconds))
}

fn labels() -> Option<std::collections::BTreeMap<String, String>> {
    Some([("app".to_owned(), "web".to_owned())].into())
}

fn set(replicas: i32) -> ReplicaSet {
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some("web".into()),
            namespace: Some("ns".into()),
            uid: Some("set-uid".into()),
            generation: Some(3),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            selector: LabelSelector { match_labels: labels(), ..LabelSelector::default() },
            template: Some(PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: labels(), ..ObjectMeta::default() }),
                spec: Some(PodSpec::default()),
            }),
            ..ReplicaSetSpec::default()
        }),
        status: None,
    }
}

/// A running pod; readiness as (since how many seconds), absent for unready.
fn pod(name: &str, node: Option<&str>, phase: &str, ready: Option<i64>) -> Pod {
    Pod {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some("ns".into()),
            uid: Some(name.into()),
            labels: labels(),
            creation_timestamp: Some(ago(1000)),
            owner_references: Some(vec![OwnerReference {
                uid: "set-uid".into(),
                controller: Some(true),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec { node_name: node.map(str::to_owned), ..PodSpec::default() }),
        status: Some(PodStatus {
            phase: Some(phase.into()),
            conditions: ready.map(|seconds| {
                vec![PodCondition {
                    type_: "Ready".into(),
                    status: "True".into(),
                    last_transition_time: Some(ago(seconds)),
                    ..PodCondition::default()
                }]
            }),
            ..PodStatus::default()
        }),
    }
}

fn running(name: &str) -> Pod {
    pod(name, Some("node-1"), "Running", Some(100))
}

#[test]
fn pods_that_go_first_come_first() {
    let mut costly = running("costly");
    costly.metadata.annotations =
        Some([(ranking::ANNOTATION_DELETION_COST.to_owned(), "100".to_owned())].into());
    let mut restarted = running("restarted");
    if let Some(status) = &mut restarted.status {
        status.container_statuses =
            Some(vec![ContainerStatus { restart_count: 4, ..ContainerStatus::default() }]);
        if let Some(conditions) = &mut status.conditions {
            conditions[0].last_transition_time = Some(ago(5000));
        }
    }
    let mut steady = running("steady");
    if let Some(conditions) = steady.status.as_mut().and_then(|status| status.conditions.as_mut()) {
        conditions[0].last_transition_time = Some(ago(5000));
    }
    // From the first to go to the last; every neighbouring pair is one rule.
    let order = [
        pod("unassigned", None, "Pending", None),
        pod("pending", Some("node-1"), "Pending", None),
        pod("unknown", Some("node-1"), "Unknown", None),
        pod("unready", Some("node-1"), "Running", None),
        pod("crowded", Some("node-2"), "Running", Some(100)),
        pod("new", Some("node-1"), "Running", Some(10)),
        restarted,
        steady,
        costly,
    ];
    let related = HashMap::from([("node-1".to_owned(), 1), ("node-2".to_owned(), 2)]);
    let mut shuffled: Vec<Arc<Pod>> = order.iter().cloned().map(Arc::new).rev().collect();
    ranking::sort(&mut shuffled, &related, now());
    let names: Vec<&str> = shuffled.iter().map(|pod| pod.metadata.name.as_deref().unwrap()).collect();
    // Ready times of equal magnitude are ordered by uid, before restarts are compared.
    let expected =
        ["unassigned", "pending", "unknown", "unready", "crowded", "new", "restarted", "steady", "costly"];
    assert_eq!(names, expected);
}

#[test]
fn restarts_count_only_among_equally_ready_pods() {
    let mut restarted = running("z-restarted");
    if let Some(status) = &mut restarted.status {
        status.container_statuses =
            Some(vec![ContainerStatus { restart_count: 4, ..ContainerStatus::default() }]);
    }
    let calm = running("a-calm");
    assert!(ranking::compare(&restarted, &calm, &HashMap::new(), now()).is_lt());
}

#[test]
fn claims() {
    let selector = plan::selector(&set(1)).unwrap();
    let meta = set(1).metadata;
    let deleting_set = ObjectMeta { deletion_timestamp: Some(ago(1)), ..meta.clone() };
    let own = running("a");
    let mut renamed = running("b");
    renamed.metadata.labels = None;
    let mut orphan = running("c");
    orphan.metadata.owner_references = None;
    let mut dying_orphan = orphan.clone();
    dying_orphan.metadata.deletion_timestamp = Some(ago(1));
    let mut foreign = running("d");
    foreign.metadata.owner_references.as_mut().unwrap()[0].uid = "other".into();
    let table = [
        (&meta, &own, Claim::Own),
        (&meta, &renamed, Claim::Release),
        (&meta, &orphan, Claim::Adopt),
        (&meta, &dying_orphan, Claim::Ignore),
        (&meta, &foreign, Claim::Ignore),
        (&deleting_set, &own, Claim::Own),
        (&deleting_set, &renamed, Claim::Ignore),
        (&deleting_set, &orphan, Claim::Ignore),
    ];
    for (set, pod, expected) in table {
        assert_eq!(decide(set, &selector, &pod.metadata), expected, "{:?}", pod.metadata.name);
    }
}

#[test]
fn scaling() {
    let pods: Vec<Arc<Pod>> = (0..5).map(|number| Arc::new(running(&format!("p{number}")))).collect();
    let related = HashMap::new();
    for (replicas, burst, create, delete) in
        [(5, 500, 0, 0), (8, 500, 3, 0), (8, 2, 2, 0), (3, 500, 0, 2), (0, 500, 0, 5), (0, 4, 0, 4)]
    {
        match plan::scale(&set(replicas), &pods, &related, now(), burst) {
            Scale::Nothing => assert_eq!((create, delete), (0, 0)),
            Scale::Create(count) => assert_eq!((count, 0), (create, delete)),
            Scale::Delete(gone) => assert_eq!((0, gone.len()), (create, delete)),
        }
    }
}

#[test]
fn status_counts_and_waits_for_minimum_ready_time() {
    let mut set = set(3);
    if let Some(spec) = &mut set.spec {
        spec.min_ready_seconds = Some(30);
    }
    let mut going = running("going");
    going.metadata.deletion_timestamp = Some(ago(2));
    let pods: Vec<Arc<Pod>> = [
        pod("old", Some("n"), "Running", Some(100)),
        pod("fresh", Some("n"), "Running", Some(12)),
        pod("unready", Some("n"), "Running", None),
        pod("over", Some("n"), "Succeeded", None),
        going,
    ]
    .into_iter()
    .map(Arc::new)
    .collect();
    let status = plan::status(&set, &pods, None, now());
    assert_eq!(status.replicas, 3);
    assert_eq!(status.ready_replicas, Some(2));
    assert_eq!(status.available_replicas, Some(1));
    assert_eq!(status.fully_labeled_replicas, Some(3));
    assert_eq!(status.terminating_replicas, Some(1));
    assert_eq!(status.observed_generation, Some(3));
    assert_eq!(plan::recheck(&set, &pods, now()), Some(Duration::from_secs(18)));
}

#[test]
fn a_failure_becomes_a_condition_and_goes_again() {
    let mut set = set(1);
    let failed = plan::status(&set, &[], Some((true, "refused")), now());
    let conditions = failed.conditions.clone().unwrap();
    assert_eq!(conditions[0].reason.as_deref(), Some("FailedCreate"));
    assert_eq!(conditions[0].message.as_deref(), Some("refused"));
    set.status = Some(failed);
    assert_eq!(plan::status(&set, &[], None, now()).conditions, None);
}

#[test]
fn a_new_pod_is_owned_and_labelled() {
    let pod = plan::pod(&set(1)).unwrap();
    assert_eq!(pod.metadata.generate_name.as_deref(), Some("web-"));
    assert_eq!(pod.metadata.labels, labels());
    let owner = &pod.metadata.owner_references.unwrap()[0];
    assert_eq!((owner.kind.as_str(), owner.api_version.as_str()), ("ReplicaSet", "apps/v1"));
    assert_eq!((owner.controller, owner.block_owner_deletion), (Some(true), Some(true)));
}
