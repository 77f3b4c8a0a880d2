use serde_json::json;

use super::*;

fn image(uid: Option<i64>, username: &str) -> Image {
    Image {
        id: "sha256:0".into(),
        repo_tags: Vec::new(),
        repo_digests: Vec::new(),
        size: 0,
        uid,
        username: username.into(),
        pinned: false,
    }
}

fn merge(
    of_pod: serde_json::Value,
    own: serde_json::Value,
    image: &Image,
) -> Result<SecurityContext, SecurityError> {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
        "spec": {"securityContext": of_pod, "containers": [{"name": "c", "securityContext": own}]},
    }))
    .unwrap();
    let container = pod.spec.as_ref().unwrap().containers[0].clone();
    security(&pod, &container, image)
}

#[test]
fn the_container_wins() {
    let merged = merge(
        json!({"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4]}),
        json!({"runAsUser": 5, "allowPrivilegeEscalation": false, "capabilities": {"add": ["CAP_NET_ADMIN"], "drop": ["all"]}}),
        &image(Some(9), ""),
    )
    .unwrap();
    assert_eq!((merged.run_as_user, merged.run_as_group), (Some(5), Some(2)));
    assert_eq!(merged.supplemental_groups, [4, 3]);
    assert_eq!(merged.add_capabilities, ["NET_ADMIN"]);
    assert_eq!(merged.drop_capabilities, ["ALL"]);
    assert!(merged.no_new_privs);
    assert_eq!(merged.seccomp, SecurityProfile::RuntimeDefault);
    assert_eq!(merged.masked_paths, None);
}

#[test]
fn a_privileged_container_sees_everything() {
    let merged = merge(json!({}), json!({"privileged": true}), &image(None, "")).unwrap();
    assert_eq!(merged.seccomp, SecurityProfile::Unconfined);
    assert_eq!(merged.masked_paths, Some(Vec::new()));
}

#[test]
fn non_root_is_verified() {
    let error =
        |own, image: Image| merge(json!({"runAsNonRoot": true}), own, &image).unwrap_err().to_string();
    assert_eq!(
        error(json!({"runAsUser": 0}), image(Some(1), "")),
        "container's runAsUser breaks non-root policy (pod: \"p_ns(u)\", container: c)"
    );
    assert_eq!(
        error(json!({}), image(None, "")),
        "container has runAsNonRoot and image will run as root (pod: \"p_ns(u)\", container: c)"
    );
    assert_eq!(
        error(json!({}), image(None, "nobody")),
        "container has runAsNonRoot and image has non-numeric user (nobody), cannot verify user is non-root (pod: \"p_ns(u)\", container: c)"
    );
    assert!(merge(json!({"runAsNonRoot": true}), json!({}), &image(Some(7), "")).is_ok());
    assert!(
        merge(json!({"runAsNonRoot": true}), json!({"runAsNonRoot": false}), &image(Some(0), "")).is_ok()
    );
}
