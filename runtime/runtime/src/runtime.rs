//! The runtime's front door: every operation of the library is a method of [`Runtime`].
//!
//! Owns the tables of what exists. Each operation checks its arguments, takes the turn of its sandbox or container, and does its work in one of
//! the modules below; an operation whose caller goes away is still brought to its end.

mod adopt;
mod containers;
mod events;
mod execs;
mod sandboxes;
mod state;
mod stats;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use linux::cgroup::Layout;
use prometheus_client::registry::Registry;
use shim_protocol::{Record, Request};
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::container::{ContainerConfig, ContainerId, ContainerStats, ContainerStatus};
use crate::error::{Error, ImageError};
use crate::event::{EVENT_QUEUE_EVENTS, Event, Events};
use crate::exec::{ExecConfig, ExecSession, ExecSyncResult};
use crate::image::{AuthConfig, DiskUsage, Image, PullProgress};
use crate::images::reference::Name;
use crate::images::registry::{Pull, blocking};
use crate::images::{Store, archive};
use crate::metrics::Metrics;
use crate::network::PodNetwork;
use crate::sandbox::{SandboxConfig, SandboxId, SandboxStatus};
use crate::{shims, spec};
use execs::ExecKey;
use state::Tables;

/// Networks that are taken down at a time: the kernel does one after the other anyway, under a lock that others need, too.
const PARALLEL_TEARDOWNS: usize = 2;
/// Different warnings that are remembered, so that each is logged once.
const MAX_WARNINGS: usize = 64;

/// Everything that exists, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// All sandboxes, oldest first.
    pub sandboxes: Vec<SandboxStatus>,
    /// All containers, oldest first.
    pub containers: Vec<ContainerStatus>,
}

/// The runtime. Cheap to clone; all clones are one runtime.
#[derive(Clone, Debug)]
pub struct Runtime(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    layout: Layout,
    store: Arc<Store>,
    network: PodNetwork,
    /// What all shims are executed from.
    executable: OwnedFd,
    /// What this process may give to containers.
    bounding: BTreeSet<String>,
    apparmor: bool,
    tables: Mutex<Tables>,
    events: broadcast::Sender<Event>,
    metrics: Metrics,
    execs: Mutex<HashMap<ExecKey, oneshot::Sender<Result<i32, Error>>>>,
    next_exec: AtomicU64,
    background: TaskTracker,
    teardowns: Semaphore,
    warned: Mutex<BTreeSet<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Inner {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        lock(&self.tables)
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<ExecKey, oneshot::Sender<Result<i32, Error>>>> {
        lock(&self.execs)
    }

    fn record_of(&self, container: &str) -> Option<Record> {
        self.tables().containers.get(container).and_then(|container| container.record.borrow().clone())
    }

    fn warn_once(&self, warning: &str) {
        let mut warned = lock(&self.warned);
        if warned.len() < MAX_WARNINGS && warned.insert(warning.to_owned()) {
            tracing::warn!("{warning}");
        }
    }
}

fn make_directories(config: &Config) -> Result<(), Error> {
    let failed = |path: &Path| {
        let operation = format!("make {}", path.display());
        move |source| Error::Io { operation, source }
    };
    for directory in [config.root.join("sandboxes"), config.root.join("containers")] {
        linux::files::make_spread_directory(&directory).map_err(failed(&directory))?;
    }
    for directory in [
        config.shim_dir(),
        config.netns_dir(),
        config.oci_dir(),
        config.state.join("shm"),
        config.mount_points_dir(),
    ] {
        std::fs::create_dir_all(&directory).map_err(failed(&directory))?;
    }
    containers::make_mount_points(&config.mount_points_dir())
}

/// The capabilities that this process's bounding set has.
fn bounding_set() -> BTreeSet<String> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let mask = line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    spec::capabilities_of_mask(mask)
}

fn has_apparmor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"))
}

impl Runtime {
    /// Opens the runtime: makes its directories, connects to living shims, removes what an interrupted operation left half made, and kills
    /// and records the containers whose shim died.
    ///
    /// # Errors
    /// A wrong configuration, or directories that cannot be made.
    pub async fn open(config: Config) -> Result<Runtime, Error> {
        config.validate()?;
        make_directories(&config)?;
        // Registry connections need a provider; the program may have chosen one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let system = |operation: &str| {
            let operation = operation.to_owned();
            move |source| Error::System { operation, source }
        };
        let layout = Layout::detect(&config.cgroup_root).map_err(system("find control groups"))?;
        let living = shims::living(&config);
        let metrics = Metrics::new();
        let runtime = Runtime(Arc::new(Inner {
            layout,
            store: Arc::new(Store::open(&config.root)?),
            network: PodNetwork::new(&config, metrics.network.clone()),
            executable: shims::executable(&config, &living)?,
            bounding: bounding_set(),
            apparmor: has_apparmor(),
            tables: Mutex::default(),
            events: broadcast::Sender::new(EVENT_QUEUE_EVENTS),
            metrics,
            execs: Mutex::default(),
            next_exec: AtomicU64::new(state::now().cast_unsigned()),
            background: TaskTracker::new(),
            teardowns: Semaphore::new(PARALLEL_TEARDOWNS),
            warned: Mutex::default(),
            config,
        }));
        runtime.adopt(&living).await?;
        Ok(runtime)
    }

    /// Subscribes to events from now on.
    pub fn events(&self) -> Events {
        Events { receiver: self.0.events.subscribe() }
    }

    /// Adds what the runtime measures of itself to a registry.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.0.metrics.register(registry);
    }

    /// Waits until nothing is left to do in the background: networks taken down, removed sandboxes gone.
    pub async fn idle(&self) {
        self.0.background.close();
        self.0.background.wait().await;
        self.0.background.reopen();
    }

    /// Whether a pod network is configured and its plugins are ready: the node condition NetworkReady.
    ///
    /// # Errors
    /// [`Error::CniNotInitialized`].
    pub async fn network_status(&self) -> Result<(), Error> {
        self.0.network.status().await
    }

    /// Whether the pod network has a plugin that maps ports of the node to pods.
    pub fn maps_ports(&self) -> bool {
        self.0.network.maps_ports()
    }

    /// Everything that exists.
    pub fn list(&self) -> Snapshot {
        let tables = self.0.tables();
        let netns = |id: &str| self.0.config.netns_path(id);
        let mut sandboxes: Vec<_> =
            tables.sandboxes.values().map(|sandbox| sandbox.status(netns(&sandbox.meta.id))).collect();
        let with_pod =
            |container: &state::Container| container.status(tables.sandboxes.get(&container.meta.sandbox));
        let mut containers: Vec<_> = tables.containers.values().map(with_pod).collect();
        sandboxes.sort_by_key(|sandbox| sandbox.created_at);
        containers.sort_by_key(|container| container.created_at);
        Snapshot { sandboxes, containers }
    }

    /// One sandbox.
    pub fn sandbox_status(&self, id: &SandboxId) -> Option<SandboxStatus> {
        let tables = self.0.tables();
        tables.sandboxes.get(id.as_str()).map(|sandbox| sandbox.status(self.0.config.netns_path(id.as_str())))
    }

    /// One container.
    pub fn container_status(&self, id: &ContainerId) -> Option<ContainerStatus> {
        let tables = self.0.tables();
        let container = tables.containers.get(id.as_str())?;
        Some(container.status(tables.sandboxes.get(&container.meta.sandbox)))
    }

    /// Imports an OCI layout archive (tar, also gzip or zstd) and returns the images it names. Archives without a name in
    /// `org.opencontainers.image.ref.name` or `io.containerd.image.name` need `name`.
    ///
    /// # Errors
    /// Every [`ImageError`]; nothing half imported stays.
    pub async fn import_archive(&self, archive: &Path, name: Option<&str>) -> Result<Vec<Image>, ImageError> {
        let store = Arc::clone(&self.0.store);
        let (path, name) = (archive.to_path_buf(), name.map(str::to_owned));
        blocking(&archive.display().to_string(), move || archive::import(&store, &path, name.as_deref()))
            .await
    }

    /// Pulls an image and unpacks it. Two pulls of one reference at a time share the work of blobs that are already here.
    /// `progress` gets a few messages a second when it has room, and is never waited for.
    ///
    /// # Errors
    /// [`ImageError`], told apart so that a status can say ErrImagePull, RegistryUnavailable or InvalidImageName.
    pub async fn pull(
        &self,
        reference: &str,
        auth: Option<AuthConfig>,
        progress: Option<mpsc::Sender<PullProgress>>,
    ) -> Result<Image, ImageError> {
        let pull = Pull {
            store: Arc::clone(&self.0.store),
            registries: &self.0.config.registries,
            name: Name::parse(reference)?,
            auth,
            progress,
        };
        self.0.metrics.operation("pull_image", pull.run()).await
    }

    /// The image that a name, a digest reference or an id stands for; `None` when it is not here.
    ///
    /// # Errors
    /// [`ImageError::InvalidReference`].
    pub fn image_status(&self, reference: &str) -> Result<Option<Image>, ImageError> {
        self.0.store.status(reference)
    }

    /// All images, by id.
    pub fn list_images(&self) -> Vec<Image> {
        self.0.store.list()
    }

    /// Removes an image with all its names, and the blobs and layers that nothing else uses. Fine when it is not here.
    ///
    /// # Errors
    /// [`ImageError::Store`].
    pub async fn remove_image(&self, reference: &str) -> Result<(), ImageError> {
        let (store, name) = (Arc::clone(&self.0.store), reference.to_owned());
        blocking(reference, move || store.remove(&name)).await
    }

    /// Use of the file system that holds images and writable layers.
    ///
    /// # Errors
    /// [`ImageError::Store`].
    pub async fn image_disk_usage(&self) -> Result<DiskUsage, ImageError> {
        let store = Arc::clone(&self.0.store);
        blocking("disk usage", move || store.disk_usage(state::now())).await
    }

    /// Starts a sandbox: shim, namespaces, network. Undone in reverse when any step fails.
    ///
    /// # Errors
    /// [`Error::CniNotInitialized`], [`Error::Network`], [`Error::InvalidArgument`] and what the machine says.
    pub async fn run_sandbox(&self, config: SandboxConfig) -> Result<SandboxId, Error> {
        self.0.metrics.operation("run_podsandbox", self.run_sandbox_inner(config)).await
    }

    /// Kills what still runs in the sandbox; its network is taken down in the background. Idempotent; fine when there is no such sandbox.
    ///
    /// # Errors
    /// [`Error::Timeout`] when a container could not be killed; the call can be repeated.
    pub async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        self.0.metrics.operation("stop_podsandbox", self.stop_sandbox_inner(id)).await
    }

    /// Removes a sandbox and its containers, stopping it first. It is gone from `list` at once; network, shim and directory are removed in the
    /// background ([`Runtime::idle`] waits for that), again after a crash. Idempotent.
    ///
    /// # Errors
    /// As [`Runtime::stop_sandbox`].
    pub async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        self.0.metrics.operation("remove_podsandbox", self.remove_sandbox_inner(id)).await
    }

    /// Creates a container: user, specification, directories. Undone when any step fails. Its process is made by `start_container`, as with
    /// containerd, so a wrong command is an error of the start.
    ///
    /// # Errors
    /// [`Error::Image`] when the image is not here, [`Error::InvalidArgument`] and [`Error::Unsupported`] for fields.
    pub async fn create_container(
        &self,
        sandbox: &SandboxId,
        config: ContainerConfig,
    ) -> Result<ContainerId, Error> {
        self.0.metrics.operation("create_container", self.create_container_inner(sandbox, config)).await
    }

    /// Makes a created container run: control group, mounts, process.
    ///
    /// # Errors
    /// [`Error::WrongState`], [`Error::Start`] when its process cannot be set up or executed; the container then exists as exited with
    /// reason StartError and code 128.
    pub async fn start_container(&self, id: &ContainerId) -> Result<(), Error> {
        self.0.metrics.operation("start_container", self.start_container_inner(id)).await
    }

    /// Sends the stop signal, waits at most `grace`, kills, and returns when the exit is recorded. Idempotent.
    ///
    /// # Errors
    /// [`Error::Timeout`] when even the kill did not end it.
    pub async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), Error> {
        self.0.metrics.operation("stop_container", self.stop_container_inner(id, grace)).await
    }

    /// Removes a container, killing it when it runs. Its log stays. Idempotent.
    ///
    /// # Errors
    /// What the machine says; the call can be repeated.
    pub async fn remove_container(&self, id: &ContainerId) -> Result<(), Error> {
        self.0.metrics.operation("remove_container", self.remove_container_inner(id)).await
    }

    /// Runs a process in a running container.
    ///
    /// # Errors
    /// [`Error::WrongState`]; [`Error::Start`] when it cannot be executed.
    pub async fn exec(&self, id: &ContainerId, config: ExecConfig) -> Result<ExecSession, Error> {
        self.0.metrics.operation("exec", self.exec_inner(id, config)).await
    }

    /// Runs a process in a running container to its end. At the timeout it is killed.
    ///
    /// # Errors
    /// As [`Runtime::exec`], and [`Error::Timeout`].
    pub async fn exec_sync(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecSyncResult, Error> {
        self.0.metrics.operation("exec_sync", self.exec_sync_inner(id, command, timeout)).await
    }

    /// Attaches to the streams of a running container; `wait` of the session gives the container's exit code. An attached reader that does
    /// not read holds the container's output back, as with containerd.
    ///
    /// # Errors
    /// [`Error::WrongState`].
    pub async fn attach(&self, id: &ContainerId, stdin: bool) -> Result<ExecSession, Error> {
        self.0.metrics.operation("attach", self.attach_inner(id, stdin)).await
    }

    /// Reads a container's counters.
    ///
    /// # Errors
    /// [`Error::NotFound`] and what the kernel says.
    pub async fn container_stats(&self, id: &ContainerId) -> Result<ContainerStats, Error> {
        let cgroup =
            self.0.tables().containers.get(id.as_str()).map(|container| container.meta.cgroup.clone());
        let cgroup = cgroup.ok_or_else(|| containers::not_found(id))?;
        let layout = self.0.layout.clone();
        let upper = self.0.config.container_dir(id.as_str()).join("upper");
        let read = tokio::task::spawn_blocking(move || stats::read(&layout, &cgroup, &upper)).await;
        read.map_err(|error| Error::Shim { operation: "read stats", message: error.to_string() })?
    }

    /// Opens the container's log anew at its path, after a rotation moved the old one away.
    ///
    /// # Errors
    /// [`Error::WrongState`] unless it runs.
    pub async fn reopen_log(&self, id: &ContainerId) -> Result<(), Error> {
        let (_, shim) = self.running("reopen log of container", id)?;
        shim.call(Request::ReopenLog { container: id.as_str().to_owned() }, Vec::new()).await.map(|_| ())
    }
}
