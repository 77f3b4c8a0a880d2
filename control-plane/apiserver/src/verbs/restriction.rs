//! What a node may write where it may write at all (upstream's admission plugin NodeRestriction). Pure.
//!
//! Input: the node, the kind, and the object before and after a write. Output: allowed, or upstream's sentence why not.
//! Authorization has said before that the node may use the verb; here is what needs the objects themselves: a node
//! writes its own Node and Lease and the status of its own pods, and nothing in them that steers pods to it or lets it
//! be deleted and registered anew.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::kinds::Kind;
use crate::object::{entries, name, text};

/// Labels in Kubernetes' own namespaces that a node may set on itself.
const NODE_LABELS: &[&str] = &[
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
/// Label namespaces that belong to nodes, with all below them.
const NODE_LABEL_NAMESPACES: &[&str] = &["kubelet.kubernetes.io", "node.kubernetes.io"];
/// Kubernetes' own label namespaces, with all below them.
const OWN_LABEL_NAMESPACES: &[&str] = &["kubernetes.io", "k8s.io"];

/// A write to one object.
#[derive(Clone, Copy)]
pub(super) enum ObjectWrite<'a> {
    Create(&'a Value),
    /// Of any part of the object.
    Update {
        old: &'a Value,
        new: &'a Value,
    },
    Delete(&'a Value),
}

impl<'a> ObjectWrite<'a> {
    /// The object that is written to.
    fn object(self) -> &'a Value {
        match self {
            ObjectWrite::Create(object) | ObjectWrite::Delete(object) => object,
            ObjectWrite::Update { old, .. } => old,
        }
    }
}

/// Whether `node` may do it. The error is the sentence behind `… is forbidden: `.
pub(super) fn check(node: &str, kind: &Kind, write: ObjectWrite<'_>) -> Result<(), String> {
    match kind.storage {
        "nodes" => own_node(node, write),
        "leases" if name(write.object()) != node => {
            Err("can only access node lease with the same name as the requesting node".into())
        }
        "pods" => own_pod(node, write),
        _ => Ok(()),
    }
}

fn own_node(node: &str, write: ObjectWrite<'_>) -> Result<(), String> {
    let written = name(write.object());
    if written != node {
        return Err(format!("node {node:?} is not allowed to modify node {written:?}"));
    }
    let nothing = Value::Null;
    let (old, new) = match write {
        ObjectWrite::Create(new) => (&nothing, new),
        ObjectWrite::Update { old, new } => (old, new),
        ObjectWrite::Delete(_) => return Ok(()),
    };
    // A node registers with taints, and cannot take them off again.
    if !old.is_null() && new["spec"]["taints"] != old["spec"]["taints"] {
        return Err(format!("node {node:?} is not allowed to modify taints"));
    }
    // An owner that does not exist has the node deleted, and without taints it could register anew.
    if owners(new) != owners(old) {
        return Err(format!("node {node:?} is not allowed to modify ownerReferences"));
    }
    let forbidden: Vec<&str> = changed_labels(old, new).into_iter().filter(|key| !is_free(key)).collect();
    match (forbidden.is_empty(), old.is_null()) {
        (true, _) => Ok(()),
        (false, true) => {
            Err(format!("node {node:?} is not allowed to set the following labels: {}", forbidden.join(", ")))
        }
        (false, false) => Err(format!("is not allowed to modify labels: {}", forbidden.join(", "))),
    }
}

fn own_pod(node: &str, write: ObjectWrite<'_>) -> Result<(), String> {
    let is_own = text(write.object(), "/spec/nodeName") == node;
    match write {
        ObjectWrite::Create(_) => Err("pods are not created by nodes".into()),
        ObjectWrite::Update { .. } if !is_own => {
            Err(format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself"))
        }
        ObjectWrite::Update { old, new } if new["metadata"]["labels"] != old["metadata"]["labels"] => {
            Err(format!("node {node:?} cannot update labels through pod status"))
        }
        ObjectWrite::Delete(_) if !is_own => {
            Err(format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
        }
        _ => Ok(()),
    }
}

fn owners(object: &Value) -> &[Value] {
    crate::object::items(object, "/metadata/ownerReferences")
}

/// Keys of the labels that are in one object only, or differ, in order.
fn changed_labels<'a>(old: &'a Value, new: &'a Value) -> BTreeSet<&'a str> {
    let of = |object: &'a Value| entries(object, "/metadata/labels").collect::<BTreeSet<_>>();
    of(old).symmetric_difference(&of(new)).map(|(key, _)| *key).collect()
}

/// Whether a node may set, change and remove a label of itself.
fn is_free(key: &str) -> bool {
    let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace);
    let within = |parents: &[&str]| {
        parents.iter().any(|parent| {
            namespace.strip_suffix(parent).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        })
    };
    // Labels of isolation are in `node-restriction.kubernetes.io`, which is neither listed nor a node's.
    !within(OWN_LABEL_NAMESPACES) || NODE_LABELS.contains(&key) || within(NODE_LABEL_NAMESPACES)
}

#[cfg(test)]
mod tests;
