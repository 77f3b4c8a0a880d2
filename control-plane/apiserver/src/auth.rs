//! Who asks, and whether they may: client certificates, and a fixed table per identity until RBAC comes.
//!
//! Input: a certificate; a user and the attributes of a request; the cache and the index of references, for what a node may
//! read. Output: a user; allowed, or upstream's sentence why not. Refuses what no rule allows.

mod node;
mod references;
mod table;

use x509_parser::prelude::{FromDer, X509Certificate};

use crate::cache::Cache;

pub use references::References;

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
    pub verb: &'static str,
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

    /// Upstream's sentence for a denied request.
    pub fn denial(&self, user: &User) -> String {
        let scope = if self.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {:?}", self.namespace)
        };
        let (name, verb, resource, group) = (&user.name, self.verb, self.resource_path(), &self.group);
        format!("User {name:?} cannot {verb} resource {resource:?} in API group {group:?} {scope}")
    }
}

/// What rules look at besides the request.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    pub cache: &'a Cache,
    pub references: &'a References,
}

/// Whether `user` may do it. The error is the sentence behind `… is forbidden: `.
pub fn authorize(user: &User, attributes: &Attributes, known: Known<'_>) -> Result<(), String> {
    let allowed = user.is_in("system:masters")
        || table::allows(&user.name, attributes)
        || user.node().is_some_and(|node| node::allows(node, attributes, known))
        || is_self_review(attributes);
    if allowed { Ok(()) } else { Err(attributes.denial(user)) }
}

/// Everybody may ask who they are and what they may.
fn is_self_review(attributes: &Attributes) -> bool {
    attributes.verb == "create"
        && matches!(attributes.group.as_str(), "authentication.k8s.io" | "authorization.k8s.io")
        && attributes.resource.starts_with("selfsubject")
}

#[cfg(test)]
mod tests;
