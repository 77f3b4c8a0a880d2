//! Transactions, reopening, bounded history, backups, and a writer that is killed again and again.

mod disk;
mod power;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use bytes::Bytes;

use super::*;
use crate::storage::Compare;

pub(super) fn put(key: &Key, value: &str) -> Write {
    Write::Put { key: key.clone(), value: Bytes::copy_from_slice(value.as_bytes()) }
}

pub(super) fn start(path: &Path, history: usize) -> (EmbeddedStore, Loaded, Arc<Mutex<Vec<Change>>>) {
    let mut opened = open(path, history).unwrap();
    let loaded = std::mem::take(&mut opened.loaded);
    let seen: Arc<Mutex<Vec<Change>>> = Arc::default();
    let sink = seen.clone();
    let store =
        opened.start(Box::new(move |changes| sink.lock().unwrap().extend_from_slice(changes))).unwrap();
    (store, loaded, seen)
}

pub(super) async fn commit(
    store: &EmbeddedStore,
    compares: Vec<Compare>,
    writes: Vec<Write>,
) -> Result<Revision, StorageError> {
    store.commit(Transaction { compares, writes }).await
}

/// Ends a store. Its writer thread closes the file afterwards; the file's lock says when.
pub(super) fn close(store: EmbeddedStore, path: &Path) -> Opened {
    drop(store);
    loop {
        match open(path, 10) {
            Ok(opened) => break opened,
            Err(OpenError::Database { .. }) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn a_transaction_compares_then_writes_all_or_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _, seen) = start(&directory.path().join("s"), 100);
    let (a, b) = (Key::new("pods", "x", "a"), Key::new("pods", "x", "b"));
    let absent = |key: &Key| Compare { key: key.clone(), expect: Expect::Absent };
    let at = |key: &Key, revision| Compare { key: key.clone(), expect: Expect::At(revision) };
    assert_eq!(commit(&store, vec![absent(&a)], vec![put(&a, "1")]).await.unwrap(), 1);
    let refused = commit(&store, vec![absent(&b), absent(&a)], vec![put(&b, "1"), put(&a, "2")]).await;
    assert!(matches!(refused, Err(StorageError::Conflict { key }) if key == a));
    assert_eq!(commit(&store, vec![at(&a, 1)], vec![put(&a, "2"), put(&b, "1")]).await.unwrap(), 3);
    assert!(commit(&store, vec![at(&a, 1)], vec![put(&a, "3")]).await.is_err());
    let revisions: Vec<_> = seen.lock().unwrap().iter().map(|change| change.revision).collect();
    assert_eq!(revisions, [1, 2, 3]);
}

#[tokio::test]
async fn a_reopened_store_has_its_state_and_a_bounded_history() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let key = |n: u64| Key::new("pods", "x", &n.to_string());
    let (store, ..) = start(&path, 10);
    for n in 0..50u64 {
        commit(&store, vec![], vec![put(&key(n % 5), &n.to_string())]).await.unwrap();
    }
    commit(&store, vec![], vec![Write::Delete { key: key(0), last: Bytes::from_static(b"45") }])
        .await
        .unwrap();
    let opened = close(store, &path);
    let loaded = &opened.loaded;
    assert_eq!((loaded.revision, loaded.history.len()), (51, 11.min(loaded.history.len())));
    assert!((10..=11).contains(&loaded.history.len()), "{}", loaded.history.len());
    assert_eq!(opened.writer.index.len(), 4);
    assert!(read_all(&opened.writer.database, &path).unwrap().len() < 20, "old records are removed");
}

#[tokio::test]
async fn a_backup_is_a_store_that_continues_far_behind_the_original() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let (store, ..) = start(&path, 10);
    let key = |n: u64| Key::new("pods", "x", &n.to_string());
    for n in 0..30 {
        commit(&store, vec![], vec![put(&key(n % 20), &n.to_string())]).await.unwrap();
    }
    let first = store.backup().await.unwrap();
    commit(&store, vec![], vec![put(&key(100), "after")]).await.unwrap();
    let copy = directory.path().join("copy");
    std::io::copy(&mut &first.file, &mut File::create(&copy).unwrap()).unwrap();
    let second = store.backup().await.unwrap();
    assert!(matches!(store.backup().await, Err(BackupError::Busy { limit: 2 })));
    drop((first, second));
    store.backup().await.unwrap();
    let report = check::check(&copy, |_, _| None).unwrap();
    let continues = 30 + backup::REVISION_GAP;
    assert_eq!(
        (report.revision, report.compacted, report.keys, report.closed),
        (continues, continues, 20, true)
    );
    let (restored, loaded, _) = start(&copy, 10);
    let live: Vec<_> = loaded.base.iter().map(|change| change.revision).collect();
    assert_eq!(live, (11..=30).collect::<Vec<_>>());
    assert_eq!((loaded.revision, loaded.history.len()), (continues, 0));
    let expect = Expect::At(30);
    let next = commit(&restored, vec![Compare { key: key(9), expect }], vec![put(&key(9), "next")]).await;
    assert_eq!(next.unwrap(), continues + 1);
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn an_empty_file_is_not_taken_for_a_new_store() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    File::create(&path).unwrap();
    assert!(matches!(open(&path, 10), Err(OpenError::Empty { .. })));
}

/// Not a test by itself: the child of the test below. It writes counters and prints each acknowledged one.
#[test]
fn kill_child() {
    let Ok(path) = std::env::var("ORLOP_STORE_KILL_CHILD") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (store, loaded, _) = start(Path::new(&path), 200);
        let mut n = loaded.revision;
        loop {
            let writes = (0..4u64).map(|lane| {
                let key = Key::new("counters", &lane.to_string(), &((n / 4) % 16).to_string());
                commit(&store, vec![], vec![put(&key, &n.to_string())])
            });
            for result in futures::future::join_all(writes).await {
                // One line per acknowledgement; line-buffered through a pipe by println's own flush on newline.
                println!("ack {}", result.unwrap());
            }
            n += 4;
        }
    });
}

#[test]
fn nothing_acknowledged_is_lost_by_kill_9() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    for round in 0..20u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "storage::embedded::tests::kill_child", "--nocapture"])
            .env("ORLOP_STORE_KILL_CHILD", &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = 0;
        // A different number of acknowledgements each round, so that the kill falls anywhere in the writer's loop.
        let wanted = 3 + (round * 37) % 61;
        let mut seen = 0;
        for line in lines {
            let Ok(line) = line else { break };
            let Some(number) = line.strip_prefix("ack ").and_then(|n| n.parse::<u64>().ok()) else {
                continue;
            };
            acknowledged = acknowledged.max(number);
            seen += 1;
            if seen == wanted {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let opened = open(&path, 200).unwrap();
        assert!(seen >= wanted, "round {round}: the child wrote {seen}");
        assert!(opened.loaded.revision >= acknowledged, "round {round}: {acknowledged} acknowledged");
        let newest = read_all(&opened.writer.database, &path).unwrap().last().unwrap().revision;
        assert!(newest >= acknowledged, "round {round}: record {newest}, acknowledged {acknowledged}");
    }
}
