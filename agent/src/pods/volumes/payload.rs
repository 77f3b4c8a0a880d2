//! The files of configMap, secret, downwardAPI and projected volumes. Pure.
//!
//! In: a volume's spec and everything it refers to. Out: relative paths with content and mode. What is asked for and not there is an error in
//! the kubelet's words, unless it is optional. Paths that lead out of the volume are refused.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Secret, Volume, VolumeProjection,
};

use super::Tokens;
use crate::pods::container::Objects;
use crate::pods::downward::{self, FieldError, Source};

#[cfg(test)]
mod tests;

/// Mode of files where the spec has none.
const DEFAULT_MODE: i32 = 0o644;

/// A file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its content.
    pub data: Vec<u8>,
    /// Its permissions.
    pub mode: u32,
}

/// Files by relative path.
pub type Payload = BTreeMap<PathBuf, File>;

/// Why a volume's files cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// The object is not there.
    #[error("{kind} \"{name}\" not found")]
    NoObject {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object has no such key.
    #[error("references non-existent {kind} key: {key}")]
    NoKey {
        /// `config` or `secret`.
        kind: &'static str,
        /// The key.
        key: String,
    },
    /// A path that is no relative path below the volume.
    #[error("invalid path: {path}")]
    Path {
        /// As given.
        path: String,
    },
    /// A field that does not exist.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// A source that this node does not have.
    #[error("projected source {what} is not supported by this node")]
    Unsupported {
        /// Which.
        what: &'static str,
    },
}

/// The files of a volume; none for the kinds that have no files of ours.
///
/// # Errors
/// [`PayloadError`].
pub fn build(
    volume: &Volume,
    source: Source<'_>,
    objects: &Objects,
    tokens: &Tokens,
) -> Result<Payload, PayloadError> {
    let mut files = Files { payload: Payload::new(), mode: DEFAULT_MODE };
    if let Some(map) = &volume.config_map {
        files.mode = map.default_mode.unwrap_or(DEFAULT_MODE);
        let optional = map.optional == Some(true);
        files.config_map(objects.config_map(&map.name), &map.name, map.items.as_deref(), optional)?;
    }
    if let Some(secret) = &volume.secret {
        files.mode = secret.default_mode.unwrap_or(DEFAULT_MODE);
        let name = secret.secret_name.as_deref().unwrap_or_default();
        let optional = secret.optional == Some(true);
        files.secret(objects.secret(name), name, secret.items.as_deref(), optional)?;
    }
    if let Some(api) = &volume.downward_api {
        files.mode = api.default_mode.unwrap_or(DEFAULT_MODE);
        files.downward(api.items.as_deref(), source)?;
    }
    if let Some(projected) = &volume.projected {
        files.mode = projected.default_mode.unwrap_or(DEFAULT_MODE);
        for projection in projected.sources.iter().flatten() {
            files.projection(projection, source, objects, tokens)?;
        }
    }
    Ok(files.payload)
}

struct Files {
    payload: Payload,
    mode: i32,
}

impl Files {
    fn add(&mut self, path: &str, data: Vec<u8>, mode: Option<i32>) -> Result<(), PayloadError> {
        let relative = checked(path)?;
        let mode = u32::try_from(mode.unwrap_or(self.mode)).unwrap_or(0) & 0o777;
        self.payload.insert(relative, File { data, mode });
        Ok(())
    }

    fn keys<'a>(
        &mut self,
        all: BTreeMap<&'a str, &'a [u8]>,
        items: Option<&[KeyToPath]>,
        kind: &'static str,
        optional: bool,
    ) -> Result<(), PayloadError> {
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            return all.into_iter().try_for_each(|(key, data)| self.add(key, data.to_vec(), None));
        };
        for item in items {
            match all.get(item.key.as_str()) {
                Some(data) => self.add(&item.path, data.to_vec(), item.mode)?,
                None if optional => {}
                None => return Err(PayloadError::NoKey { kind, key: item.key.clone() }),
            }
        }
        Ok(())
    }

    fn config_map(
        &mut self,
        map: Option<&ConfigMap>,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: bool,
    ) -> Result<(), PayloadError> {
        let Some(map) = map else { return missing("configmap", name, optional) };
        let text = map.data.iter().flatten().map(|(key, value)| (key.as_str(), value.as_bytes()));
        let binary = map.binary_data.iter().flatten().map(|(key, value)| (key.as_str(), value.0.as_slice()));
        self.keys(text.chain(binary).collect(), items, "config", optional)
    }

    fn secret(
        &mut self,
        secret: Option<&Secret>,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: bool,
    ) -> Result<(), PayloadError> {
        let Some(secret) = secret else { return missing("secret", name, optional) };
        let data = secret.data.iter().flatten().map(|(key, value)| (key.as_str(), value.0.as_slice()));
        self.keys(data.collect(), items, "secret", optional)
    }

    fn downward(
        &mut self,
        items: Option<&[DownwardAPIVolumeFile]>,
        source: Source<'_>,
    ) -> Result<(), PayloadError> {
        for item in items.unwrap_or_default() {
            let text = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => downward::field(source, &field.field_path)?,
                (None, Some(resource)) => downward::resource(source, resource, None)?,
                (None, None) => String::new(),
            };
            self.add(&item.path, text.into_bytes(), item.mode)?;
        }
        Ok(())
    }

    fn projection(
        &mut self,
        projection: &VolumeProjection,
        source: Source<'_>,
        objects: &Objects,
        tokens: &Tokens,
    ) -> Result<(), PayloadError> {
        if let Some(map) = &projection.config_map {
            let optional = map.optional == Some(true);
            self.config_map(objects.config_map(&map.name), &map.name, map.items.as_deref(), optional)?;
        }
        if let Some(secret) = &projection.secret {
            let optional = secret.optional == Some(true);
            self.secret(objects.secret(&secret.name), &secret.name, secret.items.as_deref(), optional)?;
        }
        if let Some(api) = &projection.downward_api {
            self.downward(api.items.as_deref(), source)?;
        }
        if let Some(token) = &projection.service_account_token {
            let text = tokens.get(&token.path).cloned().unwrap_or_default();
            // Read by its owner only, whatever the default mode is; a group gets it by fsGroup.
            self.add(&token.path, text.into_bytes(), Some(token_mode(self.mode, source)))?;
        }
        if projection.cluster_trust_bundle.is_some() {
            return Err(PayloadError::Unsupported { what: "clusterTrustBundle" });
        }
        if projection.pod_certificate.is_some() {
            return Err(PayloadError::Unsupported { what: "podCertificate" });
        }
        Ok(())
    }
}

/// 0600 with fsGroup (its group is added), else the volume's mode, so that containers of any user can read it.
fn token_mode(default: i32, source: Source<'_>) -> i32 {
    let context = source.pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    if context.is_some_and(|context| context.fs_group.is_some()) { 0o600 } else { default }
}

fn missing(kind: &'static str, name: &str, optional: bool) -> Result<(), PayloadError> {
    if optional { Ok(()) } else { Err(PayloadError::NoObject { kind, name: name.to_owned() }) }
}

/// A relative path without `..`, and not one of the writer's own names.
fn checked(path: &str) -> Result<PathBuf, PayloadError> {
    let relative = Path::new(path);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || path.is_empty() || path.starts_with("..") {
        return Err(PayloadError::Path { path: path.to_owned() });
    }
    Ok(relative.components().collect())
}
