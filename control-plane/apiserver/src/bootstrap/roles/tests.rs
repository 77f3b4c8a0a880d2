//! What a start makes of what it finds.

use serde_json::json;

use super::*;

fn find(objects: Vec<Value>, wanted: &str) -> Value {
    objects.into_iter().find(|object| name(object) == wanted).unwrap()
}

#[test]
fn what_is_whole_is_kept() {
    for object in policy::cluster_roles().into_iter().chain(policy::cluster_role_bindings()) {
        let mut stored = object.clone();
        stored["metadata"]["resourceVersion"] = "7".into();
        assert_eq!(reconciled(&stored, &object), Step::Keep, "{}", name(&object));
    }
}

#[test]
fn what_is_missing_is_added_and_the_rest_stays() {
    let wanted = find(policy::cluster_roles(), "system:node-proxier");
    let more = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]});
    let half = json!({"verbs": ["*"], "apiGroups": [""], "resources": ["services", "nodes", "events"]});
    let mut stored = wanted.clone();
    stored["rules"] = json!([more, half]);
    stored["metadata"] = json!({"name": "system:node-proxier", "annotations": {"a": "b"},
        "labels": {"kubernetes.io/bootstrapping": "mine"}});
    let Step::Update(new) = reconciled(&stored, &wanted) else { panic!() };
    assert_eq!(
        new["rules"],
        json!([more, half,
            {"verbs": ["list", "watch"], "apiGroups": [""], "resources": ["endpoints"]},
            {"verbs": ["list", "watch"], "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"]},
            {"verbs": ["create", "patch", "update"], "apiGroups": ["events.k8s.io"], "resources": ["events"]}])
    );
    assert_eq!(new["metadata"]["annotations"], json!({"a": "b", policy::AUTO_UPDATE: "true"}));
    assert_eq!(
        new["metadata"]["labels"],
        json!({"kubernetes.io/bootstrapping": "mine"}),
        "what is set stays"
    );
    assert_eq!(reconciled(&new, &wanted), Step::Keep, "a second time changes nothing");
    stored["metadata"]["annotations"][policy::AUTO_UPDATE] = "false".into();
    assert_eq!(reconciled(&stored, &wanted), Step::Keep, "its owner has taken it over");
}

#[test]
fn a_binding_gets_its_subjects_back_and_its_role() {
    let wanted = find(policy::cluster_role_bindings(), "system:public-info-viewer");
    let mut stored = wanted.clone();
    let own = json!({"kind": "ServiceAccount", "name": "s", "namespace": "x"});
    stored["subjects"] = json!([own, wanted["subjects"][1]]);
    let Step::Update(new) = reconciled(&stored, &wanted) else { panic!() };
    assert_eq!(new["subjects"], json!([own, wanted["subjects"][1], wanted["subjects"][0]]));
    stored["roleRef"]["name"] = "cluster-admin".into();
    assert_eq!(reconciled(&stored, &wanted), Step::Replace);
    stored["metadata"]["annotations"][policy::AUTO_UPDATE] = "false".into();
    assert_eq!(reconciled(&stored, &wanted), Step::Keep);
}
