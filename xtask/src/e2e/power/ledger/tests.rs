use super::super::plan::{Deed, Job, content};
use super::{Found, Ledger};

fn ask(ledger: &mut Ledger, deed: Deed, names: &[&str], round: u64) {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    ledger.ask(&Job { deed, names }, round);
}

fn found(name: &str, revision: u64, round: u64) -> Found {
    Found { name: name.to_owned(), revision, content: content(name, round) }
}

/// Of round 1: `kept`, `changed` and `dropped` at revisions 11 to 13, seen at 20.
fn ledger() -> Ledger {
    let mut ledger = Ledger::default();
    ask(&mut ledger, Deed::Create, &["kept", "changed", "dropped"], 1);
    for line in ["kept 11", "changed 12", "dropped 13"] {
        ledger.acknowledge(line).unwrap();
    }
    let all = vec![found("kept", 11, 1), found("changed", 12, 1), found("dropped", 13, 1)];
    ledger.compare(20, all).unwrap();
    ledger
}

/// Round 2: `changed` is replaced at 21, `dropped` deleted.
fn changed() -> Ledger {
    let mut ledger = ledger();
    ask(&mut ledger, Deed::Replace, &["changed"], 2);
    ask(&mut ledger, Deed::Delete, &["dropped"], 2);
    ledger.acknowledge("changed 21").unwrap();
    ledger.acknowledge("configmap/dropped").unwrap();
    ledger
}

#[test]
fn acknowledged_writes_and_deletions_are_kept() {
    let mut ledger = changed();
    ledger.compare(22, vec![found("kept", 11, 1), found("changed", 21, 2)]).unwrap();
    assert_eq!((ledger.acknowledged, ledger.unheard), (5, 0));
    assert_eq!(ledger.living(), ["changed", "kept"]);
}

#[test]
fn what_was_not_acknowledged_may_have_happened_or_not() {
    for happened in [false, true] {
        let mut ledger = ledger();
        ask(&mut ledger, Deed::Create, &["new"], 2);
        ask(&mut ledger, Deed::Replace, &["changed"], 2);
        ask(&mut ledger, Deed::Delete, &["dropped"], 2);
        let all = if happened {
            vec![found("kept", 11, 1), found("changed", 22, 2), found("new", 21, 2)]
        } else {
            vec![found("kept", 11, 1), found("changed", 12, 1), found("dropped", 13, 1)]
        };
        ledger.compare(23, all.clone()).unwrap();
        assert_eq!(ledger.unheard, if happened { 3 } else { 0 });
        // From now on it is known.
        ledger.compare(23, all.clone()).unwrap();
        ledger.compare(23, all[..all.len() - 1].to_vec()).unwrap_err();
    }
}

#[test]
fn every_breach_of_a_promise_is_found() {
    let kept = || found("kept", 11, 1);
    let cases = [
        (22, vec![kept()], "changed is lost; its revision 21 was acknowledged"),
        (22, vec![kept(), found("changed", 12, 1)], "changed is at revision 12"),
        (22, vec![kept(), found("changed", 21, 1)], "changed is at revision 21 with"),
        (22, vec![kept(), found("changed", 20, 2)], "changed is at revision 20 with"),
        (
            22,
            vec![kept(), found("changed", 21, 2), found("dropped", 13, 1)],
            "dropped is there at revision 13; its deletion was acknowledged",
        ),
        (22, vec![kept(), found("changed", 21, 2), found("other", 15, 1)], "other is there, and nobody"),
        (20, vec![kept(), found("changed", 21, 2)], "the store is at revision 20, and had told 21"),
    ];
    for (revision, all, expected) in cases {
        let error = changed().compare(revision, all).unwrap_err();
        assert!(error.starts_with(expected), "{error} instead of {expected}");
    }
}

#[test]
fn what_is_half_written_or_older_than_the_request_is_found() {
    let mut half = found("new", 21, 2);
    half.content.truncate(4);
    for new in [half, found("new", 20, 2), found("new", 22, 2)] {
        let mut ledger = ledger();
        ask(&mut ledger, Deed::Create, &["new"], 2);
        let revision = new.revision;
        let all = vec![found("kept", 11, 1), found("changed", 12, 1), found("dropped", 13, 1), new];
        let error = ledger.compare(21, all).unwrap_err();
        assert!(error.starts_with(&format!("new holds at revision {revision} what nobody wrote")), "{error}");
    }
}

#[test]
fn a_revision_is_not_given_twice() {
    let mut ledger = ledger();
    ask(&mut ledger, Deed::Create, &["new"], 2);
    let error = ledger.acknowledge("new 20").unwrap_err();
    assert_eq!(error, "new got revision 20 of a store that had been at 20");
}

#[test]
fn other_lines_are_no_acknowledgements() {
    let mut ledger = changed();
    for line in ["", "kept", "kept eleven", "kept 30", "configmap/kept", "nobody 30"] {
        ledger.acknowledge(line).unwrap_err();
    }
}
