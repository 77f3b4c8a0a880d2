//! Lists of the past, paging, and the torture test: every watcher from any revision sees exactly the right sequence.

use std::collections::BTreeMap;
use std::sync::Mutex;

use serde_json::{Value, json};

use super::*;
use crate::storage::embedded;
use crate::storage::{Storage, Transaction};

fn fields(value: &Value) -> Vec<(&'static str, String)> {
    vec![("spec.node", object::text(value, "/spec/node").to_owned())]
}

fn put(name: &str, node: &str) -> Write {
    let value = json!({"metadata": {"name": name, "namespace": "x"}, "spec": {"node": node}});
    Write::Put { key: Key::new("pods", "x", name), value: object::encode(&value) }
}

fn cache() -> Cache {
    Cache::new([("pods", fields as FieldValues)], Loaded::default())
}

fn on_node(node: &str) -> Filter {
    Filter { fields: FieldSelector::parse(&format!("spec.node={node}")).unwrap(), ..Filter::default() }
}

fn names(listed: &Listed) -> Vec<String> {
    listed.entries.iter().map(|entry| entry.key.parts().2.to_owned()).collect()
}

#[test]
fn an_object_that_leaves_a_filter_is_deleted_for_it() {
    let cache = cache();
    let mut watch = cache.watch("pods", on_node("a"), WatchStart::State).unwrap();
    for (revision, node) in [(1, "a"), (2, "a"), (3, "b"), (4, "a")] {
        cache.apply(&[Change { revision, write: put("p", node) }]);
    }
    let seen: Vec<_> = std::iter::from_fn(|| watch.events.try_recv().ok())
        .map(|event| (event.kind, event.entry.revision))
        .collect();
    let expected =
        [(EventType::Added, 1), (EventType::Modified, 2), (EventType::Deleted, 3), (EventType::Added, 4)];
    assert_eq!(seen, expected);
}

#[test]
fn pages_are_of_one_revision() {
    let cache = cache();
    for revision in 1..=5 {
        cache.apply(&[Change { revision, write: put(&format!("p{revision}"), "a") }]);
    }
    let page = Page { limit: 2, ..Page::default() };
    let first = cache.list("pods", &Filter::default(), &page).unwrap();
    assert_eq!((names(&first), first.more, first.revision), (vec!["p1".into(), "p2".into()], Some(3), 5));
    let gone = Write::Delete { key: Key::new("pods", "x", "p4"), last: Bytes::from_static(b"\"}}") };
    cache.apply(&[Change { revision: 6, write: gone }, Change { revision: 7, write: put("p9", "a") }]);
    let page = Page { at: Some(5), after: Some(first.entries[1].key.clone()), limit: 10 };
    let rest = cache.list("pods", &Filter::default(), &page).unwrap();
    assert_eq!((names(&rest), rest.more), (vec!["p3".into(), "p4".into(), "p5".into()], None));
    let late = cache.list("pods", &Filter::default(), &Page { at: Some(99), ..Page::default() });
    assert_eq!(late.unwrap_err(), ReadError::TooNew { wanted: 99, current: 7 });
}

#[test]
fn the_window_is_bounded_and_says_so() {
    let cache = cache();
    for revision in 1..=(WINDOW_CHANGES as u64 + 10) {
        cache.apply(&[Change { revision, write: put("p", "a") }]);
    }
    let old = cache.watch("pods", Filter::default(), WatchStart::After(5)).err();
    assert_eq!(old, Some(ReadError::TooOld { wanted: 5, oldest: 10 }));
    assert!(cache.watch("pods", Filter::default(), WatchStart::After(10)).is_ok());
}

#[test]
fn a_slow_watcher_is_dropped() {
    let cache = cache();
    let mut watch = cache.watch("pods", Filter::default(), WatchStart::State).unwrap();
    for revision in 1..=(WATCHER_QUEUE as u64 + 2) {
        cache.apply(&[Change { revision, write: put("p", "a") }]);
    }
    let received = std::iter::from_fn(|| watch.events.try_recv().ok()).count();
    assert_eq!(received, WATCHER_QUEUE);
    assert!(watch.events.is_closed());
}

/// Several writers write at random through a real store; watchers start at random revisions. Each must see exactly
/// what the log of changes says.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_watcher_sees_exactly_the_right_sequence() {
    const WRITERS: u64 = 4;
    const WRITES: u64 = 200;
    let directory = tempfile::tempdir().unwrap();
    let opened = embedded::open(&directory.path().join("s"), 10_000).unwrap();
    let cache = Arc::new(cache());
    let log: Arc<Mutex<Vec<Change>>> = Arc::default();
    let (sink_cache, sink_log) = (cache.clone(), log.clone());
    let store = Arc::new(
        opened
            .start(Box::new(move |changes| {
                sink_log.lock().unwrap().extend_from_slice(changes);
                sink_cache.apply(changes);
            }))
            .unwrap(),
    );
    let mut tasks = Vec::new();
    for writer in 0..WRITERS {
        let (store, cache) = (store.clone(), cache.clone());
        tasks.push(tokio::spawn(async move {
            let mut watches = Vec::new();
            let mut seed = writer * 7919 + 13;
            for _ in 0..WRITES {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let (name, node) = (format!("p{}", (seed >> 33) % 7), format!("n{}", (seed >> 40) % 3));
                let write = match (seed >> 50) % 4 {
                    0 => {
                        let put = put(&name, &node);
                        let Write::Put { key, value } = put else { unreachable!() };
                        match cache.get(&key) {
                            Some(_) => Write::Delete { key, last: value },
                            None => Write::Put { key, value },
                        }
                    }
                    _ => put(&name, &node),
                };
                let revision =
                    store.commit(Transaction { compares: vec![], writes: vec![write] }).await.unwrap();
                assert!(cache.revision() >= revision, "a writer sees its own write");
                if (seed >> 20) % 16 == 0 {
                    let since = revision.saturating_sub((seed >> 10) % 40);
                    let filter = if (seed >> 5) % 2 == 0 { Filter::default() } else { on_node(&node) };
                    let watch = cache.watch("pods", filter.clone(), WatchStart::After(since)).unwrap();
                    watches.push((since, filter, watch));
                }
            }
            watches
        }));
    }
    let mut watches = Vec::new();
    for task in tasks {
        watches.extend(task.await.unwrap());
    }
    let log = log.lock().unwrap();
    assert_eq!(log.len() as u64, WRITERS * WRITES);
    for (since, filter, mut watch) in watches {
        let initial = watch.initial.into_iter();
        let events = initial.chain(std::iter::from_fn(|| watch.events.try_recv().ok()));
        let seen: Vec<_> = events.map(|event| (event.entry.revision, event.kind)).collect();
        assert_eq!(seen, expected_events(&log, since, &filter), "since {since}");
    }
}

/// The specification, written independently of the cache.
fn expected_events(log: &[Change], since: Revision, filter: &Filter) -> Vec<(Revision, EventType)> {
    let mut matching: BTreeMap<Key, bool> = BTreeMap::new();
    let mut events = Vec::new();
    for change in log {
        let (key, now) = match &change.write {
            Write::Put { key, value } => {
                let value = object::decode(change.revision, value);
                let node = object::text(&value, "/spec/node").to_owned();
                (key, filter.fields.matches(|_| Some(node.as_str())))
            }
            Write::Delete { key, .. } => (key, false),
        };
        let before = matching.insert(key.clone(), now).unwrap_or(false);
        let kind = match (before, now) {
            (false, true) => EventType::Added,
            (true, true) => EventType::Modified,
            (true, false) => EventType::Deleted,
            (false, false) => continue,
        };
        if change.revision > since {
            events.push((change.revision, kind));
        }
    }
    events
}
