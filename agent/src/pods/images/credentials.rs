//! Which credentials of a pod's pull secrets fit an image. Pure.
//!
//! Formats: `kubernetes.io/dockerconfigjson` and `kubernetes.io/dockercfg`. A key names a registry, with or without scheme and path; the
//! longest path that fits wins.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use runtime::AuthConfig;
use serde::Deserialize;

#[cfg(test)]
mod tests;

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

/// The credentials for an image reference; a secret that does not parse gives none.
pub fn auth_for<'a>(reference: &str, secrets: impl Iterator<Item = &'a Secret>) -> Option<AuthConfig> {
    let repository = repository(reference);
    let mut best: Option<(usize, AuthConfig)> = None;
    for (key, entry) in secrets.flat_map(entries) {
        let key = normalised(&key);
        let fits =
            repository == key || repository.strip_prefix(&key).is_some_and(|rest| rest.starts_with('/'));
        if fits && best.as_ref().is_none_or(|(length, _)| key.len() > *length) {
            let auth = AuthConfig {
                username: entry.username,
                password: entry.password,
                auth: entry.auth,
                registry_token: entry.registrytoken,
                identity_token: entry.identitytoken,
            };
            best = Some((key.len(), auth));
        }
    }
    best.map(|(_, auth)| auth)
}

fn entries(secret: &Secret) -> Vec<(String, Entry)> {
    let data =
        |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map(|value| value.0.as_slice());
    let list = match (data(".dockerconfigjson"), data(".dockercfg")) {
        (Some(json), _) => serde_json::from_slice::<DockerConfig>(json).map(|config| config.auths),
        (None, Some(json)) => serde_json::from_slice::<BTreeMap<String, Entry>>(json),
        (None, None) => return Vec::new(),
    };
    list.unwrap_or_default().into_iter().collect()
}

/// `registry/path` of a reference, with the registry that a short name stands for.
fn repository(reference: &str) -> String {
    let name = reference.split('@').next().unwrap_or_default();
    let name = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    };
    match name.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    }
}

/// A key without scheme and API version; Docker Hub under its name in references.
fn normalised(key: &str) -> String {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    match key {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        key => key.to_owned(),
    }
}
