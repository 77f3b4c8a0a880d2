//! NetworkPolicies.

use serde_json::{Value, json};

use super::pod::members;
use crate::object::{child, items, set_default};

pub(in crate::kinds) fn network_policy(policy: &mut Value) {
    let has_egress = !items(policy, "/spec/egress").is_empty();
    let has_types = !items(policy, "/spec/policyTypes").is_empty();
    let spec = child(policy, "spec");
    // Upstream's field is a struct, which is always written.
    set_default(spec, "podSelector", json!({}));
    for direction in ["ingress", "egress"] {
        for rule in members(spec, direction) {
            for port in members(rule, "ports") {
                set_default(port, "protocol", "TCP");
            }
        }
    }
    if !has_types {
        let types = if has_egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        spec.insert("policyTypes".into(), types);
    }
}
