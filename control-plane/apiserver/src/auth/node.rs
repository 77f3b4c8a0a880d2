//! What a node may do: its own Node, Lease and pods, and what pods bound to it refer to (upstream's node authorizer).
//!
//! All nodes may read Nodes: a node needs the pod networks of the others. Beyond upstream's rules they may read all Pods and
//! NetworkPolicies: a node enforces policies, whose peers are pods of any node, known by labels and addresses. Where a
//! CNI agent of its own does that, its service account has these rights on every node. What a pod's spec spells out is
//! thereby seen by all nodes; Secrets and ConfigMaps stay with the nodes whose pods refer to them.

use super::references::References;
use super::{Attributes, Known};
use crate::cache::Cache;
use crate::storage::Key;

const READ: &[&str] = &["get", "list", "watch"];
/// The namespace of node leases.
const LEASES: &str = "kube-node-lease";

pub(super) fn allows(node: &str, wanted: &Attributes, known: Known<'_>) -> bool {
    let cache = known.cache;
    let verb = &*wanted.verb;
    let reads = READ.contains(&verb);
    match (wanted.group.as_str(), wanted.resource.as_str(), wanted.subresource.as_str()) {
        ("", "nodes", "") => {
            reads || (verb == "create") || (own(node, wanted) && matches!(verb, "update" | "patch"))
        }
        ("", "nodes", "status") => own(node, wanted) && matches!(verb, "get" | "update" | "patch"),
        // It creates none, for a node may read what its pods refer to: mirror pods would have to refer to nothing.
        ("", "pods", "") => reads || (verb == "delete" && is_bound(node, wanted, cache)),
        ("", "pods", "status") => matches!(verb, "get" | "update" | "patch") && is_bound(node, wanted, cache),
        ("", "pods", "eviction") => verb == "create" && is_bound(node, wanted, cache),
        ("", "secrets" | "configmaps", "") => reads && refers(node, wanted, known.references),
        ("", "services" | "endpoints" | "namespaces", "") => reads,
        ("discovery.k8s.io", "endpointslices", "") | ("networking.k8s.io", "networkpolicies", "") => reads,
        ("coordination.k8s.io", "leases", "") => {
            wanted.namespace == LEASES
                && (verb == "create"
                    || (own(node, wanted) && matches!(verb, "get" | "update" | "patch" | "delete")))
        }
        ("" | "events.k8s.io", "events", "") => matches!(verb, "create" | "update" | "patch"),
        _ => false,
    }
}

fn own(node: &str, wanted: &Attributes) -> bool {
    wanted.name == node
}

fn is_bound(node: &str, wanted: &Attributes, cache: &Cache) -> bool {
    let pod = cache.get(&Key::new("pods", &wanted.namespace, &wanted.name));
    // A pod that is gone is nobody's; the answer is then 404, which says nothing.
    pod.is_none_or(|pod| pod.field("spec.nodeName") == Some(node))
}

/// Whether a pod that is bound to the node uses the Secret or ConfigMap. Lists must select one by name.
fn refers(node: &str, wanted: &Attributes, references: &References) -> bool {
    let name = wanted.object_name();
    if name.is_empty() || wanted.namespace.is_empty() {
        return false;
    }
    references.has(node, &Key::new(&wanted.resource, &wanted.namespace, &name))
}
