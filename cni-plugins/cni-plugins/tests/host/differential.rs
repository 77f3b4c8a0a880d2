//! Our plugins against the reference plugins: the same calls on twin hosts, and then the same answers and the same state.
//!
//! The rows are in `tests/differential`, one table a plugin. A row's `accepted` lists each difference that is meant, with its
//! reason; one that does not show up is a failure too, so that the list stays true. `accepted.json` has those of all rows.

mod case;
mod observe;
mod twin;

use std::{
    collections::BTreeSet,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use self::{
    case::{Accepted, Case, load},
    twin::{Implementation, Seen, Twin, find},
};
use super::node::bin_dir;

/// The folder of the reference plugins' executables.
const REFERENCE: &str = "ORLOP_REFERENCE_PLUGINS";

/// Runs a table and reports every difference of every row.
fn compare(table: &str) {
    harness::private_host::require();
    let reference = std::env::var_os(REFERENCE).expect("set by `cargo xtask test`");
    let tools = tempfile::tempdir().expect("a folder");
    let empty = tools.path().join("none");
    std::fs::create_dir(&empty).expect("a folder");
    symlink(find("nft"), tools.path().join("nft")).expect("a link");
    let theirs = Implementation { plugins: PathBuf::from(reference), tools: tools.path().to_owned() };
    // Ours get no tools at all: they start none.
    let ours = Implementation { plugins: bin_dir().to_owned(), tools: empty };
    let cases: Vec<Case> = load(table);
    let everywhere: Vec<Accepted> = load("accepted");
    let mut failures = Vec::new();
    for case in &cases {
        if let Some(kind) = case.needs.as_deref().filter(|kind| !kernel_has(kind)) {
            harness::skip::skip(&format!("{}: the kernel has no links of kind {kind}", case.name));
            continue;
        }
        let expected = Twin::new(case, &theirs).go();
        let found = Twin::new(case, &ours).go();
        let differences = differences(case, &everywhere, &expected, &found);
        if !differences.is_empty() {
            failures.push(format!("== {}\n{}", case.name, differences.join("\n")));
        }
    }
    let count = failures.len();
    assert!(
        failures.is_empty(),
        "{count} of {} rows differ (- reference, + ours)\n{}",
        cases.len(),
        failures.join("\n")
    );
}

/// Whether a link of this kind can be made; in a namespace of its own, which takes it along.
fn kernel_has(kind: &str) -> bool {
    let netns = linux::netns::create("/run/netns/probe").expect("a namespace");
    let mut add = twin::netns_exec("probe");
    add.args(["ip", "link", "add", "probe0"]);
    if ["vlan", "ipvlan", "macvlan"].contains(&kind) {
        let made = twin::netns_exec("probe").args(["ip", "link", "add", "parent0", "type", "veth"]).status();
        assert!(made.is_ok_and(|status| status.success()), "a pair to stand on");
        add.args(["link", "parent0"]);
    }
    add.args(["type", kind]);
    match kind {
        "vlan" => drop(add.args(["id", "5"])),
        "vrf" => drop(add.args(["table", "5"])),
        _ => {}
    }
    let has = add.output().is_ok_and(|output: std::process::Output| output.status.success());
    linux::netns::remove(netns.path()).expect("its name is removed");
    let _ = std::fs::remove_dir("/run/netns");
    has
}

fn differences(case: &Case, everywhere: &[Accepted], expected: &[Seen], found: &[Seen]) -> Vec<String> {
    let mut unused: BTreeSet<&str> = case.accepted.iter().map(|accepted| accepted.line.as_str()).collect();
    let mut report = Vec::new();
    for (expected, found) in expected.iter().zip(found) {
        let mut lines = Vec::new();
        let answers = [expected, found].map(|seen| seen.state.roles.answer(&seen.answer));
        if answers[0] != answers[1] {
            lines.push(format!("  - {}", answers[0]));
            lines.push(format!("  + {}", answers[1]));
        }
        let sets = [expected, found].map(|seen| seen.state.lines.iter().collect::<BTreeSet<_>>());
        lines.extend(sets[0].difference(&sets[1]).map(|line| format!("  - {line}")));
        lines.extend(sets[1].difference(&sets[0]).map(|line| format!("  + {line}")));
        lines.retain(|line| {
            let mut all = case.accepted.iter().chain(everywhere);
            let accepted = all.find(|accepted| accepted.line.split(" … ").all(|part| line.contains(part)));
            if let Some(accepted) = accepted {
                unused.remove(accepted.line.as_str());
            }
            accepted.is_none()
        });
        if !lines.is_empty() {
            report.push(format!("{}\n{}", expected.what, lines.join("\n")));
            report.push(format!("  reference said: {}", expected.raw.replace('\n', " ")));
            report.push(format!("  ours said: {}", found.raw.replace('\n', " ")));
        }
    }
    report.extend(unused.into_iter().map(|line| format!("accepted, but not seen: {line}")));
    report
}

#[test]
fn reference_is_the_release_that_the_tables_are_for() {
    let reference = std::env::var_os(REFERENCE).expect("set by `cargo xtask test`");
    let output = Command::new(Path::new(&reference).join("bridge")).output().expect("it starts");
    let about = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(about.contains("CNI bridge plugin"), "{about}");
}

#[test]
fn bridge() {
    compare("bridge");
}

#[test]
fn bandwidth() {
    compare("bandwidth");
}
