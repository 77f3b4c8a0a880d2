//! The cache on disk.

use std::{fs, os::unix::fs::PermissionsExt};

use serde_json::{Map, json};

use super::{Cache, Entry};
use crate::args::CniArgs;

fn entry(network: &str, container_id: &str) -> Entry {
    Entry {
        network: network.to_owned(),
        container_id: container_id.to_owned(),
        ifname: "eth0".to_owned(),
        netns: "/run/netns/a".to_owned(),
        config: b"{}".to_vec(),
        args: CniArgs::parse("IgnoreUnknown=1;IP=10.0.0.9").expect("pairs"),
        capability_args: Map::from_iter([("ips".to_owned(), json!(["10.0.0.9"]))]),
        result: None,
    }
}

#[test]
fn entries_read_back_and_are_found_by_attachment_and_by_network() {
    let dir = tempfile::tempdir().expect("a folder");
    let cache = Cache::new(dir.path());
    assert!(cache.find("a", "eth0").expect("no folder yet").is_empty());
    let begun = entry("pods", "a");
    cache.store(&begun).expect("a write");
    assert_eq!(cache.find("a", "eth0").expect("a read"), std::slice::from_ref(&begun));
    // Arguments and configurations are nobody else's business.
    let modes = ["results", "results/pods-a-eth0"]
        .map(|name| fs::metadata(dir.path().join(name)).expect("it is there").permissions().mode() & 0o777);
    assert_eq!(modes, [0o700, 0o600]);
    let finished =
        Entry { result: Some(Map::from_iter([("cniVersion".to_owned(), json!("1.0.0"))])), ..begun };
    cache.store(&finished).expect("a write");
    cache.store(&entry("pods", "b-a")).expect("a write");
    cache.store(&entry("pods-two", "c")).expect("a write");
    assert_eq!(cache.find("a", "eth0").expect("a read"), std::slice::from_ref(&finished));
    assert_eq!(cache.of_network("pods").expect("a read").len(), 2);
    cache.forget(&finished).expect("a removal");
    cache.forget(&finished).expect("nothing to remove");
    assert!(cache.find("a", "eth0").expect("a read").is_empty());
}

#[test]
fn files_of_libcni_are_read_and_others_are_passed_over() {
    let dir = tempfile::tempdir().expect("a folder");
    let results = dir.path().join("results");
    fs::create_dir(&results).expect("a folder");
    let theirs = json!({
        "kind": "cniCacheV1", "containerId": "a", "config": "e30=", "ifName": "eth0", "networkName": "pods",
        "netns": "/run/netns/a", "cniArgs": [["K8S_POD_NAME", "p"]], "capabilityArgs": {"mac": "x"},
        "result": {"cniVersion": "1.0.0", "dns": {}},
    });
    fs::write(results.join("pods-a-eth0"), theirs.to_string()).expect("a file");
    fs::write(results.join("x-a-eth0"), "{").expect("a file");
    let found = Cache::new(dir.path()).find("a", "eth0").expect("a read");
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].config, b"{}");
    assert_eq!(found[0].args.get("K8S_POD_NAME"), Some("p"));
    assert!(found[0].result.is_some());
}

#[test]
fn a_folder_that_was_open_to_others_is_closed() {
    let dir = tempfile::tempdir().expect("a folder");
    let results = dir.path().join("results");
    fs::create_dir(&results).expect("a folder");
    fs::set_permissions(&results, fs::Permissions::from_mode(0o755)).expect("its mode");
    Cache::new(dir.path()).store(&entry("pods", "a")).expect("a write");
    assert_eq!(fs::metadata(&results).expect("it is there").permissions().mode() & 0o777, 0o700);
}
