//! Network configurations: one plugin's object, and the list that a network is.
//!
//! Owns reading them from bytes. A plugin's object is kept whole, with the keys that only the plugin knows; what the
//! runtime must know of it is checked here. It refuses lists without a name, without plugins, or with a plugin that
//! has no type, and says which.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::{
    NameError, UnknownVersion, Version,
    json::{JsonError, Object, as_object, parse_object},
    validate::network_name,
};

/// Plugins of one network's chain.
const CHAIN_LIMIT: usize = 64;

/// One plugin's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginConfig {
    /// Also the executable's name.
    pub plugin_type: String,
    /// Capability arguments that the plugin wants in `runtimeConfig`.
    pub capabilities: Vec<String>,
    /// The object as it was written.
    pub raw: Map<String, Value>,
}

/// A network: a name, a version, and the plugins to run in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkList {
    pub name: String,
    pub version: Version,
    pub disable_check: bool,
    pub disable_gc: bool,
    /// Take no plugin objects from the folder that has the network's name.
    pub load_only_inlined_plugins: bool,
    pub plugins: Vec<PluginConfig>,
    /// The document as it was written, or as it was put together.
    pub raw: Map<String, Value>,
    /// Where it was read from, if from a file.
    pub source: Option<PathBuf>,
}

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    #[error(transparent)]
    Json(#[from] JsonError),
    #[error(transparent)]
    Version(#[from] UnknownVersion),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("key \"plugins\": no plugins, expected at least one")]
    NoPlugins,
    #[error("key \"plugins\": {count} plugins, expected at most {}", CHAIN_LIMIT)]
    TooManyPlugins { count: usize },
}

impl PluginConfig {
    /// Reads one plugin's object.
    ///
    /// # Errors
    /// When `type` is missing or is a path, or `capabilities` does not map names to booleans.
    pub fn from_object(raw: &Map<String, Value>, place: &str) -> Result<Self, JsonError> {
        let root = Object::root(raw);
        let named = |key: &str| if place.is_empty() { key.to_owned() } else { format!("{place}.{key}") };
        let plugin_type = root.string("type")?.filter(|text| !text.is_empty());
        let plugin_type = plugin_type.ok_or_else(|| JsonError::key(named("type"), "missing"))?;
        if plugin_type.contains('/') {
            let detail = format!("{plugin_type:?}: expected the name of an executable, not a path");
            return Err(JsonError::key(named("type"), detail));
        }
        Ok(Self { plugin_type: plugin_type.to_owned(), capabilities: capabilities(&root)?, raw: raw.clone() })
    }
}

fn capabilities(root: &Object<'_>) -> Result<Vec<String>, JsonError> {
    let Some(wanted) = root.object("capabilities")? else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for name in wanted.keys() {
        if wanted.boolean(name)?.unwrap_or(false) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

impl NetworkList {
    /// Reads a list, or a single plugin's object, which makes a list of one.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        Self::from_object(parse_object(bytes)?)
    }

    /// As [`NetworkList::parse`], of a document that was read already.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn from_object(raw: Map<String, Value>) -> Result<Self, ConfigError> {
        let root = Object::root(&raw);
        let name = root.required("name", root.string("name")?.filter(|name| !name.is_empty()))?.to_owned();
        network_name(&name)?;
        let plugins = if root.value("plugins").is_some() {
            let each = root.array("plugins")?.into_iter();
            let each =
                each.map(|(place, value)| PluginConfig::from_object(as_object(value, &place)?, &place));
            each.collect::<Result<Vec<_>, _>>()?
        } else {
            vec![PluginConfig::from_object(&raw, "")?]
        };
        let list = Self {
            version: version(&root)?,
            disable_check: switch(&root, "disableCheck")?,
            disable_gc: switch(&root, "disableGC")?,
            load_only_inlined_plugins: switch(&root, "loadOnlyInlinedPlugins")?,
            name,
            plugins,
            raw: Map::new(),
            source: None,
        };
        Ok(Self { raw, ..list })
    }

    /// Adds plugin objects after the inlined ones, as the folder of the network's name has them.
    pub(crate) fn append(&mut self, plugins: Vec<PluginConfig>) {
        let all: Vec<Value> =
            self.plugins.iter().chain(&plugins).map(|plugin| Value::Object(plugin.raw.clone())).collect();
        self.raw.insert("plugins".to_owned(), Value::Array(all));
        self.plugins.extend(plugins);
    }

    /// A network has between one plugin and the limit.
    pub(crate) fn check_length(&self) -> Result<(), ConfigError> {
        match self.plugins.len() {
            0 => Err(ConfigError::NoPlugins),
            count if count > CHAIN_LIMIT => Err(ConfigError::TooManyPlugins { count }),
            _ => Ok(()),
        }
    }

    pub(crate) fn with_source(mut self, source: &Path) -> Self {
        self.source = Some(source.to_owned());
        self
    }
}

/// The newest known of `cniVersion` and `cniVersions`, which a list of 1.1 may have as well; an unknown one is an error where
/// no other is known.
fn version(root: &Object<'_>) -> Result<Version, ConfigError> {
    let one = root.string("cniVersion")?.unwrap_or_default().parse::<Version>();
    let offered = root.strings("cniVersions")?;
    let known = offered.iter().filter_map(|text| text.parse().ok()).chain(one.as_ref().ok().copied());
    match known.max() {
        Some(newest) => Ok(newest),
        None => Ok(one?),
    }
}

/// A boolean; the reference library also takes the words as strings.
fn switch(root: &Object<'_>, key: &str) -> Result<bool, JsonError> {
    match root.value(key) {
        Some(Value::String(text)) => match text.to_ascii_lowercase().as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(JsonError::key(
                root.place_of(key),
                format!("invalid value {text:?}: expected true or false"),
            )),
        },
        _ => Ok(root.boolean(key)?.unwrap_or(false)),
    }
}

#[cfg(test)]
mod tests;
