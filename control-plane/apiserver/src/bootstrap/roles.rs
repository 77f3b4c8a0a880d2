//! Roles and bindings of every cluster at a start: made, completed, never taken back (upstream's reconciliation).
//!
//! ```text
//! missing                        -> made
//! annotated autoupdate "false"   -> left alone
//! a binding to another role      -> made anew: which role it is to cannot change
//! rules, subjects, labels or annotations missing -> added; what is there besides stays
//! ```
//! A role that could not be made is logged, and the others are: a server that does not start helps nobody to see why.

use futures::future::join_all;
use serde_json::Value;

use crate::api::Api;
use crate::auth::rbac::{Rule, missing};
use crate::auth::{User, policy};
use crate::error::ApiError;
use crate::kinds::RBAC_GROUP;
use crate::object::{entries, items, name, text};
use crate::verbs::{DeleteOptions, Target, WriteOptions};

/// What a stored role or binding needs.
#[derive(Debug, PartialEq)]
enum Step {
    Keep,
    Update(Value),
    Replace,
}

/// Makes and completes all; at once, for they share their commits.
pub(super) async fn ensure_all(api: &Api, user: &User) {
    let roles = policy::cluster_roles().into_iter().map(|role| ("clusterroles", role));
    let bindings =
        policy::cluster_role_bindings().into_iter().map(|binding| ("clusterrolebindings", binding));
    join_all(roles.chain(bindings).map(|(plural, wanted)| async move {
        let name = name(&wanted).to_owned();
        if let Err(error) = ensure(api, user, plural, wanted).await {
            tracing::warn!(plural, name, %error, "make a role or binding of every cluster");
        }
    }))
    .await;
}

async fn ensure(api: &Api, user: &User, plural: &str, wanted: Value) -> Result<(), ApiError> {
    let kind = api.registry.find(RBAC_GROUP, "v1", plural).ok_or_else(ApiError::no_such_path)?;
    let name = name(&wanted).to_owned();
    let target = Target { kind, namespace: "", name: &name, user };
    let step = match api.find(kind, "", &name) {
        Ok(stored) => reconciled(&stored.value(), &wanted),
        Err(_) => return api.create_decoded(target, wanted, false).await.map(drop),
    };
    match step {
        Step::Keep => Ok(()),
        Step::Update(object) => {
            let body = object.to_string();
            api.update(target, "", body.as_bytes(), WriteOptions::default()).await.map(drop)
        }
        Step::Replace => {
            api.delete(target, &DeleteOptions::default()).await?;
            api.create_decoded(target, wanted, false).await.map(drop)
        }
    }
}

/// What the stored object needs in order to be what is wanted, or more.
fn reconciled(stored: &Value, wanted: &Value) -> Step {
    if stored["metadata"]["annotations"][policy::AUTO_UPDATE] == "false" {
        return Step::Keep;
    }
    let mut new = stored.clone();
    for field in ["labels", "annotations"] {
        let pointer = format!("/metadata/{field}");
        let given = |key: &str| entries(stored, &pointer).any(|(known, _)| known == key);
        for (key, value) in entries(wanted, &pointer).filter(|(key, _)| !given(key)) {
            new["metadata"][field][key] = value.into();
        }
    }
    if !wanted["roleRef"].is_null() {
        if stored["roleRef"] != wanted["roleRef"] {
            return Step::Replace;
        }
        let absent = items(wanted, "/subjects").iter().filter(|subject| !has_subject(stored, subject));
        append(&mut new, "subjects", absent.cloned().collect());
    } else {
        let (held, wanted) = (Rule::all_of(stored), Rule::all_of(wanted));
        let absent = missing(&held, &wanted);
        append(&mut new, "rules", absent.iter().map(|missing| missing.to_rule().to_value()).collect());
    }
    if new == *stored { Step::Keep } else { Step::Update(new) }
}

fn has_subject(binding: &Value, subject: &Value) -> bool {
    let fields = ["/kind", "/apiGroup", "/namespace", "/name"];
    let same = |known: &Value| fields.iter().all(|field| text(known, field) == text(subject, field));
    items(binding, "/subjects").iter().any(same)
}

fn append(object: &mut Value, field: &str, more: Vec<Value>) {
    if !more.is_empty() {
        let all = [items(object, &format!("/{field}")), &more].concat();
        object[field] = all.into();
    }
}

#[cfg(test)]
mod tests;
