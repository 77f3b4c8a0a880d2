//! What a container is made from. Pure.
//!
//! In: the pod's and the container's spec, and everything that was looked up before: objects, services, mounts, the image, addresses.
//! Out: a [`runtime::ContainerConfig`], or why it cannot be made, in the words that a status shows under CreateContainerConfigError.

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use runtime::{ContainerConfig, Image, Mount, Resources};

use super::downward::Source;
use super::sandbox::Names;
use super::{labels, plan, resources};

pub mod environment;
pub mod security;

#[cfg(test)]
mod tests;

pub use environment::{EnvironmentError, Objects};
pub use security::SecurityError;

/// The file of a v2 control group that says whether everybody in it ends when it is out of memory.
pub const OOM_GROUP: &str = "memory.oom.group";
/// terminationMessagePath where the spec has none.
const MESSAGE_PATH: &str = "/dev/termination-log";

/// What a container is made from, beside its own spec.
#[derive(Clone, Debug)]
pub struct Inputs<'a> {
    /// The pod with its addresses and the node.
    pub source: Source<'a>,
    /// How often the container was started before.
    pub restarts: u32,
    /// ConfigMaps and Secrets that it refers to.
    pub objects: &'a Objects,
    /// Variables of Services.
    pub services: Vec<(String, String)>,
    /// Volumes and the files that the node manages.
    pub mounts: Vec<Mount>,
    /// The file that is mounted at the termination message path.
    pub message_file: PathBuf,
    /// The image that it will run.
    pub image: &'a Image,
    /// Out of memory, all of its processes end.
    pub group_oom_kill: bool,
}

/// Why a container cannot be made from its spec.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Its environment.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// Who it is to run as.
    #[error(transparent)]
    Security(#[from] SecurityError),
}

/// The container's configuration.
///
/// # Errors
/// [`ConfigError`].
pub fn config(container: &Container, inputs: Inputs<'_>) -> Result<ContainerConfig, ConfigError> {
    let pod = inputs.source.pod;
    let names = Names::of(pod);
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    let env = environment::environment(container, inputs.source, inputs.objects, inputs.services)?;
    let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
        let value = |name: &str| env.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        list.iter().flatten().map(|text| environment::expand(text, value)).collect()
    };
    let command = expanded(&container.command);
    let args = expanded(&container.args);
    let mut own_labels = labels::of_pod(None, names.namespace, names.name, names.uid);
    own_labels.insert(labels::CONTAINER_NAME.into(), container.name.clone());
    let restarts = inputs.restarts;
    let lifecycle = container.lifecycle.as_ref();
    Ok(ContainerConfig {
        name: container.name.clone(),
        attempt: restarts,
        image: container.image.clone().unwrap_or_default(),
        command,
        args,
        working_dir: container.working_dir.clone().unwrap_or_default(),
        mounts: inputs.mounts,
        devices: Vec::new(),
        labels: own_labels,
        annotations: annotations(container, spec, restarts, &inputs.message_file),
        log_path: format!("{}/{restarts}.log", container.name),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        resources: Resources {
            unified: oom_group(inputs.group_oom_kill),
            ..resources_of(pod, container, inputs.source.node.memory)
        },
        security: security::security(pod, container, inputs.image)?,
        stop_signal: lifecycle.and_then(|lifecycle| lifecycle.stop_signal.clone()).unwrap_or_default(),
        env,
    })
}

/// terminationMessagePath of a container.
pub fn message_path(container: &Container) -> &str {
    container.termination_message_path.as_deref().filter(|path| !path.is_empty()).unwrap_or(MESSAGE_PATH)
}

fn annotations(
    container: &Container,
    spec: &PodSpec,
    restarts: u32,
    message_file: &std::path::Path,
) -> BTreeMap<String, String> {
    let policy = container.termination_message_policy.as_deref().unwrap_or("File");
    let grace = spec.termination_grace_period_seconds.unwrap_or(30);
    [
        (labels::CONTAINER_HASH, plan::container_hash(container)),
        (labels::RESTART_COUNT, restarts.to_string()),
        (labels::MESSAGE_PATH, message_path(container).to_owned()),
        (labels::MESSAGE_FILE, message_file.to_string_lossy().into_owned()),
        (labels::MESSAGE_POLICY, policy.to_owned()),
        (labels::GRACE_PERIOD, grace.to_string()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

/// As the kubelet since 1.28: a container that lost only one of its processes would seldom go on as it should.
fn oom_group(kill: bool) -> BTreeMap<String, String> {
    kill.then(|| (OOM_GROUP.to_owned(), "1".to_owned())).into_iter().collect()
}

/// Requests and limits as the control group takes them.
fn resources_of(pod: &Pod, container: &Container, node_memory: i64) -> Resources {
    let requests = resources::requests(container);
    let limits = resources::limits(container);
    let quota = resources::quota(limits.get("cpu"));
    let hugepage_limits = limits.0.iter().filter_map(|(name, bytes)| {
        let size = name.strip_prefix("hugepages-")?.trim_end_matches('i');
        Some((format!("{size}B"), u64::try_from(*bytes).ok()?))
    });
    Resources {
        cpu_period: resources::CPU_PERIOD,
        cpu_quota: quota,
        cpu_shares: resources::shares(requests.get("cpu")),
        memory_limit: limits.get("memory"),
        // No swap beside the limit (kubelet: `NoSwap`).
        memory_swap_limit: limits.get("memory"),
        oom_score_adj: Some(resources::oom_score_adj(pod, container, node_memory)),
        hugepage_limits: hugepage_limits.collect(),
        ..Resources::default()
    }
}
