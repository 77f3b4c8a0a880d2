//! The runtime's side of CNI: attach containers to the network of a configuration folder, detach, check, collect.
//!
//! Inputs: the folder, an [`Attachment`]; outputs: an [`AddResult`], and what the plugins did. Owns the order of
//! plugins, what each is told (`prevResult`, `runtimeConfig`), the cache of attachments, and the undo of a failed ADD:
//! DEL of what was run, in reverse. A DEL collects errors and goes on. It refuses to choose between networks: the
//! first file by name is the network, as with every other runtime.

mod chain;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::{Map, Value};
use tokio::sync::RwLock;

use self::chain::{Chain, Subject};
use crate::{
    AddResult, CacheError, ConfigError, NameError, NetworkList, ResultError,
    args::CniArgs,
    cache::{Cache, Entry},
    conf_dir::{FileError, load_conf_dir},
    exec::{self, ExecError},
    validate,
};

/// Where things are.
#[derive(Debug, Clone)]
pub struct Options {
    pub conf_dir: PathBuf,
    pub bin_dirs: Vec<PathBuf>,
    pub cache_dir: PathBuf,
    /// For each call of each plugin.
    pub time_limit: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            conf_dir: PathBuf::from("/etc/cni/net.d"),
            bin_dirs: vec![PathBuf::from("/opt/cni/bin")],
            cache_dir: PathBuf::from("/var/lib/cni"),
            time_limit: exec::DEFAULT_TIME_LIMIT,
        }
    }
}

/// One link of one container.
#[derive(Debug, Clone, Default)]
pub struct Attachment {
    pub container_id: String,
    /// Path of the container's network namespace. DEL also works without it, and when it is gone.
    pub netns: Option<PathBuf>,
    /// Name of the link inside.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: CniArgs,
    /// By capability (`portMappings`, `ips`, …): each plugin gets in `runtimeConfig` those that it declares.
    pub capability_args: Map<String, Value>,
}

/// An attachment that GC must keep.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ValidAttachment {
    pub container_id: String,
    pub ifname: String,
}

/// What a [`Client`] could not do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("no network configuration in {dir}: put a .conflist file there")]
    NoNetwork { dir: PathBuf },
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("attach container {container_id}: no network namespace given")]
    NoNetns { container_id: String },
    #[error("cached configuration of container {container_id}: {error}")]
    CachedConfig { container_id: String, error: ConfigError },
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The wording is libcni's.
    #[error("plugin type={plugin:?} name={network:?} failed ({lower}): {error}", lower = .verb.as_str().to_lowercase())]
    Plugin { plugin: String, network: String, verb: exec::Verb, error: Box<ExecError> },
    #[error("plugin type={plugin:?} name={network:?}: {error}")]
    Result { plugin: String, network: String, error: ResultError },
    #[error("plugin type={plugin:?} name={network:?}: no result on standard output")]
    NoResult { plugin: String, network: String },
    #[error("network {network:?} in CNI version {version}: no {verb}")]
    NotInVersion { network: String, version: crate::Version, verb: exec::Verb },
    #[error("container {container_id}: no cached result for link {ifname:?}, so it was not attached here")]
    NotAttached { container_id: String, ifname: String },
    #[error("{}", join(.0))]
    Several(Vec<Error>),
}

/// Attaches containers to the network of a configuration folder. Its clones work together.
#[derive(Debug, Clone)]
pub struct Client {
    options: Options,
    cache: Cache,
    /// As the specification wants it: no attachment is made, removed or checked during a GC, which would take one that is being made
    /// for one that is left over. Other questions need not wait: they are about no attachment.
    calls: Arc<RwLock<()>>,
}

impl Client {
    pub fn new(options: Options) -> Self {
        let cache = Cache::new(&options.cache_dir);
        Self { options, cache, calls: Arc::default() }
    }

    /// The network that attachments go to: the first good file by name. Broken files are logged; they are an error
    /// only when nothing else is there.
    ///
    /// # Errors
    /// When there is no good file.
    pub fn network(&self) -> Result<NetworkList, Error> {
        let loaded = load_conf_dir(&self.options.conf_dir)?;
        let Some(network) = loaded.networks.into_iter().next() else {
            let mut broken: Vec<Error> = loaded.broken.into_iter().map(Error::File).collect();
            return Err(match broken.len() {
                0 => Error::NoNetwork { dir: self.options.conf_dir.clone() },
                1 => broken.remove(0),
                _ => Error::Several(broken),
            });
        };
        for error in &loaded.broken {
            tracing::warn!(%error, "skipping a network configuration");
        }
        Ok(network)
    }

    /// Attaches. All or nothing: on failure the plugins that ran are undone in reverse.
    ///
    /// # Errors
    /// The first plugin's that failed.
    pub async fn add(&self, attachment: &Attachment) -> Result<AddResult, Error> {
        validate::container_id(&attachment.container_id)?;
        validate::interface_name(&attachment.ifname)?;
        if attachment.netns.is_none() {
            return Err(Error::NoNetns { container_id: attachment.container_id.clone() });
        }
        let _call = self.calls.read().await;
        let network = self.network()?;
        let mut entry = new_entry(&network, attachment);
        self.cache.store(&entry)?;
        match self.chain(&network, &entry).add().await {
            Ok(added) => {
                entry.result = Some(added.document);
                if let Err(error) = self.cache.store(&entry) {
                    self.undo(&network, &entry, network.plugins.len(), entry.result.as_ref()).await;
                    return Err(error.into());
                }
                Ok(added.result)
            }
            Err(failed) => {
                self.undo(&network, &entry, failed.ran, failed.prev_result.as_ref()).await;
                Err(failed.error)
            }
        }
    }

    /// Undoes the first `count` plugins of a failed ADD. Where that fails the entry stays, so that a later DEL or GC tries again.
    async fn undo(
        &self,
        network: &NetworkList,
        entry: &Entry,
        count: usize,
        prev_result: Option<&Map<String, Value>>,
    ) {
        let undone = self.chain(network, entry).undo(count, prev_result).await;
        if let Err(error) = undone.and_then(|()| Ok(self.cache.forget(entry)?)) {
            tracing::warn!(%error, container = entry.container_id, "undo of a failed ADD");
        }
    }

    /// Detaches. Nothing to detach is success. The configuration is the one that the attachment was made with, also
    /// when the file has changed or gone since.
    ///
    /// # Errors
    /// Those of the plugins, after all of them were run.
    pub async fn del(&self, attachment: &Attachment) -> Result<(), Error> {
        validate::container_id(&attachment.container_id)?;
        validate::interface_name(&attachment.ifname)?;
        let _call = self.calls.read().await;
        let cached = self.cache.find(&attachment.container_id, &attachment.ifname)?;
        if !cached.is_empty() {
            let mut errors = Vec::new();
            for entry in cached {
                errors.extend(self.del_cached(entry, attachment.netns.as_deref()).await.err());
            }
            return several(errors);
        }
        let network = match self.network() {
            Ok(network) => network,
            Err(Error::NoNetwork { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let entry = new_entry(&network, attachment);
        self.chain(&network, &entry).del(None).await?;
        Ok(self.cache.forget(&entry)?)
    }

    async fn del_cached(&self, mut entry: Entry, netns: Option<&Path>) -> Result<(), Error> {
        let network = cached_network(&entry)?;
        if let Some(netns) = netns {
            entry.netns = netns.to_string_lossy().into_owned();
        }
        let prev_result = entry.result.clone();
        self.chain(&network, &entry).del(prev_result.as_ref()).await?;
        Ok(self.cache.forget(&entry)?)
    }

    /// Asks the plugins whether the attachment is as they left it.
    ///
    /// # Errors
    /// When it is not, when it was not made here, or when the configuration's version is older than CHECK.
    pub async fn check(&self, attachment: &Attachment) -> Result<(), Error> {
        validate::container_id(&attachment.container_id)?;
        validate::interface_name(&attachment.ifname)?;
        let not_attached = || Error::NotAttached {
            container_id: attachment.container_id.clone(),
            ifname: attachment.ifname.clone(),
        };
        let _call = self.calls.read().await;
        let cached = self.cache.find(&attachment.container_id, &attachment.ifname)?;
        let entry = cached.into_iter().next().ok_or_else(not_attached)?;
        let network = cached_network(&entry)?;
        if !network.version.has_check() {
            let verb = exec::Verb::Check;
            return Err(Error::NotInVersion { network: network.name, version: network.version, verb });
        }
        if network.disable_check {
            return Ok(());
        }
        let prev_result = entry.result.clone().ok_or_else(not_attached)?;
        self.chain(&network, &entry).check(&prev_result).await
    }

    /// Detaches what is attached to the network and not in `valid`, then lets the plugins remove what they find left
    /// over (from version 1.1). Waits for the calls under way, and holds up others.
    ///
    /// # Errors
    /// All that went wrong, after everything was tried.
    pub async fn gc(&self, valid: &[ValidAttachment]) -> Result<(), Error> {
        let network = self.network()?;
        if network.disable_gc {
            return Ok(());
        }
        let _alone = self.calls.write().await;
        let keep: HashSet<(&str, &str)> =
            valid.iter().map(|kept| (kept.container_id.as_str(), kept.ifname.as_str())).collect();
        let mut errors = Vec::new();
        for entry in self.cache.of_network(&network.name)? {
            if !keep.contains(&(entry.container_id.as_str(), entry.ifname.as_str())) {
                errors.extend(self.del_cached(entry, None).await.err());
            }
        }
        if network.version.has_gc_and_status() {
            let chain = Chain { options: &self.options, network: &network, subject: Subject::Network };
            errors.extend(chain.gc(valid).await.err());
        }
        several(errors)
    }

    /// Whether the network can take attachments: the configuration is good, its plugins are there, and (from version
    /// 1.1) they say so.
    ///
    /// # Errors
    /// Why it cannot.
    pub async fn status(&self) -> Result<(), Error> {
        let network = self.network()?;
        let chain = Chain { options: &self.options, network: &network, subject: Subject::Network };
        chain.find_plugins()?;
        if network.version.has_gc_and_status() { chain.status().await } else { Ok(()) }
    }

    /// The spec versions that each plugin of the network supports, in chain order.
    ///
    /// # Errors
    /// When a plugin cannot be asked.
    pub async fn versions(&self) -> Result<Vec<(String, Vec<String>)>, Error> {
        let network = self.network()?;
        let chain = Chain { options: &self.options, network: &network, subject: Subject::Network };
        chain.versions().await
    }

    fn chain<'a>(&'a self, network: &'a NetworkList, entry: &'a Entry) -> Chain<'a> {
        Chain { options: &self.options, network, subject: Subject::Attachment(entry) }
    }
}

fn new_entry(network: &NetworkList, attachment: &Attachment) -> Entry {
    let netns = attachment.netns.as_deref().map(Path::to_string_lossy).unwrap_or_default();
    Entry {
        network: network.name.clone(),
        container_id: attachment.container_id.clone(),
        ifname: attachment.ifname.clone(),
        netns: netns.into_owned(),
        config: Value::Object(network.raw.clone()).to_string().into_bytes(),
        args: attachment.args.clone(),
        capability_args: attachment.capability_args.clone(),
        result: None,
    }
}

fn cached_network(entry: &Entry) -> Result<NetworkList, Error> {
    NetworkList::parse(&entry.config)
        .map_err(|error| Error::CachedConfig { container_id: entry.container_id.clone(), error })
}

/// Success for none, the error itself for one.
fn several(mut errors: Vec<Error>) -> Result<(), Error> {
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => Err(Error::Several(errors)),
    }
}

fn join(errors: &[Error]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests;
