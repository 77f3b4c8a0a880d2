//! Tables for the conditions of a dying namespace.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::NamespaceStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::Event;

use super::leftovers::{Left, News};
use super::plan::{Remaining, Report, status};
use crate::bare::Bare;

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

fn object(name: &str, finalizers: &[&str]) -> Bare {
    let finalizers = finalizers.iter().map(|finalizer| (*finalizer).to_owned()).collect();
    Bare {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            finalizers: Some(finalizers),
            ..ObjectMeta::default()
        },
    }
}

#[test]
fn leftovers_are_told_when_they_change_and_when_the_last_is_gone() {
    let mut left = Left::default();
    let listed = [Event::Init, Event::InitApply(object("a", &["x"])), Event::InitApply(object("b", &["x"]))];
    for event in listed {
        assert_eq!(left.observe(event), News::Nothing);
    }
    let cases = [
        (Event::InitDone, News::Nothing),
        (Event::Apply(object("a", &["x"])), News::Nothing),
        (Event::Apply(object("a", &[])), News::Changed),
        (Event::Delete(object("c", &[])), News::Nothing),
        (Event::Delete(object("a", &[])), News::Changed),
        (Event::Delete(object("b", &[])), News::Gone),
    ];
    for (event, news) in cases {
        let shown = format!("{event:?}");
        assert_eq!(left.observe(event), news, "{shown}");
    }
}

#[test]
fn leftovers_that_went_while_nobody_watched_are_missed_by_the_next_list() {
    let mut left = Left::default();
    for event in [Event::Init, Event::InitApply(object("a", &[])), Event::InitApply(object("b", &[]))] {
        left.observe(event);
    }
    left.observe(Event::InitDone);
    for event in [Event::Init, Event::InitApply(object("b", &[]))] {
        left.observe(event);
    }
    assert_eq!(left.observe(Event::InitDone), News::Changed);
    left.observe(Event::Init);
    assert_eq!(left.observe(Event::InitDone), News::Gone);
}
