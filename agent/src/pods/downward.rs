//! Fields of a pod that containers may see: as environment variables and as files. Pure.
//!
//! In: a pod, its addresses, the node. Out: text. Paths and formats: `pkg/fieldpath`, `pkg/api/v1/resource`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use super::observed::NodeFacts;
use super::resources::{self, Amounts};

#[cfg(test)]
mod tests;

/// What fields are read from.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its addresses, the first is the primary one; the node's for a pod in the node's network.
    pub pod_ips: &'a [String],
    /// The node.
    pub node: &'a NodeFacts,
    /// What the node can give: stands for limits that are not set.
    pub allocatable: &'a Amounts,
}

/// Why a field cannot be shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// No such field.
    #[error("unsupported fieldPath: {0}")]
    Path(String),
    /// No such resource.
    #[error("unsupported container resource : {0}")]
    Resource(String),
    /// No such container.
    #[error("container {0} not found")]
    Container(String),
}

/// The value of a `fieldRef`.
///
/// # Errors
/// [`FieldError::Path`].
pub fn field(source: Source<'_>, path: &str) -> Result<String, FieldError> {
    let meta = &source.pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    if let Some((path, key)) = subscript(path) {
        let map = match path {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(FieldError::Path(path.into())),
        };
        return Ok(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    let spec = source.pod.spec.as_ref();
    let node_ips = || source.node.ips.iter().map(ToString::to_string);
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => source.node.name.clone(),
        "spec.serviceAccountName" => spec.map(|spec| text(&spec.service_account_name)).unwrap_or_default(),
        "status.hostIP" => node_ips().next().unwrap_or_default(),
        "status.hostIPs" => node_ips().collect::<Vec<_>>().join(","),
        "status.podIP" => source.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => source.pod_ips.join(","),
        other => return Err(FieldError::Path(other.into())),
    })
}

/// `metadata.labels['key']` taken apart.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (path, rest) = path.split_once("['")?;
    Some((path, rest.strip_suffix("']")?))
}

/// One `key="value"` per line, by key.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    map.into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", quote(value)))
        .collect::<Vec<_>>()
        .join("\n")
}

/// As Go's `%q`.
fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() && (c as u32) < 0x80 => quoted.push_str(&format!("\\x{:02x}", c as u32)),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// The value of a `resourceFieldRef`; `own` is the container it stands in, if any.
///
/// # Errors
/// [`FieldError::Resource`] and [`FieldError::Container`].
pub fn resource(
    source: Source<'_>,
    selector: &ResourceFieldSelector,
    own: Option<&Container>,
) -> Result<String, FieldError> {
    let container = match (selector.container_name.as_deref().filter(|name| !name.is_empty()), own) {
        (Some(name), _) => source
            .pod
            .spec
            .as_ref()
            .and_then(|spec| resources::all_containers(spec).find(|container| container.name == name))
            .ok_or_else(|| FieldError::Container(name.into()))?,
        (None, Some(own)) => own,
        (None, None) => return Err(FieldError::Container(String::new())),
    };
    let unsupported = || FieldError::Resource(selector.resource.clone());
    let (kind, name) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !name.starts_with("hugepages-") {
        return Err(unsupported());
    }
    let value = match kind {
        "limits" => match resources::limits(container).get(name) {
            0 if !name.starts_with("hugepages-") => source.allocatable.get(name),
            value => value,
        },
        "requests" => resources::requests(container).get(name),
        _ => return Err(unsupported()),
    };
    let divisor = selector.divisor.as_ref().map_or(0, |divisor| match name {
        "cpu" => resources::milli(divisor),
        _ => resources::units(divisor),
    });
    let divisor = match divisor {
        0 if name == "cpu" => 1_000,
        0 => 1,
        divisor => divisor,
    };
    Ok(((value.saturating_add(divisor - 1)) / divisor).to_string())
}
