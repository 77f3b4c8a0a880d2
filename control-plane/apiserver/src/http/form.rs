//! Content negotiation and the three forms of an answer: the object, a Table, its metadata only.
//!
//! Input: the Accept header; entries or values. Output: JSON. Refuses what is not JSON (406).

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, header};
use serde_json::{Value, json};

use super::Parameters;
use crate::cache::Entry;
use crate::error::ApiError;
use crate::kinds::Kind;
use crate::object;

/// What the client wants to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Object,
    Table { version: String, include: Include },
    Metadata { version: String },
}

/// What a Table's rows carry besides their cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Include {
    None,
    Metadata,
    Object,
}

const ACCEPTED: &str = "application/json";

/// One media range of an Accept header.
fn parse_range(range: &str) -> (String, Parameters) {
    let mut parts = range.split(';').map(str::trim);
    let media = parts.next().unwrap_or("").to_ascii_lowercase();
    let pairs = parts.filter_map(|part| part.split_once('='));
    (media, pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())).collect())
}

impl Form {
    /// The first acceptable range of the header, in the client's order.
    pub(super) fn negotiate(headers: &HeaderMap, include: &str) -> Result<Form, ApiError> {
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
        if accept.trim().is_empty() {
            return Ok(Form::Object);
        }
        let include = match include {
            "None" => Include::None,
            "Object" => Include::Object,
            _ => Include::Metadata,
        };
        let found = accept.split(',').map(parse_range).find_map(|(media, parameters)| {
            if !matches!(media.as_str(), "application/json" | "application/*" | "*/*") {
                return None;
            }
            let group = parameters.get("g").map_or("", String::as_str);
            let version = parameters.get("v").cloned().unwrap_or_default();
            let known = group == "meta.k8s.io" && matches!(version.as_str(), "v1" | "v1beta1");
            match parameters.get("as").map(String::as_str) {
                None => Some(Form::Object),
                Some("Table") if known => Some(Form::Table { version, include }),
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") if known => {
                    Some(Form::Metadata { version })
                }
                Some(_) => None,
            }
        });
        found.ok_or_else(|| ApiError::not_acceptable(ACCEPTED))
    }

    /// One object.
    pub(super) fn one(&self, kind: &Kind, entry: &Entry) -> Bytes {
        match self {
            Form::Object if kind.conversion.is_none() => entry.json(),
            Form::Object => served(kind, entry).to_string().into(),
            _ => self.of_value(kind, served(kind, entry)).to_string().into(),
        }
    }

    /// One object that is a value already (the answer to a write); a Status stays what it is.
    pub(super) fn of_value(&self, kind: &Kind, value: Value) -> Value {
        if value["kind"] == "Status" && kind.kind != "Status" {
            return value;
        }
        match self {
            Form::Object => value,
            Form::Metadata { version } => metadata_of(&value, version),
            Form::Table { version, include } => {
                let revision = object::text(&value, "/metadata/resourceVersion").to_owned();
                let rows = vec![row(kind, value, *include, version)];
                table(kind, version, json!({"resourceVersion": revision}), rows, true)
            }
        }
    }

    /// A list; `metadata` is its ListMeta.
    pub(super) fn list(&self, kind: &Kind, metadata: Value, entries: &[std::sync::Arc<Entry>]) -> Bytes {
        match self {
            Form::Object => {
                let size: usize = entries.iter().map(|entry| entry.size() + 64).sum();
                let mut out = BytesMut::with_capacity(size + 256);
                let head = format!(
                    "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
                    kind.list_kind(),
                    kind.api_version()
                );
                out.put_slice(head.as_bytes());
                for (index, entry) in entries.iter().enumerate() {
                    if index > 0 {
                        out.put_u8(b',');
                    }
                    if kind.conversion.is_some() {
                        out.put_slice(served(kind, entry).to_string().as_bytes());
                    } else {
                        entry.append_json(&mut out);
                    }
                }
                out.put_slice(b"]}");
                out.freeze()
            }
            Form::Table { version, include } => {
                let rows =
                    entries.iter().map(|entry| row(kind, served(kind, entry), *include, version)).collect();
                table(kind, version, metadata, rows, true).to_string().into()
            }
            Form::Metadata { version } => {
                let items: Vec<Value> =
                    entries.iter().map(|entry| metadata_of(&served(kind, entry), version)).collect();
                let list = json!({"kind": "PartialObjectMetadataList",
                    "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata, "items": items});
                list.to_string().into()
            }
        }
    }

    /// The object of a watch event. Column definitions come with the first event only.
    pub(super) fn event(&self, kind: &Kind, entry: &Entry, first: bool) -> Bytes {
        match self {
            Form::Table { version, include } => {
                let value = served(kind, entry);
                let metadata = json!({"resourceVersion": entry.revision.to_string()});
                let rows = vec![row(kind, value, *include, version)];
                table(kind, version, metadata, rows, first).to_string().into()
            }
            _ => self.one(kind, entry),
        }
    }

    /// The object of a bookmark: nothing but a revision.
    pub(super) fn bookmark(&self, kind: &Kind, revision: u64, initial_end: bool) -> Value {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        match self {
            Form::Object => {
                json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata})
            }
            Form::Metadata { version } => json!({"kind": "PartialObjectMetadata",
                "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata}),
            Form::Table { version, .. } => {
                let list = json!({"resourceVersion": revision.to_string()});
                let object = json!({"kind": "PartialObjectMetadata",
                    "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata});
                let rows = vec![json!({"cells": [], "object": object})];
                table(kind, version, list, rows, false)
            }
        }
    }
}

/// An entry as the kind serves it.
pub(super) fn served(kind: &Kind, entry: &Entry) -> Value {
    let mut value = entry.value();
    kind.from_storage(&mut value);
    value
}

fn metadata_of(value: &Value, version: &str) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": value["metadata"]})
}

fn row(kind: &Kind, value: Value, include: Include, version: &str) -> Value {
    let mut stored = value.clone();
    if let Some(conversion) = kind.conversion {
        (conversion.to_storage)(&mut stored);
    }
    let mut row = json!({"cells": (kind.cells)(&stored, jiff::Timestamp::now())});
    match include {
        Include::None => {}
        Include::Metadata => row["object"] = metadata_of(&value, version),
        Include::Object => row["object"] = value,
    }
    row
}

fn table(kind: &Kind, version: &str, metadata: Value, rows: Vec<Value>, with_columns: bool) -> Value {
    let columns: Vec<Value> = kind
        .columns
        .iter()
        .filter(|_| with_columns)
        .map(|column| {
            json!({"name": column.name, "type": column.kind, "format": column.format,
                "description": column.description, "priority": column.priority})
        })
        .collect();
    json!({"kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata,
        "columnDefinitions": columns, "rows": rows})
}

#[cfg(test)]
mod tests {
    //! Accept headers, as kubectl and client libraries send them.

    use super::*;

    fn form(accept: &'static str) -> Option<Form> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, http::HeaderValue::from_static(accept));
        Form::negotiate(&headers, "").ok()
    }

    #[test]
    fn accept() {
        let table = Some(Form::Table { version: "v1".into(), include: Include::Metadata });
        assert_eq!(
            form(
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"
            ),
            table
        );
        assert_eq!(form("application/vnd.kubernetes.protobuf,application/json"), Some(Form::Object));
        assert_eq!(form("*/*"), Some(Form::Object));
        assert_eq!(form("application/json;as=Unknown;v=v1;g=x, application/json"), Some(Form::Object));
        assert_eq!(form("application/vnd.kubernetes.protobuf"), None);
        assert_eq!(form("application/yaml"), None);
    }
}
