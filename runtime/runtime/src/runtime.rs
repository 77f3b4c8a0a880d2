//! The runtime's front door: every operation of the library is a method of [`Runtime`].

use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::config::Config;
use crate::container::{ContainerConfig, ContainerId, ContainerStats, ContainerStatus};
use crate::error::{Error, ImageError};
use crate::event::Events;
use crate::exec::{ExecConfig, ExecSession, ExecSyncResult};
use crate::image::{AuthConfig, DiskUsage, Image, PullProgress};
use crate::sandbox::{SandboxConfig, SandboxId, SandboxStatus};

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
pub struct Runtime {}

fn not_yet<T>() -> Result<T, Error> {
    Err(Error::Unsupported { what: "this operation is being built".into() })
}

impl Runtime {
    /// Opens the runtime: makes its directories, connects to living shims, removes what an interrupted operation left half made, and kills
    /// and records the containers whose shim died.
    ///
    /// # Errors
    /// A wrong configuration, or directories that cannot be made.
    pub async fn open(config: Config) -> Result<Runtime, Error> {
        config.validate()?;
        not_yet()
    }

    /// Subscribes to events from now on.
    pub fn events(&self) -> Events {
        let (_, receiver) = tokio::sync::broadcast::channel(1);
        Events { receiver }
    }

    /// Everything that exists.
    pub fn list(&self) -> Snapshot {
        Snapshot::default()
    }

    /// One sandbox.
    pub fn sandbox_status(&self, _id: &SandboxId) -> Option<SandboxStatus> {
        None
    }

    /// One container.
    pub fn container_status(&self, _id: &ContainerId) -> Option<ContainerStatus> {
        None
    }

    /// Imports an OCI layout archive (tar, also gzip or zstd) and returns the images it names. Archives without a name in
    /// `org.opencontainers.image.ref.name` or `io.containerd.image.name` need `name`.
    ///
    /// # Errors
    /// Every [`ImageError`]; nothing half imported stays.
    pub async fn import_archive(
        &self,
        _archive: &Path,
        name: Option<&str>,
    ) -> Result<Vec<Image>, ImageError> {
        Err(ImageError::Absent { reference: name.unwrap_or_default().into() })
    }

    /// Pulls an image and unpacks it. Two pulls of one reference at a time share the work of blobs that are already here.
    /// `progress` gets a few messages a second when it has room, and is never waited for.
    ///
    /// # Errors
    /// [`ImageError`], told apart so that a status can say ErrImagePull, RegistryUnavailable or InvalidImageName.
    pub async fn pull(
        &self,
        reference: &str,
        _auth: Option<AuthConfig>,
        _progress: Option<mpsc::Sender<PullProgress>>,
    ) -> Result<Image, ImageError> {
        Err(ImageError::Absent { reference: reference.into() })
    }

    /// The image that a name, a digest reference or an id stands for; `None` when it is not here.
    ///
    /// # Errors
    /// [`ImageError::InvalidReference`].
    pub fn image_status(&self, _reference: &str) -> Result<Option<Image>, ImageError> {
        Ok(None)
    }

    /// All images, by id.
    pub fn list_images(&self) -> Vec<Image> {
        Vec::new()
    }

    /// Removes an image with all its names, and the blobs and layers that nothing else uses. Fine when it is not here.
    ///
    /// # Errors
    /// [`ImageError::Store`].
    pub async fn remove_image(&self, _reference: &str) -> Result<(), ImageError> {
        Ok(())
    }

    /// Use of the file system that holds images and writable layers.
    ///
    /// # Errors
    /// [`ImageError::Store`].
    pub async fn image_disk_usage(&self) -> Result<DiskUsage, ImageError> {
        Ok(DiskUsage::default())
    }

    /// Starts a sandbox: shim, namespaces, network. Undone in reverse when any step fails.
    ///
    /// # Errors
    /// [`Error::CniNotInitialized`], [`Error::Network`], [`Error::InvalidArgument`] and what the machine says.
    pub async fn run_sandbox(&self, _config: SandboxConfig) -> Result<SandboxId, Error> {
        not_yet()
    }

    /// Kills what still runs in the sandbox and takes its network down. Idempotent; fine when there is no such sandbox.
    ///
    /// # Errors
    /// [`Error::Network`] when CNI's DEL failed; the sandbox is then still there and the call can be repeated.
    pub async fn stop_sandbox(&self, _id: &SandboxId) -> Result<(), Error> {
        not_yet()
    }

    /// Removes a sandbox and its containers, stopping it first. Idempotent.
    ///
    /// # Errors
    /// As [`Runtime::stop_sandbox`].
    pub async fn remove_sandbox(&self, _id: &SandboxId) -> Result<(), Error> {
        not_yet()
    }

    /// Creates a container: snapshot, OCI spec, process up to its exec. Undone in reverse when any step fails.
    ///
    /// # Errors
    /// [`Error::Image`] when the image is not here, [`Error::InvalidArgument`] and [`Error::Unsupported`] for fields, [`Error::Start`] when
    /// the process cannot be set up.
    pub async fn create_container(
        &self,
        _sandbox: &SandboxId,
        _config: ContainerConfig,
    ) -> Result<ContainerId, Error> {
        not_yet()
    }

    /// Lets a created container run.
    ///
    /// # Errors
    /// [`Error::WrongState`], [`Error::Start`] when its executable cannot be executed; the container then exists as exited with
    /// reason StartError and code 128.
    pub async fn start_container(&self, _id: &ContainerId) -> Result<(), Error> {
        not_yet()
    }

    /// Sends the stop signal, waits at most `grace`, kills, and returns when the exit is recorded. Idempotent.
    ///
    /// # Errors
    /// [`Error::Timeout`] when even the kill did not end it.
    pub async fn stop_container(&self, _id: &ContainerId, _grace: Duration) -> Result<(), Error> {
        not_yet()
    }

    /// Removes a container, killing it when it runs. Its log stays. Idempotent.
    ///
    /// # Errors
    /// What the machine says; the call can be repeated.
    pub async fn remove_container(&self, _id: &ContainerId) -> Result<(), Error> {
        not_yet()
    }

    /// Runs a process in a running container.
    ///
    /// # Errors
    /// [`Error::WrongState`]; [`Error::Start`] when it cannot be executed.
    pub async fn exec(&self, _id: &ContainerId, _config: ExecConfig) -> Result<ExecSession, Error> {
        not_yet()
    }

    /// Runs a process in a running container to its end. At the timeout it is killed.
    ///
    /// # Errors
    /// As [`Runtime::exec`], and [`Error::Timeout`].
    pub async fn exec_sync(
        &self,
        _id: &ContainerId,
        _command: Vec<String>,
        _timeout: Option<Duration>,
    ) -> Result<ExecSyncResult, Error> {
        not_yet()
    }

    /// Attaches to the streams of a running container; `wait` of the session gives the container's exit code. An attached reader that does
    /// not read holds the container's output back, as with containerd.
    ///
    /// # Errors
    /// [`Error::WrongState`].
    pub async fn attach(&self, _id: &ContainerId, _stdin: bool) -> Result<ExecSession, Error> {
        not_yet()
    }

    /// Reads a container's counters.
    ///
    /// # Errors
    /// [`Error::NotFound`] and what the kernel says.
    pub async fn container_stats(&self, _id: &ContainerId) -> Result<ContainerStats, Error> {
        not_yet()
    }

    /// Opens the container's log anew at its path, after a rotation moved the old one away.
    ///
    /// # Errors
    /// [`Error::WrongState`] unless it runs.
    pub async fn reopen_log(&self, _id: &ContainerId) -> Result<(), Error> {
        not_yet()
    }
}
