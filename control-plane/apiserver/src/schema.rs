//! The schema table: every type of every served kind, its fields, their shapes and how lists merge.
//!
//! Built once at start from two sources: `k8s-openapi`'s schemas (names, shapes, required fields) and our table of
//! facts (`facts.rs`: merge keys, list types). Descriptions are not kept; the OpenAPI documents are produced from the
//! first source again when somebody asks. Strict decoding, strategic merge, apply and OpenAPI all read this one table.

pub mod decode;
mod facts;
pub mod protobuf;
pub mod source;

use std::collections::HashMap;

use serde_json::Value;

pub use facts::{ListType, Merge, facts_of};

/// Index of a struct type in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TypeId(u16);

/// What a value must look like.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    Text,
    /// Base64 text.
    Bytes,
    Time,
    MicroTime,
    Int32,
    Int64,
    Number,
    Bool,
    IntOrString,
    Quantity,
    /// Any JSON: FieldsV1, RawExtension.
    Any,
    Struct(TypeId),
    Map(Box<Shape>),
    List(Box<Shape>),
}

/// One field of a struct type.
#[derive(Clone, Debug)]
pub struct Field {
    pub name: Box<str>,
    pub shape: Shape,
    pub required: bool,
    pub merge: Merge,
}

/// One struct type; fields are sorted by name.
#[derive(Clone, Debug)]
pub struct StructType {
    /// `io.k8s.api.core.v1.PodSpec`.
    pub name: Box<str>,
    pub fields: Box<[Field]>,
}

impl StructType {
    pub fn field(&self, name: &str) -> Option<&Field> {
        let at = self.fields.binary_search_by(|field| (*field.name).cmp(name)).ok()?;
        self.fields.get(at)
    }

    /// `PodSpec`, and `v1.PodSpec` as Go names it.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }

    pub fn go_name(&self) -> String {
        let mut parts = self.name.rsplitn(3, '.');
        let (name, package) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        format!("{package}.{name}")
    }
}

/// The table.
#[derive(Debug)]
pub struct Schemas {
    types: Vec<StructType>,
    by_name: HashMap<Box<str>, TypeId>,
}

impl Schemas {
    /// Builds the table from JSON schema definitions by full type name.
    pub fn build(definitions: &serde_json::Map<String, Value>) -> Self {
        let structs: Vec<(&String, &Value)> =
            definitions.iter().filter(|(name, schema)| leaf(name).is_none() && is_struct(schema)).collect();
        let by_name: HashMap<Box<str>, TypeId> = structs
            .iter()
            .enumerate()
            .map(|(at, (name, _))| (name.as_str().into(), TypeId(at as u16)))
            .collect();
        let types = structs.iter().map(|(name, schema)| struct_type(name, schema, &by_name)).collect();
        Schemas { types, by_name }
    }

    pub fn get(&self, id: TypeId) -> &StructType {
        &self.types[usize::from(id.0)]
    }

    pub fn find(&self, name: &str) -> Option<TypeId> {
        self.by_name.get(name).copied()
    }
}

fn is_struct(schema: &Value) -> bool {
    schema.get("properties").is_some()
}

/// Types that are one value on the wire, though they have a name.
fn leaf(name: &str) -> Option<Shape> {
    let shape = match name.rsplit('.').next()? {
        "Time" => Shape::Time,
        "MicroTime" => Shape::MicroTime,
        "IntOrString" => Shape::IntOrString,
        "Quantity" => Shape::Quantity,
        "FieldsV1" | "RawExtension" | "JSON" => Shape::Any,
        _ => return None,
    };
    Some(shape)
}

fn struct_type(name: &str, schema: &Value, by_name: &HashMap<Box<str>, TypeId>) -> StructType {
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let properties = schema["properties"].as_object();
    let mut fields: Vec<Field> = properties
        .into_iter()
        .flatten()
        .map(|(field, schema)| Field {
            name: field.as_str().into(),
            shape: shape_of(schema, by_name),
            // `k8s-openapi` requires the metadata of every kind, which upstream does not.
            required: required.contains(&field.as_str()) && field != "metadata",
            merge: facts_of(name, field),
        })
        .collect();
    fields.sort_by(|a, b| a.name.cmp(&b.name));
    StructType { name: name.into(), fields: fields.into() }
}

fn shape_of(schema: &Value, by_name: &HashMap<Box<str>, TypeId>) -> Shape {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap_or(reference);
        return match (leaf(name), by_name.get(name)) {
            (Some(shape), _) => shape,
            (None, Some(id)) => Shape::Struct(*id),
            (None, None) => Shape::Any,
        };
    }
    match (schema["type"].as_str(), schema["format"].as_str()) {
        (Some("string"), Some("byte")) => Shape::Bytes,
        (Some("string"), _) => Shape::Text,
        (Some("integer"), Some("int64")) => Shape::Int64,
        (Some("integer"), _) => Shape::Int32,
        (Some("number"), _) => Shape::Number,
        (Some("boolean"), _) => Shape::Bool,
        (Some("array"), _) => Shape::List(Box::new(shape_of(&schema["items"], by_name))),
        (Some("object"), _) if schema.get("additionalProperties").is_some() => {
            Shape::Map(Box::new(shape_of(&schema["additionalProperties"], by_name)))
        }
        _ => Shape::Any,
    }
}

#[cfg(test)]
mod tests;
