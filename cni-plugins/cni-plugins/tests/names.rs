//! The executable under the names that it is installed under, and under others.

use std::{
    os::unix::fs::symlink,
    process::{Command, Output},
};

use serde_json::Value;

/// Runs the executable under another name, from a folder of its own.
fn run(name: &str, arguments: &[&str], verb: Option<&str>) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(name);
    symlink(env!("CARGO_BIN_EXE_cni-plugins"), &path).expect("a link");
    let mut command = Command::new(path);
    command.args(arguments).env_remove("CNI_COMMAND").envs(verb.map(|verb| ("CNI_COMMAND", verb)));
    command.output().expect("it starts")
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("text")
}

#[test]
fn every_name_is_its_plugin() {
    for name in cni_plugins::programs::names() {
        let answer = run(name, &[], Some("VERSION"));
        let document: Value = serde_json::from_slice(&answer.stdout).expect("a document");
        assert_eq!(
            (answer.status.success(), &document["cniVersion"]),
            (true, &Value::from("1.1.0")),
            "{name}"
        );
        let about = run(name, &[], None);
        let told = text(about.stderr);
        assert!(about.status.success() && about.stdout.is_empty(), "{name}");
        assert!(told.starts_with(&format!("CNI {name} plugin of Orlop ")), "{told}");
    }
}

#[test]
fn the_names_are_the_references() {
    let names = "bandwidth bridge dhcp dummy firewall flannel host-device host-local ipvlan loopback macvlan portmap ptp sbr static \
                 tuning vlan vrf";
    assert_eq!(cni_plugins::programs::names().collect::<Vec<_>>().join(" "), names);
    let listed = text(run("cni-plugins", &["list"], None).stdout);
    assert_eq!(listed.split_whitespace().collect::<Vec<_>>().join(" "), names);
}

#[test]
fn another_name_is_refused_and_told_the_names() {
    for verb in [None, Some("VERSION")] {
        let refused = run("cni-plugins", &[], verb);
        assert!(!refused.status.success() && refused.stdout.is_empty());
        let told = text(refused.stderr);
        assert!(
            told.starts_with("no CNI plugin is named cni-plugins: ") && told.contains(", vlan, vrf"),
            "{told}"
        );
    }
}

#[test]
fn the_daemon_is_a_role_of_dhcp() {
    let told = text(run("dhcp", &["daemon", "-colour"], None).stderr);
    assert!(told.starts_with("dhcp daemon: unknown argument \"-colour\""), "{told}");
}
