//! Roles and bindings.

use serde_json::Value;

use super::{AGE, Column, NAME, age, column, wide};
use crate::object::{items, name, text};

/// Upstream has no printer of its own for roles: these are the columns of kinds without one.
pub(in crate::kinds) const ROLE: &[Column] = &[NAME, column("Created At", "date")];

pub(in crate::kinds) fn role(role: &Value, _: jiff::Timestamp) -> Vec<Value> {
    vec![name(role).into(), text(role, "/metadata/creationTimestamp").into()]
}

pub(in crate::kinds) const BINDING: &[Column] = &[
    NAME,
    column("Role", "string"),
    AGE,
    wide("Users", "string"),
    wide("Groups", "string"),
    wide("ServiceAccounts", "string"),
];

pub(in crate::kinds) fn binding(binding: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let role = format!("{}/{}", text(binding, "/roleRef/kind"), text(binding, "/roleRef/name"));
    let subjects = |kind: &str| {
        let of_kind = items(binding, "/subjects").iter().filter(|subject| text(subject, "/kind") == kind);
        let names = of_kind.map(|subject| match kind {
            "ServiceAccount" => format!("{}/{}", text(subject, "/namespace"), name_of(subject)),
            _ => name_of(subject).to_owned(),
        });
        names.collect::<Vec<_>>().join(", ").into()
    };
    vec![
        name(binding).into(),
        role.into(),
        age(binding, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}

fn name_of(subject: &Value) -> &str {
    text(subject, "/name")
}
