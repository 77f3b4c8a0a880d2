//! Tables for the conditions of a dying namespace.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::NamespaceStatus;

use super::plan::{Remaining, Report, status};

fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds)
}

fn says(status: &NamespaceStatus, kind: &str) -> (String, String, String) {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let found = conditions.iter().find(|condition| condition.type_ == kind).expect("the condition is there");
    (found.status.clone(), found.reason.clone().unwrap(), found.message.clone().unwrap())
}

fn text(status: &str, reason: &str, message: &str) -> (String, String, String) {
    (status.to_owned(), reason.to_owned(), message.to_owned())
}

#[test]
fn conditions_tell_what_is_left() {
    let report = Report {
        discovery: None,
        errors: vec!["x".to_owned()],
        remaining: vec![
            Remaining {
                kind: "pods.".to_owned(),
                count: 2,
                finalizers: [("example.com/a".to_owned(), 1)].into(),
            },
            Remaining {
                kind: "deployments.apps".to_owned(),
                count: 1,
                finalizers: [("example.com/a".to_owned(), 1)].into(),
            },
        ],
    };
    let first = status(None, &report, at(10));
    assert_eq!(first.phase.as_deref(), Some("Terminating"));
    assert_eq!(
        says(&first, "NamespaceContentRemaining"),
        text(
            "True",
            "SomeResourcesRemain",
            "Some resources are remaining: deployments.apps has 1 resource instances, pods. has 2 resource instances"
        )
    );
    assert_eq!(
        says(&first, "NamespaceFinalizersRemaining"),
        text(
            "True",
            "SomeFinalizersRemain",
            "Some content in the namespace has finalizers remaining: example.com/a in 2 resource instances"
        )
    );
    assert_eq!(says(&first, "NamespaceDeletionContentFailure").1, "ContentDeletionFailed");
    assert_eq!(says(&first, "NamespaceDeletionDiscoveryFailure").1, "ResourcesDiscovered");
    assert_eq!(status(Some(&first), &report, at(20)), first, "nothing new, nothing changed");
    let done = status(Some(&first), &Report::default(), at(30));
    assert_eq!(
        says(&done, "NamespaceContentRemaining"),
        text("False", "ContentRemoved", "All content successfully removed")
    );
}
