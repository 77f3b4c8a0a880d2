//! A table of decisions, what rules cover, and the index against a plain reading of all objects.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::auth::tests::attributes;
use crate::storage::Revision;

fn put(storage: &str, object: &Value) -> Change {
    let key = Key::new(storage, object::namespace(object), object::name(object));
    Change { revision: 1, write: Write::Put { key, value: object::encode(object) } }
}

fn role(namespace: &str, name: &str, rules: Value) -> Value {
    json!({"metadata": {"namespace": namespace, "name": name}, "rules": rules})
}

fn binding(namespace: &str, name: &str, role: (&str, &str), subjects: Value) -> Value {
    json!({"metadata": {"namespace": namespace, "name": name}, "subjects": subjects,
        "roleRef": {"apiGroup": GROUP, "kind": role.0, "name": role.1}})
}

fn user(name: &str, groups: &[&str]) -> User {
    User { name: name.into(), groups: groups.iter().map(|group| (*group).to_owned()).collect() }
}

fn example() -> Rbac {
    let rbac = Rbac::default();
    let rules = json!([
        {"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"]},
        {"verbs": ["*"], "apiGroups": ["apps"], "resources": ["*/scale"]},
        {"verbs": ["get", "watch", "update"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["mine", "ours"]},
        {"verbs": ["get"], "nonResourceURLs": ["/metrics", "/logs/*"]},
    ]);
    let everything = json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]);
    let of = |kind: &str, name: &str| json!([{"kind": kind, "name": name}]);
    let account = json!([{"kind": "ServiceAccount", "name": "robot"}]);
    let far = json!([{"kind": "ServiceAccount", "name": "robot", "namespace": "far"}]);
    rbac.apply(&[
        put("clusterroles", &role("", "reader", rules)),
        put("clusterroles", &role("", "all", everything.clone())),
        put("roles", &role("x", "local", everything)),
        put("clusterrolebindings", &binding("", "anns", ("ClusterRole", "reader"), of("User", "ann"))),
        put("rolebindings", &binding("x", "ops", ("ClusterRole", "all"), of("Group", "ops"))),
        put("rolebindings", &binding("x", "robots", ("Role", "local"), account.clone())),
        put("clusterrolebindings", &binding("", "far", ("ClusterRole", "reader"), far)),
        put("clusterrolebindings", &binding("", "nowhere", ("ClusterRole", "all"), account)),
        put("clusterrolebindings", &binding("", "lost", ("ClusterRole", "gone"), of("User", "bob"))),
        put("rolebindings", &binding("x", "lost", ("Role", "all"), of("User", "bob"))),
        put("clusterrolebindings", &binding("", "wrong", ("Role", "local"), of("User", "carl"))),
    ]);
    rbac
}

#[test]
fn decisions() {
    let rbac = example();
    for (name, request, expected) in [
        ("ann", "get pods x p", true),
        ("ann", "list pods", true),
        ("ann", "get pods/log x p", true),
        ("ann", "get pods/exec x p", false),
        ("ann", "delete pods x p", false),
        ("ann", "get pods.metrics.k8s.io x p", false),
        ("ann", "patch deployments.apps/scale x d", true),
        ("ann", "patch deployments.apps x d", false),
        ("ann", "patch deployments.apps/upscale x d", false),
        ("ann", "get secrets x mine", true),
        ("ann", "get secrets x theirs", false),
        ("ann", "watch secrets x  metadata.name=ours", true),
        ("ann", "watch secrets x  metadata.name!=ours", false),
        ("ann", "watch secrets x  metadata.namespace=ours", false),
        ("ann", "watch secrets x", false),
        ("ann", "update secrets x ours metadata.name=theirs", true),
        ("ops", "delete nodes", false),
        ("system:serviceaccount:x:robot", "delete secrets x any", true),
        ("system:serviceaccount:x:robot", "delete secrets y any", false),
        ("system:serviceaccount:x:robot", "list pods", false),
        ("system:serviceaccount:far:robot", "list pods", true),
        ("system:serviceaccount:far:robot", "delete pods x p", false),
        ("system:serviceaccount::robot", "list pods", false),
        ("robot", "delete secrets x any", false),
        ("carl", "get pods x p", false),
    ] {
        assert_eq!(rbac.allows(&user(name, &[]), &attributes(request)).is_ok(), expected, "{name} {request}");
    }
    let op = user("olga", &["staff", "ops"]);
    assert!(rbac.allows(&op, &attributes("delete secrets x any")).is_ok());
    assert!(rbac.allows(&op, &attributes("delete secrets")).is_err(), "bound in a namespace");
    for (verb, path, expected) in [
        ("get", "/metrics", true),
        ("get", "/metrics/slis", false),
        ("get", "/logs/", true),
        ("get", "/logs/a/b", true),
        ("get", "/logs", false),
        ("post", "/metrics", false),
    ] {
        assert_eq!(rbac.allows_path(&user("ann", &[]), verb, path).is_ok(), expected, "{verb} {path}");
    }
    assert!(rbac.allows_path(&op, "get", "/metrics").is_err(), "resources are no paths");
}

#[test]
fn reasons_read_like_upstreams() {
    let rbac = example();
    let says =
        |name: &str, groups: &[&str], request: &str| rbac.allows(&user(name, groups), &attributes(request));
    for (name, groups, expected) in [
        ("ann", &[][..], "ClusterRoleBinding \"anns\" of ClusterRole \"reader\" to User \"ann\""),
        ("olga", &["ops"], "RoleBinding \"ops/x\" of ClusterRole \"all\" to Group \"ops\""),
        (
            "system:serviceaccount:x:robot",
            &[],
            "RoleBinding \"robots/x\" of Role \"local\" to ServiceAccount \"robot/x\"",
        ),
    ] {
        assert_eq!(says(name, groups, "get pods x p"), Ok(format!("RBAC: allowed by {expected}")));
    }
    assert_eq!(says("nobody", &[], "get pods x p"), Err(String::new()));
    let gone = "clusterrole.rbac.authorization.k8s.io \"gone\" not found";
    assert_eq!(says("bob", &[], "list pods"), Err(format!("RBAC: {gone}")));
    let both = format!("RBAC: [{gone}, role.rbac.authorization.k8s.io \"all\" not found]");
    assert_eq!(says("bob", &[], "list pods x"), Err(both));
}

#[test]
fn what_rules_cover() {
    let rules = |value: &Value| value.as_array().unwrap().iter().map(Rule::of).collect::<Vec<_>>();
    let held = rules(&json!([
        {"verbs": ["get", "list"], "apiGroups": ["", "apps"], "resources": ["pods", "*/scale"]},
        {"verbs": ["*"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a", "b"]},
        {"verbs": ["get"], "nonResourceURLs": ["/logs/*"]},
    ]));
    for (wanted, expected) in [
        (
            json!({"verbs": ["list"], "apiGroups": ["apps"], "resources": ["pods"], "resourceNames": ["x"]}),
            "",
        ),
        (json!({"verbs": ["get"], "apiGroups": [""], "resources": ["nodes/scale", "*/scale"]}), ""),
        (
            json!({"verbs": ["get", "*"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["b", "a"]}),
            "",
        ),
        (json!({"verbs": ["get"], "nonResourceURLs": ["/logs/a", "/logs/a/*", "/logs/*"]}), ""),
        (
            json!({"verbs": ["get", "create", "delete"], "apiGroups": [""], "resources": ["pods"]}),
            "{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"create\" \"delete\"]}",
        ),
        (
            json!({"verbs": ["get"], "apiGroups": ["*"], "resources": ["pods"]}),
            "{APIGroups:[\"*\"], Resources:[\"pods\"], Verbs:[\"get\"]}",
        ),
        (
            json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]}),
            "{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\"]}",
        ),
        (
            json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a", "c"]}),
            "{APIGroups:[\"\"], Resources:[\"secrets\"], ResourceNames:[\"c\"], Verbs:[\"get\"]}",
        ),
        (
            json!({"verbs": ["get", "post"], "nonResourceURLs": ["/logs/a", "*"]}),
            "{NonResourceURLs:[\"/logs/a\"], Verbs:[\"post\"]} {NonResourceURLs:[\"*\"], Verbs:[\"get\"]} \
             {NonResourceURLs:[\"*\"], Verbs:[\"post\"]}",
        ),
    ] {
        let wanted_rules = [Rule::of(&wanted)];
        let missing = missing(&held, &wanted_rules);
        let texts: Vec<String> = missing.iter().map(ToString::to_string).collect();
        assert_eq!(texts.join(" "), expected, "{wanted}");
    }
}

/// Cloned for each verb, the name would take 135 GB.
#[test]
fn what_a_rule_is_taken_apart_into_borrows() {
    let verbs: Vec<String> = (0..90_000).map(|number| format!("v{number}")).collect();
    let mut rule =
        Rule { groups: vec![String::new()], resources: vec!["pods".into()], verbs, ..Rule::default() };
    assert_eq!(rule.size(), 90_000);
    rule.names.push("n".repeat(3 << 19));
    assert_eq!(rule.size(), 90_000 * (1 + (3 << 9)), "a long text is several");
    let wanted = [rule];
    let held = [Rule { names: vec![], verbs: vec!["v7".into()], ..wanted[0].clone() }];
    let missing = missing(&held, &wanted);
    assert_eq!((missing.len(), missing[0].to_rule().verbs.len()), (1, 89_999));
    let many = vec!["x".to_owned(); 1_000_000];
    let idle = [Rule { groups: many.clone(), resources: many.clone(), names: many, ..Rule::default() }];
    assert!(
        idle[0].size() == 0 && super::missing(&held, &idle).is_empty(),
        "no verbs, nothing to look through"
    );
}

/// A change of one of few objects, so that changes meet.
#[derive(Clone, Debug)]
struct Step {
    storage: &'static str,
    object: Value,
    delete: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = || prop::sample::select(vec!["a", "b", "c"]);
    let subject = (
        prop::sample::select(vec!["User", "Group", "ServiceAccount"]),
        name(),
        prop::sample::select(vec!["", "x", "y"]),
    )
        .prop_map(|(kind, name, namespace)| json!({"kind": kind, "name": name, "namespace": namespace}));
    let subjects = prop::collection::vec(subject, 0..4);
    let rule = (prop::sample::select(vec!["get", "list"]), prop::sample::select(vec!["pods", "*"]))
        .prop_map(|(verb, resource)| json!({"verbs": [verb], "apiGroups": [""], "resources": [resource]}));
    let rules = prop::collection::vec(rule, 0..3);
    let storage = prop::sample::select(vec!["clusterroles", "roles", "clusterrolebindings", "rolebindings"]);
    let namespace = prop::sample::select(vec!["x", "y"]);
    let role_kind = prop::sample::select(vec!["Role", "ClusterRole", "Other"]);
    let step = (storage, namespace, name(), (role_kind, name()), subjects, rules, prop::bool::weighted(0.25));
    let step = step.prop_map(|(storage, namespace, name, referred, subjects, rules, delete)| {
        let namespace = if storage.starts_with("cluster") { "" } else { namespace };
        let object = if storage.ends_with("roles") {
            role(namespace, name, rules.into())
        } else {
            binding(namespace, name, referred, subjects.into())
        };
        Step { storage, object, delete }
    });
    prop::collection::vec(step, 0..40)
}

impl Step {
    fn key(&self) -> (&'static str, String, String) {
        (self.storage, object::namespace(&self.object).to_owned(), object::name(&self.object).to_owned())
    }

    fn change(&self, revision: Revision) -> Change {
        let (storage, namespace, name) = self.key();
        let (key, value) = (Key::new(storage, &namespace, &name), object::encode(&self.object));
        let write = if self.delete { Write::Delete { key, last: value } } else { Write::Put { key, value } };
        Change { revision, write }
    }
}

type Objects = BTreeMap<(&'static str, String, String), Value>;

/// Upstream's way: every binding is looked at.
fn read_plainly(objects: &Objects, user: &User, namespace: &str) -> Vec<String> {
    let mut rules = Vec::new();
    for ((storage, own, _), value) in
        objects.iter().filter(|((storage, ..), _)| storage.ends_with("bindings"))
    {
        if *storage == "rolebindings" && own != namespace {
            continue;
        }
        let applies = items(value, "/subjects").iter().any(|subject| {
            let (name, given) = (text(subject, "/name"), text(subject, "/namespace"));
            let home = if given.is_empty() { own } else { given };
            match text(subject, "/kind") {
                "User" => name == user.name,
                "Group" => user.is_in(name),
                _ => !home.is_empty() && user.name == format!("system:serviceaccount:{home}:{name}"),
            }
        });
        let name = text(value, "/roleRef/name").to_owned();
        let role = match text(value, "/roleRef/kind") {
            "ClusterRole" => objects.get(&("clusterroles", String::new(), name)),
            "Role" if !own.is_empty() => objects.get(&("roles", own.clone(), name)),
            _ => None,
        };
        if applies && let Some(role) = role {
            rules.extend(Rule::all_of(role).iter().map(|rule| format!("{rule:?}")));
        }
    }
    rules.sort();
    rules
}

proptest! {
    #[test]
    fn the_index_says_what_the_objects_say(steps in steps()) {
        let rbac = Rbac::default();
        let mut objects = Objects::new();
        let users = [
            user("a", &["b"]),
            user("b", &["a", "b", "c"]),
            user("system:serviceaccount:x:a", &[]),
            user("system:serviceaccount:y:b", &["c"]),
        ];
        for (index, step) in steps.iter().enumerate() {
            rbac.apply(&[step.change(index as Revision)]);
            if step.delete { objects.remove(&step.key()); } else { objects.insert(step.key(), step.object.clone()); }
            for user in &users {
                for namespace in ["", "x", "y"] {
                    let mut rules: Vec<String> = rbac.rules_of(user, namespace).iter().map(|rule| format!("{rule:?}")).collect();
                    rules.sort();
                    prop_assert_eq!(&rules, &read_plainly(&objects, user, namespace), "{:?} in {:?}", user, namespace);
                }
            }
        }
        for ((storage, namespace, name), value) in &objects {
            let write = Write::Delete { key: Key::new(storage, namespace, name), last: object::encode(value) };
            rbac.apply(&[Change { revision: 0, write }]);
        }
        let state = rbac.read();
        prop_assert!(state.roles.is_empty() && state.bindings.is_empty() && state.held.is_empty(), "nothing is kept");
    }
}
