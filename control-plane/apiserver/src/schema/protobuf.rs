//! Request bodies in Kubernetes' protobuf: bytes to the JSON value that the same client would have sent as JSON.
//!
//! Input: the envelope (`k8s\0` and `runtime.Unknown`), the schema table and the table of field numbers. Output: a
//! value for strict decoding. Upstream's encoder writes fields that are not pointers even when they are empty; those
//! are dropped here as `omitempty` would. Refuses what is not well-formed. Answers are always JSON, which every client
//! that sends protobuf also accepts.

mod numbers;
pub(crate) mod wire;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::{Schemas, Shape, StructType, TypeId};
pub use numbers::{Numbers, Path};
use wire::{Field, Fields};

/// The first bytes of every body.
pub const MAGIC: &[u8] = b"k8s\0";
/// Nested messages, at most.
const MAX_DEPTH: usize = 64;

pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// What is wrong with a body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Magic,
    #[error("proto: {what}")]
    Malformed { what: &'static str },
}

const fn malformed(what: &'static str) -> ProtobufError {
    ProtobufError::Malformed { what }
}

/// Decodes a body whose object has type `root`; `apiVersion` and `kind` come from the envelope.
pub fn decode(
    schemas: &Schemas,
    numbers: &Numbers,
    root: TypeId,
    bytes: &[u8],
) -> Result<Value, ProtobufError> {
    let unknown = bytes.strip_prefix(MAGIC).ok_or(ProtobufError::Magic)?;
    let (mut raw, mut api_version, mut kind) = (&[][..], String::new(), String::new());
    for field in Fields(unknown) {
        match field? {
            (1, Field::Bytes(type_meta)) => {
                for field in Fields(type_meta) {
                    match field? {
                        (1, Field::Bytes(text)) => api_version = utf8(text)?,
                        (2, Field::Bytes(text)) => kind = utf8(text)?,
                        _ => {}
                    }
                }
            }
            (2, Field::Bytes(inner)) => raw = inner,
            _ => {}
        }
    }
    let decoder = Decoder { schemas, numbers };
    let mut value = decoder.message(schemas.get(root), raw, 0)?;
    for (key, text) in [("apiVersion", api_version), ("kind", kind)] {
        if !text.is_empty() {
            value.insert(key.into(), text.into());
        }
    }
    Ok(Value::Object(value))
}

fn utf8(bytes: &[u8]) -> Result<String, ProtobufError> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| malformed("string is not UTF-8"))
}

struct Decoder<'a> {
    schemas: &'a Schemas,
    numbers: &'a Numbers,
}

impl Decoder<'_> {
    fn message(
        &self,
        of: &StructType,
        bytes: &[u8],
        depth: usize,
    ) -> Result<Map<String, Value>, ProtobufError> {
        if depth > MAX_DEPTH {
            return Err(malformed("nested too deep"));
        }
        let mut map = Map::new();
        self.fill(of, None, bytes, depth, &mut map)?;
        Ok(map)
    }

    /// Reads the fields of a message into `map`; `outer` is the number of the message that JSON writes inline.
    fn fill(
        &self,
        of: &StructType,
        outer: Option<u32>,
        bytes: &[u8],
        depth: usize,
        map: &mut Map<String, Value>,
    ) -> Result<(), ProtobufError> {
        for field in Fields(bytes) {
            let (number, field) = field?;
            match (self.numbers.field(of, Path { outer, number }), field) {
                (Some(target), field) => {
                    let slot = map.get_mut(&*target.name).map(Value::take);
                    if let Some(value) = self.value(&target.shape, field, slot, depth)?
                        && !is_omitted(target, &value)
                    {
                        map.insert(target.name.to_string(), value);
                    }
                }
                (None, Field::Bytes(inner)) if outer.is_none() && self.numbers.is_inline(of, number) => {
                    self.fill(of, Some(number), inner, depth, map)?;
                }
                (None, _) => {}
            }
        }
        Ok(())
    }

    /// One occurrence of a field; `so_far` is what earlier occurrences made of it.
    fn value(
        &self,
        shape: &Shape,
        field: Field<'_>,
        so_far: Option<Value>,
        depth: usize,
    ) -> Result<Option<Value>, ProtobufError> {
        match shape {
            Shape::List(inner) => {
                let mut list = match so_far {
                    Some(Value::Array(list)) => list,
                    _ => Vec::new(),
                };
                list.extend(self.value(inner, field, None, depth)?);
                Ok(Some(Value::Array(list)))
            }
            Shape::Map(inner) => {
                let Field::Bytes(entry) = field else { return Err(malformed("map entry is not a message")) };
                let mut map = match so_far {
                    Some(Value::Object(map)) => map,
                    _ => Map::new(),
                };
                let (mut key, mut value) = (String::new(), None);
                for field in Fields(entry) {
                    match field? {
                        (1, Field::Bytes(text)) => key = utf8(text)?,
                        (2, field) => value = self.value(inner, field, None, depth)?,
                        _ => {}
                    }
                }
                map.insert(key, value.unwrap_or_else(|| "".into()));
                Ok(Some(Value::Object(map)))
            }
            Shape::Struct(id) => match field {
                Field::Bytes(bytes) => {
                    Ok(Some(Value::Object(self.message(self.schemas.get(*id), bytes, depth + 1)?)))
                }
                Field::Number(_) => Err(malformed("wrong wire type of a message")),
            },
            leaf => leaf_value(leaf, field),
        }
    }
}

fn leaf_value(shape: &Shape, field: Field<'_>) -> Result<Option<Value>, ProtobufError> {
    Ok(match (shape, field) {
        // Negative int32 and int64 are both ten-byte varints of the 64-bit value.
        (Shape::Int32 | Shape::Int64, Field::Number(number)) => Some((number as i64).into()),
        (Shape::Number, Field::Number(bits)) => Some(f64::from_bits(bits).into()),
        (Shape::Bool, Field::Number(number)) => Some((number != 0).into()),
        (Shape::Text, Field::Bytes(bytes)) => Some(utf8(bytes)?.into()),
        (Shape::Bytes, Field::Bytes(bytes)) => Some(STANDARD.encode(bytes).into()),
        (Shape::Time | Shape::MicroTime, Field::Bytes(bytes)) => time(bytes)?,
        (Shape::Quantity, Field::Bytes(bytes)) => Some(first_text(bytes)?.into()),
        (Shape::IntOrString, Field::Bytes(bytes)) => Some(int_or_string(bytes)?),
        (Shape::Any, Field::Bytes(bytes)) => raw_json(bytes)?,
        _ => return Err(malformed("wrong wire type")),
    })
}

/// `metav1.Time`: seconds and nanoseconds; an empty message is no time.
fn time(bytes: &[u8]) -> Result<Option<Value>, ProtobufError> {
    let (mut seconds, mut nanos) = (None, 0);
    for field in Fields(bytes) {
        match field? {
            (1, Field::Number(number)) => seconds = Some(number as i64),
            (2, Field::Number(number)) => nanos = number as i32,
            _ => {}
        }
    }
    let Some(seconds) = seconds else { return Ok(None) };
    let time = jiff::Timestamp::new(seconds, nanos).map_err(|_| malformed("time out of range"))?;
    Ok(Some(time.to_string().into()))
}

fn first_text(bytes: &[u8]) -> Result<String, ProtobufError> {
    for field in Fields(bytes) {
        if let (1, Field::Bytes(text)) = field? {
            return utf8(text);
        }
    }
    Ok("0".to_owned())
}

fn int_or_string(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    for field in Fields(bytes) {
        match field? {
            (1, Field::Number(kind)) => is_text = kind == 1,
            (2, Field::Number(value)) => number = value as i64,
            (3, Field::Bytes(value)) => text = utf8(value)?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

fn raw_json(bytes: &[u8]) -> Result<Option<Value>, ProtobufError> {
    for field in Fields(bytes) {
        if let (1, Field::Bytes(raw)) = field? {
            return serde_json::from_slice(raw)
                .map(Some)
                .map_err(|_| malformed("embedded JSON does not parse"));
        }
    }
    Ok(None)
}

/// Scalars that are pointers in Go: an explicit zero of theirs means zero.
const POINTERS: &[&str] = &[
    "activeDeadlineSeconds",
    "allocateLoadBalancerNodePorts",
    "allowPrivilegeEscalation",
    "automountServiceAccountToken",
    "blockOwnerDeletion",
    "controller",
    "defaultMode",
    "deletionGracePeriodSeconds",
    "enableServiceLinks",
    "endPort",
    "expirationSeconds",
    "fsGroup",
    "gracePeriodSeconds",
    "hostUsers",
    "immutable",
    "leaseTransitions",
    "mode",
    "optional",
    "orphanDependents",
    "priority",
    "privileged",
    "progressDeadlineSeconds",
    "readOnlyRootFilesystem",
    "ready",
    "replicas",
    "revisionHistoryLimit",
    "runAsGroup",
    "runAsNonRoot",
    "runAsUser",
    "serving",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "started",
    "terminating",
    "terminationGracePeriodSeconds",
    "tolerationSeconds",
];

/// Whether Go's JSON encoder would have left this value out.
fn is_omitted(field: &super::Field, value: &Value) -> bool {
    // Go's encoder never leaves an IntOrString out: it is a pointer, or a struct, which `omitempty` does not concern.
    if field.required || field.shape == Shape::IntOrString || POINTERS.contains(&&*field.name) {
        return false;
    }
    match value {
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Bool(flag) => !flag,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
