//! The fixed table for scheduler and controllers: upstream's bootstrap roles for the kinds that are served.

use super::Attributes;

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "update", "patch", "delete", "deletecollection"];

struct Rule {
    group: &'static str,
    resources: &'static [&'static str],
    verbs: &'static [&'static [&'static str]],
}

const SCHEDULER: &[Rule] = &[
    Rule { group: "", resources: &["pods", "nodes", "namespaces", "services"], verbs: &[READ] },
    Rule { group: "", resources: &["pods"], verbs: &[&["delete"]] },
    Rule { group: "", resources: &["pods/binding", "bindings"], verbs: &[&["create"]] },
    Rule { group: "", resources: &["pods/status"], verbs: &[&["patch", "update"]] },
    Rule { group: "apps", resources: &["replicasets", "deployments"], verbs: &[READ] },
    Rule { group: "", resources: &["events"], verbs: &[&["create", "patch", "update"]] },
    Rule { group: "events.k8s.io", resources: &["events"], verbs: &[&["create", "patch", "update"]] },
    Rule { group: "coordination.k8s.io", resources: &["leases"], verbs: &[READ, WRITE] },
];

const CONTROLLERS: &[Rule] = &[
    Rule {
        group: "",
        resources: &[
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
        ],
        verbs: &[READ, WRITE],
    },
    Rule {
        group: "apps",
        resources: &[
            "deployments",
            "deployments/status",
            "deployments/scale",
            "deployments/finalizers",
            "replicasets",
            "replicasets/status",
            "replicasets/scale",
            "replicasets/finalizers",
        ],
        verbs: &[READ, WRITE],
    },
    Rule { group: "discovery.k8s.io", resources: &["endpointslices"], verbs: &[READ, WRITE] },
    Rule { group: "events.k8s.io", resources: &["events"], verbs: &[READ, WRITE] },
    // No controller makes them; the namespace controller and the garbage collector take every kind.
    Rule {
        group: "networking.k8s.io",
        resources: &["networkpolicies"],
        verbs: &[READ, &["update", "patch", "delete", "deletecollection"]],
    },
    Rule { group: "coordination.k8s.io", resources: &["leases"], verbs: &[READ, WRITE] },
];

pub(super) fn allows(user: &str, attributes: &Attributes) -> bool {
    let rules = match user {
        "system:kube-scheduler" => SCHEDULER,
        "system:kube-controller-manager" => CONTROLLERS,
        _ => return false,
    };
    let resource = attributes.resource_path();
    rules.iter().any(|rule| {
        rule.group == attributes.group
            && rule.resources.contains(&resource.as_str())
            && rule.verbs.iter().any(|verbs| verbs.contains(&attributes.verb))
    })
}
