//! What is written down about sandboxes and containers, and the tables of what exists in memory.
//!
//! A sandbox's `meta.json` says how far its life got, so that a restart knows what to adopt and what to finish removing:
//! ```text
//! Creating --network is up--> Ready --stop--> Stopped --remove--> Removing --everything gone--> (directory removed)
//!     \--failure, or found so at a start----------------------------^
//! ```
//! A container's directory has `meta.json` (written once, last in its creation) and `record.json` (by the shim at start and exit, or by the
//! runtime for what no shim saw). The last whole line of each file counts.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
pub(crate) use shim_protocol::now;
use shim_protocol::{Exit, Record};
use tokio::sync::watch;

use crate::container::{ContainerConfig, ContainerId, ContainerState, ContainerStatus};
use crate::error::Error;
use crate::images::Hold;
use crate::sandbox::{SandboxConfig, SandboxId, SandboxState, SandboxStatus};
use crate::shims::client::Client;

/// How far a sandbox's life got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    Creating,
    Ready,
    Stopped,
    Removing,
}

/// `sandboxes/<id>/meta.json`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SandboxMeta {
    pub id: String,
    pub config: SandboxConfig,
    pub created_at: i64,
    pub phase: Phase,
    pub ips: Vec<IpAddr>,
    /// It has a network namespace of its own.
    pub own_network: bool,
}

/// `containers/<id>/meta.json`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerMeta {
    pub id: String,
    pub sandbox: String,
    pub config: ContainerConfig,
    pub created_at: i64,
    pub image_id: String,
    pub image_ref: String,
    /// Layer directories, the topmost first.
    pub layers: Vec<String>,
    /// Control group.
    pub cgroup: String,
    /// What the image wants as stop signal.
    pub stop_signal: String,
}

#[derive(Debug)]
pub(crate) struct Sandbox {
    pub meta: SandboxMeta,
    pub shim: Option<Arc<Client>>,
    /// Serialises stop and remove.
    pub turn: Arc<tokio::sync::Mutex<()>>,
    /// Whether its network was taken down; locked while that is under way.
    pub network: Arc<tokio::sync::Mutex<Network>>,
}

/// What a teardown still has to do about a sandbox's network. After a restart nobody knows any more, and it is done again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Network {
    #[default]
    Up,
    Down,
}

#[derive(Debug)]
pub(crate) struct Container {
    pub meta: ContainerMeta,
    /// Absent until it was started. A start that an earlier process began counts as running, without a pid until it is done.
    pub record: watch::Sender<Option<Record>>,
    /// Serialises starting, signalling, killing and removing; not held while a stop waits for the exit.
    pub turn: Arc<tokio::sync::Mutex<()>>,
    /// It was sent its stop signal.
    pub stop_signaled: bool,
    /// Keeps its layers.
    _layers: Hold,
}

#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub sandboxes: BTreeMap<String, Sandbox>,
    pub containers: BTreeMap<String, Container>,
}

impl Container {
    pub fn new(meta: ContainerMeta, record: Option<Record>, layers: Hold) -> Container {
        let record = watch::Sender::new(record);
        Container { meta, record, turn: Arc::default(), stop_signaled: false, _layers: layers }
    }

    pub fn state(&self) -> ContainerState {
        match &*self.record.borrow() {
            None => ContainerState::Created,
            Some(Record { exit: None, .. }) => ContainerState::Running,
            Some(Record { exit: Some(_), .. }) => ContainerState::Exited,
        }
    }

    /// Its first process while that runs.
    pub fn pid(&self) -> Option<i32> {
        let record = self.record.borrow();
        record.as_ref().filter(|record| record.exit.is_none() && record.pid > 0).map(|record| record.pid)
    }

    pub fn status(&self, sandbox: Option<&Sandbox>) -> ContainerStatus {
        let record = self.record.borrow().clone();
        let exit = record.as_ref().and_then(|record| record.exit.clone());
        let log = sandbox.and_then(|sandbox| log_path(&sandbox.meta.config, &self.meta.config));
        ContainerStatus {
            id: ContainerId(self.meta.id.clone()),
            sandbox: SandboxId(self.meta.sandbox.clone()),
            config: self.meta.config.clone(),
            state: self.state(),
            pid: self.pid(),
            created_at: self.meta.created_at,
            started_at: record.as_ref().map_or(0, |record| record.started_at),
            finished_at: exit.as_ref().map_or(0, |exit| exit.finished_at),
            exit_code: exit.as_ref().map_or(0, |exit| exit.code),
            reason: exit.as_ref().map(reason).unwrap_or_default(),
            message: exit.map(|exit| exit.message).unwrap_or_default(),
            image_id: self.meta.image_id.clone(),
            image_ref: self.meta.image_ref.clone(),
            log_path: log.unwrap_or_default(),
        }
    }
}

/// Takes in what a shim says of a container. Answers and events reach the tables by different ways, so what is said may be older than what is
/// known: an exit is final, and a process stays known.
pub(crate) fn learn(known: &mut Option<Record>, said: Record) {
    let newer = match known {
        None => true,
        Some(Record { exit: Some(_), .. }) => false,
        Some(Record { pid, exit: None, .. }) => *pid == 0 || said.exit.is_some(),
    };
    if newer {
        *known = Some(said);
    }
}

/// CRI's words for an exit.
fn reason(exit: &Exit) -> String {
    match exit {
        Exit { reason, .. } if !reason.is_empty() => reason.clone(),
        Exit { oom_killed: true, .. } => "OOMKilled".into(),
        Exit { code: 0, .. } => "Completed".into(),
        _ => "Error".into(),
    }
}

impl Sandbox {
    pub fn new(meta: SandboxMeta) -> Sandbox {
        Sandbox { meta, shim: None, turn: Arc::default(), network: Arc::default() }
    }

    pub fn status(&self, netns: PathBuf) -> SandboxStatus {
        let ready = self.meta.phase == Phase::Ready && self.shim.is_some();
        SandboxStatus {
            id: SandboxId(self.meta.id.clone()),
            config: self.meta.config.clone(),
            state: if ready { SandboxState::Ready } else { SandboxState::NotReady },
            created_at: self.meta.created_at,
            ips: self.meta.ips.clone(),
            netns: self.meta.own_network.then_some(netns),
            shim_pid: self.shim.as_ref().map(|shim| shim.pid),
        }
    }
}

/// Where a container's log is; `None` when it has none.
pub(crate) fn log_path(sandbox: &SandboxConfig, container: &ContainerConfig) -> Option<PathBuf> {
    let wanted = !sandbox.log_directory.is_empty() && !container.log_path.is_empty();
    wanted.then(|| Path::new(&sandbox.log_directory).join(&container.log_path))
}

/// Writes a document as the last line of its file, whose earlier lines are what it was before: one for each step of a life.
pub(crate) fn save(path: &Path, document: &impl Serialize) -> Result<(), Error> {
    let bytes =
        serde_json::to_vec(document).map_err(|source| Error::Corrupt { path: path.to_path_buf(), source })?;
    linux::files::append_line(path, &bytes)
        .map_err(|source| Error::Io { operation: format!("write {}", path.display()), source })
}

/// Reads a document; `None` when it is absent or unusable.
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = std::fs::read(path).ok()?;
    for line in linux::files::lines_from_last(&bytes) {
        match serde_json::from_slice(line) {
            Ok(document) => return Some(document),
            // A line that a power cut left unfinished never counted. One that is whole did, whatever it means.
            Err(error) if serde_json::from_slice::<serde::de::IgnoredAny>(line).is_err() => {
                tracing::warn!(path = %path.display(), %error, "unfinished line is passed over");
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "document is unusable");
                return None;
            }
        }
    }
    tracing::warn!(path = %path.display(), "document is unusable");
    None
}

/// 64 hexadecimal digits from the kernel's random numbers.
pub(crate) fn new_id() -> Result<String, Error> {
    use std::io::Read;
    let mut bytes = [0_u8; crate::config::ID_DIGITS / 2];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|source| Error::Io { operation: "read /dev/urandom".into(), source })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
