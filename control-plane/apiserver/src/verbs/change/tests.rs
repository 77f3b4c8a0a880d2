//! What proposals come to.

use serde_json::json;

use super::*;
use crate::kinds::Registry;

fn kind(name: &str) -> &'static Kind {
    let registry = Registry::build().unwrap();
    registry.kinds.iter().find(|kind| kind.kind == name).unwrap()
}

fn map() -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1"}, "metadata": {"name": "m", "namespace": "x",
        "uid": "u", "resourceVersion": "5", "creationTimestamp": "2024-01-01T00:00:00Z"}})
}

#[test]
fn an_equal_object_is_not_written() {
    let mut proposed = map();
    proposed["metadata"] = json!({"name": "m", "namespace": "x"});
    assert_eq!(settle(kind("ConfigMap"), Part::Main, &map(), proposed).unwrap(), Settled::Unchanged);
}

#[test]
fn an_old_revision_and_another_uid_conflict() {
    for (field, value) in [("resourceVersion", "4"), ("uid", "v")] {
        let mut proposed = map();
        proposed["metadata"][field] = value.into();
        let error = settle(kind("ConfigMap"), Part::Main, &map(), proposed).unwrap_err();
        assert_eq!((error.code, error.reason), (409, "Conflict"), "{field}");
    }
}

#[test]
fn the_last_finalizer_removes() {
    let mut old = map();
    old["metadata"]["finalizers"] = json!(["a.b/c"]);
    old["metadata"]["deletionTimestamp"] = "2024-01-01T00:00:00Z".into();
    let mut proposed = old.clone();
    proposed["metadata"]["finalizers"] = json!([]);
    assert!(matches!(settle(kind("ConfigMap"), Part::Main, &old, proposed).unwrap(), Settled::Remove(_)));
    let mut added = old.clone();
    added["metadata"]["finalizers"] = json!(["a.b/c", "a.b/d"]);
    assert_eq!(settle(kind("ConfigMap"), Part::Main, &old, added).unwrap_err().code, 422);
}

#[test]
fn status_and_spec_are_written_apart() {
    let old = json!({"metadata": {"name": "r", "resourceVersion": "1", "generation": 1}, "status": {"replicas": 1},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}});
    let mut old = old;
    (kind("ReplicaSet").default)(&mut old);
    let mut both = old.clone();
    both["spec"]["replicas"] = 2.into();
    both["status"]["replicas"] = 9.into();
    let Settled::Write(main) = settle(kind("ReplicaSet"), Part::Main, &old, both.clone()).unwrap() else {
        panic!()
    };
    assert_eq!((&main["spec"]["replicas"], &main["status"]["replicas"]), (&json!(2), &json!(1)));
    assert_eq!(main["metadata"]["generation"], 2);
    let Settled::Write(status) = settle(kind("ReplicaSet"), Part::Status, &old, both).unwrap() else {
        panic!()
    };
    assert_eq!((&status["spec"]["replicas"], &status["status"]["replicas"]), (&json!(1), &json!(9)));
    assert_eq!(status["metadata"]["generation"], 1);
}

#[test]
fn what_was_stored_before_a_rule_came_can_still_be_written() {
    let file =
        |path: &str| json!({"name": "v", "configMap": {"name": "m", "items": [{"key": "k", "path": path}]}});
    let mut old = json!({"metadata": {"name": "r", "resourceVersion": "1", "finalizers": ["a.b/c"]},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i:1"}], "volumes": [file("../x")]}}}});
    (kind("ReplicaSet").default)(&mut old);
    assert!(!(kind("ReplicaSet").validate)(&old).is_empty(), "the rule is there");
    let settled = |change: &dyn Fn(&mut Value)| {
        let mut new = old.clone();
        change(&mut new);
        settle(kind("ReplicaSet"), Part::Main, &old, new)
    };
    let free = settled(&|new| new["metadata"]["finalizers"] = json!([]));
    assert!(matches!(free, Ok(Settled::Write(_))), "{free:?}");
    let scaled = settled(&|new| new["spec"]["replicas"] = 2.into());
    assert!(matches!(scaled, Ok(Settled::Write(_))), "{scaled:?}");
    let worse = settled(&|new| new["spec"]["template"]["spec"]["volumes"] = json!([file("../y")]));
    assert_eq!(worse.unwrap_err().code, 422);
}

#[test]
fn a_network_that_was_stored_before_a_rule_came_stays_until_it_changes() {
    let rules = |cidr: &str| json!([{"from": [{"ipBlock": {"cidr": cidr}}]}]);
    let mut old =
        json!({"metadata": {"name": "p", "resourceVersion": "1"}, "spec": {"ingress": rules("10.0.0.1/8")}});
    (kind("NetworkPolicy").default)(&mut old);
    let settled = |change: &dyn Fn(&mut Value)| {
        let mut new = old.clone();
        change(&mut new);
        settle(kind("NetworkPolicy"), Part::Main, &old, new)
    };
    let other = settled(&|new| new["spec"]["policyTypes"] = json!(["Ingress", "Egress"]));
    assert!(matches!(other, Ok(Settled::Write(_))), "{other:?}");
    let worse = settled(&|new| new["spec"]["ingress"] = rules("10.0.0.2/8"));
    assert_eq!(worse.unwrap_err().code, 422);
}
