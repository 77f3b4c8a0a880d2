//! Why one pass over one object did not finish.
//!
//! Owns the error type that every controller returns from a pass, the reading of API refusals (conflict, not found,
//! namespace terminating) and the one-line form of an error chain for the log. Decides nothing about retries: the
//! worker does.

use std::error::Error as StdError;

use kube::Error as ApiError;
use thiserror::Error;

/// The cause by which an API server refuses a create because its namespace is going away.
const CAUSE_NAMESPACE_TERMINATING: &str = "NamespaceTerminating";

/// Why a pass over an object failed.
#[derive(Debug, Error)]
pub enum Failure {
    /// The API server refused a request, or could not be reached.
    #[error("{operation} {object}")]
    Api {
        operation: &'static str,
        object: String,
        #[source]
        source: Box<ApiError>,
    },
    /// An object could not be written as JSON.
    #[error("encode {object}")]
    Encode {
        object: String,
        #[source]
        source: serde_json::Error,
    },
    /// The object says something that a controller cannot act upon; only a change of the object helps.
    #[error("read {object}: {reason}")]
    Invalid { object: String, reason: String },
    /// What was read does not fit what is stored now; the next pass reads again.
    #[error("{operation} {object}: {reason}")]
    Retry { operation: &'static str, object: String, reason: String },
    /// Several of the pass's writes failed; the first is kept.
    #[error("{failed} of {total} writes for {object} failed")]
    Several {
        object: String,
        failed: usize,
        total: usize,
        #[source]
        first: Box<Failure>,
    },
}

impl Failure {
    /// Makes the `map_err` argument for a request: `.map_err(Failure::api("create pod", &key))`.
    pub fn api<O>(operation: &'static str, object: &O) -> impl FnOnce(ApiError) -> Self + use<O>
    where
        O: ToString + ?Sized,
    {
        let object = object.to_string();
        move |source| Self::Api { operation, object, source: Box::new(source) }
    }

    /// Whether the API server said that the object changed since it was read.
    pub fn is_conflict(&self) -> bool {
        match self {
            Self::Api { source, .. } => is_conflict(source),
            Self::Several { first, .. } => first.is_conflict(),
            _ => false,
        }
    }

    /// Whether the object is gone.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Api { source, .. } => is_not_found(source),
            _ => false,
        }
    }

    /// The failure and all its sources, in one line.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// Joins an error and its sources with ": ".
pub fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let next = cause.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = cause.source();
    }
    text
}

/// Whether the object named in the request does not exist.
pub fn is_not_found(error: &ApiError) -> bool {
    matches!(error, ApiError::Api(status) if status.is_not_found())
}

/// Whether the object changed since it was read.
pub fn is_conflict(error: &ApiError) -> bool {
    matches!(error, ApiError::Api(status) if status.is_conflict())
}

/// Takes "not found" for an answer: what should be gone or changed is gone already.
pub fn ignore_gone<T>(result: Result<T, ApiError>) -> Result<Option<T>, ApiError> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// As [`ignore_gone`], for requests that name a uid: another object of the name is a conflict.
pub fn ignore_replaced<T>(result: Result<T, ApiError>) -> Result<Option<T>, ApiError> {
    match ignore_gone(result) {
        Err(error) if is_conflict(&error) => Ok(None),
        other => other,
    }
}

/// Whether an object of that name exists already.
pub fn is_already_exists(error: &ApiError) -> bool {
    matches!(error, ApiError::Api(status) if status.is_already_exists())
}

/// Whether a create was refused because the namespace is being deleted.
pub fn is_namespace_terminating(error: &ApiError) -> bool {
    let ApiError::Api(status) = error else { return false };
    status.is_forbidden()
        && status.details.as_ref().is_some_and(|details| {
            details.causes.iter().any(|cause| cause.reason == CAUSE_NAMESPACE_TERMINATING)
        })
}

/// The API server's own words, as events quote them; the whole chain where it did not answer.
pub fn message(error: &ApiError) -> String {
    match error {
        ApiError::Api(status) => status.message.clone(),
        other => chain(other),
    }
}
