//! Who asks, and whether they may: client certificates; administrators, what nodes are due, and roles.
//!
//! Input: a certificate; a user and the attributes of a request; the cache, the index of references, for what a node may
//! read, and the index of roles and bindings. Output: a user; allowed or not, each with upstream's reason. Refuses what nothing
//! allows; nothing denies what something else allows.

mod node;
pub mod policy;
pub mod rbac;
mod references;

use std::borrow::Cow;

use x509_parser::prelude::{FromDer, X509Certificate};

use crate::cache::Cache;
use crate::selectors::FieldSelector;

pub use rbac::Rbac;
pub use references::References;

/// The group of administrators, who may do everything.
pub const MASTERS: &str = "system:masters";

/// An authenticated client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub groups: Vec<String>,
}

impl User {
    /// Common name and organizations of a verified client certificate.
    pub fn from_certificate(der: &[u8]) -> Option<User> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let organizations = subject.iter_organization().filter_map(|value| value.as_str().ok());
        let mut groups: Vec<String> = organizations.map(str::to_owned).collect();
        groups.push("system:authenticated".into());
        Some(User { name, groups })
    }

    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// The node that this user is, if it is one.
    pub fn node(&self) -> Option<&str> {
        if self.is_in("system:nodes") { self.name.strip_prefix("system:node:") } else { None }
    }
}

/// What a request does to which resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    pub verb: Cow<'static, str>,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: String,
}

impl Attributes {
    /// `pods/status`, as rules name it.
    fn resource_path(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }

    /// The object that is meant: by its name, or by a selector of just this name.
    pub fn object_name(&self) -> Cow<'_, str> {
        if !self.name.is_empty() || !matches!(&*self.verb, "list" | "watch") {
            return Cow::Borrowed(&self.name);
        }
        let selected = FieldSelector::parse(&self.field_selector).unwrap_or_default();
        let named = selected.0.into_iter().find(|term| term.equal && term.field == "metadata.name");
        Cow::Owned(named.map(|term| term.value).unwrap_or_default())
    }

    /// Upstream's sentence for a denied request; `reason` is what the rules say to it, if anything.
    pub fn denial(&self, user: &User, reason: &str) -> String {
        let scope = if self.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {:?}", self.namespace)
        };
        let (name, verb, resource, group) = (&user.name, &self.verb, self.resource_path(), &self.group);
        let reason = behind_colon(reason);
        format!("User {name:?} cannot {verb} resource {resource:?} in API group {group:?} {scope}{reason}")
    }
}

/// What rules look at besides the request.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    pub cache: &'a Cache,
    pub references: &'a References,
    pub rbac: &'a Rbac,
}

/// A reason behind a sentence; nothing for none.
pub fn behind_colon(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

/// Whether `user` may do it. Both answers are reasons, which may be empty.
pub fn authorize(user: &User, attributes: &Attributes, known: Known<'_>) -> Result<String, String> {
    let node = || user.node().is_some_and(|node| node::allows(node, attributes, known));
    if user.is_in(MASTERS) || node() { Ok(String::new()) } else { known.rbac.allows(user, attributes) }
}

/// Whether `user` may use a path that is no resource's, with a method in lower case. Both answers are reasons.
pub fn authorize_path(user: &User, verb: &str, path: &str, known: Known<'_>) -> Result<String, String> {
    if user.is_in(MASTERS) { Ok(String::new()) } else { known.rbac.allows_path(user, verb, path) }
}

#[cfg(test)]
mod tests;
