//! The base schemas: `k8s-openapi`'s JSON schemas of the served kinds and of what they refer to.
//!
//! Output: definitions by full type name, with references as OpenAPI v3 writes them. Made on request; the result is
//! large (megabytes as values), so callers drop it when they have what they need.

use k8s_openapi::api::{
    apps, authentication, authorization, autoscaling, coordination, core, discovery, events, networking,
    policy, rbac,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

/// Where references point in the documents.
pub const REFERENCE_PREFIX: &str = "#/components/schemas/";

/// All definitions. A kind that is added to the registry needs its type here.
pub fn definitions() -> Map<String, Value> {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = REFERENCE_PREFIX.trim_start_matches('#').trim_end_matches('/').into();
    settings.inline_subschemas = false;
    let mut generator = settings.into_generator();
    generator.subschema_for::<core::v1::Namespace>();
    generator.subschema_for::<core::v1::Node>();
    generator.subschema_for::<core::v1::Pod>();
    generator.subschema_for::<core::v1::Binding>();
    generator.subschema_for::<core::v1::Service>();
    generator.subschema_for::<core::v1::Endpoints>();
    generator.subschema_for::<core::v1::ConfigMap>();
    generator.subschema_for::<core::v1::Secret>();
    generator.subschema_for::<core::v1::ServiceAccount>();
    generator.subschema_for::<core::v1::Event>();
    generator.subschema_for::<events::v1::Event>();
    generator.subschema_for::<coordination::v1::Lease>();
    generator.subschema_for::<discovery::v1::EndpointSlice>();
    generator.subschema_for::<networking::v1::NetworkPolicy>();
    generator.subschema_for::<rbac::v1::ClusterRole>();
    generator.subschema_for::<rbac::v1::ClusterRoleBinding>();
    generator.subschema_for::<rbac::v1::Role>();
    generator.subschema_for::<rbac::v1::RoleBinding>();
    generator.subschema_for::<apps::v1::Deployment>();
    generator.subschema_for::<apps::v1::ReplicaSet>();
    generator.subschema_for::<autoscaling::v1::Scale>();
    generator.subschema_for::<policy::v1::Eviction>();
    generator.subschema_for::<authentication::v1::SelfSubjectReview>();
    generator.subschema_for::<authorization::v1::SelfSubjectAccessReview>();
    generator.subschema_for::<authorization::v1::SelfSubjectRulesReview>();
    generator.subschema_for::<authorization::v1::SubjectAccessReview>();
    generator.subschema_for::<meta::DeleteOptions>();
    generator.subschema_for::<meta::Status>();
    generator.subschema_for::<meta::ListMeta>();
    generator.take_definitions(true)
}
