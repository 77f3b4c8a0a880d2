//! Reading foreign JSON so that an error names the key, the value's type and what was expected.
//!
//! Owns: the size limit, and [`Object`], a view of one JSON object that knows its place in the document. As they are to
//! the Go programs that write and read these documents, a key that is absent and a key that is `null` are the same, and
//! so is a key in other capitals where the exact one is absent.

use std::{fmt, net::IpAddr};

use ipnetwork::IpNetwork;
use serde_json::{Map, Value};

/// Bytes of one foreign document: a configuration, a result, an error.
pub const DOCUMENT_LIMIT: usize = 1 << 20;

/// What is wrong with a document, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    #[error("document of {size} bytes: expected at most {}", DOCUMENT_LIMIT)]
    TooLarge { size: usize },
    #[error("not JSON: {detail}")]
    Syntax { detail: String },
    #[error("key {key:?}: {detail}")]
    Key { key: String, detail: String },
}

impl JsonError {
    /// An error of the caller's own about a key.
    pub fn key(key: impl Into<String>, detail: impl fmt::Display) -> Self {
        Self::Key { key: key.into(), detail: detail.to_string() }
    }
}

/// Reads a document that must be an object.
///
/// # Errors
/// When it is too large, is not JSON, or is not an object.
pub fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, JsonError> {
    if bytes.len() > DOCUMENT_LIMIT {
        return Err(JsonError::TooLarge { size: bytes.len() });
    }
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(JsonError::Syntax { detail: format!("expected an object, found {}", kind(&other)) }),
        Err(error) => Err(JsonError::Syntax { detail: error.to_string() }),
    }
}

/// A JSON object and its place in the document (`ipam.ranges[0][1]`).
#[derive(Debug, Clone)]
pub struct Object<'a> {
    map: &'a Map<String, Value>,
    place: String,
}

impl<'a> Object<'a> {
    /// The document itself.
    pub fn root(map: &'a Map<String, Value>) -> Self {
        Self { map, place: String::new() }
    }

    /// A value at a known place that must be an object.
    ///
    /// # Errors
    /// When it is something else.
    pub fn of(value: &'a Value, place: impl Into<String>) -> Result<Self, JsonError> {
        let place = place.into();
        Ok(Self { map: as_object(value, &place)?, place })
    }

    /// The place of a key of this object.
    pub fn place_of(&self, key: &str) -> String {
        if self.place.is_empty() { key.to_owned() } else { format!("{}.{key}", self.place) }
    }

    /// The value of a key, unless it is absent or `null`.
    pub fn value(&self, key: &str) -> Option<&'a Value> {
        let in_other_capitals =
            || self.map.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value);
        self.map.get(key).or_else(in_other_capitals).filter(|value| !value.is_null())
    }

    /// Whether the key is present, be it `null`.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// The keys that are present.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.map.keys().map(String::as_str)
    }

    /// # Errors
    /// When the value is no string.
    pub fn string(&self, key: &str) -> Result<Option<&'a str>, JsonError> {
        self.typed(key, "a string", Value::as_str)
    }

    /// # Errors
    /// When the value is no boolean.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>, JsonError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A whole number that fits `T`.
    ///
    /// # Errors
    /// When the value is no whole number, or does not fit.
    pub fn number<T: TryFrom<i64>>(&self, key: &str) -> Result<Option<T>, JsonError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let number =
            value.as_i64().ok_or_else(|| unexpected(&self.place_of(key), "a whole number", value))?;
        let fitting = T::try_from(number)
            .map_err(|_out_of_range| JsonError::key(self.place_of(key), format!("{number} is out of range")));
        fitting.map(Some)
    }

    /// # Errors
    /// When the value is no object.
    pub fn object(&self, key: &str) -> Result<Option<Object<'a>>, JsonError> {
        self.value(key).map(|value| Object::of(value, self.place_of(key))).transpose()
    }

    /// `args.cni` of a configuration: what the runtime's user asks all plugins for.
    ///
    /// # Errors
    /// When `args` or `args.cni` is no object.
    pub fn cni_args(&self) -> Result<Option<Object<'a>>, JsonError> {
        match self.object("args")? {
            Some(args) => args.object("cni"),
            None => Ok(None),
        }
    }

    /// The elements of an array, each with its place.
    ///
    /// # Errors
    /// When the value is no array.
    pub fn array(&self, key: &str) -> Result<Vec<(String, &'a Value)>, JsonError> {
        match self.value(key) {
            None => Ok(Vec::new()),
            Some(value) => elements(value, &self.place_of(key)),
        }
    }

    /// # Errors
    /// When the value is no array, or an element is no string.
    pub fn strings(&self, key: &str) -> Result<Vec<String>, JsonError> {
        let each = self.array(key)?.into_iter().map(|(place, value)| match value {
            Value::String(text) => Ok(text.clone()),
            other => Err(unexpected(&place, "a string", other)),
        });
        each.collect()
    }

    /// An address without a prefix length; an empty string is none.
    ///
    /// # Errors
    /// When the value is no address.
    pub fn ip(&self, key: &str) -> Result<Option<IpAddr>, JsonError> {
        let Some(text) = self.string(key)?.filter(|text| !text.is_empty()) else { return Ok(None) };
        ip(text).map(Some).map_err(|detail| JsonError::key(self.place_of(key), detail))
    }

    /// An address with a prefix length.
    ///
    /// # Errors
    /// When the value is not of the form ADDRESS/LENGTH.
    pub fn cidr(&self, key: &str) -> Result<Option<IpNetwork>, JsonError> {
        let Some(text) = self.string(key)? else { return Ok(None) };
        cidr(text).map(Some).map_err(|detail| JsonError::key(self.place_of(key), detail))
    }

    /// Turns an absent value into an error that names the key.
    ///
    /// # Errors
    /// When `found` is none.
    pub fn required<T>(&self, key: &str, found: Option<T>) -> Result<T, JsonError> {
        found.ok_or_else(|| JsonError::key(self.place_of(key), "missing"))
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, JsonError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| unexpected(&self.place_of(key), expected, value))
    }
}

/// The object that a value must be.
///
/// # Errors
/// When the value is no object.
pub fn as_object<'a>(value: &'a Value, place: &str) -> Result<&'a Map<String, Value>, JsonError> {
    value.as_object().ok_or_else(|| unexpected(place, "an object", value))
}

/// The elements of an array value, each with its place.
///
/// # Errors
/// When the value is no array.
pub fn elements<'a>(value: &'a Value, place: &str) -> Result<Vec<(String, &'a Value)>, JsonError> {
    let items = value.as_array().ok_or_else(|| unexpected(place, "an array", value))?;
    Ok(items.iter().enumerate().map(|(index, item)| (format!("{place}[{index}]"), item)).collect())
}

/// Reads an address; an IPv4 address in IPv6 clothes is IPv4.
///
/// # Errors
/// A sentence saying what was expected.
pub fn ip(text: &str) -> Result<IpAddr, String> {
    let address = text.parse::<IpAddr>();
    address.map(|ip| ip.to_canonical()).map_err(|_| format!("invalid IP address {text:?}"))
}

/// Reads ADDRESS/LENGTH; the length is decimal and must be there.
///
/// # Errors
/// A sentence saying what was expected.
pub fn cidr(text: &str) -> Result<IpNetwork, String> {
    let invalid = || format!("invalid CIDR address {text:?}: expected ADDRESS/LENGTH such as 10.22.0.0/16");
    let (address, length) = text.split_once('/').ok_or_else(invalid)?;
    let address: IpAddr = address.parse().map_err(|_| invalid())?;
    let digits = !length.is_empty() && length.len() <= 3 && length.bytes().all(|b| b.is_ascii_digit());
    let length: u8 = length.parse().ok().filter(|_| digits).ok_or_else(invalid)?;
    IpNetwork::new(address, length).map_err(|_| invalid())
}

fn unexpected(place: &str, expected: &str, found: &Value) -> JsonError {
    JsonError::key(place, format!("expected {expected}, found {}", kind(found)))
}

fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(value) => value.to_string(),
        Value::String(text) if text.len() <= 64 => format!("{text:?}"),
        Value::String(_) => "a long string".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

#[cfg(test)]
mod tests;
