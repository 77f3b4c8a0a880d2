use super::*;

fn snapshot(lines: &[&str]) -> Snapshot {
    Snapshot(lines.iter().map(|line| (*line).to_owned()).collect())
}

#[test]
fn what_came_and_what_went_are_both_leaks() {
    let leaks = snapshot(&["link lo", "route a"]).leaks(&snapshot(&["link lo", "link veth1"]));
    assert_eq!(leaks, ["+ link veth1", "- route a"]);
}

#[test]
fn an_unchanged_host_has_none() {
    let host = snapshot(&["link lo"]);
    assert!(host.leaks(&host).is_empty());
}
