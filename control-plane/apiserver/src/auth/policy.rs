//! The roles and bindings of every cluster (upstream's bootstrap policy, for the kinds that are served). Pure.
//!
//! Output: objects as they are written at a start (`bootstrap/roles.rs`). Scheduler and controllers have no other rights than
//! these. Upstream runs each controller as a service account of its own; here one user runs them all, and has the roles of all.

use serde_json::{Value, json};

use crate::kinds::RBAC_GROUP as GROUP;

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];
const NOTE: &[&str] = &["create", "patch", "update"];
const CORE: &str = "";

const CONTROLLERS: &str = "system:kube-controller-manager";

/// The annotation that keeps a role or binding from being completed, with the value "false".
pub const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

fn metadata(name: &str) -> Value {
    json!({"name": name, "annotations": {AUTO_UPDATE: "true"}, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}})
}

fn role(name: &str, rules: Vec<Value>) -> Value {
    json!({"apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRole", "metadata": metadata(name), "rules": rules})
}

fn rule(verbs: &[&[&str]], group: &str, resources: &[&str]) -> Value {
    json!({"verbs": verbs.concat(), "apiGroups": [group], "resources": resources})
}

fn paths(paths: &[&str]) -> Value {
    json!({"verbs": ["get"], "nonResourceURLs": paths})
}

fn events() -> [Value; 2] {
    [CORE, "events.k8s.io"].map(|group| rule(&[NOTE], group, &["events"]))
}

/// The roles.
pub fn cluster_roles() -> Vec<Value> {
    let mut roles = vec![
        role(
            "cluster-admin",
            vec![rule(&[&["*"]], "*", &["*"]), json!({"verbs": ["*"], "nonResourceURLs": ["*"]})],
        ),
        scheduler(),
        controllers(),
        collector(),
        emptier(),
        proxier(),
    ];
    roles.extend(for_everybody());
    roles.extend(for_people());
    roles
}

/// What every client may ask, and what monitoring and servers that delegate may.
fn for_everybody() -> Vec<Value> {
    let health = ["/healthz", "/livez", "/readyz"];
    let version = ["/version", "/version/"];
    let api = ["/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*"];
    let checks = ["/healthz/*", "/livez/*", "/readyz/*", "/metrics", "/metrics/slis"];
    let (authentication, authorization) = ("authentication.k8s.io", "authorization.k8s.io");
    let create: &[&[&str]] = &[&["create"]];
    let own = ["selfsubjectaccessreviews", "selfsubjectrulesreviews"];
    vec![
        role("system:discovery", vec![paths(&[&health[..], &version, &api].concat())]),
        role("system:public-info-viewer", vec![paths(&[&health[..], &version].concat())]),
        role("system:monitoring", vec![paths(&[&health[..], &checks].concat())]),
        role(
            "system:basic-user",
            vec![rule(create, authorization, &own), rule(create, authentication, &["selfsubjectreviews"])],
        ),
        role(
            "system:auth-delegator",
            vec![
                rule(create, authentication, &["tokenreviews"]),
                rule(create, authorization, &["subjectaccessreviews"]),
            ],
        ),
    ]
}

fn scheduler() -> Value {
    let mut own_lease = rule(&[&["get", "update"]], "coordination.k8s.io", &["leases"]);
    own_lease["resourceNames"] = json!(["kube-scheduler"]);
    let mut rules = vec![
        rule(&[READ], CORE, &["pods", "nodes", "namespaces", "services"]),
        rule(&[&["delete"]], CORE, &["pods"]),
        rule(&[&["create"]], CORE, &["pods/binding", "bindings"]),
        rule(&[&["patch", "update"]], CORE, &["pods/status"]),
        rule(&[READ], "apps", &["replicasets", "deployments"]),
        rule(&[&["create"]], "coordination.k8s.io", &["leases"]),
        own_lease,
    ];
    rules.extend(events());
    role("system:kube-scheduler", rules)
}

fn controllers() -> Value {
    let core = [
        "pods",
        "pods/status",
        "pods/eviction",
        "services",
        "services/status",
        "endpoints",
        "nodes",
        "nodes/status",
        "namespaces",
        "namespaces/status",
        "namespaces/finalize",
        "configmaps",
        "secrets",
        "serviceaccounts",
        "events",
    ];
    let apps = ["deployments", "replicasets"].map(|kind| {
        ["", "/status", "/scale", "/finalizers"].map(|subresource| format!("{kind}{subresource}"))
    });
    let apps: Vec<&str> = apps.iter().flatten().map(String::as_str).collect();
    let all: &[&[&str]] = &[READ, WRITE];
    let rules = vec![
        rule(all, CORE, &core),
        rule(all, "apps", &apps),
        rule(all, "discovery.k8s.io", &["endpointslices"]),
        rule(all, "events.k8s.io", &["events"]),
        rule(all, "coordination.k8s.io", &["leases"]),
    ];
    role(CONTROLLERS, rules)
}

/// The garbage collector takes objects of every kind, and lets go of their owners.
fn collector() -> Value {
    let mut rules = vec![rule(&[READ, &["delete", "patch", "update"]], "*", &["*"])];
    rules.extend(events());
    role("system:controller:generic-garbage-collector", rules)
}

/// The namespace controller takes everything that is in a namespace.
fn emptier() -> Value {
    let rules = vec![
        rule(&[READ, &["delete"]], CORE, &["namespaces"]),
        rule(&[&["update"]], CORE, &["namespaces/finalize", "namespaces/status"]),
        rule(&[&["delete", "deletecollection", "get", "list"]], "*", &["*"]),
    ];
    role("system:controller:namespace-controller", rules)
}

fn proxier() -> Value {
    let follow: &[&[&str]] = &[&["list", "watch"]];
    let mut rules = vec![
        rule(follow, CORE, &["services", "endpoints"]),
        rule(&[READ], CORE, &["nodes"]),
        rule(follow, "discovery.k8s.io", &["endpointslices"]),
    ];
    rules.extend(events());
    role("system:node-proxier", rules)
}

/// `view`, `edit` and `admin`, to be bound in namespaces. Upstream gathers their rules from the roles with these labels; here nobody
/// gathers, and they have the rules themselves.
fn for_people() -> Vec<Value> {
    let aggregated = |name: &str, into: &[&str], rules: Vec<Value>| {
        let mut role = role(name, rules);
        for role_name in into {
            role["metadata"]["labels"][format!("rbac.authorization.k8s.io/aggregate-to-{role_name}")] =
                "true".into();
        }
        role
    };
    vec![
        aggregated("view", &["edit"], viewed()),
        aggregated("edit", &["admin"], [edited(), viewed()].concat()),
        aggregated("admin", &[], [administered(), edited(), viewed()].concat()),
    ]
}

fn viewed() -> Vec<Value> {
    let core = [
        "configmaps",
        "endpoints",
        "events",
        "namespaces",
        "namespaces/status",
        "pods",
        "pods/log",
        "pods/status",
    ];
    let others = ["serviceaccounts", "services", "services/status"];
    let apps = ["deployments", "replicasets"]
        .map(|kind| ["", "/scale", "/status"].map(|subresource| format!("{kind}{subresource}")));
    let apps: Vec<&str> = apps.iter().flatten().map(String::as_str).collect();
    vec![
        rule(&[READ], CORE, &[&core[..], &others].concat()),
        rule(&[READ], "apps", &apps),
        rule(&[READ], "discovery.k8s.io", &["endpointslices"]),
        rule(&[READ], "networking.k8s.io", &["networkpolicies"]),
    ]
}

fn edited() -> Vec<Value> {
    let apps = ["deployments", "deployments/scale", "replicasets", "replicasets/scale"];
    vec![
        rule(&[READ], CORE, &["pods/attach", "pods/exec", "pods/portforward", "secrets"]),
        rule(&[WRITE], CORE, &["pods", "pods/attach", "pods/exec", "pods/portforward"]),
        rule(&[&["create"]], CORE, &["pods/eviction"]),
        rule(&[WRITE], CORE, &["configmaps", "events", "secrets", "serviceaccounts", "services"]),
        rule(&[WRITE], "apps", &apps),
        rule(&[WRITE], "networking.k8s.io", &["networkpolicies"]),
        rule(&[READ, WRITE], "coordination.k8s.io", &["leases"]),
    ]
}

fn administered() -> Vec<Value> {
    vec![rule(&[READ, WRITE], GROUP, &["roles", "rolebindings"])]
}

/// The bindings; each is named like its role, as upstream's are.
pub fn cluster_role_bindings() -> Vec<Value> {
    let (everybody, nobody) = ("system:authenticated", "system:unauthenticated");
    [
        ("cluster-admin", "Group", &["system:masters"][..]),
        ("system:discovery", "Group", &[everybody]),
        ("system:public-info-viewer", "Group", &[everybody, nobody]),
        ("system:monitoring", "Group", &["system:monitoring"]),
        ("system:basic-user", "Group", &[everybody]),
        ("system:kube-scheduler", "User", &["system:kube-scheduler"]),
        (CONTROLLERS, "User", &[CONTROLLERS]),
        ("system:controller:generic-garbage-collector", "User", &[CONTROLLERS]),
        ("system:controller:namespace-controller", "User", &[CONTROLLERS]),
        ("system:node-proxier", "User", &["system:kube-proxy"]),
    ]
    .map(|(name, kind, subjects)| {
        let subject = |name: &&str| json!({"apiGroup": GROUP, "kind": kind, "name": name});
        json!({"apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRoleBinding", "metadata": metadata(name),
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": name},
            "subjects": subjects.iter().map(subject).collect::<Vec<_>>()})
    })
    .to_vec()
}
