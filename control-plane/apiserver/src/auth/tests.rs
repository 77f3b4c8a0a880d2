//! A table of who may do what.

use serde_json::json;

use super::*;
use crate::cache::FieldValues;
use crate::object;
use crate::storage::{Change, Key, Loaded, Write};

fn known() -> (Cache, References, Rbac) {
    let fields: FieldValues =
        |value| vec![("spec.nodeName", object::text(value, "/spec/nodeName").to_owned())];
    let nothing: FieldValues = |_| vec![];
    let kinds = [("pods", fields), ("clusterroles", nothing), ("clusterrolebindings", nothing)];
    let cache = Cache::new(kinds, Loaded::default());
    let pod = |name: &str, node: &str, secret: &str| {
        let value = json!({"metadata": {"name": name, "namespace": "x"}, "spec": {"nodeName": node,
            "volumes": [{"name": "v", "secret": {"secretName": secret}}],
            "containers": [{"envFrom": [{"configMapRef": {"name": "settings"}}]}]}});
        Write::Put { key: Key::new("pods", "x", name), value: object::encode(&value) }
    };
    cache.apply(&[
        Change { revision: 1, write: pod("mine", "n1", "my-secret") },
        Change { revision: 2, write: pod("other", "n2", "other-secret") },
    ]);
    let roles = policy::cluster_roles().into_iter().map(|role| ("clusterroles", role));
    let bindings =
        policy::cluster_role_bindings().into_iter().map(|binding| ("clusterrolebindings", binding));
    for (storage, object) in roles.chain(bindings) {
        let key = Key::new(storage, "", object::name(&object));
        cache.apply(&[Change { revision: 3, write: Write::Put { key, value: object::encode(&object) } }]);
    }
    let (references, rbac) = (References::of(&cache), Rbac::of(&cache));
    (cache, references, rbac)
}

/// `verb resource[.group][/subresource] [namespace [name [field selector]]]`
pub(super) fn attributes(request: &str) -> Attributes {
    let mut parts = request.split(' ');
    let mut next = || parts.next().unwrap_or("").to_owned();
    let (verb, path) = (next(), next());
    let (resource, subresource) = path.split_once('/').unwrap_or((&path, ""));
    let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
    Attributes {
        verb: verb.into(),
        group: group.into(),
        resource: resource.into(),
        subresource: subresource.into(),
        namespace: next(),
        name: next(),
        field_selector: next(),
    }
}

fn asks(user: &str, verb: &'static str, path: &str) -> bool {
    let mut groups = vec!["system:authenticated".to_owned()];
    match user {
        "admin" => groups.push(MASTERS.into()),
        name if name.starts_with("system:node:") => groups.push("system:nodes".into()),
        _ => {}
    }
    let user = User { name: user.into(), groups };
    let attributes = attributes(&format!("{verb} {path}"));
    let (cache, references, rbac) = known();
    authorize(&user, &attributes, Known { cache: &cache, references: &references, rbac: &rbac }).is_ok()
}

#[test]
fn who_may_do_what() {
    let node = "system:node:n1";
    for (user, verb, path, expected) in [
        ("admin", "delete", "secrets x y", true),
        ("nobody", "get", "pods x mine", false),
        ("nobody", "create", "selfsubjectreviews.authentication.k8s.io", true),
        (node, "get", "secrets x my-secret", true),
        (node, "get", "secrets x other-secret", false),
        (node, "list", "secrets x  metadata.name=my-secret", true),
        (node, "list", "secrets x", false),
        (node, "get", "configmaps x settings", true),
        (node, "patch", "pods/status x mine", true),
        (node, "patch", "pods/status x other", false),
        (node, "update", "pods x mine", false),
        (node, "delete", "pods x other", false),
        (node, "create", "pods x", false),
        (node, "create", "pods/binding x mine", false),
        (node, "list", "pods   spec.nodeName=n1", true),
        // Unlike with upstream's node authorizer: a node enforces NetworkPolicies, and has to know the labels and addresses
        // of all pods for that, as every CNI agent's service account does.
        (node, "watch", "pods   spec.nodeName=n2", true),
        (node, "list", "pods", true),
        (node, "get", "pods x other", true),
        (node, "get", "pods/log x other", false),
        (node, "get", "pods/status x other", false),
        (node, "update", "pods x other", false),
        (node, "patch", "pods x other", false),
        (node, "deletecollection", "pods x", false),
        (node, "delete", "pods x mine", true),
        (node, "list", "namespaces", true),
        (node, "watch", "networkpolicies.networking.k8s.io", true),
        (node, "get", "networkpolicies.networking.k8s.io x p", true),
        (node, "create", "networkpolicies.networking.k8s.io x", false),
        (node, "delete", "networkpolicies.networking.k8s.io x p", false),
        (node, "patch", "networkpolicies.networking.k8s.io x p", false),
        (node, "patch", "nodes/status  n1", true),
        (node, "patch", "nodes/status  n2", false),
        (node, "update", "leases.coordination.k8s.io kube-node-lease n1", true),
        (node, "update", "leases.coordination.k8s.io kube-node-lease n2", false),
        (node, "watch", "endpointslices.discovery.k8s.io", true),
        ("system:kube-scheduler", "create", "pods/binding x mine", true),
        ("system:kube-scheduler", "get", "secrets x y", false),
        ("system:kube-scheduler", "list", "networkpolicies.networking.k8s.io", false),
        ("system:kube-scheduler", "update", "leases.coordination.k8s.io kube-system kube-scheduler", true),
        ("system:kube-scheduler", "update", "leases.coordination.k8s.io kube-node-lease n1", false),
        ("system:kube-controller-manager", "create", "pods x", true),
        ("system:kube-controller-manager", "create", "networkpolicies.networking.k8s.io x", false),
        ("system:kube-controller-manager", "create", "clusterroles.rbac.authorization.k8s.io", false),
        ("system:kube-controller-manager", "escalate", "clusterroles.rbac.authorization.k8s.io  r", false),
        ("system:kube-controller-manager", "bind", "clusterroles.rbac.authorization.k8s.io  r", false),
        ("system:kube-proxy", "watch", "endpointslices.discovery.k8s.io", true),
        ("system:kube-proxy", "list", "services", true),
        ("system:kube-proxy", "get", "nodes  n1", true),
        ("system:kube-proxy", "create", "events.events.k8s.io x", true),
        ("system:kube-proxy", "get", "services x s", false),
        ("system:kube-proxy", "list", "pods", false),
        (node, "list", "roles.rbac.authorization.k8s.io", false),
    ] {
        assert_eq!(asks(user, verb, path), expected, "{user} {verb} {path}");
    }
}

#[test]
fn every_role_and_binding_of_a_cluster_is_good() {
    let registry = crate::kinds::Registry::build().unwrap();
    let (roles, bindings) = (policy::cluster_roles(), policy::cluster_role_bindings());
    for (plural, objects) in [("clusterroles", &roles), ("clusterrolebindings", &bindings)] {
        let kind = registry.find(crate::kinds::RBAC_GROUP, "v1", plural).unwrap();
        for object in objects {
            let mut same = object.clone();
            (kind.default)(&mut same);
            assert_eq!(same, *object, "a default would be added at every start");
            let mut errors = crate::kinds::validate_metadata(kind, object);
            errors.extend((kind.validate)(object));
            assert!(errors.is_empty(), "{object}: {errors:?}");
        }
    }
    for binding in &bindings {
        let name = object::text(binding, "/roleRef/name");
        assert!(roles.iter().any(|role| object::name(role) == name), "{name}");
    }
}

#[test]
fn controllers_may_empty_a_namespace_and_collect_garbage_of_every_kind() {
    let registry = crate::kinds::Registry::build().unwrap();
    for kind in registry.kinds {
        let path = format!("{}.{}", kind.plural, kind.group);
        for verb in ["get", "list", "watch", "patch", "delete", "deletecollection"] {
            let allowed = asks("system:kube-controller-manager", verb, path.trim_end_matches('.'));
            assert!(allowed || !kind.verbs.contains(&verb), "{verb} {path}");
        }
    }
}

#[test]
fn a_denial_reads_like_upstreams() {
    let user = User { name: "system:node:n1".into(), groups: vec![] };
    let attributes = Attributes {
        verb: "get".into(),
        resource: "secrets".into(),
        namespace: "x".into(),
        name: "s".into(),
        ..Attributes::default()
    };
    let expected =
        "User \"system:node:n1\" cannot get resource \"secrets\" in API group \"\" in the namespace \"x\"";
    assert_eq!(attributes.denial(&user, ""), expected);
    let reason = "RBAC: role.rbac.authorization.k8s.io \"r\" not found";
    assert_eq!(attributes.denial(&user, reason), format!("{expected}: {reason}"));
}
