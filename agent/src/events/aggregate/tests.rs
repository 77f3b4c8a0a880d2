use k8s_openapi::api::core::v1::ObjectReference;

use super::*;

fn report(object: &str, message: &str, second: i64) -> Report {
    Report {
        object: ObjectReference { name: Some(object.into()), ..ObjectReference::default() },
        kind: EventType::Normal,
        reason: "Started".into(),
        message: message.into(),
        at: Timestamp::from_second(second).unwrap(),
    }
}

fn write(known: &mut Aggregator, report: &Report) -> Decision {
    let decision = known.decide(report);
    known.written(report, &decision);
    decision
}

#[test]
fn a_repeat_raises_the_count() {
    let mut known = Aggregator::default();
    let Decision::Create { name } = write(&mut known, &report("a", "m", 1)) else { panic!("not new") };
    assert_eq!(write(&mut known, &report("a", "m", 2)), Decision::Repeat { name: name.clone(), count: 2 });
    assert_eq!(write(&mut known, &report("a", "m", 3)), Decision::Repeat { name, count: 3 });
    assert!(!write(&mut known, &report("a", "other", 4)).is_repeat());
    known.forget(&report("a", "m", 5));
    assert!(!known.decide(&report("a", "m", 5)).is_repeat());
}

#[test]
fn a_failed_write_is_not_remembered() {
    let known = Aggregator::default();
    known.decide(&report("a", "m", 1));
    assert!(!known.decide(&report("a", "m", 2)).is_repeat());
}

#[test]
fn one_noisy_object_is_limited_and_others_are_not() {
    let mut known = Aggregator::default();
    let written = (0..100).filter(|i| write(&mut known, &report("a", &i.to_string(), 0)) != Decision::Drop);
    assert_eq!(written.count(), 25);
    assert_ne!(write(&mut known, &report("b", "m", 0)), Decision::Drop);
    assert_ne!(write(&mut known, &report("a", "later", 300)), Decision::Drop);
}
