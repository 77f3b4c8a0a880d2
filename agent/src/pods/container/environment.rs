//! A container's environment, and `$(VARIABLE)` in its command, arguments and values. Pure.
//!
//! In: the spec, ConfigMaps and Secrets that were read before, the variables of Services. Out: pairs in the order in which the kubelet
//! makes them. A key that is not optional and not there is an error with the kubelet's words.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvFromSource, EnvVarSource, Secret};

use crate::pods::downward::{self, FieldError, Source};
use crate::pods::sandbox::Names;

#[cfg(test)]
mod tests;

/// ConfigMaps and Secrets of the pod's namespace by name; `None`: asked for, and there is none.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// ConfigMaps.
    pub config_maps: BTreeMap<String, Option<Arc<ConfigMap>>>,
    /// Secrets.
    pub secrets: BTreeMap<String, Option<Arc<Secret>>>,
}

impl Objects {
    /// A ConfigMap, where it exists.
    pub fn config_map(&self, name: &str) -> Option<&ConfigMap> {
        self.config_maps.get(name)?.as_deref()
    }

    /// A Secret, where it exists.
    pub fn secret(&self, name: &str) -> Option<&Secret> {
        self.secrets.get(name)?.as_deref()
    }
}

/// Why an environment cannot be made: CreateContainerConfigError.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvironmentError {
    /// The object is not there.
    #[error("{kind} \"{name}\" not found")]
    NoObject {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object has no such key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        /// The key.
        key: String,
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A value source that this node does not have.
    #[error("environment variable {name}: {what} is not supported")]
    Unsupported {
        /// The variable.
        name: String,
        /// The source.
        what: &'static str,
    },
    /// A field that does not exist.
    #[error(transparent)]
    Field(#[from] FieldError),
}

/// The environment of a container.
///
/// # Errors
/// [`EnvironmentError`].
pub fn environment(
    container: &Container,
    source: Source<'_>,
    objects: &Objects,
    services: Vec<(String, String)>,
) -> Result<Vec<(String, String)>, EnvironmentError> {
    let mut values = Ordered::default();
    for from in container.env_from.iter().flatten() {
        add_all(&mut values, from, objects)?;
    }
    // What Services give is visible to $(VAR), and gives way to a variable of the same name.
    let services: BTreeMap<String, String> = services.into_iter().collect();
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) if !value.is_empty() => {
                Some(expand(value, |name| values.get(name).or_else(|| services.get(name)).cloned()))
            }
            (_, Some(from)) => value_from(&variable.name, from, container, source, objects)?,
            _ => Some(String::new()),
        };
        if let Some(value) = value {
            values.set(&variable.name, value);
        }
    }
    for (name, value) in services {
        if values.get(&name).is_none() {
            values.set(&name, value);
        }
    }
    Ok(values.pairs)
}

/// Variables in the order in which they came; a later one replaces the value of an earlier one in its place.
#[derive(Default)]
struct Ordered {
    pairs: Vec<(String, String)>,
    places: BTreeMap<String, usize>,
}

impl Ordered {
    fn get(&self, name: &str) -> Option<&String> {
        self.places.get(name).map(|place| &self.pairs[*place].1)
    }

    fn set(&mut self, name: &str, value: String) {
        if let Some(place) = self.places.get(name) {
            self.pairs[*place].1 = value;
            return;
        }
        self.places.insert(name.to_owned(), self.pairs.len());
        self.pairs.push((name.to_owned(), value));
    }
}

fn add_all(values: &mut Ordered, from: &EnvFromSource, objects: &Objects) -> Result<(), EnvironmentError> {
    let prefix = from.prefix.as_deref().unwrap_or_default();
    let mut add = |key: &str, value: String| {
        let name = format!("{prefix}{key}");
        if !name.contains('=') {
            values.set(&name, value);
        }
    };
    if let Some(reference) = &from.config_map_ref {
        match objects.config_map(&reference.name) {
            Some(map) => {
                map.data.iter().flatten().for_each(|(key, value)| add(key, value.clone()));
            }
            None if reference.optional == Some(true) => {}
            None => {
                return Err(EnvironmentError::NoObject { kind: "configmap", name: reference.name.clone() });
            }
        }
    }
    if let Some(reference) = &from.secret_ref {
        match objects.secret(&reference.name) {
            Some(secret) => {
                for (key, value) in secret.data.iter().flatten() {
                    add(key, String::from_utf8_lossy(&value.0).into_owned());
                }
            }
            None if reference.optional == Some(true) => {}
            None => return Err(EnvironmentError::NoObject { kind: "secret", name: reference.name.clone() }),
        }
    }
    Ok(())
}

/// The value that a variable refers to; `None` where it is optional and not there.
fn value_from(
    name: &str,
    from: &EnvVarSource,
    container: &Container,
    source: Source<'_>,
    objects: &Objects,
) -> Result<Option<String>, EnvironmentError> {
    if let Some(field) = &from.field_ref {
        return Ok(Some(downward::field(source, &field.field_path)?));
    }
    if let Some(resource) = &from.resource_field_ref {
        return Ok(Some(downward::resource(source, resource, Some(container))?));
    }
    if let Some(key) = &from.config_map_key_ref {
        let map = objects.config_map(&key.name);
        let value = map.and_then(|map| map.data.as_ref()?.get(&key.key).cloned());
        let missing = Missing { kinds: ["configmap", "ConfigMap"], exists: map.is_some(), source };
        return missing.unless(value, &key.name, &key.key, key.optional);
    }
    if let Some(key) = &from.secret_key_ref {
        let secret = objects.secret(&key.name);
        let value = secret
            .and_then(|secret| secret.data.as_ref()?.get(&key.key))
            .map(|value| String::from_utf8_lossy(&value.0).into_owned());
        let missing = Missing { kinds: ["secret", "Secret"], exists: secret.is_some(), source };
        return missing.unless(value, &key.name, &key.key, key.optional);
    }
    Err(EnvironmentError::Unsupported { name: name.into(), what: "this valueFrom" })
}

/// What to say when a key is not there.
struct Missing<'a> {
    kinds: [&'static str; 2],
    exists: bool,
    source: Source<'a>,
}

impl Missing<'_> {
    fn unless(
        self,
        value: Option<String>,
        name: &str,
        key: &str,
        optional: Option<bool>,
    ) -> Result<Option<String>, EnvironmentError> {
        if value.is_some() || optional == Some(true) {
            return Ok(value);
        }
        Err(if self.exists {
            EnvironmentError::NoKey {
                key: key.into(),
                kind: self.kinds[1],
                namespace: Names::of(self.source.pod).namespace.into(),
                name: name.into(),
            }
        } else {
            EnvironmentError::NoObject { kind: self.kinds[0], name: name.into() }
        })
    }
}

/// Replaces `$(NAME)` by its value; what has none stays as it is, and `$$` is `$`.
pub fn expand(text: &str, value_of: impl Fn(&str) -> Option<String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('$') {
        result.push_str(&rest[..start]);
        rest = &rest[start + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match value_of(name) {
                Some(value) => result.push_str(&value),
                None => {
                    result.push_str("$(");
                    result.push_str(name);
                    result.push(')');
                }
            }
            rest = after;
        } else {
            result.push('$');
        }
    }
    result.push_str(rest);
    result
}
