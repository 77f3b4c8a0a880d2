//! Sound stores, and stores that are wrong in every way that a check can see.

use bytes::Bytes;

use super::super::tests::{close, commit, put, start};
use super::*;

/// The tests' values are their key's name.
fn audit(key: &Key, value: &[u8]) -> Option<String> {
    (value != key.parts().2.as_bytes()).then(|| "another value".to_owned())
}

fn key(name: &str) -> Key {
    Key::new("pods", "x", name)
}

/// A store of 30 keys, of which one is deleted, with a history of 10 changes.
async fn made(path: &Path) {
    let (store, ..) = start(path, 10);
    for n in 0..30u64 {
        let name = n.to_string();
        commit(&store, vec![], vec![put(&key(&name), &name)]).await.unwrap();
    }
    commit(&store, vec![], vec![Write::Delete { key: key("3"), last: Bytes::from_static(b"3") }])
        .await
        .unwrap();
    drop(close(store, path));
}

fn change(path: &Path, change: impl FnOnce(&redb::WriteTransaction)) {
    let database = Database::open(path).unwrap();
    let transaction = database.begin_write().unwrap();
    change(&transaction);
    transaction.commit().unwrap();
}

#[tokio::test]
async fn a_sound_store_is_described_and_not_changed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    made(&path).await;
    let before = std::fs::read(&path).unwrap();
    let report = check(&path, audit).unwrap();
    assert_eq!((report.revision, report.keys, report.closed), (31, 29, true));
    assert_eq!(
        report.records,
        report.keys + 2 + report.obsolete,
        "live keys, the put and the tombstone of the deleted one"
    );
    assert!(std::fs::read(&path).unwrap() == before);
}

#[tokio::test]
async fn a_store_in_use_is_refused_and_can_be_read_by_two() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let (store, ..) = start(&path, 10);
    assert!(matches!(check(&path, audit), Err(CheckError::InUse { .. })));
    drop(close(store, &path));
    let held = builder().create_with_backend(Overlay::new(File::open(&path).unwrap()).unwrap()).unwrap();
    check(&path, audit).unwrap();
    assert!(matches!(super::super::open(&path, 10), Err(super::super::OpenError::Database { .. })));
    drop(held);
}

#[test]
fn other_files_are_not_stores() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    assert!(matches!(check(&path, audit), Err(CheckError::Open { .. })));
    for contents in [&b""[..], b"{}", &[7; 9000]] {
        std::fs::write(&path, contents).unwrap();
        assert!(matches!(check(&path, audit), Err(CheckError::NotAStore { .. })), "{}", contents.len());
        assert!(std::fs::read(&path).unwrap() == contents);
    }
    assert!(matches!(check(directory.path(), audit), Err(CheckError::NotAStore { .. })));
    std::fs::remove_file(&path).unwrap();
    drop(Database::create(&path).unwrap());
    let error = check(&path, audit).unwrap_err().to_string();
    assert!(error.ends_with("damaged: Table 'records' does not exist"), "{error}");
}

#[tokio::test]
async fn broken_promises_are_named() {
    type Break = fn(&redb::WriteTransaction);
    let cases: [(Break, &str); 7] = [
        (|t| drop(t.open_table(RECORDS).unwrap().remove(25).unwrap()), "record 25: missing from the history"),
        (
            |t| {
                let mut records = t.open_table(RECORDS).unwrap();
                [30, 31].iter().for_each(|revision| drop(records.remove(revision).unwrap()));
            },
            "records 30 to 31: missing from the history",
        ),
        (
            |t| drop(t.open_table(RECORDS).unwrap().insert(12, &b"\x01\xff"[..]).unwrap()),
            "record 12: does not parse",
        ),
        (
            |t| {
                let record = Record::encode(&put(&key("7"), "8"));
                t.open_table(RECORDS).unwrap().insert(8, record.as_slice()).unwrap();
            },
            "record 8: key \"pods/x/7\": another value",
        ),
        (
            |t| {
                let record = Record::encode(&put(&Key("7".into()), ""));
                t.open_table(RECORDS).unwrap().insert(8, record.as_slice()).unwrap();
            },
            "record 8: key \"7\": not of the form kind/namespace/name",
        ),
        (
            |t| drop(t.open_table(META).unwrap().insert(REVISION, 30).unwrap()),
            "record 31: newer than the store's revision 30",
        ),
        (
            |t| drop(t.open_table(META).unwrap().insert(COMPACTED, 40).unwrap()),
            "compacted up to 40, behind the store's revision 31",
        ),
    ];
    let directory = tempfile::tempdir().unwrap();
    for (number, (breaks, expected)) in cases.into_iter().enumerate() {
        let path = directory.path().join(number.to_string());
        made(&path).await;
        change(&path, breaks);
        let error = check(&path, audit).unwrap_err().to_string();
        assert_eq!(error, format!("check {}: damaged: {expected}", path.display()));
    }
}

/// Every page of the store is hit once: either the check says so, or what the store says is as before (a free page).
#[tokio::test]
async fn a_damaged_page_is_found_or_does_not_matter() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    made(&path).await;
    let (sound, whole) = (check(&path, audit).unwrap(), std::fs::read(&path).unwrap());
    let mut damaged = 0;
    for page in 0..whole.len() / 4096 {
        let at = page * 4096 + (page * 37) % 320;
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        if bytes == whole || whole[page * 4096..][..4096].iter().all(|byte| *byte == 0) {
            continue;
        }
        std::fs::write(&path, &bytes).unwrap();
        match check(&path, audit) {
            Ok(report) => assert_eq!(Report { closed: true, ..report }, sound, "byte {at}"),
            Err(_) => damaged += 1,
        }
    }
    assert!(damaged >= 2, "{damaged} of the pages mattered");
}

#[tokio::test]
async fn damage_of_any_sectors_is_an_answer_and_never_a_panic() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    made(&path).await;
    let whole = std::fs::read(&path).unwrap();
    let used = whole.chunks(512).filter(|sector| sector.iter().any(|byte| *byte != 0)).count();
    let mut damaged = 0;
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut contents = whole.clone();
        let mut sectors: Vec<_> =
            contents.chunks_mut(512).filter(|sector| sector.iter().any(|byte| *byte != 0)).collect();
        for _ in 0..random.usize(1..4) {
            let sector = random.usize(..used);
            random.fill(sectors[sector]);
        }
        std::fs::write(&path, contents).unwrap();
        damaged += usize::from(check(&path, audit).is_err());
        // A sector may be one that nobody reads; whatever is not read says nothing.
        drop(super::super::open(&path, 10));
    }
    assert!(damaged > 50, "{damaged} of 300; much of the file is pages that nothing leads to");
}
