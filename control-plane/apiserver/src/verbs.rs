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
mod pods;
mod restriction;
mod scale;

use bytes::Bytes;
use serde_json::Value;

use crate::auth::User;
use crate::error::ApiError;
use crate::kinds::Kind;
use crate::object;
use restriction::NodeWrite;

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

impl Target<'_> {
    /// Whether its user may write this, where the user is a node.
    fn admit(&self, name: &str, write: NodeWrite<'_>) -> Result<(), ApiError> {
        let Some(node) = self.user.node() else { return Ok(()) };
        restriction::check(node, self.kind, write)
            .map_err(|reason| ApiError::forbidden(self.kind.resource(), name, &reason))
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
