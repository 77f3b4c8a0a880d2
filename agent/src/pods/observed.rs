//! What a pod's task knows at the top of a pass: the snapshot that `plan` and `status` decide on.
//!
//! Only data and questions about it. Everything in here was read before; nothing in here asks the machine or the clock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus as ApiContainerStatus, Pod, PodSpec};
use runtime::{ContainerId, ContainerState, ContainerStatus, SandboxState, SandboxStatus};

use super::backoff::Backoff;
use super::labels;
use crate::services::Departure;

#[cfg(test)]
pub mod fixtures;

/// A container that the runtime has, or had until we removed it.
#[derive(Clone, Debug)]
pub struct Record {
    /// The runtime's last word about it.
    pub status: ContainerStatus,
    /// We removed it; only this record is left.
    pub removed: bool,
    /// Its termination message, read once after its exit.
    pub message: String,
}

impl Record {
    /// The container's name in the pod.
    pub fn name(&self) -> &str {
        &self.status.config.name
    }

    /// How often the container was started before this one.
    pub fn restarts(&self) -> u32 {
        let text = labels::get(&self.status.config.annotations, labels::RESTART_COUNT);
        text.parse().unwrap_or(self.status.config.attempt)
    }

    /// Whether it has, or may have, processes.
    pub fn is_live(&self) -> bool {
        !self.removed && matches!(self.status.state, ContainerState::Created | ContainerState::Running)
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        !self.removed && self.status.state == ContainerState::Running
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        matches!(self.status.state, ContainerState::Exited | ContainerState::Unknown)
    }

    /// Whether it is over and did what it should.
    pub fn succeeded(&self) -> bool {
        self.status.state == ContainerState::Exited && self.status.exit_code == 0
    }

    /// When it ended; when it was made, where nobody knows.
    pub fn finished_at(&self) -> Timestamp {
        match self.status.finished_at {
            0 => timestamp(self.status.created_at),
            nanos => timestamp(nanos),
        }
    }
}

/// Whether the container that a status names was ever started: one that was made and never ran is not counted as a start.
fn has_run(status: &ApiContainerStatus) -> bool {
    let ended = status.last_state.as_ref().and_then(|last| last.terminated.as_ref());
    let state = status.state.as_ref();
    status.container_id.is_some()
        && (state.is_some_and(|state| state.running.is_some() || state.terminated.is_some())
            || ended.is_some_and(|ended| ended.container_id == status.container_id))
}

/// Nanoseconds since 1970 as a timestamp.
pub fn timestamp(nanos: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A sandbox of the pod.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// The runtime's last word about it.
    pub status: SandboxStatus,
    /// This process stopped it: no process and no network is left.
    pub settled: bool,
}

impl Sandbox {
    /// Whether containers can be made in it.
    pub fn is_ready(&self) -> bool {
        self.status.state == SandboxState::Ready && !self.settled
    }
}

/// What is being done to a container right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// It is being created and started.
    Start,
    /// It is being stopped and will be killed by then.
    Stop {
        /// The moment of the kill.
        by: Timestamp,
    },
    /// It is being removed.
    Remove,
}

/// Where the image of a container that is to be started is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageState {
    /// Being looked for or pulled.
    Pulling,
    /// Here.
    Present,
    /// Not to be had for now.
    Failed {
        /// `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName`, `RegistryUnavailable`.
        reason: &'static str,
        /// What went wrong.
        message: String,
        /// When.
        at: Timestamp,
        /// When to try again.
        retry_at: Timestamp,
    },
}

/// Why a container could not be made or started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartFailure {
    /// `CreateContainerConfigError`, `CreateContainerError`, `RunContainerError`, `PostStartHookError`.
    pub reason: &'static str,
    /// What went wrong.
    pub message: String,
    /// When to try again.
    pub retry_at: Timestamp,
}

/// Where the pod's volumes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeState {
    /// This process has not touched them; an earlier one may have.
    Unknown,
    /// Being made.
    Preparing,
    /// Usable.
    Ready,
    /// Not to be had for now.
    Failed {
        /// When to try again.
        retry_at: Timestamp,
    },
    /// Being taken down.
    Removing,
    /// Nothing is left of them.
    Removed,
}

/// What probes say about a running container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeState {
    /// The container that was probed; states of an earlier one do not count.
    pub container: ContainerId,
    /// The startup probe succeeded, or there is none.
    pub started: bool,
    /// The readiness probe's last word, or there is none.
    pub ready: bool,
    /// A startup or liveness probe failed for good.
    pub failed: Option<ProbeFailure>,
}

/// Why a probe wants a container stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeFailure {
    /// Startup instead of liveness.
    pub startup: bool,
    /// The probe's own terminationGracePeriodSeconds.
    pub grace: Option<i64>,
}

/// Why the node does not run a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// `NodeAffinity`, `OutOfcpu`, `NodePorts` …
    pub reason: String,
    /// In words.
    pub message: String,
}

/// What a pod's status says about the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Its addresses, the first is the primary one.
    pub ips: Vec<IpAddr>,
    /// Bytes of memory of the machine.
    pub memory: i64,
}

/// The snapshot.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The pod as the API server last told.
    pub pod: Arc<Pod>,
    /// The API server no longer has it.
    pub gone: bool,
    /// About the node.
    pub node: Arc<NodeFacts>,
    /// The node does not take the pod.
    pub rejected: Option<Rejection>,
    /// When the node took the pod, unless the pod's status says it.
    pub accepted_at: Timestamp,
    /// Its sandboxes, oldest first.
    pub sandboxes: Vec<Sandbox>,
    /// A sandbox is being made.
    pub sandbox_creating: bool,
    /// Sandboxes that are being stopped or removed.
    pub sandbox_busy: BTreeSet<String>,
    /// After a failure: when to make a sandbox again.
    pub sandbox_retry_at: Option<Timestamp>,
    /// Its containers, oldest first.
    pub records: Vec<Record>,
    /// What is being done, by container name.
    pub busy: BTreeMap<String, Operation>,
    /// Ids of superseded containers that are being removed.
    pub removing: BTreeSet<String>,
    /// Images of containers that are to be started, by container name.
    pub images: BTreeMap<String, ImageState>,
    /// Failed starts, by container name.
    pub failures: BTreeMap<String, StartFailure>,
    /// Restart delays, by container name.
    pub backoffs: BTreeMap<String, Backoff>,
    /// Back-offs that an event told about: container name and restart count.
    pub announced: BTreeSet<(String, u32)>,
    /// Probe states by container name.
    pub probes: BTreeMap<String, ProbeState>,
    /// Where its volumes are.
    pub volumes: VolumeState,
    /// What the services of this node were told of its end.
    pub left_services: Option<Departure>,
    /// They are being told.
    pub leaving_services: bool,
    /// Its control group is removed.
    pub cgroup_removed: bool,
    /// The API server has the status that this snapshot leads to, as far as this process knows.
    pub status_written: bool,
    /// The API object is being deleted by us.
    pub deleting_object: bool,
    /// A cleaning step failed: do not repeat it before.
    pub cleanup_retry_at: Option<Timestamp>,
}

static NO_SPEC: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);

impl Observed {
    /// A pod of which nothing has been done yet.
    pub fn new(pod: Arc<Pod>, node: Arc<NodeFacts>, accepted_at: Timestamp) -> Observed {
        Observed {
            pod,
            gone: false,
            node,
            rejected: None,
            accepted_at,
            sandboxes: Vec::new(),
            sandbox_creating: false,
            sandbox_busy: BTreeSet::new(),
            sandbox_retry_at: None,
            records: Vec::new(),
            busy: BTreeMap::new(),
            removing: BTreeSet::new(),
            images: BTreeMap::new(),
            failures: BTreeMap::new(),
            backoffs: BTreeMap::new(),
            announced: BTreeSet::new(),
            probes: BTreeMap::new(),
            volumes: VolumeState::Unknown,
            left_services: None,
            leaving_services: false,
            cgroup_removed: false,
            status_written: false,
            deleting_object: false,
            cleanup_retry_at: None,
        }
    }

    /// The pod's spec.
    pub fn spec(&self) -> &PodSpec {
        self.pod.spec.as_ref().unwrap_or(&NO_SPEC)
    }

    /// `name_namespace(uid)`, as the kubelet writes pods in messages.
    pub fn pod_text(&self) -> String {
        let meta = &self.pod.metadata;
        format!(
            "{}_{}({})",
            meta.name.as_deref().unwrap_or_default(),
            meta.namespace.as_deref().unwrap_or_default(),
            meta.uid.as_deref().unwrap_or_default()
        )
    }

    /// `Always`, `OnFailure` or `Never`.
    pub fn restart_policy(&self) -> &str {
        self.spec().restart_policy.as_deref().unwrap_or("Always")
    }

    /// Whether somebody asked for the pod's deletion, or it is deleted already.
    pub fn is_deleting(&self) -> bool {
        self.gone || self.pod.metadata.deletion_timestamp.is_some()
    }

    /// The newest sandbox, when containers can be made in it.
    pub fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.last().filter(|sandbox| sandbox.is_ready())
    }

    /// Records of a container, oldest first.
    pub fn records_of<'a>(&'a self, name: &str) -> impl DoubleEndedIterator<Item = &'a Record> {
        self.records.iter().filter(move |record| record.name() == name)
    }

    /// The newest record of a container.
    pub fn newest<'a>(&'a self, name: &'a str) -> Option<&'a Record> {
        self.records_of(name).next_back()
    }

    /// The newest record of a container in the sandbox that is ready.
    pub fn current<'a>(&'a self, name: &'a str) -> Option<&'a Record> {
        let sandbox = self.ready_sandbox()?;
        self.records_of(name).rev().find(|record| record.status.sandbox == sandbox.status.id)
    }

    /// What the API server's status says about a container.
    pub fn reported(&self, name: &str) -> Option<&ApiContainerStatus> {
        let status = self.pod.status.as_ref()?;
        let lists = [&status.init_container_statuses, &status.container_statuses];
        lists.into_iter().flatten().flatten().find(|status| status.name == name)
    }

    /// The restart count that the next start of a container has.
    pub fn next_restarts(&self, name: &str) -> u32 {
        if let Some(newest) = self.newest(name) {
            // One that was created and never started is made again under the same number.
            let never_started = newest.status.started_at == 0 && !newest.is_over();
            return if never_started { newest.restarts() } else { newest.restarts() + 1 };
        }
        self.reported(name).map_or(0, |status| {
            let count = u32::try_from(status.restart_count).unwrap_or(0);
            if has_run(status) { count + 1 } else { count }
        })
    }

    /// Whether the startup probe of a running container is through.
    pub fn is_started(&self, container: &Container, record: &Record) -> bool {
        record.is_running()
            && match self.probe_state(record) {
                Some(state) => state.started,
                None => container.startup_probe.is_none(),
            }
    }

    /// Whether a running container is ready.
    pub fn is_ready(&self, container: &Container, record: &Record) -> bool {
        self.is_started(container, record)
            && match self.probe_state(record) {
                Some(state) => state.ready,
                None => container.readiness_probe.is_none(),
            }
    }

    /// What the probes say about this very container.
    pub fn probe_state(&self, record: &Record) -> Option<&ProbeState> {
        self.probes.get(record.name()).filter(|state| state.container == record.status.id)
    }
}
