//! The server's shared state: registry, cache, store, allocators, and the way to nodes.
//!
//! Built once at start; requests only read it. Everything that changes is behind the store.

use std::sync::Arc;

use crate::allocators::Allocators;
use crate::auth::{self, Rbac, References};
use crate::cache::Cache;
use crate::error::{ApiError, Resource};
use crate::http::openapi::Documents;
use crate::kinds::{Kind, Registry};
use crate::kubelet::KubeletClient;
use crate::object;
use crate::storage::{Key, Storage};
use crate::tolerations::DefaultTolerations;

/// What `/version` says: the API that this server implements.
pub const VERSION_MAJOR: &str = "1";
pub const VERSION_MINOR: &str = "36";
pub const GIT_VERSION: &str = "v1.36.0";

/// The shared state.
pub struct Api {
    pub registry: Registry,
    pub cache: Arc<Cache>,
    pub references: Arc<References>,
    pub rbac: Arc<Rbac>,
    pub store: Arc<dyn Storage>,
    pub allocators: Allocators,
    pub kubelet: KubeletClient,
    pub documents: Documents,
    pub tolerations: DefaultTolerations,
}

impl Api {
    /// What authorization looks at.
    pub fn known(&self) -> auth::Known<'_> {
        auth::Known { cache: &self.cache, references: &self.references, rbac: &self.rbac }
    }

    pub fn key(kind: &Kind, namespace: &str, name: &str) -> Key {
        Key::new(kind.storage, namespace, name)
    }

    /// The newest state of an object, or 404.
    pub fn find(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<crate::cache::Entry>, ApiError> {
        let found = self.cache.get(&Self::key(kind, namespace, name));
        found.ok_or_else(|| ApiError::not_found(kind.resource(), name))
    }

    /// Checks that new objects may be made in a namespace; gives the revision of the namespace that was checked.
    pub fn open_namespace(&self, kind: &Kind, namespace: &str, name: &str) -> Result<(Key, u64), ApiError> {
        let key = Key::new("namespaces", "", namespace);
        let Some(entry) = self.cache.get(&key) else {
            return Err(ApiError::not_found(Resource { group: "", name: "namespaces" }, namespace));
        };
        if object::is_deleting(&entry.value()) {
            let reason = format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            );
            let mut error = ApiError::forbidden(kind.resource(), name, &reason);
            if let Some(details) = &mut error.details {
                let message = format!("namespace {namespace} is being terminated");
                details["causes"] = serde_json::json!([
                    {"reason": "NamespaceTerminating", "message": message, "field": "metadata.namespace"}
                ]);
            }
            return Err(error);
        }
        Ok((key, entry.revision))
    }
}
