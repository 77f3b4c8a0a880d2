//! Our plugins against the reference plugins: the same calls on twin hosts, and then the same answers and the same state.
//!
//! The rows are in `tests/differential`, one table a plugin. A row's `accepted` lists each difference that is meant, with its
//! reason; one that does not show up is a failure too, so that the list stays true. `accepted.json` has those of all rows.
//!
//! While working on a table: `ORLOP_ROWS=text` runs only rows whose name contains the text, and prints what both said.

mod case;
mod difference;
mod look;
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
    difference::differences,
    twin::{Implementation, Twin, find},
};
use super::node::bin_dir;

/// The folder of the reference plugins' executables.
const REFERENCE: &str = "ORLOP_REFERENCE_PLUGINS";
/// Differences that are accepted in every row.
const EVERYWHERE: &str = "accepted";
/// Set in virtual machines, which are slow: only rows are run that need something of the kernel that another may lack.
const ONLY_NEEDY: &str = "ORLOP_ONLY_NEEDY_ROWS";
/// See the module.
const ROWS: &str = "ORLOP_ROWS";

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
    compare_between(table, &theirs, &ours);
}

fn compare_between(table: &str, theirs: &Implementation, ours: &Implementation) {
    let rows = std::env::var(ROWS).ok();
    let mut cases: Vec<Case> = load(table);
    cases.retain(|case| rows.as_deref().is_none_or(|rows| case.name.contains(rows)));
    if std::env::var_os(ONLY_NEEDY).is_some() {
        cases.retain(|case| case.needs.is_some());
    }
    let everywhere: Vec<Accepted> = load(EVERYWHERE);
    let mut failures = Vec::new();
    for case in &cases {
        if let Some(kind) = case.needs.as_deref().filter(|kind| !kernel_has(kind)) {
            harness::skip::skip(&format!("{}: the kernel has no links of kind {kind}", case.name));
            continue;
        }
        let expected = Twin::new(case, theirs).go();
        let found = Twin::new(case, ours).go();
        if rows.is_some() {
            for (expected, found) in expected.iter().zip(&found) {
                eprintln!("{}: {}\n- {}\n+ {}", case.name, expected.what, expected.raw, found.raw);
            }
        }
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

/// Whether a link of this kind (or a bridge with this option) can be made; in a namespace of its own, which takes it along.
fn kernel_has(kind: &str) -> bool {
    let netns = linux::netns::create("/run/netns/probe").expect("a namespace");
    let mut add = twin::netns_exec("probe");
    add.args(["ip", "link", "add", "probe0"]);
    if ["vlan", "ipvlan", "macvlan"].contains(&kind) {
        let made = twin::netns_exec("probe").args(["ip", "link", "add", "parent0", "type", "veth"]).status();
        assert!(made.is_ok_and(|status| status.success()), "a pair to stand on");
        add.args(["link", "parent0"]);
    }
    match kind {
        "vlan" => add.args(["type", kind, "id", "5"]),
        "vrf" => add.args(["type", kind, "table", "5"]),
        "vlan_filtering" => add.args(["type", "bridge", kind, "1"]),
        _ => add.args(["type", kind]),
    };
    let has = add.output().is_ok_and(|output: std::process::Output| output.status.success());
    linux::netns::remove(netns.path()).expect("its name is removed");
    let _ = std::fs::remove_dir("/run/netns");
    has
}

#[test]
fn the_reference_runs() {
    let reference = std::env::var_os(REFERENCE).expect("set by `cargo xtask test`");
    let output = Command::new(Path::new(&reference).join("bridge")).output().expect("it starts");
    let about = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(about.contains("CNI bridge plugin"), "{about}");
}

#[test]
fn every_table_runs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential");
    let there = std::fs::read_dir(folder).expect("the tables").map(|entry| entry.expect("an entry").path());
    let there = there.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()));
    let there: BTreeSet<String> = there.filter(|name| name != EVERYWHERE).collect();
    assert_eq!(there, RUNNING.iter().map(|name| (*name).to_owned()).collect());
}

/// A test for each table.
macro_rules! tables {
    ($($test:ident: $table:literal,)+) => {
        const RUNNING: &[&str] = &[$($table),+];
        $(
            #[test]
            fn $test() {
                compare($table);
            }
        )+
    };
}

tables! {
    the_protocol: "protocol",
    every_verb_in_every_version: "versions",
    loopback: "loopback",
    host_local: "host-local",
    host_local_configurations: "host-local-configuration",
    bridge: "bridge",
    bridge_in_every_version: "bridge-versions",
    bridge_as_a_gateway: "bridge-gateways",
    bridge_with_routes: "bridge-routes",
    bridge_from_add_to_del: "bridge-lifecycle",
    bridge_after_changes: "bridge-check",
    bridge_with_bad_values: "bridge-bad-values",
    bridge_with_rules_of_the_packet_filter: "bridge-nftables",
    bridge_with_vlans: "bridge-vlan",
    bandwidth: "bandwidth",
    dummy: "dummy",
    firewall: "firewall",
    host_device: "host-device",
    ipvlan: "ipvlan",
    macvlan: "macvlan",
    portmap: "portmap",
    ptp: "ptp",
    sbr: "sbr",
    static_addresses: "static",
    tuning: "tuning",
    vlan: "vlan",
    vrf: "vrf",
}
