//! Objects of any kind, of which only the metadata is read.
//!
//! Input: discovery and JSON of any kind. Output: [`Bare`] objects, and handles to read, change and delete them. For the
//! garbage collector and the namespace controller, which treat all kinds alike. Refuses to know what an object is for.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ApiResource;
use kube::core::DynamicResourceScope;
use kube::discovery::{Discovery, Scope, verbs};
use kube::{Api, Client, Resource};
use serde::{Deserialize, Serialize};

/// An object's metadata; whatever else it has is skipped.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Bare {
    #[serde(default)]
    pub metadata: ObjectMeta,
}

impl Resource for Bare {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn api_version(resource: &ApiResource) -> Cow<'_, str> {
        resource.api_version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// A kind that the API server serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedKind {
    pub resource: ApiResource,
    pub namespaced: bool,
    pub verbs: Vec<String>,
}

impl ServedKind {
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|own| own == verb)
    }

    /// A handle to objects of this kind, in a namespace where the kind has them.
    pub fn api(&self, client: Client, namespace: &str) -> Api<Bare> {
        if self.namespaced && !namespace.is_empty() {
            Api::namespaced_with(client, namespace, &self.resource)
        } else {
            Api::all_with(client, &self.resource)
        }
    }

    /// "plural.group", as conditions name it.
    pub fn qualified(&self) -> String {
        format!("{}.{}", self.resource.plural, self.resource.group)
    }

    /// Whether its objects can be listed and deleted.
    pub fn is_deletable(&self) -> bool {
        self.can(verbs::LIST) && self.can(verbs::DELETE)
    }
}

/// Asks the API server which kinds it serves, each in its preferred version.
pub async fn discover(client: &Client) -> Result<Vec<ServedKind>, kube::Error> {
    let discovery = match Discovery::new(client.clone()).run_aggregated().await {
        Ok(discovery) => discovery,
        // Older servers know only one request per group.
        Err(_) => Discovery::new(client.clone()).run().await?,
    };
    let mut kinds = Vec::new();
    for group in discovery.groups_alphabetical() {
        for (resource, capabilities) in group.recommended_resources() {
            kinds.push(ServedKind {
                resource,
                namespaced: capabilities.scope == Scope::Namespaced,
                verbs: capabilities.operations,
            });
        }
    }
    Ok(kinds)
}
