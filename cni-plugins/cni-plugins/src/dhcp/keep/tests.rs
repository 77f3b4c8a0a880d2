//! Files that are no leases.

use std::{fs, io::Write};

use serde_json::json;

use super::{FILE_LIMIT, Held, Keep, Owner};

fn held() -> Held {
    let held = json!({
        "owner": {"network": "lan", "container_id": "a", "ifname": "eth0"},
        "netns": "/run/netns/a", "mac": [2, 0, 0, 0, 0, 1], "options": {"provided": [], "requested": [1, 3]},
        "lease": {
            "address": "10.0.0.9", "prefix": 24, "server": "10.0.0.2", "gateway": null, "routes": [],
            "renew_at": 500, "rebind_at": 800, "expire_at": 1000,
        },
    });
    serde_json::from_value(held).expect("a lease")
}

#[test]
fn a_file_is_read_up_to_a_limit() {
    let folder = tempfile::tempdir().expect("a folder");
    let keep = Keep::beside(&folder.path().join("dhcp.sock")).expect("its folder");
    let held = held();
    keep.store(&held).expect("a file");
    assert_eq!(keep.all().expect("the leases"), std::slice::from_ref(&held));
    let path = keep.path(&held.owner);
    let length = fs::metadata(&path).expect("the file").len() as usize;
    let mut file = fs::OpenOptions::new().append(true).open(&path).expect("the file");
    file.write_all(&vec![b' '; FILE_LIMIT - length]).expect("a longer file");
    assert_eq!(keep.all().expect("the leases"), std::slice::from_ref(&held));
    file.write_all(b" ").expect("a longer file");
    assert_eq!(keep.all().expect("the leases"), []);
    assert!(path.exists());

    let provided = vec![(12, "x".repeat(FILE_LIMIT))];
    let options = super::Options { provided, ..held.options.clone() };
    let error = keep.store(&Held { options, ..held }).expect_err("what is not read is not written");
    assert!(error.to_string().contains("expected at most"), "{error}");
}

#[test]
fn times_of_another_boot_are_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let keep = Keep::beside(&folder.path().join("dhcp.sock")).expect("its folder");
    let held = held();
    for text in [json!(held), json!(super::Writing { boot: "another", held: &held })] {
        fs::write(keep.path(&held.owner), text.to_string()).expect("a file");
        let found = keep.all().expect("the leases").pop().expect("the lease");
        assert_eq!((found.owner, found.lease.left(0)), (held.owner.clone(), 0));
    }
}

#[test]
fn a_client_is_cut_between_characters() {
    let owner = Owner { network: "lan".to_owned(), container_id: "a".repeat(247), ifname: "aé".to_owned() };
    assert_eq!(owner.client_id(), format!("{}/lan/a", owner.container_id));
}

#[test]
fn a_folder_is_for_one_daemon() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = Keep::beside(&folder.path().join("dhcp.sock")).expect("its folder");
    let error = Keep::beside(&folder.path().join("other.sock")).expect_err("it is taken");
    assert!(error.to_string().contains("another daemon has the leases"), "{error}");
    drop(first);
    Keep::beside(&folder.path().join("other.sock")).expect("it is free");
}
