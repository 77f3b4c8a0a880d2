//! The graph and the decisions, in circles too.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PropagationPolicy;

use super::graph::{Effect, FINALIZER_FOREGROUND, FINALIZER_ORPHAN, Graph, Identity};
use super::plan::{Action, Fate, Wait, plan, wait};
use crate::key::ObjectKey;

fn identity(uid: &str) -> Identity {
    Identity {
        api_version: "v1".into(),
        kind: "Thing".into(),
        key: ObjectKey::new("ns", uid),
        uid: uid.into(),
    }
}

fn owned_by(owners: &[&str]) -> ObjectMeta {
    let references = owners.iter().map(|uid| OwnerReference {
        api_version: "v1".into(),
        kind: "Thing".into(),
        name: (*uid).into(),
        uid: (*uid).into(),
        block_owner_deletion: Some(true),
        controller: None,
    });
    ObjectMeta { owner_references: Some(references.collect()), ..ObjectMeta::default() }
}

fn deleting(mut meta: ObjectMeta, finalizer: &str) -> ObjectMeta {
    meta.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    meta.finalizers = Some(vec![finalizer.to_owned()]);
    meta
}

fn checks(effects: BTreeSet<Effect>) -> Vec<String> {
    effects
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::Check(uid) => Some(uid),
            Effect::Orphan(_) => None,
        })
        .collect()
}

#[test]
fn an_owner_that_was_never_seen_is_asked_for() {
    let mut graph = Graph::default();
    assert_eq!(checks(graph.observe(identity("pod"), &owned_by(&["set"]))), ["set"]);
    assert!(graph.get("set").is_some_and(|item| item.is_virtual));
    assert!(checks(graph.observe(identity("set"), &owned_by(&[]))).is_empty());
    assert!(graph.get("set").is_some_and(|item| !item.is_virtual));
    assert_eq!(graph.dependents("set").len(), 1);
    let pod = graph.get("pod").cloned().unwrap();
    assert!(graph.is_held(&pod));
}

#[test]
fn dependents_of_what_is_gone_are_looked_at() {
    let mut graph = Graph::default();
    graph.observe(identity("set"), &owned_by(&[]));
    graph.observe(identity("a"), &owned_by(&["set"]));
    graph.observe(identity("b"), &owned_by(&["set"]));
    assert_eq!(checks(graph.forget("set")), ["a", "b"]);
    let a = graph.get("a").cloned().unwrap();
    assert!(!graph.is_held(&a));
    graph.forget("a");
    assert!(graph.get("set").is_some(), "still named");
    graph.forget("b");
    assert!(graph.is_empty(), "nobody names it any more");
}

#[test]
fn a_foreground_deletion_looks_at_dependents_and_at_itself() {
    let mut graph = Graph::default();
    graph.observe(identity("set"), &owned_by(&[]));
    graph.observe(identity("a"), &owned_by(&["set"]));
    let effects = graph.observe(identity("set"), &deleting(owned_by(&[]), FINALIZER_FOREGROUND));
    assert_eq!(checks(effects), ["a", "set"]);
    assert_eq!(wait("set", &graph.dependents("set")), Wait::For(vec!["a".to_owned()]));
    assert_eq!(checks(graph.forget("a")), ["set"], "the owner has one less to wait for");
    assert_eq!(wait("set", &graph.dependents("set")), Wait::Over);
}

#[test]
fn dependents_that_do_not_block_are_not_waited_for() {
    let mut graph = Graph::default();
    graph.observe(identity("set"), &owned_by(&[]));
    let mut loose = owned_by(&["set"]);
    loose.owner_references.as_mut().unwrap()[0].block_owner_deletion = None;
    graph.observe(identity("a"), &loose);
    assert_eq!(wait("set", &graph.dependents("set")), Wait::Over);
}

#[test]
fn an_orphaning_deletion_sets_dependents_free() {
    let mut graph = Graph::default();
    graph.observe(identity("set"), &owned_by(&[]));
    graph.observe(identity("a"), &owned_by(&["set"]));
    let effects = graph.observe(identity("set"), &deleting(owned_by(&[]), FINALIZER_ORPHAN));
    assert_eq!(effects, BTreeSet::from([Effect::Orphan("set".to_owned())]));
    graph.observe(identity("a"), &owned_by(&[]));
    assert!(graph.dependents("set").is_empty());
}

#[test]
fn a_circle_of_owners_comes_apart() {
    let mut graph = Graph::default();
    graph.observe(identity("a"), &owned_by(&["b"]));
    graph.observe(identity("b"), &owned_by(&["a"]));
    graph.observe(identity("a"), &deleting(owned_by(&["b"]), FINALIZER_FOREGROUND));
    // b waits for nobody yet, but its owner a waits for it, and a is its dependent as well.
    let dependents = graph.dependents("b");
    let action = plan(&owned_by(&["a"]), &[("a".to_owned(), Fate::Waiting)], &dependents);
    assert_eq!(action, Action::Delete { policy: PropagationPolicy::Foreground, unblock: true });
    graph.observe(identity("b"), &deleting(owned_by(&["a"]), FINALIZER_FOREGROUND));
    // Unblocked, a has nothing to wait for; once it is gone, b has not either.
    let mut unblocked = deleting(owned_by(&["a"]), FINALIZER_FOREGROUND);
    unblocked.owner_references.as_mut().unwrap()[0].block_owner_deletion = Some(false);
    assert_eq!(checks(graph.observe(identity("b"), &unblocked)), ["a"]);
    assert_eq!(wait("a", &graph.dependents("a")), Wait::Over);
    assert!(checks(graph.forget("a")).contains(&"b".to_owned()));
    assert!(graph.dependents("b").is_empty());
    assert_eq!(wait("b", &graph.dependents("b")), Wait::Over);
    graph.forget("b");
    assert!(graph.is_empty());
}

#[test]
fn decisions() {
    let meta = ObjectMeta::default();
    let orphan = ObjectMeta { finalizers: Some(vec![FINALIZER_ORPHAN.to_owned()]), ..ObjectMeta::default() };
    let fate = |uid: &str, fate: Fate| (uid.to_owned(), fate);
    let delete = |policy: PropagationPolicy| Action::Delete { policy, unblock: false };
    let table = [
        (&meta, vec![], Action::Nothing),
        (&meta, vec![fate("a", Fate::Solid)], Action::Nothing),
        (&meta, vec![fate("a", Fate::Gone)], delete(PropagationPolicy::Background)),
        (&orphan, vec![fate("a", Fate::Gone)], delete(PropagationPolicy::Orphan)),
        (&meta, vec![fate("a", Fate::Waiting)], delete(PropagationPolicy::Background)),
        (
            &meta,
            vec![fate("a", Fate::Solid), fate("b", Fate::Gone), fate("c", Fate::Waiting)],
            Action::Disown(vec!["b".to_owned(), "c".to_owned()]),
        ),
    ];
    for (meta, owners, expected) in table {
        assert_eq!(plan(meta, &owners, &[]), expected, "{owners:?}");
    }
}
