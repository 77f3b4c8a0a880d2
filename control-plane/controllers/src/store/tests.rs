//! The cache against scripted watch events.

use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::Event;

use super::{IndexId, Store};
use crate::key::ObjectKey;

const BY_COLOUR: IndexId = IndexId(0);

fn object(name: &str, uid: &str, version: u64, colour: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some("ns".into()),
            uid: Some(uid.into()),
            resource_version: Some(version.to_string()),
            labels: Some([("colour".to_owned(), colour.to_owned())].into()),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    }
}

fn colour(object: &ConfigMap) -> Vec<String> {
    object.metadata.labels.iter().flat_map(|labels| labels.get("colour").cloned()).collect()
}

/// A store and the log of its changes as "old uid@version -> new uid@version".
fn recorded() -> (Store<ConfigMap>, Arc<Mutex<Vec<String>>>) {
    let store = Store::new(vec![colour as super::IndexFn<ConfigMap>]);
    let log = Arc::new(Mutex::new(Vec::new()));
    let sink = log.clone();
    store.on_change(move |change| {
        let text = |state: &Option<Arc<ConfigMap>>| match state {
            Some(object) => format!(
                "{}@{}",
                object.metadata.uid.as_deref().unwrap_or("?"),
                object.metadata.resource_version.as_deref().unwrap_or("?")
            ),
            None => "-".to_owned(),
        };
        sink.lock().unwrap().push(format!("{} -> {}", text(&change.old), text(&change.new)));
    });
    (store, log)
}

fn take(log: &Arc<Mutex<Vec<String>>>) -> Vec<String> {
    let mut lines = std::mem::take(&mut *log.lock().unwrap());
    lines.sort();
    lines
}

fn list(store: &Store<ConfigMap>, objects: Vec<ConfigMap>) {
    store.apply(Event::Init);
    for object in objects {
        store.apply(Event::InitApply(object));
    }
    store.apply(Event::InitDone);
}

#[test]
fn a_new_list_tells_only_differences() {
    let (store, log) = recorded();
    list(&store, vec![object("a", "1", 1, "red"), object("b", "2", 2, "red"), object("c", "3", 3, "blue")]);
    assert_eq!(take(&log), ["- -> 1@1", "- -> 2@2", "- -> 3@3"]);
    list(&store, vec![object("a", "1", 1, "red"), object("b", "2", 7, "blue"), object("d", "4", 8, "red")]);
    assert_eq!(take(&log), ["- -> 4@8", "2@2 -> 2@7", "3@3 -> -"]);
    assert_eq!(store.index_len(BY_COLOUR, "red"), 2);
    assert_eq!(store.index_len(BY_COLOUR, "blue"), 1);
}

#[test]
fn an_object_that_replaced_another_is_two_changes() {
    let (store, log) = recorded();
    list(&store, vec![object("a", "1", 1, "red")]);
    take(&log);
    store.apply(Event::Apply(object("a", "9", 5, "blue")));
    assert_eq!(take(&log), ["- -> 9@5", "1@1 -> -"]);
    assert_eq!(store.index_len(BY_COLOUR, "red"), 0);
    assert_eq!(store.by_index(BY_COLOUR, "blue").len(), 1);
}

#[test]
fn a_repeated_event_changes_nothing() {
    let (store, log) = recorded();
    store.apply(Event::Apply(object("a", "1", 4, "red")));
    store.apply(Event::Apply(object("a", "1", 4, "red")));
    assert_eq!(take(&log), ["- -> 1@4"]);
    store.apply(Event::Delete(object("a", "1", 5, "red")));
    store.apply(Event::Delete(object("a", "1", 5, "red")));
    assert_eq!(take(&log), ["1@4 -> -"]);
    assert!(store.get(&ObjectKey::new("ns", "a")).is_none());
}

#[test]
fn an_own_write_is_seen_by_version_or_by_a_later_list() {
    let (store, _) = recorded();
    list(&store, vec![object("a", "1", 3, "red")]);
    let mark = store.mark(Some("5"));
    assert!(!store.has_seen(&mark));
    store.apply(Event::Apply(object("b", "2", 4, "red")));
    assert!(!store.has_seen(&mark));
    store.apply(Event::Apply(object("c", "3", 5, "red")));
    assert!(store.has_seen(&mark));

    let unreadable = store.mark(Some("not a number"));
    assert!(!store.has_seen(&unreadable));
    store.apply(Event::Init);
    let during = store.mark(Some("90"));
    store.apply(Event::InitDone);
    assert!(store.has_seen(&unreadable), "a list that began later shows it");
    assert!(!store.has_seen(&during), "that list may have begun before the write");
}
