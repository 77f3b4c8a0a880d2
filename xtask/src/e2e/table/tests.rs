use super::{Outcome, Report, Verdict, print};
use crate::test::Tally;

fn outcome(check: &str, verdict: Verdict) -> Outcome {
    Outcome { check: check.to_owned(), seconds: 7, verdict }
}

fn passed(note: &str) -> Verdict {
    Verdict::Passed { note: note.to_owned() }
}

#[test]
fn a_table_has_a_row_for_each_check_and_says_what_did_not_run() {
    let first = Report {
        kernel: "6.1".to_owned(),
        outcomes: vec![
            outcome("boot", passed("")),
            outcome("ready", Verdict::Failed { error: "no".to_owned() }),
            outcome("demo", Verdict::Skipped { reason: "ready failed".to_owned() }),
        ],
    };
    let second = Report {
        kernel: "7".to_owned(),
        outcomes: vec![outcome("boot", passed("")), outcome("bpf tests", passed("40 tests"))],
    };
    assert!(first.failed());
    assert!(!second.failed());
    let expected = "\
check      6.1          7
boot       ok 7 s       ok 7 s
ready      FAILED 7 s   -
demo       not run      -
bpf tests  -            ok 7 s, 40 tests
total      FAILED 21 s  ok 14 s
";
    assert_eq!(print(&[first, second]), expected);
}

#[test]
fn what_failed_or_did_not_run_is_counted() {
    let report = Report {
        kernel: "6.1".to_owned(),
        outcomes: vec![
            outcome("host tests", passed("50 tests")),
            outcome("ready", Verdict::Failed { error: "no".to_owned() }),
            outcome("demo", Verdict::Skipped { reason: "it needs ready".to_owned() }),
            Outcome::of_stage("killed".to_owned()),
        ],
    };
    let mut tally = Tally::default();
    report.count(&mut tally);
    let skipped = ["kernel 6.1: demo: it needs ready"];
    assert_eq!(tally, Tally { passed: 1, failed: 2, skipped: skipped.map(str::to_owned).to_vec() });
}
