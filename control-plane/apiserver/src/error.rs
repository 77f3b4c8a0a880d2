//! What a client reads when a request fails: upstream's Status with its code, reason, message and details.
//!
//! Every constructor is one of upstream's (`apimachinery/pkg/api/errors`), with the same wording. What only an
//! operator may see goes to the log, never into a Status.

use serde_json::{Value, json};

use crate::storage::StorageError;

/// One problem of one field, as validation reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    pub reason: FieldReason,
    pub field: String,
    /// The sentence after the field, complete with the kind of problem and the value.
    pub body: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldReason {
    Required,
    Invalid,
    NotSupported,
    Duplicate,
    Forbidden,
    TooLong,
    TooMany,
    NotFound,
}

impl FieldReason {
    fn status_reason(self) -> &'static str {
        match self {
            FieldReason::Required => "FieldValueRequired",
            FieldReason::Invalid => "FieldValueInvalid",
            FieldReason::NotSupported => "FieldValueNotSupported",
            FieldReason::Duplicate => "FieldValueDuplicate",
            FieldReason::Forbidden => "FieldValueForbidden",
            FieldReason::TooLong => "FieldValueTooLong",
            FieldReason::TooMany => "FieldValueTooMany",
            FieldReason::NotFound => "FieldValueNotFound",
        }
    }
}

fn with_detail(head: String, detail: &str) -> String {
    if detail.is_empty() { head } else { format!("{head}: {detail}") }
}

/// A value as upstream prints it inside a message: strings quoted, the rest as JSON.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    }
}

impl FieldError {
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        let body = with_detail("Required value".into(), detail);
        FieldError { reason: FieldReason::Required, field: field.into(), body }
    }

    pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: &str) -> Self {
        let body = with_detail(format!("Invalid value: {}", shown(&value.into())), detail);
        FieldError { reason: FieldReason::Invalid, field: field.into(), body }
    }

    pub fn not_supported(field: impl Into<String>, value: &str, supported: &[&str]) -> Self {
        let quoted: Vec<String> = supported.iter().map(|value| format!("{value:?}")).collect();
        let body = format!("Unsupported value: {value:?}: supported values: {}", quoted.join(", "));
        FieldError { reason: FieldReason::NotSupported, field: field.into(), body }
    }

    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Self {
        let body = format!("Duplicate value: {}", shown(&value.into()));
        FieldError { reason: FieldReason::Duplicate, field: field.into(), body }
    }

    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        FieldError {
            reason: FieldReason::Forbidden,
            field: field.into(),
            body: with_detail("Forbidden".into(), detail),
        }
    }

    pub fn too_long(field: impl Into<String>, limit: usize) -> Self {
        let body = format!("Too long: may not be more than {limit} bytes");
        FieldError { reason: FieldReason::TooLong, field: field.into(), body }
    }

    pub fn not_found(field: impl Into<String>, value: &str) -> Self {
        FieldError {
            reason: FieldReason::NotFound,
            field: field.into(),
            body: format!("Not found: {value:?}"),
        }
    }
}

/// A failed request.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
    pub details: Option<Box<Value>>,
}

/// `group` and plural name of a resource, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource<'a> {
    pub group: &'a str,
    pub name: &'a str,
}

impl Resource<'_> {
    /// `deployments.apps`, or `pods` for the core group.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.name.to_owned() } else { format!("{}.{}", self.name, self.group) }
    }
}

impl ApiError {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        ApiError { code, reason, message: message.into(), details: None }
    }

    fn about(mut self, resource: Resource<'_>, name: &str) -> Self {
        let mut details = serde_json::Map::new();
        for (key, value) in [("name", name), ("group", resource.group), ("kind", resource.name)] {
            if !value.is_empty() {
                details.insert(key.into(), value.into());
            }
        }
        self.details = Some(Box::new(Value::Object(details)));
        self
    }

    fn detail(mut self, key: &str, value: Value) -> Self {
        let details = self.details.get_or_insert_with(|| Box::new(json!({})));
        details[key] = value;
        self
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        ApiError::new(400, "BadRequest", message)
    }

    pub fn unauthorized() -> Self {
        ApiError::new(401, "Unauthorized", "Unauthorized")
    }

    pub fn forbidden(resource: Resource<'_>, name: &str, reason: &str) -> Self {
        let subject =
            if name.is_empty() { resource.qualified() } else { format!("{} {name:?}", resource.qualified()) };
        ApiError::new(403, "Forbidden", format!("{subject} is forbidden: {reason}")).about(resource, name)
    }

    /// `reason` is what the rules say to it, if anything.
    pub fn forbidden_path(path: &str, user: &str, verb: &str, reason: &str) -> Self {
        let reason = crate::auth::behind_colon(reason);
        let message = format!("forbidden: User {user:?} cannot {verb} path {path:?}{reason}");
        ApiError::new(403, "Forbidden", message).detail_empty()
    }

    fn detail_empty(mut self) -> Self {
        self.details = Some(Box::new(json!({})));
        self
    }

    pub fn not_found(resource: Resource<'_>, name: &str) -> Self {
        ApiError::new(404, "NotFound", format!("{} {name:?} not found", resource.qualified()))
            .about(resource, name)
    }

    pub fn no_such_path() -> Self {
        ApiError::new(404, "NotFound", "the server could not find the requested resource").detail_empty()
    }

    pub fn method_not_supported(resource: Resource<'_>, verb: &str) -> Self {
        let message = format!("{verb} is not supported on resources of kind {:?}", resource.qualified());
        ApiError::new(405, "MethodNotAllowed", message).about(resource, "")
    }

    pub fn method_not_allowed() -> Self {
        ApiError::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
        .detail_empty()
    }

    pub fn not_acceptable(accepted: &str) -> Self {
        ApiError::new(
            406,
            "NotAcceptable",
            format!("only the following media types are accepted: {accepted}"),
        )
    }

    pub fn already_exists(resource: Resource<'_>, name: &str) -> Self {
        ApiError::new(409, "AlreadyExists", format!("{} {name:?} already exists", resource.qualified()))
            .about(resource, name)
    }

    pub fn conflict(resource: Resource<'_>, name: &str, reason: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {reason}", resource.qualified());
        ApiError::new(409, "Conflict", message).about(resource, name)
    }

    pub fn modified(resource: Resource<'_>, name: &str) -> Self {
        let reason =
            "the object has been modified; please apply your changes to the latest version and try again";
        ApiError::conflict(resource, name, reason)
    }

    pub fn expired(message: impl Into<String>) -> Self {
        ApiError::new(410, "Expired", message)
    }

    pub fn too_large(limit: usize) -> Self {
        ApiError::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
    }

    pub fn too_large_message(message: String) -> Self {
        ApiError::new(413, "RequestEntityTooLarge", message)
    }

    /// A patch that is well formed but cannot be applied.
    pub fn unprocessable(message: impl Into<String>) -> Self {
        ApiError::new(422, "Invalid", message)
    }

    pub fn unsupported_media_type(supported: &str) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {supported}"
        );
        ApiError::new(415, "UnsupportedMediaType", message)
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after: u32) -> Self {
        ApiError::new(429, "TooManyRequests", message).detail("retryAfterSeconds", retry_after.into())
    }

    pub fn internal(message: impl std::fmt::Display) -> Self {
        ApiError::new(500, "InternalError", format!("Internal error occurred: {message}"))
            .detail("causes", json!([{"message": message.to_string()}]))
    }

    /// An error that upstream does not classify: its text and 500.
    pub fn unknown(message: impl Into<String>) -> Self {
        ApiError::new(500, "", message)
    }

    /// What another server answered, where its own words are of no use to the caller. `text` is what it said.
    pub fn of_server(code: u16, resource: Resource<'_>, name: &str, text: &str) -> Self {
        let sentence = match code {
            401 => "the server has asked for the client to provide credentials".to_owned(),
            403 | 406 | 415 => text.to_owned(),
            404 => "the server could not find the requested resource".to_owned(),
            405 => "the server does not allow this method on the requested resource".to_owned(),
            409 => "the server reported a conflict".to_owned(),
            422 => "the server rejected our request due to an error in our request".to_owned(),
            429 => "the server has received too many requests and has asked us to try again later".to_owned(),
            503 => "the server is currently unable to handle the request".to_owned(),
            504 => "the server was unable to return a response in the time allotted, but may still be processing \
                    the request"
                .to_owned(),
            500.. => format!("an error on the server ({text:?}) has prevented the request from succeeding"),
            _ => format!("the server responded with the status code {code} but did not return more information"),
        };
        // Upstream puts a verb in front of the resource, which is empty here.
        let message = format!("{sentence} ( {} {name})", resource.qualified());
        ApiError::new(code, reason_of(code), message).about(resource, name)
    }

    /// A node's refusal to open a stream, in the node's words.
    pub fn no_stream(code: u16, resource: Resource<'_>, name: &str, text: &str) -> Self {
        let message = format!("unable to upgrade connection: {text}");
        ApiError::new(code, reason_of(code), message).about(resource, name)
    }

    pub fn service_unavailable(message: impl Into<String>) -> Self {
        ApiError::new(503, "ServiceUnavailable", message)
    }

    /// A resource version that this store has not reached.
    pub fn version_too_large(wanted: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {wanted}, current: {current}");
        ApiError::new(504, "Timeout", message).detail("retryAfterSeconds", 1.into()).detail(
            "causes",
            json!([{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]),
        )
    }

    /// 422 with one cause per field; `group_kind` is `Deployment.apps` or `Pod`.
    pub fn invalid(kind: &str, group: &str, name: &str, errors: &[FieldError]) -> Self {
        let subject = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let sentences: Vec<String> =
            errors.iter().map(|error| format!("{}: {}", error.field, error.body)).collect();
        let list = match sentences.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let causes: Vec<Value> = errors
            .iter()
            .map(|error| {
                json!({"reason": error.reason.status_reason(), "message": error.body, "field": error.field})
            })
            .collect();
        ApiError::new(422, "Invalid", format!("{subject} {name:?} is invalid: {list}"))
            .about(Resource { group, name: kind }, name)
            .detail("causes", causes.into())
    }

    /// The Status object.
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.reason.is_empty() {
            status["reason"] = self.reason.into();
        }
        if let Some(details) = &self.details {
            status["details"] = (**details).clone();
        }
        status
    }

    pub fn retry_after(&self) -> Option<u64> {
        self.details.as_ref()?.get("retryAfterSeconds")?.as_u64()
    }
}

/// The reason that goes with a status code alone.
fn reason_of(code: u16) -> &'static str {
    match code {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        406 => "NotAcceptable",
        409 => "Conflict",
        415 => "UnsupportedMediaType",
        422 => "Invalid",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        500.. => "InternalError",
        _ => "",
    }
}

impl From<StorageError> for ApiError {
    fn from(error: StorageError) -> Self {
        tracing::error!(%error, "storage");
        ApiError::internal("the store does not accept writes; see the server's log")
    }
}
