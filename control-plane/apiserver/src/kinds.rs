//! The registry of kinds. A kind is added by a row in `rows.rs`.
//!
//! A row names the kind (group, version, plural, short names), its schema type, its storage, its verbs and subresources
//! and the functions that default, validate and print it. Discovery, routing, OpenAPI, storage, tables and selectors
//! read rows. Three tables outside name kinds as well, for they are facts about more than the served kinds: how lists
//! merge (`schema/facts.rs`), protobuf numbers (`schema/protobuf_numbers.txt`; a test says when a row has none), and
//! who may use a kind before anybody grants it (`auth/policy.rs`, `auth/node.rs`).
//!
//! What only one kind does stands where it is done, by storage name: Services get addresses (`verbs`), Pods end
//! gracefully (`verbs/delete.rs`), Namespaces close and empty (`verbs`, `api.rs`), Nodes write of themselves and of
//! their Pods and Leases (`verbs/restriction.rs`, `auth/references.rs`), roles grant (`auth/rbac.rs`, `verbs/escalation.rs`),
//! Events expire (`expiry.rs`).

mod conversion;
mod defaults;
mod fields;
mod prepare;
mod print;
mod rows;
mod validate;

use std::collections::HashMap;

use serde_json::Value;

use crate::cache::FieldValues;
use crate::error::{FieldError, Resource};
use crate::schema::protobuf::Numbers;
use crate::schema::{Schemas, TypeId, source};

pub use prepare::needs_health_check_port;
pub use print::{Column, priority_of};
pub use validate::metadata as validate_metadata;
pub use validate::metadata_update as validate_metadata_update;

/// A subresource: its path element, the kind it takes, and its verbs.
#[derive(Clone, Copy, Debug)]
pub struct Subresource {
    pub name: &'static str,
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub verbs: &'static [&'static str],
}

/// Between the served form and the stored form, for a kind that shares another kind's storage.
#[derive(Clone, Copy)]
pub struct Conversion {
    pub to_storage: fn(&mut Value),
    pub from_storage: fn(&mut Value),
}

/// One row of the registry.
pub struct Kind {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    pub type_name: &'static str,
    /// Kinds with one storage name are views of the same objects.
    pub storage: &'static str,
    /// What can be done with the objects themselves.
    pub verbs: &'static [&'static str],
    pub subresources: &'static [Subresource],
    /// Whether an update of an object that does not exist creates it (upstream's `AllowCreateOnUpdate`).
    pub create_on_update: bool,
    /// `metadata.generation` counts changes outside metadata and status.
    pub has_generation: bool,
    pub name_rule: fn(&str) -> Vec<String>,
    /// Fills what the client left out; runs on every write.
    pub default: fn(&mut Value),
    /// Resets what a client may not set at creation.
    pub prepare_create: fn(&mut Value),
    /// Takes over from the old object what a client may not change by an ordinary update.
    pub prepare_update: fn(&mut Value, &Value),
    pub validate: fn(&Value) -> Vec<FieldError>,
    pub validate_update: fn(&Value, &Value) -> Vec<FieldError>,
    /// Values of the fields that a selector may name.
    pub fields: FieldValues,
    pub field_names: &'static [&'static str],
    pub columns: &'static [Column],
    pub cells: fn(&Value, jiff::Timestamp) -> Vec<Value>,
    pub conversion: Option<Conversion>,
}

impl Kind {
    pub fn resource(&self) -> Resource<'static> {
        Resource { group: self.group, name: self.plural }
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }

    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|subresource| subresource.name == name)
    }

    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }

    /// Pods end gracefully: a bound pod is deleted by its node.
    pub fn is_graceful(&self) -> bool {
        self.storage == "pods"
    }
}

pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// Every verb of objects; most kinds have them all.
pub const VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// A type that is only posted: reviews.
pub struct Review {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub type_name: &'static str,
}

pub const REVIEWS: &[Review] = &[
    Review {
        group: "authentication.k8s.io",
        version: "v1",
        kind: "SelfSubjectReview",
        plural: "selfsubjectreviews",
        singular: "selfsubjectreview",
        type_name: "io.k8s.api.authentication.v1.SelfSubjectReview",
    },
    Review {
        group: "authorization.k8s.io",
        version: "v1",
        kind: "SelfSubjectAccessReview",
        plural: "selfsubjectaccessreviews",
        singular: "selfsubjectaccessreview",
        type_name: "io.k8s.api.authorization.v1.SelfSubjectAccessReview",
    },
    Review {
        group: "authorization.k8s.io",
        version: "v1",
        kind: "SelfSubjectRulesReview",
        plural: "selfsubjectrulesreviews",
        singular: "selfsubjectrulesreview",
        type_name: "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
    },
    Review {
        group: "authorization.k8s.io",
        version: "v1",
        kind: "SubjectAccessReview",
        plural: "subjectaccessreviews",
        singular: "subjectaccessreview",
        type_name: "io.k8s.api.authorization.v1.SubjectAccessReview",
    },
];

/// The registry with its compiled schemas.
pub struct Registry {
    pub kinds: &'static [Kind],
    pub schemas: Schemas,
    pub numbers: Numbers,
    types: HashMap<&'static str, TypeId>,
}

/// A type that a row names is not in the schema source.
#[derive(Debug, thiserror::Error)]
#[error("build registry: type {name} has no schema")]
pub struct MissingType {
    pub name: &'static str,
}

/// The API group of roles and bindings.
pub const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

/// Types that requests carry besides the kinds themselves.
pub const BINDING: &str = "io.k8s.api.core.v1.Binding";
pub const SCALE: &str = "io.k8s.api.autoscaling.v1.Scale";
pub const EVICTION: &str = "io.k8s.api.policy.v1.Eviction";
pub const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";

impl Registry {
    pub fn build() -> Result<Self, MissingType> {
        let schemas = Schemas::build(&source::definitions());
        let others = [BINDING, SCALE, EVICTION, DELETE_OPTIONS];
        let names = rows::KINDS.iter().map(|kind| kind.type_name);
        let names = names.chain(others).chain(REVIEWS.iter().map(|review| review.type_name));
        let types = names
            .map(|name| Ok((name, schemas.find(name).ok_or(MissingType { name })?)))
            .collect::<Result<_, MissingType>>()?;
        let numbers = Numbers::build(&schemas);
        Ok(Registry { kinds: rows::KINDS, schemas, numbers, types })
    }

    /// The compiled type of a name that `build` checked.
    pub fn type_of(&self, name: &str) -> Option<TypeId> {
        self.types.get(name).copied()
    }

    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
        self.kinds.iter().find(|kind| kind.group == group && kind.version == version && kind.plural == plural)
    }

    /// The kind that owns a storage name.
    pub fn of_storage(&self, storage: &str) -> Option<&'static Kind> {
        self.kinds.iter().find(|kind| kind.storage == storage && kind.conversion.is_none())
    }

    /// Storage names with their field tables, each once.
    pub fn storages(&self) -> impl Iterator<Item = (&'static str, FieldValues)> {
        self.kinds.iter().filter(|kind| kind.conversion.is_none()).map(|kind| (kind.storage, kind.fields))
    }

    /// Group and version pairs, in the order of discovery.
    pub fn group_versions(&self) -> Vec<(&'static str, &'static str)> {
        let kinds = self.kinds.iter().map(|kind| (kind.group, kind.version));
        let mut found = Vec::new();
        for pair in kinds.chain(REVIEWS.iter().map(|review| (review.group, review.version))) {
            if !found.contains(&pair) {
                found.push(pair);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests;
