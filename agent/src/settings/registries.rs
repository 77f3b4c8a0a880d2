//! The registries file: mirrors, plain-http endpoints, credentials and authorities for image pulls.
//!
//! In: a YAML or JSON file such as
//!
//! ```yaml
//! caFiles: [/etc/ssl/own-ca.pem]
//! registries:
//! - name: docker.io
//!   mirrors: ["http://127.0.0.1:5000"]
//! - name: registry.example:5000
//!   endpoint: https://registry.example:5000
//!   username: someone
//!   password: secret
//! ```
//!
//! Out: what the runtime takes. Refuses unknown keys and endpoints that are not `http://` or `https://` with a host.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Error;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct File {
    ca_files: Vec<PathBuf>,
    registries: Vec<Host>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Host {
    name: String,
    #[serde(default)]
    mirrors: Vec<String>,
    endpoint: Option<String>,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

/// Reads the file; without one registries are reached by https under their own names.
pub fn read(path: Option<&Path>) -> Result<runtime::Registries, Error> {
    let Some(path) = path else { return Ok(runtime::Registries::default()) };
    let text = fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    parse(&text, path)
}

pub(super) fn parse(text: &str, path: &Path) -> Result<runtime::Registries, Error> {
    let file: File = if text.trim().is_empty() {
        File::default()
    } else {
        serde_yaml_ng::from_str(text)
            .map_err(|error| Error::Parse { path: path.to_owned(), reason: error.to_string() })?
    };
    let hosts = file.registries.into_iter().map(host).collect::<Result<_, _>>()?;
    Ok(runtime::Registries { hosts, ca_files: file.ca_files, ..runtime::Registries::default() })
}

fn host(host: Host) -> Result<runtime::RegistryHost, Error> {
    if host.name.is_empty() || host.name.contains('/') {
        return Err(Error::Invalid {
            key: "registries.name",
            value: host.name,
            expected: "the host part of image names, such as docker.io",
        });
    }
    let mirrors =
        host.mirrors.iter().map(|text| endpoint("registries.mirrors", text)).collect::<Result<_, _>>()?;
    let own = host.endpoint.as_deref().map(|text| endpoint("registries.endpoint", text)).transpose()?;
    let auth = (!host.username.is_empty()).then(|| runtime::AuthConfig {
        username: host.username,
        password: host.password,
        ..runtime::AuthConfig::default()
    });
    Ok(runtime::RegistryHost { name: host.name, mirrors, endpoint: own, auth })
}

fn endpoint(key: &'static str, text: &str) -> Result<runtime::Endpoint, Error> {
    let (plain_http, rest) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
        (Some(rest), _) => (true, rest),
        (None, Some(rest)) => (false, rest),
        (None, None) => (false, ""),
    };
    let host = rest.trim_end_matches('/');
    if host.is_empty() || host.contains('/') {
        let expected = "http:// or https:// with a host and an optional port";
        return Err(Error::Invalid { key, value: text.to_owned(), expected });
    }
    Ok(runtime::Endpoint { host: host.to_owned(), plain_http })
}
