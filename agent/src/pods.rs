//! The pods of this node: everything between a pod that is bound to the node and its containers.
//!
//! In: pods by watch, the runtime's events, ConfigMaps and Secrets, Services. Out: running containers, statuses, Events, and [`Handle`] for
//! those who serve logs and exec. [`manager`] has one task that watches and one [`worker`] task per pod; [`plan`] and [`status`] decide
//! (pure), [`execute`] does. The runtime's list is the truth about what runs: no state of our own is kept on disk.

pub mod admission;
pub mod backoff;
mod cgroup;
pub mod container;
pub mod downward;
mod execute;
mod hooks;
mod images;
pub(crate) mod labels;
mod leftovers;
mod manager;
mod objects;
pub mod observed;
pub mod plan;
mod probes;
mod registry;
pub mod resources;
pub mod sandbox;
mod site;
pub mod startup;
pub mod status;
mod status_writer;
mod termination;
mod volumes;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::events::Recorder;
use crate::metrics::Metrics;
use crate::settings::Settings;

/// What the pods need.
pub struct Context {
    /// The API server.
    pub client: kube::Client,
    /// The container runtime.
    pub runtime: runtime::Runtime,
    /// Services, for environments.
    pub services: crate::services::Cache,
    /// Told before a pod is stopped.
    pub departures: crate::services::Departures,
    /// Asked before a container is started.
    pub policies: crate::policies::Guard,
    /// So is this.
    pub bypass: std::sync::Arc<crate::services::Bypass>,
    /// Told of each pod's addresses before that.
    pub clients: std::sync::Arc<crate::services::Clients>,
    /// Takes Events.
    pub recorder: Recorder,
    /// Takes what is measured.
    pub metrics: Metrics,
    /// The agent's settings.
    pub settings: Arc<Settings>,
    /// The agent ends. Containers go on.
    pub shutdown: CancellationToken,
}

/// Why pods cannot be managed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The control groups are not usable.
    #[error("{operation}")]
    Cgroup {
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        source: linux::Error,
    },
    /// A directory cannot be made.
    #[error("make directory {path}", path = path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Starts the management of pods.
pub struct Manager;

impl Manager {
    /// Makes what pods live in, and starts the task that watches them; it ends only with the agent.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(context: Context) -> Result<(Handle, JoinHandle<()>), StartError> {
        manager::start(context)
    }
}

/// A container, for those who read its log or run something in it.
#[derive(Clone, Debug)]
pub struct ContainerRef {
    /// Its id in the runtime.
    pub id: runtime::ContainerId,
    /// Its name in the pod.
    pub name: String,
    /// Its log.
    pub log_path: PathBuf,
    /// It runs.
    pub running: bool,
    /// It has a terminal.
    pub tty: bool,
    /// Its stdin is kept open.
    pub stdin: bool,
}

/// Why a container cannot be looked up. The texts are the kubelet's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// No such pod on this node.
    #[error("pod {namespace}/{pod} not found")]
    NoPod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        pod: String,
    },
    /// The pod has no such container.
    #[error("container {container} is not valid for pod {pod}")]
    NotValid {
        /// As given.
        container: String,
        /// The pod.
        pod: String,
    },
    /// The pod has several.
    #[error("a container name must be specified for pod {pod}, choose one of: [{choices}]")]
    Ambiguous {
        /// The pod.
        pod: String,
        /// Their names.
        choices: String,
    },
    /// It has not run yet.
    #[error("container \"{container}\" in pod \"{pod}\" is waiting to start: {what}")]
    Waiting {
        /// The container.
        container: String,
        /// The pod.
        pod: String,
        /// Its waiting reason.
        what: String,
    },
    /// It was never restarted.
    #[error("previous terminated container \"{container}\" in pod \"{pod}\" not found")]
    NoPrevious {
        /// The container.
        container: String,
        /// The pod.
        pod: String,
    },
    /// The runtime no longer knows it.
    #[error("container \"{container}\" in pod \"{pod}\" is not available")]
    NotLocated {
        /// The container.
        container: String,
        /// The pod.
        pod: String,
    },
}

impl LookupError {
    /// Whether the API's answer is 404 instead of 400.
    pub fn is_not_found(&self) -> bool {
        matches!(self, LookupError::NoPod { .. })
    }
}

/// Looks pods of this node up. Clones share the table.
#[derive(Clone, Debug)]
pub struct Handle {
    registry: registry::Registry,
    synced: watch::Receiver<bool>,
}

impl Handle {
    /// The pods of this node with our current status.
    pub fn list(&self) -> Vec<Arc<Pod>> {
        self.registry.list()
    }

    /// A container of a pod: the named one, or the only one; `previous`: the one before its last restart.
    ///
    /// # Errors
    /// [`LookupError`].
    pub fn container(
        &self,
        namespace: &str,
        pod: &str,
        container: Option<&str>,
        previous: bool,
    ) -> Result<ContainerRef, LookupError> {
        self.registry.container(namespace, pod, container, previous)
    }

    /// Where the network namespace of a pod is bound; `None` for a pod in the node's network, and for one that is not there.
    pub fn sandbox_netns(&self, namespace: &str, pod: &str) -> Option<PathBuf> {
        self.registry.sandbox_netns(namespace, pod)
    }

    /// Resolves once the first full list of pods has been taken over. Cancel safe.
    pub async fn synced(&self) {
        // An error means that the task has ended, and with it the agent.
        let mut synced = self.synced.clone();
        let _ended = synced.wait_for(|synced| *synced).await;
    }
}
