//! Request bodies: JSON to a checked object.
//!
//! Refuses another kind, API version, name or namespace than the path's, a value of the wrong type, and (strict) unknown or duplicate
//! fields.

use serde_json::Value;

use super::Target;
use crate::api::Api;
use crate::error::{ApiError, FieldError};
use crate::kinds::{self, Registry, api_version};
use crate::object::{self, text};
use crate::schema::{decode, protobuf};

/// The query parameter of that name; the default is upstream's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

impl FieldValidation {
    pub fn parse(value: &str) -> Result<Self, FieldError> {
        match value {
            "" | "Warn" => Ok(FieldValidation::Warn),
            "Ignore" => Ok(FieldValidation::Ignore),
            "Strict" => Ok(FieldValidation::Strict),
            other => Err(FieldError::not_supported("fieldValidation", other, &["Ignore", "Warn", "Strict"])),
        }
    }
}

/// The group, version and kind that a body must have.
#[derive(Clone, Copy)]
pub(super) struct Expected<'a> {
    pub group: &'a str,
    pub version: &'a str,
    pub kind: &'a str,
    pub type_name: &'a str,
}

impl Expected<'_> {
    fn cannot(&self, why: impl std::fmt::Display) -> ApiError {
        let (kind, version) = (self.kind, self.version);
        ApiError::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
    }
}

/// Decodes a body; the second part of the answer are warnings.
pub(super) fn decode(
    registry: &Registry,
    expected: Expected<'_>,
    bytes: &[u8],
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), ApiError> {
    let (mut value, mut problems) = parse(registry, expected, bytes)?;
    check_kind(&mut value, expected)?;
    problems.extend(conform(registry, expected, &mut value)?);
    match validation {
        FieldValidation::Strict if !problems.is_empty() => {
            Err(expected.cannot(format!("strict decoding error: {}", problems.join(", "))))
        }
        FieldValidation::Ignore => Ok((value, Vec::new())),
        _ => Ok((value, problems)),
    }
}

/// A body is protobuf when it starts with protobuf's magic bytes, which no JSON does.
fn parse(
    registry: &Registry,
    expected: Expected<'_>,
    bytes: &[u8],
) -> Result<(Value, Vec<String>), ApiError> {
    if !bytes.starts_with(protobuf::MAGIC) {
        return decode::parse(bytes).map_err(|error| expected.cannot(error));
    }
    let Some(root) = registry.type_of(expected.type_name) else { return Err(ApiError::no_such_path()) };
    let value = protobuf::decode(&registry.schemas, &registry.numbers, root, bytes);
    Ok((value.map_err(|error| expected.cannot(error))?, Vec::new()))
}

/// Checks against the schema; gives the strict problems.
pub(super) fn conform(
    registry: &Registry,
    expected: Expected<'_>,
    value: &mut Value,
) -> Result<Vec<String>, ApiError> {
    let Some(root) = registry.type_of(expected.type_name) else { return Err(ApiError::no_such_path()) };
    decode::conform(&registry.schemas, root, value).map_err(|error| expected.cannot(error))
}

fn check_kind(value: &mut Value, expected: Expected<'_>) -> Result<(), ApiError> {
    let Some(map) = value.as_object_mut() else {
        let what = expected.kind;
        return Err(ApiError::bad_request(format!(
            "the object provided is unrecognized (must be of type {what})"
        )));
    };
    let wanted = api_version(expected.group, expected.version);
    for (field, wanted) in [("apiVersion", wanted.as_str()), ("kind", expected.kind)] {
        let slot = map.entry(field).or_insert(Value::Null);
        match slot.as_str().unwrap_or("") {
            "" => *slot = wanted.into(),
            given if given == wanted => {}
            given if field == "apiVersion" => {
                return Err(ApiError::bad_request(format!(
                    "the API version in the data ({given}) does not match the expected API version ({wanted})"
                )));
            }
            given => {
                return Err(ApiError::bad_request(format!(
                    "the object provided is unrecognized (must be of type {wanted}): it is of type {given}"
                )));
            }
        }
    }
    Ok(())
}

/// The namespace of an object is the path's; an object that names none gets it.
pub(super) fn check_namespace(target: &Target<'_>, object: &mut Value) -> Result<(), ApiError> {
    if !target.kind.namespaced {
        object::metadata(object).remove("namespace");
    } else if object::namespace(object).is_empty() {
        object::metadata(object).insert("namespace".into(), target.namespace.into());
    } else if object::namespace(object) != target.namespace {
        let message = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(ApiError::bad_request(message));
    }
    Ok(())
}

/// An object that is to replace another has the name and the namespace of the path.
pub(super) fn check_name(target: &Target<'_>, object: &Value) -> Result<(), ApiError> {
    let (name, namespace) = (object::name(object), object::namespace(object));
    let message = if name.is_empty() {
        format!(
            "the name of the object ({} based on URL) was undeterminable: name must be provided",
            target.name
        )
    } else if name != target.name {
        format!("the name of the object ({name}) does not match the name on the URL ({})", target.name)
    } else if !namespace.is_empty() && !target.namespace.is_empty() && namespace != target.namespace {
        format!(
            "the namespace of the object ({namespace}) does not match the namespace on the request ({})",
            target.namespace
        )
    } else {
        return Ok(());
    };
    Err(ApiError::bad_request(message))
}

/// DeleteOptions from a body; an empty body has none.
pub fn decode_options(api: &Api, bytes: &[u8]) -> Result<Value, ApiError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    let (mut value, _) = parse(&api.registry, OPTIONS, bytes)?;
    if !matches!(text(&value, "/kind"), "" | "DeleteOptions") {
        let message = "the object provided is unrecognized (must be of type DeleteOptions)";
        return Err(ApiError::bad_request(message));
    }
    conform(&api.registry, OPTIONS, &mut value)?;
    Ok(value)
}

const OPTIONS: Expected<'static> =
    Expected { group: "", version: "v1", kind: "DeleteOptions", type_name: kinds::DELETE_OPTIONS };

/// The body of a review.
pub fn decode_review(api: &Api, review: &kinds::Review, bytes: &[u8]) -> Result<Value, ApiError> {
    let expected = Expected {
        group: review.group,
        version: review.version,
        kind: review.kind,
        type_name: review.type_name,
    };
    decode(&api.registry, expected, bytes, FieldValidation::Ignore).map(|(value, _)| value)
}
