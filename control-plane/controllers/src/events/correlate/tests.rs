//! Tables for the correlation of events.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;

use super::{BURST, Correlator, JOINED_PREFIX, Recent, SIMILAR_LIMIT, Verdict};
use crate::events::{Happening, Severity};

fn happening(name: &str, message: &str) -> Happening {
    Happening {
        component: "test",
        regarding: ObjectReference {
            kind: Some("Pod".into()),
            namespace: Some("ns".into()),
            name: Some(name.into()),
            uid: Some(format!("uid-{name}")),
            ..ObjectReference::default()
        },
        severity: Severity::Normal,
        reason: "Tested",
        message: message.into(),
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_000_000 + seconds)
}

#[test]
fn equal_events_raise_a_count() {
    let mut correlator = Correlator::default();
    let Verdict::First { name, .. } = correlator.take(&happening("a", "m"), at(0)) else {
        panic!("the first is new")
    };
    for count in 2..5 {
        let verdict = correlator.take(&happening("a", "m"), at(count.into()));
        assert_eq!(verdict, Verdict::Repeat { name: name.clone(), message: "m".into(), count });
    }
    assert!(matches!(correlator.take(&happening("b", "m"), at(5)), Verdict::First { .. }));
}

#[test]
fn similar_events_are_joined() {
    let mut correlator = Correlator::default();
    let mut joined = 0;
    for number in 0..SIMILAR_LIMIT + 3 {
        let verdict = correlator.take(&happening("a", &format!("message {number}")), at(number as i64));
        let message = match verdict {
            Verdict::First { message, .. } | Verdict::Repeat { message, .. } => message,
            Verdict::Drop => panic!("not too many yet"),
        };
        assert_eq!(message.starts_with(JOINED_PREFIX), number + 1 >= SIMILAR_LIMIT, "{number}");
        joined += usize::from(message.starts_with(JOINED_PREFIX));
    }
    assert_eq!(joined, 4);
    let later = correlator.take(&happening("a", "much later"), at(10_000));
    assert!(matches!(later, Verdict::First { message, .. } if message == "much later"));
}

#[test]
fn an_object_is_cut_off_and_let_in_again() {
    let mut correlator = Correlator::default();
    let admitted = (0..60).filter(|_| correlator.take(&happening("a", "m"), at(0)) != Verdict::Drop).count();
    assert_eq!(admitted, BURST as usize);
    assert_ne!(correlator.take(&happening("b", "m"), at(0)), Verdict::Drop, "another object is free");
    assert_eq!(correlator.take(&happening("a", "m"), at(299)), Verdict::Drop);
    assert_ne!(correlator.take(&happening("a", "m"), at(301)), Verdict::Drop);
}

#[test]
fn an_expired_event_starts_again() {
    let mut correlator = Correlator::default();
    correlator.take(&happening("a", "m"), at(0));
    let Verdict::First { name, .. } = correlator.renew(&happening("a", "m"), "m".into(), at(1)) else {
        panic!("a renewed event is new")
    };
    let verdict = correlator.take(&happening("a", "m"), at(2));
    assert_eq!(verdict, Verdict::Repeat { name, message: "m".into(), count: 2 });
}

#[test]
fn memory_forgets_what_was_used_longest_ago() {
    let mut recent = Recent::new(2);
    recent.put("a", 1);
    recent.put("b", 2);
    assert_eq!(recent.get(&"a"), Some(&mut 1));
    recent.put("c", 3);
    assert_eq!(recent.get(&"b"), None);
    assert_eq!(*recent.get_or_put("a", 9), 1);
    assert_eq!(*recent.get_or_put("d", 9), 9);
    assert_eq!(recent.entries.len(), 2);
    assert_eq!(recent.order.len(), 2);
}
