use serde_json::{Value, json};

use super::Family::{self, V4, V6};
use super::{is_unchanged, settle};

const DUAL: &[Family] = &[V4, V6];
const DUAL_V6: &[Family] = &[V6, V4];
const V4_ALONE: &[Family] = &[V4];
const V6_ALONE: &[Family] = &[V6];

/// A Service that selects pods, unless it says otherwise.
fn service(spec: Value) -> Value {
    let mut service = json!({"spec": {"selector": {"app": "web"}}});
    service["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    if let [first, ..] = service["spec"]["clusterIPs"].as_array().map_or(&[][..], Vec::as_slice) {
        service["spec"]["clusterIP"] = first.clone();
    }
    service
}

/// Policy, families and addresses, or the refusals.
fn settled(spec: Value, old: Option<Value>, configured: &[Family]) -> Result<Value, Vec<String>> {
    let mut new = service(spec);
    let old = old.map(service);
    if old.as_ref().is_some_and(|old| is_unchanged(&new, old)) {
        return Ok(json!("unchanged"));
    }
    match settle(&mut new, old.as_ref(), configured) {
        Ok(()) => {
            let spec = &new["spec"];
            Ok(json!([spec["ipFamilyPolicy"], spec["ipFamilies"], spec["clusterIPs"]]))
        }
        Err(errors) => Err(errors.iter().map(|error| format!("{}: {}", error.field, error.body)).collect()),
    }
}

#[test]
fn a_new_service_gets_what_it_asks_for_and_the_cluster_has() {
    let none = Value::Null;
    let headless = json!({"clusterIPs": ["None"], "selector": {}});
    let cases: Vec<(Value, &[Family], Value)> = vec![
        (json!({}), V4_ALONE, json!(["SingleStack", ["IPv4"], none])),
        (json!({}), V6_ALONE, json!(["SingleStack", ["IPv6"], none])),
        (json!({}), DUAL, json!(["SingleStack", ["IPv4"], none])),
        (json!({}), DUAL_V6, json!(["SingleStack", ["IPv6"], none])),
        (json!({"ipFamilies": ["IPv6"]}), DUAL, json!(["SingleStack", ["IPv6"], none])),
        (json!({"ipFamilyPolicy": "PreferDualStack"}), V4_ALONE, json!(["PreferDualStack", ["IPv4"], none])),
        (
            json!({"ipFamilyPolicy": "PreferDualStack"}),
            DUAL_V6,
            json!(["PreferDualStack", ["IPv6", "IPv4"], none]),
        ),
        (
            json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}),
            DUAL,
            json!(["RequireDualStack", ["IPv6", "IPv4"], none]),
        ),
        (json!({"clusterIPs": ["fd00::7"]}), DUAL, json!(["SingleStack", ["IPv6"], ["fd00::7"]])),
        (
            json!({"clusterIPs": ["fd00::7", "10.0.0.7"], "ipFamilyPolicy": "RequireDualStack"}),
            DUAL,
            json!(["RequireDualStack", ["IPv6", "IPv4"], ["fd00::7", "10.0.0.7"]]),
        ),
        (json!({"clusterIPs": ["None"]}), DUAL, json!(["SingleStack", ["IPv4"], ["None"]])),
        (headless, V4_ALONE, json!(["RequireDualStack", ["IPv4", "IPv6"], ["None"]])),
    ];
    for (spec, configured, wanted) in cases {
        assert_eq!(settled(spec.clone(), None, configured), Ok(wanted), "{spec} {configured:?}");
    }
}

#[test]
fn what_the_cluster_does_not_have_is_refused() {
    let many = "must be 'RequireDualStack' or 'PreferDualStack' when multiple";
    let policy = "spec.ipFamilyPolicy: Invalid value:";
    let cases: Vec<(Value, &[Family], Vec<String>)> = vec![
        (
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            V4_ALONE,
            vec![format!(
                "{policy} \"RequireDualStack\": this cluster is not configured for dual-stack services"
            )],
        ),
        (
            json!({"ipFamilies": ["IPv6"]}),
            V4_ALONE,
            vec!["spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster".into()],
        ),
        (
            json!({"clusterIPs": ["fd00::7"]}),
            V4_ALONE,
            vec![
                "spec.clusterIPs[0]: Invalid value: [\"fd00::7\"]: IPv6 is not configured on this cluster"
                    .into(),
            ],
        ),
        (
            json!({"ipFamilies": ["IPv6", "IPv4"]}),
            DUAL,
            vec![format!("{policy} \"SingleStack\": {many} IP families are specified")],
        ),
        (
            json!({"clusterIPs": ["10.0.0.7", "fd00::7"]}),
            DUAL,
            vec![format!("{policy} \"SingleStack\": {many} cluster IPs are specified")],
        ),
    ];
    for (spec, configured, wanted) in cases {
        assert_eq!(settled(spec.clone(), None, configured), Err(wanted), "{spec} {configured:?}");
    }
}

#[test]
fn families_come_and_go_by_the_policy() {
    let single = json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"], "clusterIPs": ["10.0.0.7"]});
    let both = |policy: &str| json!({"ipFamilyPolicy": policy, "ipFamilies": ["IPv4", "IPv6"], "clusterIPs": ["10.0.0.7", "fd00::7"]});
    let prefers_one =
        json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4"], "clusterIPs": ["10.0.0.7"]});
    let with = |base: &Value, key: &str, value: Value| {
        let mut changed = base.clone();
        changed[key] = value;
        changed
    };
    let refused = |what: &str| {
        let detail = format!("must be 'SingleStack' to release the secondary {what}");
        Err(vec![format!("spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": {detail}")])
    };
    let cases = [
        // Upgraded: the second address is for the allocator to find.
        (
            with(&single, "ipFamilyPolicy", json!("RequireDualStack")),
            &single,
            Ok(json!(["RequireDualStack", ["IPv4", "IPv6"], ["10.0.0.7"]])),
        ),
        // Downgraded, by an update that leaves the lists as they were.
        (
            with(&both("RequireDualStack"), "ipFamilyPolicy", json!("SingleStack")),
            &both("RequireDualStack"),
            Ok(json!(["SingleStack", ["IPv4"], ["10.0.0.7"]])),
        ),
        (
            with(&both("RequireDualStack"), "clusterIPs", json!(["10.0.0.7"])),
            &both("RequireDualStack"),
            refused("cluster IP"),
        ),
        (
            with(&both("RequireDualStack"), "ipFamilies", json!(["IPv4"])),
            &both("RequireDualStack"),
            refused("IP family"),
        ),
        // The policy that it had, where the update says none.
        (
            with(&both("PreferDualStack"), "ipFamilyPolicy", Value::Null),
            &both("PreferDualStack"),
            Ok(json!(["PreferDualStack", ["IPv4", "IPv6"], ["10.0.0.7", "fd00::7"]])),
        ),
        // The cluster got a second family since: that alone changes no Service.
        (prefers_one.clone(), &prefers_one, Ok(json!("unchanged"))),
        (single.clone(), &single, Ok(json!("unchanged"))),
        (
            with(&prefers_one, "type", json!("NodePort")),
            &prefers_one,
            Ok(json!(["PreferDualStack", ["IPv4", "IPv6"], ["10.0.0.7"]])),
        ),
        // It was a name before.
        (json!({}), &json!({"type": "ExternalName"}), Ok(json!(["SingleStack", ["IPv4"], null]))),
    ];
    for (new, old, wanted) in cases {
        assert_eq!(settled(new.clone(), Some(old.clone()), DUAL), wanted, "{old} to {new}");
    }
    // Nor does it when the cluster loses one, or never had it.
    for policy in ["PreferDualStack", "RequireDualStack"] {
        assert_eq!(settled(both(policy), Some(both(policy)), V4_ALONE), Ok(json!("unchanged")));
    }
}
