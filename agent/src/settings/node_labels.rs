//! Labels that the Node gets at registration: well formed, and such that a node may set by itself. Pure.
//!
//! The API server refuses a registration with any other label of Kubernetes' own namespaces (NodeRestriction); like the kubelet,
//! the agent says so before it tries.

use std::collections::BTreeMap;

use super::{Error, invalid, is_dns_subdomain, is_label_text};

#[cfg(test)]
mod tests;

/// Namespaces that belong to Kubernetes, with those below them.
const KUBERNETES: [&str; 2] = ["kubernetes.io", "k8s.io"];
/// Those of them whose labels a node may set, with those below them (`kubeletLabelNamespaces` upstream).
const ALLOWED_NAMESPACES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
/// And single labels (`kubeletLabels` upstream).
const ALLOWED: [&str; 11] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

/// `KEY=VALUE` pairs as labels.
pub fn validate(pairs: &[String]) -> Result<BTreeMap<String, String>, Error> {
    let labels: BTreeMap<String, String> = pairs.iter().map(|pair| label(pair)).collect::<Result<_, _>>()?;
    let unknown: Vec<&str> = labels.keys().map(String::as_str).filter(|key| !may_set(key)).collect();
    if unknown.is_empty() {
        return Ok(labels);
    }
    Err(Error::ForeignLabels {
        labels: unknown.join(" "),
        namespaces: ALLOWED_NAMESPACES.join(", "),
        allowed: ALLOWED.join(", "),
    })
}

fn may_set(key: &str) -> bool {
    let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace);
    let below = |parent: &&str| {
        namespace.strip_suffix(*parent).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    !KUBERNETES.iter().any(below) || ALLOWED_NAMESPACES.iter().any(below) || ALLOWED.contains(&key)
}

fn label(pair: &str) -> Result<(String, String), Error> {
    let expected = "a label such as topology.kubernetes.io/zone=a";
    let (key, value) = pair.split_once('=').ok_or_else(|| invalid("nodeLabels", pair, expected))?;
    let name = match key.split_once('/') {
        Some((prefix, name)) if is_dns_subdomain(prefix) => name,
        Some(_) => return Err(invalid("nodeLabels", pair, expected)),
        None => key,
    };
    if is_label_text(name) && (value.is_empty() || is_label_text(value)) {
        Ok((key.to_owned(), value.to_owned()))
    } else {
        Err(invalid("nodeLabels", pair, expected))
    }
}
