//! One verb over the plugins of a network: what each is told, and in which order.

use std::ffi::{OsStr, OsString};

use serde_json::{Map, Value, json};

use super::{Error, Options, ValidAttachment, several};
use crate::{
    AddResult, NetworkList, PluginConfig, VALID_ATTACHMENTS,
    cache::Entry,
    exec::{Call, Group, Verb, find_plugin},
    json::Object,
};

pub(super) struct Chain<'a> {
    pub(super) options: &'a Options,
    pub(super) network: &'a NetworkList,
    pub(super) subject: Subject<'a>,
}

/// What a verb is about.
#[derive(Clone, Copy)]
pub(super) enum Subject<'a> {
    Attachment(&'a Entry),
    /// GC, STATUS, VERSION.
    Network,
}

/// A finished ADD.
pub(super) struct Added {
    pub(super) result: AddResult,
    pub(super) document: Map<String, Value>,
}

/// A failed ADD.
pub(super) struct AddFailed {
    pub(super) error: Error,
    /// Plugins that were started, the failing one included: it may have been killed half way.
    pub(super) ran: usize,
    pub(super) prev_result: Option<Map<String, Value>>,
}

impl Chain<'_> {
    pub(super) async fn add(&self) -> Result<Added, Box<AddFailed>> {
        let mut prev_result: Option<Map<String, Value>> = None;
        let mut result = AddResult::default();
        for (index, plugin) in self.network.plugins.iter().enumerate() {
            let step = async {
                let extra = prev_result_key(prev_result.as_ref());
                let document = self.call(plugin, Verb::Add, extra).await?;
                let mut document = document.ok_or_else(|| Error::NoResult {
                    plugin: plugin.plugin_type.clone(),
                    network: self.network.name.clone(),
                })?;
                let read = AddResult::from_answer(&mut document, self.network.version);
                let read = read.map_err(|error| Error::Result {
                    plugin: plugin.plugin_type.clone(),
                    network: self.network.name.clone(),
                    error,
                })?;
                Ok::<_, Error>((read, document))
            };
            match step.await {
                Ok((read, document)) => {
                    result = read;
                    prev_result = Some(document);
                }
                Err(error) => return Err(Box::new(AddFailed { error, ran: index + 1, prev_result })),
            }
        }
        Ok(Added { result, document: prev_result.unwrap_or_default() })
    }

    /// DEL of the first `count` plugins, in reverse.
    pub(super) async fn undo(
        &self,
        count: usize,
        prev_result: Option<&Map<String, Value>>,
    ) -> Result<(), Error> {
        let mut errors = Vec::new();
        for plugin in self.network.plugins.iter().take(count).rev() {
            // Before 0.4.0 DEL is not told what ADD returned.
            let told = prev_result.filter(|_| self.network.version.has_check());
            errors.extend(self.call(plugin, Verb::Del, prev_result_key(told)).await.err());
        }
        several(errors)
    }

    pub(super) async fn del(&self, prev_result: Option<&Map<String, Value>>) -> Result<(), Error> {
        self.undo(self.network.plugins.len(), prev_result).await
    }

    pub(super) async fn check(&self, prev_result: &Map<String, Value>) -> Result<(), Error> {
        for plugin in &self.network.plugins {
            self.call(plugin, Verb::Check, prev_result_key(Some(prev_result))).await?;
        }
        Ok(())
    }

    pub(super) async fn gc(&self, valid: &[ValidAttachment]) -> Result<(), Error> {
        let keep: Vec<Value> = valid
            .iter()
            .map(|kept| json!({"containerID": kept.container_id, "ifname": kept.ifname}))
            .collect();
        let mut errors = Vec::new();
        for plugin in &self.network.plugins {
            let extra = VALID_ATTACHMENTS.map(|key| (key, Value::Array(keep.clone())));
            errors.extend(self.call(plugin, Verb::Gc, extra.to_vec()).await.err());
        }
        several(errors)
    }

    pub(super) async fn status(&self) -> Result<(), Error> {
        for plugin in &self.network.plugins {
            self.call(plugin, Verb::Status, Vec::new()).await?;
        }
        Ok(())
    }

    pub(super) async fn versions(&self) -> Result<Vec<(String, Vec<String>)>, Error> {
        let mut all = Vec::new();
        for plugin in &self.network.plugins {
            let document = self.call(plugin, Verb::Version, Vec::new()).await?.unwrap_or_default();
            let supported = Object::root(&document).strings("supportedVersions");
            let supported = supported.map_err(|error| Error::Result {
                plugin: plugin.plugin_type.clone(),
                network: self.network.name.clone(),
                error: error.into(),
            })?;
            all.push((plugin.plugin_type.clone(), supported));
        }
        Ok(all)
    }

    /// Looks for every plugin's executable.
    pub(super) fn find_plugins(&self) -> Result<(), Error> {
        for plugin in &self.network.plugins {
            find_plugin(&plugin.plugin_type, &self.options.bin_dirs)
                .map_err(|error| self.failed(plugin, Verb::Status, error))?;
        }
        Ok(())
    }

    async fn call(
        &self,
        plugin: &PluginConfig,
        verb: Verb,
        extra: Vec<(&'static str, Value)>,
    ) -> Result<Option<Map<String, Value>>, Error> {
        let call = find_plugin(&plugin.plugin_type, &self.options.bin_dirs).map(|path| Call {
            plugin: path,
            verb,
            env: self.environment(),
            config: Value::Object(self.configuration(plugin, extra)).to_string().into_bytes(),
            time_limit: self.options.time_limit,
            group: Group::Own,
        });
        let answer = match call {
            Ok(call) => call.run().await,
            Err(error) => Err(error),
        };
        answer.map_err(|error| self.failed(plugin, verb, error))
    }

    fn failed(&self, plugin: &PluginConfig, verb: Verb, error: crate::exec::ExecError) -> Error {
        Error::Plugin {
            plugin: plugin.plugin_type.clone(),
            network: self.network.name.clone(),
            verb,
            error: Box::new(error),
        }
    }

    /// The plugin's own object with the keys that the runtime adds.
    fn configuration(&self, plugin: &PluginConfig, extra: Vec<(&'static str, Value)>) -> Map<String, Value> {
        let mut config = plugin.raw.clone();
        config.insert("name".to_owned(), json!(self.network.name));
        config.insert("cniVersion".to_owned(), json!(self.network.version.as_str()));
        if let Subject::Attachment(entry) = self.subject {
            let wanted: Map<String, Value> = entry
                .capability_args
                .iter()
                .filter(|(name, _)| plugin.capabilities.contains(name))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            if !wanted.is_empty() {
                config.insert("runtimeConfig".to_owned(), Value::Object(wanted));
            }
        }
        config.extend(extra.into_iter().map(|(key, value)| (key.to_owned(), value)));
        config
    }

    fn environment(&self) -> Vec<(&'static str, OsString)> {
        let dirs = self.options.bin_dirs.iter().map(|dir| dir.as_os_str().to_owned());
        let path = dirs.collect::<Vec<_>>().join(OsStr::new(":"));
        let (container_id, netns, ifname, args) = match self.subject {
            Subject::Attachment(entry) => (
                entry.container_id.clone(),
                entry.netns.clone(),
                entry.ifname.clone(),
                entry.args.to_string(),
            ),
            Subject::Network => Default::default(),
        };
        vec![
            ("CNI_CONTAINERID", container_id.into()),
            ("CNI_NETNS", netns.into()),
            ("CNI_IFNAME", ifname.into()),
            ("CNI_ARGS", args.into()),
            ("CNI_PATH", path),
        ]
    }
}

fn prev_result_key(prev_result: Option<&Map<String, Value>>) -> Vec<(&'static str, Value)> {
    prev_result.map(|result| ("prevResult", Value::Object(result.clone()))).into_iter().collect()
}
