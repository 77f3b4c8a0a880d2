use super::*;

#[test]
fn a_skip_is_taken_from_the_passed() {
    let report = "<?xml?>\n<testsuites name=\"r\" tests=\"9\" failures=\"2\" errors=\"1\" uuid=\"x\">";
    let tally = read(report, "no SCTP\n").unwrap();
    assert_eq!(tally, Tally { passed: 5, failed: 3, skipped: vec!["no SCTP".into()] });
}

#[test]
fn no_report_means_no_test() {
    assert_eq!(read("", "").unwrap(), Tally::default());
}

#[test]
fn a_report_without_counts_is_an_error() {
    let error = read("<testsuites name=\"r\">", "").unwrap_err().to_string();
    assert_eq!(error, "<testsuites> has no tests");
}
