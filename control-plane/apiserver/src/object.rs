//! Objects as JSON values, and the bytes they are stored as.
//!
//! Stored bytes are the object's JSON without its beginning `{"metadata":{"resourceVersion":"N",`: the revision is only
//! known when the store has numbered the write, and is put in front whenever the object leaves the server. So an object
//! is serialised once, and its bytes are shared by the store, the cache and every watcher.

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Map, Value};

use crate::storage::{Key, Revision};

/// Bytes of a stored object, at most: as many as a request body may have.
pub const MAX_SIZE: usize = 3 << 20;
const HEAD: &[u8] = b"{\"metadata\":{\"resourceVersion\":\"";

/// The text at a JSON pointer, or "" when there is none.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

pub fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

pub fn namespace(object: &Value) -> &str {
    text(object, "/metadata/namespace")
}

pub fn uid(object: &Value) -> &str {
    text(object, "/metadata/uid")
}

/// The list at a pointer; empty when there is none.
pub fn items<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The map at a pointer; empty when there is none.
pub fn entries<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let map = object.pointer(pointer).and_then(Value::as_object);
    map.into_iter().flatten().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
}

pub fn is_deleting(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some_and(|value| !value.is_null())
}

pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    items(object, "/metadata/finalizers").iter().filter_map(Value::as_str)
}

/// The member `key` of an object, made as an empty object when it is missing or of another type.
pub fn child<'a>(object: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let slot = &mut object[key];
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    match slot {
        Value::Object(map) => map,
        _ => unreachable!("made an object just above"),
    }
}

pub fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    child(object, "metadata")
}

/// Sets a member unless it is there and not null.
pub fn set_default(object: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    let slot = object.entry(key).or_insert(Value::Null);
    if slot.is_null() {
        *slot = value.into();
    }
}

/// The current time as `metav1.Time` writes it: whole seconds, UTC.
pub fn timestamp(now: jiff::Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The bytes to store. The object's resourceVersion is dropped.
pub fn encode(object: &Value) -> Bytes {
    let empty = Map::new();
    let metadata = object.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(b"\"");
    for (key, value) in metadata.iter().filter(|(key, value)| *key != "resourceVersion" && !value.is_null()) {
        out.push(b',');
        write_member(&mut out, key, value);
    }
    out.push(b'}');
    for (key, value) in object.as_object().unwrap_or(&empty).iter().filter(|(key, _)| *key != "metadata") {
        out.push(b',');
        write_member(&mut out, key, value);
    }
    out.push(b'}');
    out.into()
}

fn write_member(out: &mut Vec<u8>, key: &str, value: &Value) {
    // Writing JSON values into a Vec cannot fail: their keys are strings and the writer does not err.
    let _ = serde_json::to_writer(&mut *out, key);
    out.push(b':');
    let _ = serde_json::to_writer(&mut *out, value);
}

/// The object's JSON as clients read it.
pub fn join(revision: Revision, tail: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(HEAD.len() + 20 + tail.len());
    append(&mut out, revision, tail);
    out.freeze()
}

/// Like [`join`], behind what is already in `out`.
pub fn append(out: &mut BytesMut, revision: Revision, tail: &[u8]) {
    out.put_slice(HEAD);
    out.put_slice(revision.to_string().as_bytes());
    out.put_slice(tail);
}

/// Stored bytes as a value, with its resourceVersion.
pub fn decode(revision: Revision, tail: &[u8]) -> Value {
    // What is stored was written by `encode`; a store that fails its own checksums does not open.
    serde_json::from_slice(&join(revision, tail)).unwrap_or(Value::Null)
}

/// What is wrong with the stored bytes of the object that `key` names, if anything is.
pub fn audit(key: &Key, tail: &[u8]) -> Option<String> {
    let value: Value = match serde_json::from_slice(&join(0, tail)) {
        Ok(value) => value,
        Err(error) => return Some(format!("not an object: {error}")),
    };
    let (_, key_namespace, key_name) = key.parts();
    let (namespace, name) = (namespace(&value), name(&value));
    (name != key_name || namespace != key_namespace)
        .then(|| format!("holds the object {namespace:?}/{name:?} instead"))
}

#[cfg(test)]
mod tests;
