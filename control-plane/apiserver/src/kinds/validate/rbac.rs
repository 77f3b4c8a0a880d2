//! Roles and bindings. Facts are upstream's (`pkg/apis/rbac/validation`).

use serde_json::Value;

use super::label_selector;
use crate::error::FieldError;
use crate::kinds::RBAC_GROUP as GROUP;
use crate::names;
use crate::object::{items, text};

/// Where a role or binding is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Cluster,
    Namespace,
}

pub(in crate::kinds) fn role(role: &Value) -> Vec<FieldError> {
    rules(role, Scope::Namespace)
}

pub(in crate::kinds) fn cluster_role(role: &Value) -> Vec<FieldError> {
    let mut errors = rules(role, Scope::Cluster);
    if role["aggregationRule"].is_null() {
        return errors;
    }
    let path = "aggregationRule.clusterRoleSelectors";
    let selectors = items(role, "/aggregationRule/clusterRoleSelectors");
    if selectors.is_empty() {
        let detail = "at least one clusterRoleSelector required if aggregationRule is non-nil";
        errors.push(FieldError::required(path, detail));
    }
    for (index, selector) in selectors.iter().enumerate() {
        label_selector(selector, &format!("{path}[{index}]"), &mut errors);
    }
    errors
}

fn rules(role: &Value, scope: Scope) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, rule) in items(role, "/rules").iter().enumerate() {
        self::rule(rule, scope, &format!("rules[{index}]"), &mut errors);
    }
    errors
}

fn rule(rule: &Value, scope: Scope, path: &str, errors: &mut Vec<FieldError>) {
    let has = |field: &str| !items(rule, field).is_empty();
    if !has("/verbs") {
        errors.push(FieldError::required(format!("{path}.verbs"), "verbs must contain at least one value"));
    }
    if has("/nonResourceURLs") {
        let mut refuse = |detail| {
            let urls = items(rule, "/nonResourceURLs").to_vec();
            errors.push(FieldError::invalid(format!("{path}.nonResourceURLs"), urls, detail));
        };
        if scope == Scope::Namespace {
            refuse("namespaced rules cannot apply to non-resource URLs");
        }
        if has("/apiGroups") || has("/resources") || has("/resourceNames") {
            refuse("rules cannot apply to both regular resources and non-resource URLs");
        }
        return;
    }
    if !has("/apiGroups") {
        let detail = "resource rules must supply at least one api group";
        errors.push(FieldError::required(format!("{path}.apiGroups"), detail));
    }
    if !has("/resources") {
        let detail = "resource rules must supply at least one resource";
        errors.push(FieldError::required(format!("{path}.resources"), detail));
    }
}

pub(in crate::kinds) fn role_binding(binding: &Value) -> Vec<FieldError> {
    self::binding(binding, Scope::Namespace, &["Role", "ClusterRole"])
}

pub(in crate::kinds) fn cluster_role_binding(binding: &Value) -> Vec<FieldError> {
    self::binding(binding, Scope::Cluster, &["ClusterRole"])
}

fn binding(binding: &Value, scope: Scope, kinds: &[&str]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let [group, kind, name] =
        ["apiGroup", "kind", "name"].map(|field| text(&binding["roleRef"], &format!("/{field}")));
    if group != GROUP {
        errors.push(FieldError::not_supported("roleRef.apiGroup", group, &[GROUP]));
    }
    if !kinds.contains(&kind) {
        errors.push(FieldError::not_supported("roleRef.kind", kind, kinds));
    }
    if name.is_empty() {
        errors.push(FieldError::required("roleRef.name", ""));
    }
    let problems = names::path_segment(name);
    errors.extend(problems.iter().map(|problem| FieldError::invalid("roleRef.name", name, problem)));
    for (index, subject) in items(binding, "/subjects").iter().enumerate() {
        self::subject(subject, scope, &format!("subjects[{index}]"), &mut errors);
    }
    errors
}

fn subject(subject: &Value, scope: Scope, path: &str, errors: &mut Vec<FieldError>) {
    let (kind, name, group) = (text(subject, "/kind"), text(subject, "/name"), text(subject, "/apiGroup"));
    if name.is_empty() {
        errors.push(FieldError::required(format!("{path}.name"), ""));
    }
    match kind {
        "ServiceAccount" => {
            let problems = if name.is_empty() { vec![] } else { names::dns_subdomain(name) };
            let invalid = |problem: &String| FieldError::invalid(format!("{path}.name"), name, problem);
            errors.extend(problems.iter().map(invalid));
            if !group.is_empty() {
                errors.push(FieldError::not_supported(format!("{path}.apiGroup"), group, &[""]));
            }
            if scope == Scope::Cluster && text(subject, "/namespace").is_empty() {
                errors.push(FieldError::required(format!("{path}.namespace"), ""));
            }
        }
        "User" | "Group" if group != GROUP => {
            errors.push(FieldError::not_supported(format!("{path}.apiGroup"), group, &[GROUP]));
        }
        "User" | "Group" => {}
        _ => {
            let known = ["ServiceAccount", "User", "Group"];
            errors.push(FieldError::not_supported(format!("{path}.kind"), kind, &known));
        }
    }
}

pub(in crate::kinds) fn binding_update(new: &Value, old: &Value) -> Vec<FieldError> {
    if new["roleRef"] == old["roleRef"] {
        return Vec::new();
    }
    vec![FieldError::invalid("roleRef", new["roleRef"].clone(), "cannot change roleRef")]
}
