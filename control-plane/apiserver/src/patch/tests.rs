//! Tables of patches.

use serde_json::json;

use super::*;
use crate::schema::source;

fn strategic(kind: &str, object: Value, patch: Value) -> Result<Value, ApiError> {
    let schemas = Schemas::build(&source::definitions());
    let root = schemas.find(kind).unwrap();
    apply(&schemas, root, PatchType::Strategic, &object, &patch)
}

const POD: &str = "io.k8s.api.core.v1.Pod";
const DEPLOYMENT: &str = "io.k8s.api.apps.v1.Deployment";

#[test]
fn lists_merge_by_key() {
    let pod = json!({"spec": {"containers": [{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]}});
    for (patch, expected) in [
        (
            json!({"spec": {"containers": [{"name": "a", "image": "2"}]}}),
            json!({"containers": [{"name": "a", "image": "2", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]}),
        ),
        (
            json!({"spec": {"containers": [{"name": "c"}, {"name": "b", "$patch": "delete"}],
                "$setElementOrder/containers": [{"name": "c"}, {"name": "a"}]}}),
            json!({"containers": [{"name": "c"}, {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}]}),
        ),
        (
            json!({"spec": {"containers": [{"name": "z"}, {"$patch": "replace"}]}}),
            json!({"containers": [{"name": "z"}]}),
        ),
        (
            json!({"spec": {"containers": [{"name": "a", "env": [{"name": "X", "$patch": "delete"}, {"name": "Y"}]}]}}),
            json!({"containers": [{"name": "a", "image": "1", "env": [{"name": "Y"}]}, {"name": "b"}]}),
        ),
        (json!({"spec": {"containers": null}}), json!({})),
    ] {
        assert_eq!(strategic(POD, pod.clone(), patch.clone()).unwrap()["spec"], expected, "{patch}");
    }
    assert!(strategic(POD, pod, json!({"spec": {"containers": [{"image": "x"}]}})).is_err());
}

#[test]
fn primitives_and_retained_keys() {
    let object = json!({"metadata": {"finalizers": ["a", "b"]},
        "spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]},
        "spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    let expected =
        json!({"metadata": {"finalizers": ["b", "c"]}, "spec": {"strategy": {"type": "Recreate"}}});
    assert_eq!(strategic(DEPLOYMENT, object, patch).unwrap(), expected);
}

#[test]
fn order_keeps_what_the_patch_does_not_name_in_place() {
    let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "x"}, {"name": "b"}]}});
    let patch = json!({"spec": {"$setElementOrder/containers": [{"name": "a"}, {"name": "b"}, {"name": "n"}],
        "containers": [{"name": "n"}]}});
    let result = strategic(POD, pod, patch).unwrap();
    let names: Vec<_> =
        result["spec"]["containers"].as_array().unwrap().iter().map(|c| c["name"].clone()).collect();
    assert_eq!(names, ["a", "x", "b", "n"]);
}

#[test]
fn merge_and_json_patches() {
    let schemas = Schemas::build(&source::definitions());
    let root = schemas.find(POD).unwrap();
    let object = json!({"a": {"b": 1, "c": [1]}});
    let merged = apply(
        &schemas,
        root,
        PatchType::Merge,
        &object,
        &json!({"a": {"b": null, "c": [2]}, "d": {"e": null}}),
    );
    assert_eq!(merged.unwrap(), json!({"a": {"c": [2]}, "d": {}}));
    let patch =
        json!([{"op": "test", "path": "/a/b", "value": 1}, {"op": "add", "path": "/a/c/-", "value": 2}]);
    assert_eq!(
        apply(&schemas, root, PatchType::Json, &object, &patch).unwrap(),
        json!({"a": {"b": 1, "c": [1, 2]}})
    );
    let failing = json!([{"op": "test", "path": "/a/b", "value": 2}]);
    assert_eq!(apply(&schemas, root, PatchType::Json, &object, &failing).unwrap_err().code, 422);
}

#[test]
fn copies_of_copies_do_not_grow_without_end() {
    let mut object = json!({"a": {"text": "x".repeat(1000)}});
    let doubling: Vec<Value> =
        (0..35).map(|i| json!({"op": "copy", "from": "/a", "path": format!("/a/{i}")})).collect();
    let error = json::apply(&mut object, &doubling.into()).unwrap_err();
    assert_eq!(error.code, 422);
    assert!(error.message.contains("accumulated size increase of copy is"), "{}", error.message);
    assert!(object.to_string().len() < 2 * json::MAX_COPIED_BYTES);
    let few = json!([{"op": "copy", "from": "/b", "path": "/c"}, {"op": "test", "path": "/c", "value": [1]}]);
    let mut object = json!({"b": [1]});
    json::apply(&mut object, &few).unwrap();
    assert_eq!(object, json!({"b": [1], "c": [1]}));
}

#[test]
fn a_patched_object_can_be_read_again() {
    let nested = |depth: usize| (0..depth).fold(json!(1), |inner, _| json!({"a": inner}));
    let path = |depth: usize| "/a".repeat(depth);
    for (operation, good) in [
        (json!({"op": "add", "path": path(7), "value": nested(json::MAX_DEPTH - 7)}), true),
        (json!({"op": "add", "path": path(7), "value": nested(json::MAX_DEPTH - 6)}), false),
        (json!({"op": "replace", "path": path(7), "value": nested(json::MAX_DEPTH - 6)}), false),
        (json!({"op": "copy", "from": "", "path": path(100)}), false),
        (json!({"op": "move", "from": "/b", "path": path(99)}), false),
    ] {
        let mut object = nested(100);
        object["b"] = nested(100);
        let result = json::apply(&mut object, &json!([operation]));
        assert_eq!(result.is_ok(), good, "{operation}");
        assert!(serde_json::from_str::<Value>(&object.to_string()).is_ok(), "{operation}");
        assert!(good || result.unwrap_err().message.ends_with("nested deeper than 127 levels"));
    }
}

#[test]
fn a_failed_operation_is_named_by_its_place() {
    let patch = json!([{"op": "add", "path": "/a", "value": 1}, {"op": "remove", "path": "/b"}]);
    let error = json::apply(&mut json!({}), &patch).unwrap_err();
    assert!(error.message.contains("'/1'"), "{}", error.message);
}
