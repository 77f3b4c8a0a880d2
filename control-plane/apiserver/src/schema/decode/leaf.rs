//! Values without members: text, numbers, times, quantities.
//!
//! Input: a leaf shape and a value. Output: the value in canonical form (quantities, times), or Go's sentence.

use base64::Engine;
use serde_json::Value;

use super::super::Shape;
use super::{Place, TypeError};

pub(super) fn go_type(shape: &Shape) -> &'static str {
    match shape {
        Shape::Text | Shape::IntOrString => "string",
        Shape::Bytes => "[]uint8",
        Shape::Time => "v1.Time",
        Shape::MicroTime => "v1.MicroTime",
        Shape::Int32 => "int32",
        Shape::Int64 => "int64",
        Shape::Number => "float64",
        Shape::Bool => "bool",
        Shape::Quantity => "resource.Quantity",
        Shape::Any | Shape::Struct(_) | Shape::Map(_) | Shape::List(_) => "interface {}",
    }
}

pub(super) fn check(shape: &Shape, value: &mut Value, place: &Place) -> Result<(), TypeError> {
    let fits = match (shape, &*value) {
        (Shape::Text, Value::String(_))
        | (Shape::Bool, Value::Bool(_))
        | (Shape::Number, Value::Number(_)) => true,
        (Shape::Int32, Value::Number(number)) => {
            number.as_i64().is_some_and(|number| i32::try_from(number).is_ok())
        }
        (Shape::Int64, Value::Number(number)) => number.as_i64().is_some(),
        (Shape::IntOrString, Value::String(_)) => true,
        (Shape::IntOrString, Value::Number(number)) => {
            number.as_i64().is_some_and(|number| i32::try_from(number).is_ok())
        }
        (Shape::Bytes, Value::String(text)) => {
            check_base64(text)?;
            true
        }
        (Shape::Time | Shape::MicroTime, Value::String(text)) => {
            *value = Value::String(time(text, shape)?);
            true
        }
        (Shape::Quantity, Value::String(_) | Value::Number(_)) => {
            *value = Value::String(quantity(value)?);
            true
        }
        _ => false,
    };
    if fits { Ok(()) } else { Err(place.mismatch(value, go_type(shape))) }
}

fn check_base64(text: &str) -> Result<(), TypeError> {
    // Go's decoder skips line ends.
    let plain: String = text.chars().filter(|c| *c != '\n' && *c != '\r').collect();
    match base64::engine::general_purpose::STANDARD.decode(plain) {
        Ok(_) => Ok(()),
        Err(base64::DecodeError::InvalidByte(at, _)) => {
            Err(TypeError(format!("illegal base64 data at input byte {at}")))
        }
        Err(_) => {
            Err(TypeError(format!("illegal base64 data at input byte {}", text.len().saturating_sub(1))))
        }
    }
}

fn time(text: &str, shape: &Shape) -> Result<String, TypeError> {
    let parsed: jiff::Timestamp = text.parse().map_err(|_| {
        TypeError(format!(
            "parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as \"2006\""
        ))
    })?;
    Ok(match shape {
        Shape::MicroTime => parsed.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
        _ => crate::object::timestamp(parsed),
    })
}

fn quantity(value: &Value) -> Result<String, TypeError> {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match crate::quantity::Quantity::parse(&text) {
        Some(quantity) => Ok(quantity.to_string()),
        None => Err(TypeError(
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
                .to_owned(),
        )),
    }
}
