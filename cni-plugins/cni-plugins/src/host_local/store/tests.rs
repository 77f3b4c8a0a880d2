//! The store on disk: the reference format, crashes, and other implementations at work in between.

use std::{fs, net::IpAddr, path::Path};

use super::{Owner, Store};

fn ip(text: &str) -> IpAddr {
    text.parse().expect(text)
}

fn open(dir: &Path) -> Store {
    Store::open(dir, "pods").expect("a store")
}

fn lease(dir: &Path, owner: &Owner, address: &str) -> bool {
    let store = open(dir);
    let mut leasing = store.lease(owner).expect("a pending lease");
    let taken = leasing.try_take(ip(address), 0).expect("a writable folder");
    leasing.finish().expect("a writable folder");
    taken
}

fn files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir.join("pods")).expect("the folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn leases_have_the_reference_format() {
    let dir = tempfile::tempdir().expect("a folder");
    assert!(lease(dir.path(), &Owner::new("abc", "eth0"), "10.1.0.5"));
    assert_eq!(files(dir.path()), ["10.1.0.5", "last_reserved_ip.0", "lock"]);
    let read = |name: &str| fs::read_to_string(dir.path().join("pods").join(name)).expect(name);
    assert_eq!(read("10.1.0.5"), "abc\r\neth0");
    assert_eq!(read("last_reserved_ip.0"), "10.1.0.5");
    assert_eq!(open(dir.path()).last(0), Some(ip("10.1.0.5")));
    assert!(!lease(dir.path(), &Owner::new("other", "eth0"), "10.1.0.5"));
}

#[test]
fn what_is_not_finished_is_taken_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = open(dir.path());
    let mut leasing = store.lease(&Owner::new("abc", "eth0")).expect("a pending lease");
    assert!(leasing.try_take(ip("10.1.0.5"), 0).expect("a writable folder"));
    drop(leasing);
    assert_eq!(files(dir.path()), ["last_reserved_ip.0", "lock"]);
}

#[test]
fn a_crash_while_leasing_spoils_no_lease() {
    let dir = tempfile::tempdir().expect("a folder");
    let (a, b) = (Owner::new("a", "eth0"), Owner::new("b", "eth0"));
    let store = open(dir.path());
    let mut leasing = store.lease(&a).expect("a pending lease");
    assert!(leasing.try_take(ip("10.1.0.5"), 0).expect("a writable folder"));
    // As if the process ended here: the lease and its other name stay, the index is not confirmed.
    std::mem::forget(leasing);
    drop(store);
    assert!(lease(dir.path(), &b, "10.1.0.6"));
    assert_eq!(open(dir.path()).owned(&a).expect("a readable folder"), [ip("10.1.0.5")]);
    assert_eq!(open(dir.path()).owned(&b).expect("a readable folder"), [ip("10.1.0.6")]);
    open(dir.path()).release(&a).expect("a writable folder");
    assert_eq!(files(dir.path()), ["10.1.0.6", "last_reserved_ip.0", "lock"]);
}

#[test]
fn leases_of_other_implementations_are_seen() {
    let dir = tempfile::tempdir().expect("a folder");
    let owner = Owner::new("abc", "eth0");
    assert!(lease(dir.path(), &owner, "10.1.0.5"));
    assert_eq!(open(dir.path()).owned(&owner).expect("a readable folder"), [ip("10.1.0.5")]);
    let write = |name: &str, text: &str| fs::write(dir.path().join("pods").join(name), text).expect("a file");
    write("10.1.0.7", "def\r\neth0");
    write("10.1.0.8", "old");
    write("10.1.0.9", "abc\r\neth1\r\n");
    let owned =
        |id: &str, ifname: &str| open(dir.path()).owned(&Owner::new(id, ifname)).expect("a readable folder");
    assert_eq!(owned("def", "eth0"), [ip("10.1.0.7")]);
    assert_eq!(owned("old", "eth0"), [ip("10.1.0.8")]);
    assert_eq!(owned("abc", "eth1"), [ip("10.1.0.9")]);
    for (id, ifname) in [("def", "eth0"), ("old", "eth0"), ("abc", "eth1"), ("abc", "eth0"), ("none", "eth0")]
    {
        open(dir.path()).release(&Owner::new(id, ifname)).expect("a writable folder");
    }
    assert_eq!(files(dir.path()), ["last_reserved_ip.0", "lock"]);
}

#[test]
fn collection_keeps_what_is_wanted_and_removes_what_has_no_owner() {
    let dir = tempfile::tempdir().expect("a folder");
    assert!(lease(dir.path(), &Owner::new("keep", "eth0"), "10.1.0.5"));
    assert!(lease(dir.path(), &Owner::new("drop", "eth0"), "10.1.0.6"));
    fs::write(dir.path().join("pods/10.1.0.7"), "").expect("a file");
    open(dir.path()).collect(|owner| owner.container_id == "keep").expect("a writable folder");
    assert_eq!(files(dir.path()), ["10.1.0.5", "last_reserved_ip.0", "lock"]);
    assert!(open(dir.path()).owned(&Owner::new("drop", "eth0")).expect("a readable folder").is_empty());
}

/// Makes a lease unreadable without a trace in the folder: whoever reads every lease fails.
fn spoil(dir: &Path, address: &str) {
    let path = dir.join("pods").join(address);
    let time = dir.join("pods").metadata().and_then(|folder| folder.modified()).expect("the folder's time");
    fs::remove_file(&path).expect("a lease");
    fs::create_dir(&path).expect("a folder in its place");
    fs::File::open(dir.join("pods")).and_then(|folder| folder.set_modified(time)).expect("the time before");
}

#[test]
fn what_is_not_there_is_released_and_what_failed_is_forgotten_without_reading_every_lease() {
    let dir = tempfile::tempdir().expect("a folder");
    let (a, b) = (Owner::new("a", "eth0"), Owner::new("b", "eth0"));
    open(dir.path()).release(&a).expect("nothing to release");
    assert!(lease(dir.path(), &a, "10.1.0.5"));
    spoil(dir.path(), "10.1.0.5");
    open(dir.path()).release(&b).expect("nothing to release");
    open(dir.path()).release(&b).expect("still nothing");
    // Taken by somebody, taken and given back, and refused before anything was taken.
    assert!(!lease(dir.path(), &b, "10.1.0.5"));
    let store = open(dir.path());
    let mut leasing = store.lease(&b).expect("a pending lease");
    assert!(leasing.try_take(ip("10.1.0.6"), 0).expect("a writable folder"));
    drop(leasing);
    drop(store.lease(&b).expect("a pending lease"));
    drop(store);
    assert_eq!(open(dir.path()).owned(&a).expect("a lease"), [ip("10.1.0.5")]);
}

#[test]
fn an_index_that_is_broken_is_made_anew() {
    let dir = tempfile::tempdir().expect("a folder");
    let owner = Owner::new("abc", "eth0");
    assert!(lease(dir.path(), &owner, "10.1.0.5"));
    let index = dir.path().join(".pods.owners");
    assert_eq!(open(dir.path()).owned(&owner).expect("a readable folder"), [ip("10.1.0.5")]);
    assert!(index.join("abc:eth0").is_symlink());
    fs::remove_dir_all(&index).expect("the index");
    assert_eq!(open(dir.path()).owned(&owner).expect("a readable folder"), [ip("10.1.0.5")]);
    let entry = index.join("abc:eth0");
    // Of the time before, so that it is looked at.
    let time = index.metadata().and_then(|folder| folder.modified()).expect("the index's time");
    fs::remove_file(&entry).expect("its entry");
    std::os::unix::fs::symlink("nonsense", &entry).expect("a link");
    fs::File::open(&index).and_then(|folder| folder.set_modified(time)).expect("the time before");
    assert_eq!(open(dir.path()).owned(&owner).expect("a readable folder"), [ip("10.1.0.5")]);
}
