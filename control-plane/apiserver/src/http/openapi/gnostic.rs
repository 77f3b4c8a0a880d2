//! The OpenAPI v2 document in protobuf: messages of package `openapi.v2`, as gnostic's `OpenAPIv2.proto` has them.
//!
//! Input: the document as JSON. Output: an encoded `Document`. Pure. kubectl reads this encoding and no other when a
//! manifest names a kind that nobody serves, and for `explain --output plaintext-openapiv2`. Driven by tables of field
//! names and numbers. As everywhere in proto3, empty text, false and zero are not written unless a `oneof` holds them.
//! Vendor extensions, defaults, examples and enums are YAML text there; what is written is JSON, which is YAML too.
//! Refuses keys that the tables do not have: a document that lost something on the way would be a lie.

use serde_json::{Map, Value};

#[cfg(test)]
mod tests;

/// What clients ask for, and what an answer is called.
pub(in crate::http) const MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// What older clients ask for; `@` is not legal in a media type.
pub(in crate::http) const OLD_MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// Why a document has no encoding.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::http) enum EncodeError {
    #[error("encode openapi v2: the document is not an object")]
    NoDocument,
    #[error("encode openapi v2: {message} has no field {key:?}")]
    UnknownKey { message: &'static str, key: String },
    #[error("encode openapi v2: {message}.{key} is not {expected}")]
    WrongType { message: &'static str, key: String, expected: &'static str },
}

/// Encodes a whole document.
pub(in crate::http) fn encode(document: &Value) -> Result<Vec<u8>, EncodeError> {
    let mut out = Writer::default();
    let map = document.as_object().ok_or(EncodeError::NoDocument)?;
    message(&mut out, &DOCUMENT, map)?;
    Ok(out.0)
}

/// What a field holds, and what it is made of.
enum Shape {
    Text,
    Texts,
    Flag,
    Integer,
    Double,
    /// `Any`: YAML text.
    Yaml,
    /// Repeated `Any`.
    Yamls,
    Message(&'static Message),
    Messages(&'static Message),
    /// `TypeItem`: one name or several.
    Types,
    /// `ItemsItem`: one schema or several.
    Items,
    /// `AdditionalPropertiesItem`: a schema or a flag.
    Additional,
}

/// One message: its fields by JSON key, and where other keys go.
struct Message {
    name: &'static str,
    fields: &'static [(&'static str, u32, Shape)],
    rest: Rest,
}

/// What keys without a field of their own mean.
enum Rest {
    /// `x-…`, as `NamedAny` in the field of this number.
    Extensions(u32),
    /// Names of a map whose values are of one message, in field 1.
    Named(&'static Message),
}

static DOCUMENT: Message = Message {
    name: "Document",
    fields: &[
        ("swagger", 1, Shape::Text),
        ("info", 2, Shape::Message(&INFO)),
        ("host", 3, Shape::Text),
        ("basePath", 4, Shape::Text),
        ("schemes", 5, Shape::Texts),
        ("consumes", 6, Shape::Texts),
        ("produces", 7, Shape::Texts),
        ("paths", 8, Shape::Message(&PATHS)),
        ("definitions", 9, Shape::Message(&SCHEMAS)),
        ("externalDocs", 15, Shape::Message(&EXTERNAL_DOCS)),
    ],
    rest: Rest::Extensions(16),
};

static INFO: Message = Message {
    name: "Info",
    fields: &[
        ("title", 1, Shape::Text),
        ("version", 2, Shape::Text),
        ("description", 3, Shape::Text),
        ("termsOfService", 4, Shape::Text),
    ],
    rest: Rest::Extensions(7),
};

/// The v2 document describes types; the paths are in the v3 documents.
static PATHS: Message = Message { name: "Paths", fields: &[], rest: Rest::Extensions(1) };

static EXTERNAL_DOCS: Message = Message {
    name: "ExternalDocs",
    fields: &[("description", 1, Shape::Text), ("url", 2, Shape::Text)],
    rest: Rest::Extensions(3),
};

/// `Definitions` and `Properties`.
static SCHEMAS: Message = Message { name: "Definitions", fields: &[], rest: Rest::Named(&SCHEMA) };

static SCHEMA: Message = Message {
    name: "Schema",
    fields: &[
        ("$ref", 1, Shape::Text),
        ("format", 2, Shape::Text),
        ("title", 3, Shape::Text),
        ("description", 4, Shape::Text),
        ("default", 5, Shape::Yaml),
        ("multipleOf", 6, Shape::Double),
        ("maximum", 7, Shape::Double),
        ("exclusiveMaximum", 8, Shape::Flag),
        ("minimum", 9, Shape::Double),
        ("exclusiveMinimum", 10, Shape::Flag),
        ("maxLength", 11, Shape::Integer),
        ("minLength", 12, Shape::Integer),
        ("pattern", 13, Shape::Text),
        ("maxItems", 14, Shape::Integer),
        ("minItems", 15, Shape::Integer),
        ("uniqueItems", 16, Shape::Flag),
        ("maxProperties", 17, Shape::Integer),
        ("minProperties", 18, Shape::Integer),
        ("required", 19, Shape::Texts),
        ("enum", 20, Shape::Yamls),
        ("additionalProperties", 21, Shape::Additional),
        ("type", 22, Shape::Types),
        ("items", 23, Shape::Items),
        ("allOf", 24, Shape::Messages(&SCHEMA)),
        ("properties", 25, Shape::Message(&SCHEMAS)),
        ("discriminator", 26, Shape::Text),
        ("readOnly", 27, Shape::Flag),
        ("externalDocs", 29, Shape::Message(&EXTERNAL_DOCS)),
        ("example", 30, Shape::Yaml),
    ],
    rest: Rest::Extensions(31),
};

/// Field numbers of the small messages.
const NAMED_NAME: u32 = 1;
const NAMED_VALUE: u32 = 2;
const ANY_YAML: u32 = 2;
const TYPE_ITEM_VALUE: u32 = 1;
const ITEMS_SCHEMA: u32 = 1;
const ADDITIONAL_SCHEMA: u32 = 1;
const ADDITIONAL_BOOLEAN: u32 = 2;
const MAP_ENTRY: u32 = 1;

fn message(out: &mut Writer, of: &Message, map: &Map<String, Value>) -> Result<(), EncodeError> {
    for (key, value) in map {
        if let Some((_, number, shape)) = of.fields.iter().find(|(name, ..)| name == key) {
            let place = Place { message: of.name, key };
            place.field(out, *number, shape, value)?;
            continue;
        }
        match of.rest {
            Rest::Extensions(number) if key.starts_with("x-") => out.nested(number, |entry| {
                entry.text(NAMED_NAME, key);
                entry.any(NAMED_VALUE, value);
                Ok(())
            })?,
            Rest::Extensions(_) => {
                return Err(EncodeError::UnknownKey { message: of.name, key: key.clone() });
            }
            Rest::Named(inner) => {
                let map = Place { message: of.name, key }.object(value)?;
                out.nested(MAP_ENTRY, |entry| {
                    entry.text(NAMED_NAME, key);
                    entry.nested(NAMED_VALUE, |value| message(value, inner, map))
                })?;
            }
        }
    }
    Ok(())
}

/// Where in the document a value stands.
struct Place<'a> {
    message: &'static str,
    key: &'a str,
}

impl Place<'_> {
    fn field(&self, out: &mut Writer, number: u32, shape: &Shape, value: &Value) -> Result<(), EncodeError> {
        match shape {
            Shape::Text => out.text_unless_empty(number, self.text(value)?),
            Shape::Texts => {
                for one in self.array(value)? {
                    out.text(number, self.text(one)?);
                }
            }
            Shape::Flag => {
                if value.as_bool().ok_or_else(|| self.wrong("a boolean"))? {
                    out.number(number, 1);
                }
            }
            Shape::Integer => match value.as_i64().ok_or_else(|| self.wrong("an integer"))? {
                0 => {}
                integer => out.number(number, integer.cast_unsigned()),
            },
            Shape::Double => match value.as_f64().ok_or_else(|| self.wrong("a number"))? {
                0.0 => {}
                double => out.double(number, double),
            },
            Shape::Yaml => out.any(number, value),
            Shape::Yamls => self.array(value)?.iter().for_each(|one| out.any(number, one)),
            Shape::Message(of) => {
                let map = self.object(value)?;
                out.nested(number, |out| message(out, of, map))?;
            }
            Shape::Messages(of) => {
                for one in self.array(value)? {
                    let map = self.object(one)?;
                    out.nested(number, |out| message(out, of, map))?;
                }
            }
            Shape::Types | Shape::Items | Shape::Additional => self.choice(out, number, shape, value)?,
        }
        Ok(())
    }

    /// Fields whose JSON is of one type or another.
    fn choice(&self, out: &mut Writer, number: u32, shape: &Shape, value: &Value) -> Result<(), EncodeError> {
        out.nested(number, |out| match (shape, value) {
            (Shape::Additional, Value::Bool(flag)) => {
                out.number(ADDITIONAL_BOOLEAN, u64::from(*flag));
                Ok(())
            }
            (Shape::Additional, schema) => {
                let map = self.object(schema)?;
                out.nested(ADDITIONAL_SCHEMA, |out| message(out, &SCHEMA, map))
            }
            (Shape::Items, Value::Array(list)) => list.iter().try_for_each(|one| {
                let map = self.object(one)?;
                out.nested(ITEMS_SCHEMA, |out| message(out, &SCHEMA, map))
            }),
            (Shape::Items, schema) => {
                let map = self.object(schema)?;
                out.nested(ITEMS_SCHEMA, |out| message(out, &SCHEMA, map))
            }
            (_, Value::Array(list)) => list.iter().try_for_each(|one| {
                out.text(TYPE_ITEM_VALUE, self.text(one)?);
                Ok(())
            }),
            (_, name) => {
                out.text(TYPE_ITEM_VALUE, self.text(name)?);
                Ok(())
            }
        })
    }

    fn text<'v>(&self, value: &'v Value) -> Result<&'v str, EncodeError> {
        value.as_str().ok_or_else(|| self.wrong("a string"))
    }

    fn array<'v>(&self, value: &'v Value) -> Result<&'v Vec<Value>, EncodeError> {
        value.as_array().ok_or_else(|| self.wrong("an array"))
    }

    fn object<'v>(&self, value: &'v Value) -> Result<&'v Map<String, Value>, EncodeError> {
        value.as_object().ok_or_else(|| self.wrong("an object"))
    }

    fn wrong(&self, expected: &'static str) -> EncodeError {
        EncodeError::WrongType { message: self.message, key: self.key.to_owned(), expected }
    }
}

/// Appends fields in the wire format.
#[derive(Default)]
struct Writer(Vec<u8>);

/// Wire types.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const DELIMITED: u64 = 2;

impl Writer {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn tag(&mut self, number: u32, wire_type: u64) {
        self.varint(u64::from(number) << 3 | wire_type);
    }

    fn number(&mut self, number: u32, value: u64) {
        self.tag(number, VARINT);
        self.varint(value);
    }

    fn double(&mut self, number: u32, value: f64) {
        self.tag(number, FIXED64);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, number: u32, bytes: &[u8]) {
        self.tag(number, DELIMITED);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn text(&mut self, number: u32, text: &str) {
        self.bytes(number, text.as_bytes());
    }

    fn text_unless_empty(&mut self, number: u32, text: &str) {
        if !text.is_empty() {
            self.text(number, text);
        }
    }

    /// `Any`.
    fn any(&mut self, number: u32, value: &Value) {
        let mut any = Writer::default();
        any.text(ANY_YAML, &format!("{value}\n"));
        self.bytes(number, &any.0);
    }

    /// A message in a field; written even if it is empty.
    fn nested(
        &mut self,
        number: u32,
        fill: impl FnOnce(&mut Writer) -> Result<(), EncodeError>,
    ) -> Result<(), EncodeError> {
        let mut inner = Writer::default();
        fill(&mut inner)?;
        self.bytes(number, &inner.0);
        Ok(())
    }
}
