//! Decoding: JSON bytes to a value that fits the schema.
//!
//! Input: bytes, a type, the schema table. Output: the value with nulls, empty optional lists and unknown fields
//! dropped, and the list of strict problems (unknown and duplicate fields) in upstream's words. A value of the wrong
//! type is an error in any mode, with the sentence that Go's decoder would give.

mod json;
mod leaf;

use serde_json::{Map, Value};

use super::{Schemas, Shape, StructType, TypeId};

pub use json::parse;

/// Problems that a strict client wants to hear of; a lenient one gets the value without them.
pub type StrictProblems = Vec<String>;

/// Strict problems that one request reports, at most.
const MAX_STRICT_PROBLEMS: usize = 100;

/// A value of the wrong type; the text is Go's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TypeError(pub String);

/// Checks `value` against `root` and normalises it in place.
pub fn conform(schemas: &Schemas, root: TypeId, value: &mut Value) -> Result<StrictProblems, TypeError> {
    let mut walker = Walker { schemas, problems: Vec::new() };
    let mut place = Place { owner: schemas.get(root).short_name().to_owned(), ..Place::default() };
    walker.structure(schemas.get(root), value, &mut place)?;
    Ok(walker.problems)
}

/// Where the walk is: `spec.containers[0].image` for strict problems, `spec.containers.image` for Go's sentences.
#[derive(Clone, Default)]
struct Place {
    owner: String,
    strict: String,
    go: String,
}

impl Place {
    fn enter(&self, owner: &str, field: &str) -> Place {
        let join = |path: &str| if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") };
        Place { owner: owner.to_owned(), strict: join(&self.strict), go: join(&self.go) }
    }

    fn item(&self, index: usize) -> Place {
        Place { strict: format!("{}[{index}]", self.strict), ..self.clone() }
    }

    fn mismatch(&self, value: &Value, go_type: &str) -> TypeError {
        let what = match value {
            Value::Null => "null".to_owned(),
            Value::Bool(_) => "bool".to_owned(),
            Value::Number(number) if go_type.starts_with("int") => {
                if number.is_f64() || number.as_i64().is_none() {
                    format!("number {number}")
                } else {
                    "number".into()
                }
            }
            Value::Number(_) => "number".to_owned(),
            Value::String(_) => "string".to_owned(),
            Value::Array(_) => "array".to_owned(),
            Value::Object(_) => "object".to_owned(),
        };
        if self.go.is_empty() {
            return TypeError(format!("json: cannot unmarshal {what} into Go value of type {go_type}"));
        }
        let (owner, path) = (&self.owner, &self.go);
        TypeError(format!(
            "json: cannot unmarshal {what} into Go struct field {owner}.{path} of type {go_type}"
        ))
    }
}

struct Walker<'a> {
    schemas: &'a Schemas,
    problems: StrictProblems,
}

impl Walker<'_> {
    fn structure(&mut self, of: &StructType, value: &mut Value, place: &mut Place) -> Result<(), TypeError> {
        let Value::Object(map) = value else { return Err(place.mismatch(value, &of.go_name())) };
        let names: Vec<String> = map.keys().cloned().collect();
        for name in names {
            let Some(field) = of.field(&name) else {
                map.remove(&name);
                self.strict(format!("unknown field \"{}\"", place.enter("", &name).strict));
                continue;
            };
            let Some(member) = map.get_mut(&name) else { continue };
            if member.is_null() {
                map.remove(&name);
                continue;
            }
            let mut inner = place.enter(of.short_name(), &name);
            self.value(&field.shape, member, &mut inner)?;
            if !field.required && is_empty(&field.shape, member) {
                map.remove(&name);
            }
        }
        Ok(())
    }

    fn value(&mut self, shape: &Shape, value: &mut Value, place: &mut Place) -> Result<(), TypeError> {
        match shape {
            Shape::Struct(id) => self.structure(self.schemas.get(*id), value, place),
            Shape::List(inner) => {
                let Value::Array(list) = value else {
                    return Err(place.mismatch(value, &self.go_type(shape)));
                };
                for (index, item) in list.iter_mut().enumerate() {
                    if item.is_null() {
                        *item = zero(inner);
                    }
                    self.value(inner, item, &mut place.item(index))?;
                }
                Ok(())
            }
            Shape::Map(inner) => {
                let Value::Object(map) = value else {
                    return Err(place.mismatch(value, &self.go_type(shape)));
                };
                for (key, item) in map.iter_mut() {
                    if item.is_null() {
                        *item = zero(inner);
                    }
                    let mut inner_place = place.clone();
                    inner_place.strict = format!("{}.{key}", place.strict);
                    self.value(inner, item, &mut inner_place)?;
                }
                Ok(())
            }
            Shape::Any => Ok(()),
            leaf => leaf::check(leaf, value, place),
        }
    }

    fn strict(&mut self, problem: String) {
        if self.problems.len() < MAX_STRICT_PROBLEMS {
            self.problems.push(problem);
        }
    }

    fn go_type(&self, shape: &Shape) -> String {
        match shape {
            Shape::Struct(id) => self.schemas.get(*id).go_name(),
            Shape::List(inner) => format!("[]{}", self.go_type(inner)),
            Shape::Map(inner) => format!("map[string]{}", self.go_type(inner)),
            Shape::Any => "interface {}".to_owned(),
            leaf => leaf::go_type(leaf).to_owned(),
        }
    }
}

/// What Go makes of a null inside a list or map.
fn zero(shape: &Shape) -> Value {
    match shape {
        Shape::Struct(_) | Shape::Map(_) => Value::Object(Map::new()),
        Shape::List(_) => Value::Array(Vec::new()),
        Shape::Int32 | Shape::Int64 | Shape::Number | Shape::IntOrString => 0.into(),
        Shape::Bool => false.into(),
        Shape::Quantity => "0".into(),
        _ => "".into(),
    }
}

fn is_empty(shape: &Shape, value: &Value) -> bool {
    match (shape, value) {
        (Shape::List(_), Value::Array(list)) => list.is_empty(),
        (Shape::Map(_), Value::Object(map)) => map.is_empty(),
        _ => false,
    }
}
