//! Nobody grants what they do not hold (upstream's escalation check).
//!
//! Input: who writes, and a role or binding before and after. Output: allowed, or upstream's sentence why not. Who writes a role
//! holds all of its rules, or may `escalate` it; who writes a binding holds all rules of its role, or may `bind` that. A write
//! that changes owners and finalizers alone concerns the garbage collector and grants nothing.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use serde_json::Value;

use super::Target;
use super::restriction::ObjectWrite;
use crate::api::Api;
use crate::auth::rbac::{self, Quoted, Rule, everything, missing};
use crate::auth::{self, Attributes, MASTERS};
use crate::error::{ApiError, Resource};
use crate::kinds::RBAC_GROUP;

/// Combinations of group, resource, name and verb that a write may grant, at most, where it has to be checked: a body of a
/// few MiB could name more than anybody has time for. Long texts count as several.
const MAX_GRANTED: usize = 100_000;
/// Missing rules that an answer lists, at most, and bytes of each.
const MAX_LISTED: usize = 50;
const MAX_LISTED_BYTES: usize = 1 << 10;

impl Api {
    /// Whether the user may grant what a write to a role or binding grants.
    pub(super) fn admit_grant(
        &self,
        target: &Target<'_>,
        name: &str,
        write: ObjectWrite<'_>,
    ) -> Result<(), ApiError> {
        let (old, new) = match write {
            ObjectWrite::Create(new) => (None, new),
            ObjectWrite::Update { old, new } => (Some(old), new),
            ObjectWrite::Delete(_) => return Ok(()),
        };
        let is_role = match target.kind.storage {
            "roles" | "clusterroles" => true,
            "rolebindings" | "clusterrolebindings" => false,
            _ => return Ok(()),
        };
        if target.user.is_in(MASTERS) || old.is_some_and(|old| only_concerns_collection(old, new)) {
            return Ok(());
        }
        let forbidden = |reason: &str| ApiError::forbidden(target.kind.resource(), name, reason);
        let rules = match is_role {
            true if self.may(target, "escalate", target.kind.plural, target.name) => return Ok(()),
            true => Rule::all_of(new),
            false => match self.rules_to_bind(target, new)? {
                Some(rules) => rules.to_vec(),
                None => return Ok(()),
            },
        };
        self.check_held(target, &rules).map_err(|reason| forbidden(&reason))?;
        // It can gather anything.
        let gathers = |role: &Value| !role["aggregationRule"].is_null();
        if (gathers(new) || old.is_some_and(gathers)) && self.check_held(target, &everything()).is_err() {
            return Err(forbidden("must have cluster-admin privileges to use the aggregationRule"));
        }
        Ok(())
    }

    /// Nothing where the user may bind the role.
    fn rules_to_bind(&self, target: &Target<'_>, binding: &Value) -> Result<Option<Arc<[Rule]>>, ApiError> {
        // Validation refuses the binding, with better words.
        let Some(role) = rbac::role_of(binding, target.namespace) else { return Ok(None) };
        let (plural, _, name) = role.parts();
        if self.may(target, "bind", plural, name) {
            return Ok(None);
        }
        let rules = self.rbac.role(&role);
        let rules =
            rules.ok_or_else(|| ApiError::not_found(Resource { group: RBAC_GROUP, name: plural }, name))?;
        Ok(Some(rules))
    }

    fn may(&self, target: &Target<'_>, verb: &'static str, resource: &str, name: &str) -> bool {
        let attributes = Attributes {
            verb: verb.into(),
            group: RBAC_GROUP.to_owned(),
            resource: resource.to_owned(),
            namespace: target.namespace.to_owned(),
            name: name.to_owned(),
            ..Attributes::default()
        };
        auth::authorize(target.user, &attributes, self.known()).is_ok()
    }

    fn check_held(&self, target: &Target<'_>, granted: &[Rule]) -> Result<(), String> {
        let user = target.user;
        if granted.iter().map(Rule::size).fold(0, usize::saturating_add) > MAX_GRANTED {
            return Err(format!(
                "the rules name more than {MAX_GRANTED} combinations of API group, resource, name and verb (long ones count as \
                 several)"
            ));
        }
        let missing = missing(&self.rbac.rules_of(user, target.namespace), granted);
        if missing.is_empty() {
            return Ok(());
        }
        let (name, groups, rules) = (&user.name, Quoted(&user.groups), listed(&missing));
        Err(format!(
            "user {name:?} (groups={groups}) is attempting to grant RBAC permissions not currently held:\n{rules}"
        ))
    }
}

/// One line for each, as far as anybody reads.
fn listed(missing: &[impl fmt::Display]) -> String {
    let mut lines: Vec<String> = missing.iter().take(MAX_LISTED).map(brief).collect();
    lines.sort();
    lines.dedup();
    match missing.len().saturating_sub(MAX_LISTED) {
        0 => {}
        more => lines.push(format!("and {more} more")),
    }
    lines.join("\n")
}

/// The start of a long text. What is behind it is not even written.
fn brief(text: &impl fmt::Display) -> String {
    let mut brief = Brief(String::new());
    // The one error is that it is full.
    if write!(brief, "{text}").is_err() {
        brief.0.push('…');
    }
    brief.0
}

struct Brief(String);

impl fmt::Write for Brief {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = text.floor_char_boundary(MAX_LISTED_BYTES - self.0.len());
        self.0.push_str(&text[..end]);
        if end == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

/// Whether nothing but owners and finalizers changes, whichever way (upstream's `IsOnlyMutatingGCFields`).
fn only_concerns_collection(old: &Value, new: &Value) -> bool {
    let mut copy = new.clone();
    for field in ["ownerReferences", "finalizers"] {
        let metadata = crate::object::metadata(&mut copy);
        match old["metadata"].get(field) {
            Some(value) => metadata.insert(field.into(), value.clone()),
            None => metadata.remove(field),
        };
    }
    copy == *old
}

#[cfg(test)]
mod tests;
