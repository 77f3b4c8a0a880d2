//! The life of a container: create, start, stop, remove.
//!
//! Creating makes a directory with everything that is needed, its `meta.json` last: a directory without one is half made and removed at the next
//! start. Nothing runs before `start`, as with containerd, so a wrong command is an error of the start.

mod stage;
mod validate;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use shim_protocol::{Answer, Exit, Record, Request, RootFs, START_ERROR_CODE, Staged, StartContainer};

use super::Runtime;
use super::sandboxes::remove_directory;
use super::state::{Container, ContainerMeta, SandboxMeta, learn, load, log_path, new_id, now, save};
use crate::container::{ContainerConfig, ContainerId, ContainerState, SecurityProfile};
use crate::error::Error;
use crate::event::Event;
use crate::images::{Hold, UnpackedImage};
use crate::sandbox::{NamespaceMode, SandboxId, SandboxState};
use crate::shims::client::Client;
use crate::spec::{self, devices, resources, user};
pub(super) use stage::{make_directories, make_mount_points, set_mode};
use stage::{stage, staged_paths};
pub(crate) use validate::{signal_number, validate};

/// Longest wait for a killed process to be gone.
pub(super) const KILL_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a seccomp profile file.
const MAX_PROFILE_BYTES: u64 = 4 << 20;

/// What is needed of a container's `config.json`; the rest, which is long, is passed over.
#[derive(Deserialize)]
struct Bundle {
    process: BundleProcess,
}

#[derive(Deserialize)]
struct BundleProcess {
    cwd: PathBuf,
}

fn invalid(field: &str, reason: impl Into<String>) -> Error {
    Error::InvalidArgument { field: field.into(), reason: reason.into() }
}

fn io(operation: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let operation = operation.into();
    move |source| Error::Io { operation, source }
}

impl Runtime {
    pub(super) async fn create_container_inner(
        &self,
        sandbox: &SandboxId,
        config: ContainerConfig,
    ) -> Result<ContainerId, Error> {
        validate(&config)?;
        let status = self
            .sandbox_status(sandbox)
            .ok_or_else(|| Error::NotFound { kind: "sandbox", id: sandbox.0.clone() })?;
        if status.state != SandboxState::Ready {
            return Err(Error::Shim {
                operation: "create container",
                message: format!("sandbox \"{sandbox}\" is not ready"),
            });
        }
        let id = new_id()?;
        let (this, sandbox) = (self.clone(), sandbox.clone());
        let container = id.clone();
        // File work, to its end even when the caller is cancelled.
        let made =
            tokio::task::spawn_blocking(move || this.make_container(&sandbox, &container, config)).await;
        made.map_err(|error| Error::Shim { operation: "create container", message: error.to_string() })??;
        Ok(ContainerId(id))
    }

    fn make_container(&self, sandbox: &SandboxId, id: &str, config: ContainerConfig) -> Result<(), Error> {
        let directory = self.0.config.container_dir(id);
        let made = self.make_container_steps(sandbox, id, config, &directory);
        match made {
            Ok((meta, layers)) => {
                let event = Event::ContainerCreated {
                    sandbox: sandbox.clone(),
                    container: ContainerId(id.to_owned()),
                };
                self.0.tables().containers.insert(id.to_owned(), Container::new(meta, None, layers));
                self.0.announce(event);
                Ok(())
            }
            Err(error) => {
                if let Err(leftover) = remove_directory(&directory) {
                    tracing::warn!(container = id, error = %leftover, "half-made container is left for the next start");
                }
                Err(error)
            }
        }
    }

    fn make_container_steps(
        &self,
        sandbox: &SandboxId,
        id: &str,
        config: ContainerConfig,
        directory: &Path,
    ) -> Result<(ContainerMeta, Hold), Error> {
        let pod = self.sandbox_meta(&sandbox.0)?;
        let image = self.0.store.unpacked(&config.image)?;
        make_directories(directory)?;
        let staged = stage(&config, directory)?;
        let cgroup = format!("{}/{id}", pod.config.linux.cgroup_parent.trim_end_matches('/'));
        let mut spec = self.make_spec(&pod, &config, &image, &staged, id)?;
        spec["linux"]["cgroupsPath"] = cgroup.as_str().into();
        let text = serde_json::to_vec(&spec).unwrap_or_default();
        std::fs::write(directory.join("config.json"), text).map_err(io("write config.json"))?;
        let signal = image.config.config().as_ref().and_then(|config| config.stop_signal().clone());
        let meta = ContainerMeta {
            id: id.to_owned(),
            sandbox: sandbox.0.clone(),
            created_at: now(),
            image_id: image.id.clone(),
            image_ref: image.reference.clone(),
            layers: image.layers,
            cgroup,
            stop_signal: signal.unwrap_or_default(),
            config,
        };
        save(&directory.join("meta.json"), &meta)?;
        Ok((meta, image.hold))
    }

    pub(super) fn sandbox_meta(&self, id: &str) -> Result<SandboxMeta, Error> {
        let tables = self.0.tables();
        let found = tables.sandboxes.get(id).map(|sandbox| sandbox.meta.clone());
        found.ok_or_else(|| Error::NotFound { kind: "sandbox", id: id.to_owned() })
    }

    fn make_spec(
        &self,
        pod: &SandboxMeta,
        config: &ContainerConfig,
        image: &UnpackedImage,
        staged: &[(usize, PathBuf)],
        id: &str,
    ) -> Result<Value, Error> {
        let image_user =
            image.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
        let file = |path| user::read_image_file(&self.0.store.layers_dir(), &image.layers, path);
        let user = user::resolve(&config.security, &image_user, &file("/etc/passwd"), &file("/etc/group"))?;
        let nodes =
            if config.security.privileged { devices::host() } else { devices::requested(&config.devices)? };
        let target_pid = config
            .security
            .target_container
            .as_ref()
            .map(|target| self.target_pid(pod, target))
            .transpose()?;
        let shm = match pod.config.linux.namespaces.ipc {
            NamespaceMode::Node => PathBuf::from("/dev/shm"),
            _ => self.0.config.shm_path(&pod.id),
        };
        // Limits that cannot be expressed are refused now and not at the start.
        resources::limits(&config.resources, self.0.layout.is_v1())?;
        tracing::debug!(container = id, uid = user.uid, gid = user.gid, "container's specification is made");
        spec::generate(&spec::Input {
            sandbox: &pod.config,
            container: config,
            image: &image.config,
            user: &user,
            bounding: &self.0.bounding,
            sandbox_dir: &self.0.config.sandbox_dir(&pod.id),
            shm: &shm,
            cgroup_v2: !self.0.layout.is_v1(),
            apparmor: self.0.apparmor,
            target_pid,
            seccomp_file: read_profile(&config.security.seccomp)?,
            staged,
            devices: &nodes,
        })
    }

    fn target_pid(&self, pod: &SandboxMeta, target: &ContainerId) -> Result<i32, Error> {
        let status = self.container_status(target).filter(|status| status.sandbox.0 == pod.id);
        status.and_then(|status| status.pid).ok_or_else(|| {
            invalid("namespace_options.target_id", format!("container \"{target}\" does not run in this pod"))
        })
    }

    /// What start needs, checked under the container's turn.
    fn startable(&self, id: &ContainerId) -> Result<(ContainerMeta, SandboxMeta, Arc<Client>), Error> {
        let tables = self.0.tables();
        let container = tables.containers.get(&id.0).ok_or_else(|| not_found(id))?;
        if container.state() != ContainerState::Created {
            return Err(wrong_state("start container", id, container.state()));
        }
        let sandbox = tables.sandboxes.get(&container.meta.sandbox);
        let shim = sandbox.and_then(|sandbox| Some((sandbox.meta.clone(), sandbox.shim.clone()?)));
        let (pod, shim) = shim.ok_or_else(|| Error::ShimGone { sandbox: container.meta.sandbox.clone() })?;
        Ok((container.meta.clone(), pod, shim))
    }

    fn turn(&self, id: &ContainerId) -> Option<Arc<tokio::sync::Mutex<()>>> {
        self.0.tables().containers.get(&id.0).map(|container| Arc::clone(&container.turn))
    }

    pub(super) async fn start_container_inner(&self, id: &ContainerId) -> Result<(), Error> {
        let turn = self.turn(id).ok_or_else(|| not_found(id))?;
        let _turn = turn.lock_owned().await;
        let (meta, pod, shim) = self.startable(id)?;
        let request = self.start_request(&meta, &pod)?;
        let (this, id) = (self.clone(), id.clone());
        // The answer decides what is recorded, also when the caller is cancelled.
        let started = tokio::spawn(async move {
            let _turn = _turn;
            this.await_start(&id, &meta, &shim, request).await
        });
        started.await.unwrap_or_else(|error| {
            Err(Error::Shim { operation: "start container", message: error.to_string() })
        })
    }

    async fn await_start(
        &self,
        id: &ContainerId,
        meta: &ContainerMeta,
        shim: &Client,
        request: StartContainer,
    ) -> Result<(), Error> {
        match shim.call(Request::Start(Box::new(request)), Vec::new()).await {
            Ok((Answer::Started { pid, started_at, warnings }, _)) => {
                for warning in warnings {
                    self.0.warn_once(&warning);
                }
                self.0.note(&id.0, |known| learn(known, Record { pid, started_at, exit: None }));
                Ok(())
            }
            Ok((other, _)) => Err(Error::Shim {
                operation: "start container",
                message: format!("unexpected answer {other:?}"),
            }),
            Err(error @ Error::ShimGone { .. }) => Err(error),
            Err(error) => {
                let exit = Exit::start_error(error.to_string(), now());
                let record = Record { exit: Some(exit), ..Record::default() };
                save(&self.0.config.container_dir(&id.0).join("record.json"), &record)?;
                self.0.note(&id.0, |known| *known = Some(record));
                let (sandbox, container) = (SandboxId(meta.sandbox.clone()), id.clone());
                self.0.announce(Event::ContainerExited { sandbox, container, exit_code: START_ERROR_CODE });
                Err(error)
            }
        }
    }

    fn start_request(&self, meta: &ContainerMeta, pod: &SandboxMeta) -> Result<StartContainer, Error> {
        let directory = self.0.config.container_dir(&meta.id);
        let spec: Bundle = load(&directory.join("config.json"))
            .ok_or_else(|| Error::NotFound { kind: "bundle", id: meta.id.clone() })?;
        let config = &meta.config;
        let nodes = devices::requested(&config.devices)?;
        let staged = staged_paths(config, &directory);
        Ok(StartContainer {
            container: meta.id.clone(),
            bundle: directory.clone(),
            rootfs: RootFs {
                directory: self.0.store.layers_dir(),
                lower: meta
                    .layers
                    .iter()
                    .map(PathBuf::from)
                    .chain([self.0.config.mount_points_dir()])
                    .collect(),
                upper: directory.join("upper"),
                work: directory.join("work"),
            },
            staged: staged
                .into_iter()
                .map(|(index, target)| Staged { source: config.mounts[index].host_path.clone(), target })
                .collect(),
            cgroup: meta.cgroup.clone(),
            limits: resources::limits(&config.resources, self.0.layout.is_v1())?,
            devices: (!config.security.privileged).then(|| devices::rules(&nodes)),
            oom_score_adj: config.resources.oom_score_adj,
            cwd: spec.process.cwd,
            tty: config.tty,
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            log: log_path(&pod.config, config),
            own_pid_namespace: pod.config.linux.namespaces.pid == NamespaceMode::Container
                && config.security.target_container.is_none(),
            record: directory.join("record.json"),
        })
    }

    pub(super) async fn stop_container_inner(&self, id: &ContainerId, grace: Duration) -> Result<(), Error> {
        if !grace.is_zero() {
            self.send_stop_signal(id).await?;
            // Without the container's turn: a later stop with a shorter grace does not wait for this one.
            if self.await_exit(&id.0, grace).await {
                return Ok(());
            }
        }
        let Some(turn) = self.turn(id) else { return Ok(()) };
        let _turn = turn.lock().await;
        let meta = self.0.tables().containers.get(&id.0).map(|container| container.meta.clone());
        match meta {
            Some(meta) => self.kill_container(&meta, KILL_LIMIT).await,
            None => Ok(()),
        }
    }

    /// Once, however often a stop is asked for, as containerd.
    async fn send_stop_signal(&self, id: &ContainerId) -> Result<(), Error> {
        let Some(turn) = self.turn(id) else { return Ok(()) };
        let _turn = turn.lock().await;
        let waits = |container: &&Container| container.pid().is_some() && !container.stop_signaled;
        let meta =
            self.0.tables().containers.get(&id.0).filter(waits).map(|container| container.meta.clone());
        let Some(meta) = meta else { return Ok(()) };
        let wanted = [&meta.config.stop_signal, &meta.stop_signal];
        let signal = wanted.into_iter().find_map(|text| signal_number(text));
        self.signal(&meta, signal.unwrap_or(rustix::process::Signal::TERM.as_raw())).await?;
        if let Some(container) = self.0.tables().containers.get_mut(&id.0) {
            container.stop_signaled = true;
        }
        Ok(())
    }

    async fn signal(&self, meta: &ContainerMeta, signal: i32) -> Result<(), Error> {
        let shim = {
            let tables = self.0.tables();
            let running =
                tables.containers.get(&meta.id).is_some_and(|other| other.state() == ContainerState::Running);
            tables.sandboxes.get(&meta.sandbox).and_then(|sandbox| sandbox.shim.clone()).filter(|_| running)
        };
        let Some(shim) = shim else { return Ok(()) };
        let request = Request::Signal { container: meta.id.clone(), signal, all: false };
        match shim.call(request, Vec::new()).await {
            Ok(_) | Err(Error::ShimGone { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Kills, and waits until the exit is recorded.
    pub(super) async fn kill_container(&self, meta: &ContainerMeta, limit: Duration) -> Result<(), Error> {
        self.signal(meta, rustix::process::Signal::KILL.as_raw()).await?;
        match self.await_exit(&meta.id, limit).await {
            true => Ok(()),
            false => Err(Error::Timeout { operation: format!("kill container \"{}\"", meta.id) }),
        }
    }

    /// Waits until a container does not run; false when it still does at the limit.
    async fn await_exit(&self, id: &str, limit: Duration) -> bool {
        let Some(mut record) =
            self.0.tables().containers.get(id).map(|container| container.record.subscribe())
        else {
            return true;
        };
        let ended = record.wait_for(|record| record.as_ref().is_none_or(|record| record.exit.is_some()));
        tokio::time::timeout(limit, ended).await.is_ok()
    }

    pub(super) async fn remove_container_inner(&self, id: &ContainerId) -> Result<(), Error> {
        let Some(turn) = self.turn(id) else { return Ok(()) };
        let _turn = turn.lock().await;
        let (meta, shim) = {
            let tables = self.0.tables();
            let Some(container) = tables.containers.get(&id.0) else { return Ok(()) };
            let sandbox = tables.sandboxes.get(&container.meta.sandbox);
            (container.meta.clone(), sandbox.and_then(|sandbox| sandbox.shim.clone()))
        };
        self.kill_container(&meta, KILL_LIMIT).await?;
        self.delete_processes(&meta, shim).await?;
        let directory = self.0.config.container_dir(&id.0);
        // Without it the directory counts as half made, and a start after a crash removes the rest.
        let _ = std::fs::remove_file(directory.join("meta.json"));
        tokio::task::spawn_blocking(move || remove_directory(&directory))
            .await
            .map_err(|error| Error::Shim { operation: "remove container", message: error.to_string() })??;
        // Its hold on the layers ends after the tables are free again.
        let removed = self.0.tables().containers.remove(&id.0);
        drop(removed);
        Ok(())
    }

    /// Control groups: by the shim, or by ourselves when there is none.
    async fn delete_processes(&self, meta: &ContainerMeta, shim: Option<Arc<Client>>) -> Result<(), Error> {
        if let Some(shim) = shim {
            let request = Request::Delete { container: meta.id.clone(), cgroup: meta.cgroup.clone() };
            match shim.call(request, Vec::new()).await {
                Ok(_) => return Ok(()),
                Err(Error::ShimGone { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let group = self.0.layout.group(&meta.cgroup);
        let removed = tokio::task::spawn_blocking(move || {
            let group = group?;
            group.kill(KILL_LIMIT)?;
            group.remove()
        });
        match removed.await {
            Ok(result) => {
                result.map_err(|source| Error::System { operation: "remove container".into(), source })
            }
            Err(error) => Err(Error::Shim { operation: "remove container", message: error.to_string() }),
        }
    }
}

pub(super) fn not_found(id: &ContainerId) -> Error {
    Error::NotFound { kind: "container", id: id.0.clone() }
}

pub(super) fn wrong_state(operation: &'static str, id: &ContainerId, state: ContainerState) -> Error {
    let state = match state {
        ContainerState::Created => "CONTAINER_CREATED",
        ContainerState::Running => "CONTAINER_RUNNING",
        ContainerState::Exited => "CONTAINER_EXITED",
        ContainerState::Unknown => "CONTAINER_UNKNOWN",
    };
    Error::WrongState { operation, id: id.0.clone(), state }
}

fn read_profile(profile: &SecurityProfile) -> Result<Option<Value>, Error> {
    use std::io::Read;
    let SecurityProfile::Localhost(path) = profile else { return Ok(None) };
    let mut text = Vec::new();
    let path = path.strip_prefix("localhost/").unwrap_or(path);
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_PROFILE_BYTES).read_to_end(&mut text))
        .map_err(io(format!("read seccomp profile {path}")))?;
    let parsed =
        serde_json::from_slice(&text).map_err(|source| Error::Corrupt { path: path.into(), source })?;
    Ok(Some(parsed))
}
