//! Tables for `CNI_ARGS`.

use super::CniArgs;

#[test]
fn pairs_are_read_and_printed() {
    let args = CniArgs::parse("IgnoreUnknown=1;IP=10.1.2.3;K8S_POD_NAME=a;IP=10.1.2.4").expect("pairs");
    assert_eq!(args.get("IP"), Some("10.1.2.4"));
    assert_eq!(args.get("K8S_POD_NAME"), Some("a"));
    assert_eq!(args.get("MAC"), None);
    assert_eq!(args.ignores_unknown(), Ok(true));
    assert_eq!(args.to_string(), "IgnoreUnknown=1;IP=10.1.2.3;K8S_POD_NAME=a;IP=10.1.2.4");
    assert_eq!(CniArgs::parse(""), Ok(CniArgs::default()));
}

#[test]
fn what_is_no_pair_is_named() {
    for (text, pair) in [("IP", "IP"), ("A=1;=2", "=2"), ("A=1;B", "B"), ("A=1;", ""), ("A=1=2", "A=1=2")] {
        assert_eq!(CniArgs::parse(text).expect_err(text).pair, pair);
    }
    assert!(CniArgs::parse("IgnoreUnknown=maybe").expect("a pair").ignores_unknown().is_err());
}
