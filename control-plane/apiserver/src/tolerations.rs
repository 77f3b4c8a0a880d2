//! How long pods stay on a node that is not ready or unreachable when they do not say so (DefaultTolerationSeconds).
//!
//! In: a new pod. Out: the pod with a toleration for each of the two taints, unless it tolerates that one by itself. Pure.

use serde_json::{Value, json};

use crate::object::{child, text};

/// Seconds for each taint; upstream's flags have these names and defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefaultTolerations {
    pub not_ready_seconds: u32,
    pub unreachable_seconds: u32,
}

impl Default for DefaultTolerations {
    fn default() -> Self {
        Self { not_ready_seconds: 300, unreachable_seconds: 300 }
    }
}

impl DefaultTolerations {
    /// Adds what the pod does not say.
    pub fn add(&self, pod: &mut Value) {
        let tolerations = child(pod, "spec").entry("tolerations").or_insert_with(|| json!([]));
        let Some(list) = tolerations.as_array_mut() else { return };
        for (key, seconds) in [
            ("node.kubernetes.io/not-ready", self.not_ready_seconds),
            ("node.kubernetes.io/unreachable", self.unreachable_seconds),
        ] {
            if !list.iter().any(|toleration| tolerates(toleration, key)) {
                list.push(json!({
                    "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds,
                }));
            }
        }
    }
}

fn tolerates(toleration: &Value, key: &str) -> bool {
    let (own, effect) = (text(toleration, "/key"), text(toleration, "/effect"));
    (own == key || (own.is_empty() && text(toleration, "/operator") == "Exists"))
        && (effect.is_empty() || effect == "NoExecute")
}

#[cfg(test)]
mod tests;
