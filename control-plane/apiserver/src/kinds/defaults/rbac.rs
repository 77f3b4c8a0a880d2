//! RoleBindings and ClusterRoleBindings: the API group that most subjects and every role are of.

use serde_json::Value;

use super::pod::members;
use crate::kinds::RBAC_GROUP as GROUP;
use crate::object::{child, text};

pub(in crate::kinds) fn binding(binding: &mut Value) {
    if text(binding, "/roleRef/apiGroup").is_empty() {
        child(binding, "roleRef").insert("apiGroup".into(), GROUP.into());
    }
    let Some(binding) = binding.as_object_mut() else { return };
    for subject in members(binding, "subjects") {
        let is_of_group = matches!(subject.get("kind").and_then(Value::as_str), Some("User" | "Group"));
        let named = subject.get("apiGroup").and_then(Value::as_str).unwrap_or("");
        if is_of_group && named.is_empty() {
            subject.insert("apiGroup".into(), GROUP.into());
        }
    }
}
