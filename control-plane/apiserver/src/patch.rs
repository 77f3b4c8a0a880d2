//! The patch types: JSON patch, JSON merge patch, strategic merge patch.
//!
//! Input: the current object, the patch, and (strategic) the schema table. Output: the new object, not yet checked
//! against the schema. Pure.

mod json;
mod strategic;

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::schema::{Schemas, TypeId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
}

/// The media types that a PATCH may have.
pub const PATCH_MEDIA_TYPES: &[(&str, PatchType)] = &[
    ("application/json-patch+json", PatchType::Json),
    ("application/merge-patch+json", PatchType::Merge),
    ("application/strategic-merge-patch+json", PatchType::Strategic),
];

/// Applies `patch` to `object`.
pub fn apply(
    schemas: &Schemas,
    root: TypeId,
    kind: PatchType,
    object: &Value,
    patch: &Value,
) -> Result<Value, ApiError> {
    let mut result = object.clone();
    match kind {
        PatchType::Json => json::apply(&mut result, patch)?,
        PatchType::Merge => {
            let Value::Object(patch) = patch else { return Err(not_an_object()) };
            merge(&mut result, patch);
        }
        PatchType::Strategic => {
            let Value::Object(patch) = patch else { return Err(not_an_object()) };
            strategic::apply(schemas, root, &mut result, patch).map_err(ApiError::bad_request)?;
        }
    }
    Ok(result)
}

fn not_an_object() -> ApiError {
    ApiError::bad_request(
        "error decoding patch: json: cannot unmarshal into Go value of type map[string]interface {}",
    )
}

/// RFC 7386.
pub fn merge(object: &mut Value, patch: &Map<String, Value>) {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let Value::Object(map) = object else { return };
    for (key, value) in patch {
        match value {
            Value::Null => {
                map.remove(key);
            }
            Value::Object(inner) => merge(map.entry(key.clone()).or_insert(Value::Null), inner),
            other => {
                map.insert(key.clone(), other.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests;
