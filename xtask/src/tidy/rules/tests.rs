use super::*;

const MEMBERS: &[&str] = &["agent", "apiserver", "controllers", "harness", "linux", "runtime", "shim"];

#[test]
fn the_node_and_the_control_plane_share_no_crate() {
    assert!(dependency(MEMBERS, "apiserver", "linux", false).is_some());
    assert!(dependency(MEMBERS, "controllers", "apiserver", false).is_some());
    assert_eq!(dependency(MEMBERS, "agent", "runtime", false), None);
    assert_eq!(dependency(MEMBERS, "agent", "serde", false), None);
}

#[test]
fn only_the_shim_links_libcontainer() {
    assert!(dependency(MEMBERS, "runtime", "libcontainer", false).is_some());
    assert_eq!(dependency(MEMBERS, "shim", "libcontainer", false), None);
}

#[test]
fn every_crate_may_test_with_the_harness() {
    assert_eq!(dependency(MEMBERS, "runtime", "harness", true), None);
    assert!(dependency(MEMBERS, "runtime", "harness", false).is_some());
}

#[test]
fn a_second_tls_provider_is_found() {
    assert!(tls_providers(["registry#aws-lc-rs@1.0.0"].into_iter()).is_some());
    assert_eq!(tls_providers(["registry#ring@0.17.0"].into_iter()), None);
}

#[test]
fn files_are_named_opened_and_kept_pure() {
    assert_eq!(file(Path::new("a/src/mod.rs"), "//! x").len(), 1);
    assert_eq!(file(Path::new("a/src/utils.rs"), "//! x").len(), 1);
    assert_eq!(file(Path::new("a/src/x.rs"), "fn x() {}").len(), 1);
    assert_eq!(file(Path::new("a/src/x/tests.rs"), "fn x() {}").len(), 0);
    assert_eq!(file(Path::new("a/src/plan.rs"), "//! x\nuse std::fs;").len(), 1);
    assert_eq!(file(Path::new("a/src/x.rs"), "//! Counts. Pure.\nuse std::fs;").len(), 1);
    assert_eq!(file(Path::new("a/src/x.rs"), "//! Counts; `y` is pure.\nuse std::fs;").len(), 0);
}

#[test]
fn a_pure_module_may_know_addresses_but_no_sockets() {
    assert_eq!(file(Path::new("a/src/model.rs"), "//! x\nuse std::net::Ipv4Addr;"), Vec::<String>::new());
    assert_eq!(file(Path::new("a/src/model.rs"), "//! x\nuse std::net::UdpSocket;").len(), 1);
}

#[test]
fn unsafe_code_is_expected_in_few_crates_only() {
    let text = "//! x\n#![expect(unsafe_code, reason = \"y\")]";
    assert_eq!(file(Path::new("runtime/linux/src/a.rs"), text).len(), 0);
    assert_eq!(file(Path::new("agent/src/a.rs"), text).len(), 1);
    assert_eq!(file(Path::new("runtime/linux-more/src/a.rs"), text).len(), 1);
    assert_eq!(file(Path::new("agent/src/a.rs"), "//! no unsafe_code here").len(), 0);
}
