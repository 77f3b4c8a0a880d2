//! Tables for garbage pods.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::plan::{is_unbound_leftover, surplus};

fn pod(name: &str, phase: &str, created: i64) -> Pod {
    Pod {
        metadata: ObjectMeta {
            name: Some(name.into()),
            creation_timestamp: Some(Time(Timestamp::UNIX_EPOCH + SignedDuration::from_secs(created))),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec::default()),
        status: Some(PodStatus { phase: Some(phase.into()), ..PodStatus::default() }),
    }
}

#[test]
fn the_oldest_terminated_pods_beyond_the_threshold_go() {
    let pods: Vec<Arc<Pod>> = [
        pod("c", "Succeeded", 30),
        pod("a", "Failed", 10),
        pod("running", "Running", 1),
        pod("b", "Succeeded", 20),
    ]
    .into_iter()
    .map(Arc::new)
    .collect();
    let names = |threshold: usize| -> Vec<String> {
        surplus(pods.clone(), threshold).iter().map(|pod| pod.metadata.name.clone().unwrap()).collect()
    };
    assert_eq!(names(1), ["a", "b"]);
    assert_eq!(names(2), ["a"]);
    assert!(names(3).is_empty());
    assert!(names(0).is_empty(), "0 switches it off");
}

#[test]
fn leftovers_are_deleted_pods_that_were_never_bound() {
    let mut waiting = pod("a", "Pending", 1);
    assert!(!is_unbound_leftover(&waiting));
    waiting.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    assert!(is_unbound_leftover(&waiting));
    waiting.spec.as_mut().unwrap().node_name = Some("n".into());
    assert!(!is_unbound_leftover(&waiting));
}
