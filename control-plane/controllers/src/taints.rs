//! Taints and the tolerations that cover them; where nodes stand.
//!
//! Input: taints, tolerations, nodes. Output: yes or no, zones. Pure.

use std::cmp::Ordering;

use k8s_openapi::api::core::v1::{Node, Taint, Toleration};

/// The label that says where a node stands.
pub const LABEL_ZONE: &str = "topology.kubernetes.io/zone";

/// The zone of a node, where it says one.
pub fn zone(node: &Node) -> Option<&str> {
    node.metadata.labels.as_ref()?.get(LABEL_ZONE).map(String::as_str)
}

/// The first taint with one of the effects that no toleration covers.
pub fn untolerated<'a>(
    tolerations: &[Toleration],
    taints: &'a [Taint],
    effects: &[&str],
) -> Option<&'a Taint> {
    taints
        .iter()
        .filter(|taint| effects.contains(&taint.effect.as_str()))
        .find(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

/// Whether a toleration covers a taint: same effect (or none given), same key (or none given), and the value.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    if given(&toleration.effect).is_some_and(|effect| effect != taint.effect) {
        return false;
    }
    if given(&toleration.key).is_some_and(|key| key != taint.key) {
        return false;
    }
    let own = toleration.value.as_deref().unwrap_or_default();
    let value = taint.value.as_deref().unwrap_or_default();
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => given(&toleration.key).is_some() && own == value,
        "Exists" => true,
        "Lt" => compare(value, own).is_some_and(Ordering::is_lt),
        "Gt" => compare(value, own).is_some_and(Ordering::is_gt),
        _ => false,
    }
}

/// Compares two texts as numbers; absent where one is none.
pub fn compare(left: &str, right: &str) -> Option<Ordering> {
    let (left, right): (i64, i64) = (left.parse().ok()?, right.parse().ok()?);
    Some(left.cmp(&right))
}
