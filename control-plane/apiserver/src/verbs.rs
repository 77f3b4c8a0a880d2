//! What the verbs do to objects: create, update, patch, delete and the subresources that write.
//!
//! Input: a target, options and a body. Output: the object as it is now. A verb reads the newest state from the cache,
//! computes the new one without side effects, and commits it on the condition that the old one is still the newest; a
//! lost race is tried again as long as the client did not name a resourceVersion.

mod body;
mod change;
mod commit;
mod create;
mod delete;
mod escalation;
mod pods;
mod restriction;
mod scale;

use bytes::Bytes;
use serde_json::Value;

use crate::api::Api;
use crate::auth::User;
use crate::error::ApiError;
use crate::kinds::Kind;
use crate::object;
use restriction::ObjectWrite;

pub use body::{FieldValidation, decode_options, decode_review};
pub use delete::DeleteOptions;

/// Lost races of one request, at most.
const MAX_RACES: usize = 32;

/// Which object a request is about.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub kind: &'static Kind,
    pub namespace: &'a str,
    pub name: &'a str,
    pub user: &'a User,
}

/// Query parameters of a write.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub field_validation: FieldValidation,
}

/// The answer to a write.
#[derive(Debug)]
pub struct Written {
    pub object: Value,
    pub code: u16,
    pub warnings: Vec<String>,
}

impl Written {
    fn ok(object: Value) -> Self {
        Written { object, code: 200, warnings: Vec::new() }
    }
}

impl Api {
    /// Whether the user of `target` may write this: a node to its own objects only, anybody only what grants no more than they have.
    fn admit(&self, target: &Target<'_>, name: &str, write: ObjectWrite<'_>) -> Result<(), ApiError> {
        if let Some(node) = target.user.node() {
            restriction::check(node, target.kind, write)
                .map_err(|reason| ApiError::forbidden(target.kind.resource(), name, &reason))?;
        }
        self.admit_grant(target, name, write)
    }
}

/// The bytes to store. Refuses an object that is too large, unless it was larger before: what removes a finalizer from it
/// must not fail.
fn encode(object: &Value, old_size: usize) -> Result<Bytes, ApiError> {
    let bytes = object::encode(object);
    if bytes.len() > object::MAX_SIZE.max(old_size) {
        return Err(ApiError::too_large(object::MAX_SIZE));
    }
    Ok(bytes)
}

fn race_lost(target: &Target<'_>) -> ApiError {
    ApiError::modified(target.kind.resource(), target.name)
}

fn set_revision(object: &mut Value, revision: u64) {
    object::metadata(object).insert("resourceVersion".into(), revision.to_string().into());
}
