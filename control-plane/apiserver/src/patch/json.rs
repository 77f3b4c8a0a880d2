//! JSON patch (RFC 6902) with limits, for a few operations can otherwise grow an object without end.
//!
//! Input: the object and a decoded patch. Output: the patched object. Refuses too many operations, copies that add up
//! to more bytes than a request may have, and nesting that the JSON decoder would not read again.

use json_patch::PatchOperation;
use json_patch::jsonptr::Pointer;
use serde_json::Value;

use crate::error::ApiError;

/// Operations of one patch, at most (upstream's limit).
const MAX_OPERATIONS: usize = 10_000;
/// Bytes of JSON that the copies of one patch add up to, at most (upstream's limit).
pub(super) const MAX_COPIED_BYTES: usize = 3 << 20;
/// Containers within containers, at most: what the JSON decoder reads.
pub(super) const MAX_DEPTH: usize = 127;

pub(super) fn apply(object: &mut Value, patch: &Value) -> Result<(), ApiError> {
    let patch: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
    if patch.0.len() > MAX_OPERATIONS {
        let message = format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            patch.0.len()
        );
        return Err(ApiError::too_large_message(message));
    }
    let mut copied = 0;
    for (index, operation) in patch.0.iter().enumerate() {
        check(object, operation, &mut copied).map_err(refused)?;
        // Without undo: the object is a copy, and is dropped when an operation fails.
        json_patch::patch_unsafe(object, std::slice::from_ref(operation)).map_err(|mut error| {
            error.operation = index;
            refused(error)
        })?;
    }
    Ok(())
}

fn refused(why: impl std::fmt::Display) -> ApiError {
    ApiError::unprocessable(format!("the server rejected our request due to an error in our request: {why}"))
}

/// Whether the object stays within the limits when the operation is done. What cannot be done is left to the patch.
fn check(object: &Value, operation: &PatchOperation, copied: &mut usize) -> Result<(), String> {
    let (path, value): (&Pointer, Option<&Value>) = match operation {
        PatchOperation::Add(add) => (&add.path, Some(&add.value)),
        PatchOperation::Replace(replace) => (&replace.path, Some(&replace.value)),
        PatchOperation::Move(from_to) => (&from_to.path, object.pointer(from_to.from.as_str())),
        PatchOperation::Copy(from_to) => (&from_to.path, object.pointer(from_to.from.as_str())),
        PatchOperation::Remove(_) | PatchOperation::Test(_) => return Ok(()),
    };
    let Some(value) = value else { return Ok(()) };
    if path.count() + depth(value) > MAX_DEPTH {
        return Err(format!("the patched object would be nested deeper than {MAX_DEPTH} levels"));
    }
    if matches!(operation, PatchOperation::Copy(_)) {
        *copied += size(value);
        if *copied > MAX_COPIED_BYTES {
            return Err(format!(
                "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit \
                 {MAX_COPIED_BYTES}"
            ));
        }
    }
    Ok(())
}

/// Containers within containers; a value that holds nothing is 0 deep.
pub(super) fn depth(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Bytes of a value's JSON.
fn size(value: &Value) -> usize {
    struct Counter(usize);
    impl std::io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    // Counting does not fail, and keys of a value are strings.
    let _ = serde_json::to_writer(&mut counter, value);
    counter.0
}
