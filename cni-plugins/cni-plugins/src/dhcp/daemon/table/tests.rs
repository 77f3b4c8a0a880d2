//! What calls leave in the table, and who waits for whom.

use std::{
    future::poll_fn,
    path::Path,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use serde_json::json;

use super::{END_LIMIT, Shares, TROUBLE_PAUSE, Table, now};
use crate::dhcp::{
    flags::Flags,
    keep::{Held, Keep, Owner},
    lease::Next,
    talk::Question,
};

const LIMIT: Duration = Duration::from_secs(20);

/// With one of each at a time.
fn table(folder: &tempfile::TempDir) -> Arc<Table> {
    let keep = Keep::beside(&folder.path().join("dhcp.sock")).expect("its folder");
    Table::adopt(Flags::parse(&[]).expect("no flags"), keep, Shares::of(0)).expect("a table")
}

fn owner() -> Owner {
    Owner { network: "lan".to_owned(), container_id: "a".to_owned(), ifname: "eth0".to_owned() }
}

/// Lets a call go as far as it can, which is not to its end.
async fn waits(call: &mut (impl Future + Unpin)) -> bool {
    poll_fn(|context| Poll::Ready(Pin::new(&mut *call).poll(context).is_pending())).await
}

#[tokio::test]
async fn an_add_without_its_link_leaves_no_entry() {
    let folder = tempfile::tempdir().expect("a folder");
    let table = table(&folder);
    let error = table.answer(question("ADD")).await.expect_err("no namespace");
    assert!(error.to_string().contains("/nonexistent"), "{error}");
    assert_eq!(table.entries().len(), 0);
}

#[tokio::test]
async fn a_lease_waits_for_those_before_it_until_it_is_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let table = table(&folder);
    let first = table.turn(3600).await.expect("the one turn");
    tokio::select! {
        biased;
        _ = table.turn(3600) => panic!("a second turn"),
        () = tokio::task::yield_now() => {}
    }
    let over = tokio::time::timeout(LIMIT, table.turn(0)).await.expect("a turn of one that is over");
    assert_eq!(table.ends.available_permits(), END_LIMIT - 1);
    drop((first, over));
    drop(table.turn(3600).await.expect("the turn that was given back"));
}

fn question(verb: &str) -> Question {
    let question = json!({
        "protocol": 1, "verb": verb, "network": "lan", "container_id": "a", "ifname": "eth0",
        "netns": "/nonexistent", "options": {"provided": [], "requested": []}, "priority": null, "valid": [],
    });
    serde_json::from_value(question).expect("a question")
}

#[tokio::test]
async fn an_add_that_waits_leaves_no_entry_when_it_is_given_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let table = table(&folder);
    let _turn = table.adds.acquire().await.expect("the one turn");
    {
        let mut add = pin!(table.answer(question("ADD")));
        assert!(waits(&mut add).await);
        assert_eq!(table.entries().len(), 1);
        // It has not locked the entry, so that others need not wait for it; and they let it be.
        assert!(!waits(&mut pin!(table.answer(question("CHECK")))).await);
        assert_eq!(table.entries().len(), 1);
    }
    assert_eq!(table.entries().len(), 0);
    for verb in ["DEL", "GC"] {
        let mut adds = [Box::pin(table.answer(question("ADD"))), Box::pin(table.answer(question("ADD")))];
        for add in &mut adds {
            assert!(waits(add).await);
        }
        table.answer(question(verb)).await.expect("nothing that is held");
        for add in adds {
            let error = add.await.expect_err("no lease");
            assert!(error.to_string().contains("a DEL or GC"), "{error}");
        }
        assert_eq!(table.entries().len(), 0);
    }
}

#[tokio::test]
async fn who_waits_for_an_entry_finds_what_comes_into_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let table = table(&folder);
    let question = question("CHECK");
    let first = table.enter(owner()).expect("an entry");
    let held = first.entry.held.lock().await;
    let mut check = pin!(table.answer(question));
    assert!(waits(&mut check).await);
    drop(held);
    let entry = Arc::downgrade(&first.entry);
    drop(first);
    assert_eq!(table.entries().get(&owner()).map(Arc::as_ptr), Some(entry.as_ptr()));
    check.await.expect_err("no lease");
    assert_eq!(table.entries().len(), 0);
}

fn held(netns: &Path, renew_at: u64) -> Held {
    let later = now() + 1000;
    let held = json!({
        "owner": {"network": "lan", "container_id": "a", "ifname": "eth0"},
        "netns": netns, "mac": [2, 0, 0, 0, 0, 1], "options": {"provided": [], "requested": []},
        "lease": {
            "address": "10.0.0.9", "prefix": 24, "server": "10.0.0.2", "gateway": null, "routes": [],
            "renew_at": renew_at, "rebind_at": later, "expire_at": later,
        },
    });
    serde_json::from_value(held).expect("a lease")
}

#[tokio::test]
async fn a_del_that_ends_with_the_daemon_leaves_the_lease_to_the_next_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let keep = Keep::beside(&folder.path().join("dhcp.sock")).expect("its folder");
    let file = keep.path(&owner());
    keep.store(&held(Path::new("/nonexistent"), now() + 1000)).expect("a file");
    drop(keep);
    let table = table(&folder);
    let turn = table.releases.acquire().await.expect("the one turn");
    assert!(waits(&mut pin!(table.answer(question("DEL")))).await);
    assert!(file.exists());
    drop(turn);
    table.answer(question("DEL")).await.expect("it is given back");
    assert!(!file.exists());
}

#[tokio::test]
async fn a_lease_is_not_tried_again_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    // Longer than a file's name can be, which says nothing about the namespace.
    let mut held = Some(held(&folder.path().join("n".repeat(300)), 0));
    assert_eq!(table(&folder).step(&mut held).await, Some(0));
    let next = held.expect("the lease").lease.next(now());
    assert!(matches!(next, Next::Wait(1..=TROUBLE_PAUSE)), "{next:?}");
}

#[test]
fn leases_are_counted_from_the_boot() {
    let uptime = std::fs::read_to_string("/proc/uptime").expect("the uptime");
    let uptime: u64 = uptime.split('.').next().and_then(|seconds| seconds.parse().ok()).expect("seconds");
    let now = super::now();
    assert!((uptime..=uptime + 60).contains(&now), "{now}, after {uptime}");
}

#[tokio::test]
async fn a_del_takes_files_along_that_are_no_leases() {
    let folder = tempfile::tempdir().expect("a folder");
    let leases = folder.path().join("dhcp");
    let count = || std::fs::read_dir(&leases).expect("the folder").count();
    let owner = owner();
    let keep = Keep::beside(&folder.path().join("dhcp.sock")).expect("its folder");
    let unreadable = keep.path(&owner);
    drop(keep);
    std::fs::write(&unreadable, "{").expect("a file");
    let table = table(&folder);
    assert_eq!((table.entries().len(), count()), (0, 1));
    std::fs::write(unreadable.with_extension("new"), "{").expect("what a failed store leaves");
    table.release(&owner).await;
    assert_eq!(count(), 0);
}
