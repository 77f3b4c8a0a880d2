//! The scale subresource of Deployments and ReplicaSets.

use serde_json::{Value, json};

use super::body::{Expected, check_name, check_namespace, decode};
use super::change::Part;
use super::{Target, WriteOptions, Written};
use crate::api::Api;
use crate::error::ApiError;
use crate::kinds::SCALE;
use crate::object::{self, child, text};
use crate::patch::PatchType;
use crate::selectors::text_of;

const EXPECTED: Expected<'static> =
    Expected { group: "autoscaling", version: "v1", kind: "Scale", type_name: SCALE };

impl Api {
    pub fn get_scale(&self, target: Target<'_>) -> Result<Value, ApiError> {
        Ok(scale_of(&self.find(target.kind, target.namespace, target.name)?.value()))
    }

    pub(super) async fn update_scale(
        &self,
        target: Target<'_>,
        bytes: &[u8],
        options: WriteOptions,
    ) -> Result<Written, ApiError> {
        let (mut scale, warnings) = decode(&self.registry, EXPECTED, bytes, options.field_validation)?;
        check_namespace(&target, &mut scale)?;
        check_name(&target, &scale)?;
        let mut written =
            self.change(target, Part::Main, options, |old| Ok((scaled(old, &scale)?, vec![]))).await?;
        written.object = scale_of(&written.object);
        written.warnings = warnings;
        Ok(written)
    }

    pub(super) async fn patch_scale(
        &self,
        target: Target<'_>,
        kind: PatchType,
        patch: &Value,
        options: WriteOptions,
    ) -> Result<Written, ApiError> {
        let propose = |old: &Value| {
            let current = scale_of(old);
            let (scale, warnings) =
                self.patched(EXPECTED, &target, kind, &current, patch, options.field_validation)?;
            Ok((scaled(old, &scale)?, warnings))
        };
        let mut written = self.change(target, Part::Main, options, propose).await?;
        written.object = scale_of(&written.object);
        Ok(written)
    }
}

/// The object with the replicas of a Scale, and its resourceVersion as condition.
fn scaled(old: &Value, scale: &Value) -> Result<Value, ApiError> {
    let mut new = old.clone();
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas < 0 {
        let detail = "must be greater than or equal to 0";
        let error = crate::error::FieldError::invalid("spec.replicas", replicas, detail);
        return Err(ApiError::invalid("Scale", "autoscaling", object::name(old), &[error]));
    }
    child(&mut new, "spec").insert("replicas".into(), replicas.into());
    let metadata = object::metadata(&mut new);
    match text(scale, "/metadata/resourceVersion") {
        "" => metadata.remove("resourceVersion"),
        named => metadata.insert("resourceVersion".into(), named.into()),
    };
    Ok(new)
}

fn scale_of(object: &Value) -> Value {
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": number("/spec/replicas")},
        "status": {"replicas": number("/status/replicas"), "selector": text_of(&object["spec"]["selector"])},
    })
}
