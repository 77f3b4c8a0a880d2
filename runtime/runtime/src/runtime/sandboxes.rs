//! The life of a sandbox: run, stop, remove.
//!
//! Run makes things in an order in which each can be found again (directory with its phase, shim, network), and takes them back in reverse when a
//! step fails. Deleting a network takes the kernel tens of milliseconds, so stop and remove only write down that it has to be done, and a background
//! task does it; [`super::Runtime::idle`] waits for that.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use shim_protocol::{Request, ShimConfig};
use tokio::sync::{Mutex, mpsc};

use super::containers::set_mode;
use super::state::{ContainerMeta, Network, Phase, Sandbox, SandboxMeta, new_id, now, save};
use super::{Inner, Runtime};
use crate::error::Error;
use crate::sandbox::{DnsConfig, NamespaceMode, SandboxConfig, SandboxId};
use crate::shims::{self, client::Client};

/// Pause before a failed removal of a network is tried again; it doubles up to the longest.
const TEARDOWN_PAUSE: Duration = Duration::from_millis(500);
const TEARDOWN_LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Tries per process life; the next `open` tries again.
const TEARDOWN_TRIES: u32 = 20;
/// Longest wait for the containers of a stopped sandbox.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Kernel parameters that belong to the ipc namespace.
const IPC_SYSCTLS: [&str; 9] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
    "fs.mqueue.",
];

/// What containerd 2 sets in every network namespace of a pod's own, so that nobody there needs to be root to listen below 1024 or to ping;
/// the pod's own values win.
const NETWORK_SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

fn invalid(field: &str, reason: impl Into<String>) -> Error {
    Error::InvalidArgument { field: field.into(), reason: reason.into() }
}

/// Checks everything that can be wrong before anything is made.
pub(crate) fn validate(config: &SandboxConfig) -> Result<(), Error> {
    let namespaces = config.linux.namespaces;
    for (field, value) in [("name", &config.name), ("namespace", &config.namespace), ("uid", &config.uid)] {
        if value.is_empty() {
            return Err(invalid(&format!("metadata.{field}"), "is empty"));
        }
    }
    if namespaces.network == NamespaceMode::Container || namespaces.ipc == NamespaceMode::Container {
        return Err(invalid("namespace_options", "network and ipc are of the pod or of the node"));
    }
    for name in config.linux.sysctls.keys() {
        let of_network = name.starts_with("net.");
        let of_ipc =
            IPC_SYSCTLS.iter().any(|known| name == known || known.ends_with('.') && name.starts_with(known));
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
            && !name.contains("..");
        if !plain || !(of_network || of_ipc) {
            return Err(invalid("sysctls", format!("\"{name}\" is not separate for each pod")));
        }
        if of_network && namespaces.network == NamespaceMode::Node
            || of_ipc && namespaces.ipc == NamespaceMode::Node
        {
            return Err(invalid(
                "sysctls",
                format!("\"{name}\" would change the node: the pod is in its namespace"),
            ));
        }
    }
    if config.hostname.len() > 64 {
        return Err(invalid("hostname", "is longer than 64 bytes"));
    }
    Ok(())
}

impl Runtime {
    pub(super) async fn run_sandbox_inner(&self, mut config: SandboxConfig) -> Result<SandboxId, Error> {
        validate(&config)?;
        let id = new_id()?;
        if config.linux.cgroup_parent.is_empty() {
            config.linux.cgroup_parent = format!("/orlop/{id}");
        }
        self.0
            .layout
            .group(&config.linux.cgroup_parent)
            .map_err(|error| invalid("cgroup_parent", error.to_string()))?;
        let own_network = config.linux.namespaces.network == NamespaceMode::Pod;
        if own_network {
            self.0.network.status().await?;
        }
        let meta = SandboxMeta {
            id: id.clone(),
            config,
            created_at: now(),
            phase: Phase::Creating,
            ips: Vec::new(),
            own_network,
        };
        // The work goes on when the caller is cancelled: half a sandbox would have nobody to take it back.
        let this = self.clone();
        let made = tokio::spawn(async move { this.make_sandbox(meta).await });
        match made.await {
            Ok(Ok(())) => Ok(SandboxId(id)),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(Error::Shim { operation: "run sandbox", message: error.to_string() }),
        }
    }

    async fn make_sandbox(&self, mut meta: SandboxMeta) -> Result<(), Error> {
        let directory = self.0.config.sandbox_dir(&meta.id);
        match self.make_sandbox_steps(&mut meta, &directory).await {
            Ok(shim) => {
                let id = meta.id.clone();
                self.0.tables().sandboxes.insert(id.clone(), Sandbox::new(meta));
                self.keep_shim(&id, shim).await;
                Ok(())
            }
            Err(error) => {
                meta.phase = Phase::Removing;
                let _ = save(&directory.join("meta.json"), &meta);
                // Not in the background: when the caller reads the error, nothing is left.
                let network = Arc::default();
                if let Err(leftover) = self.tear_down(&meta, &network).await {
                    tracing::warn!(sandbox = meta.id, error = %leftover, "failed sandbox is removed later");
                    self.remove_in_background(meta, network);
                }
                Err(error)
            }
        }
    }

    async fn make_sandbox_steps(
        &self,
        meta: &mut SandboxMeta,
        directory: &Path,
    ) -> Result<Arc<Client>, Error> {
        std::fs::create_dir_all(directory)
            .map_err(|source| Error::Io { operation: format!("make {}", directory.display()), source })?;
        write_pod_files(&meta.config, directory)?;
        save(&directory.join("meta.json"), meta)?;
        let config = self.shim_config(meta);
        let steps = &self.0.metrics.sandbox_steps;
        let file = self.0.config.shim_config(&meta.id);
        steps.time("start_shim", shims::spawn(&self.0.executable, &config, &file)).await?;
        let shim = steps.time("connect_shim", self.connect(&meta.id)).await?;
        if meta.own_network {
            let netns = self.0.config.netns_path(&meta.id);
            meta.ips = self.0.network.add(&meta.id, &meta.config, &netns).await?;
        }
        meta.phase = Phase::Ready;
        save(&directory.join("meta.json"), meta)?;
        Ok(shim)
    }

    fn shim_config(&self, meta: &SandboxMeta) -> ShimConfig {
        let config = &self.0.config;
        let namespaces = meta.config.linux.namespaces;
        let ipc = namespaces.ipc == NamespaceMode::Pod;
        ShimConfig {
            sandbox: meta.id.clone(),
            socket: config.shim_socket(&meta.id),
            log: config.sandbox_dir(&meta.id).join("shim.log"),
            oci_root: config.oci_dir(),
            seccomp_filters: Some(config.seccomp_dir()),
            cgroup_root: config.cgroup_root.clone(),
            shim_cgroup: config.shim_cgroup.clone(),
            netns: meta.own_network.then(|| config.netns_path(&meta.id)),
            ipc,
            pid: namespaces.pid == NamespaceMode::Pod,
            hostname: (meta.own_network && !meta.config.hostname.is_empty())
                .then(|| meta.config.hostname.clone()),
            sysctls: sysctls(meta),
            shm: ipc.then(|| config.shm_path(&meta.id)),
        }
    }

    /// Connects to a sandbox's shim and serves its events from then on.
    pub(super) async fn connect(&self, sandbox: &str) -> Result<Arc<Client>, Error> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let shim = Client::connect(&self.0.config.shim_socket(sandbox), sandbox, sender).await?;
        tokio::spawn(super::events::serve(Arc::downgrade(&self.0), sandbox.to_owned(), receiver));
        Ok(shim)
    }

    pub(super) async fn stop_sandbox_inner(&self, id: &SandboxId) -> Result<(), Error> {
        let Some(turn) = self.sandbox_turn(id) else { return Ok(()) };
        let _turn = turn.lock().await;
        self.stop_with_turn(id).await
    }

    fn sandbox_turn(&self, id: &SandboxId) -> Option<Arc<Mutex<()>>> {
        self.0.tables().sandboxes.get(&id.0).map(|sandbox| Arc::clone(&sandbox.turn))
    }

    /// Ends the containers, then marks the sandbox; its network is taken down in the background.
    async fn stop_with_turn(&self, id: &SandboxId) -> Result<(), Error> {
        let meta = match self.0.tables().sandboxes.get(&id.0) {
            Some(sandbox) if sandbox.meta.phase == Phase::Ready => sandbox.meta.clone(),
            _ => return Ok(()),
        };
        for container in self.0.containers_of(&id.0) {
            self.kill_container(&container, STOP_LIMIT).await?;
        }
        let meta = SandboxMeta { phase: Phase::Stopped, ..meta };
        save(&self.0.config.sandbox_dir(&id.0).join("meta.json"), &meta)?;
        if let Some(sandbox) = self.0.tables().sandboxes.get_mut(&id.0) {
            sandbox.meta = meta.clone();
            self.disconnect_in_background(meta, Arc::clone(&sandbox.network));
        }
        Ok(())
    }

    pub(super) async fn remove_sandbox_inner(&self, id: &SandboxId) -> Result<(), Error> {
        let Some(turn) = self.sandbox_turn(id) else { return Ok(()) };
        let _turn = turn.lock().await;
        self.stop_with_turn(id).await?;
        for container in self.0.containers_of(&id.0) {
            self.remove_container_inner(&crate::container::ContainerId(container.id)).await?;
        }
        let Some(sandbox) = self.0.tables().sandboxes.get(&id.0).map(|sandbox| sandbox.meta.clone()) else {
            return Ok(());
        };
        let meta = SandboxMeta { phase: Phase::Removing, ..sandbox };
        save(&self.0.config.sandbox_dir(&id.0).join("meta.json"), &meta)?;
        let removed = self.0.tables().sandboxes.remove(&id.0);
        let Some(Sandbox { shim, network, .. }) = removed else { return Ok(()) };
        if let Some(shim) = shim {
            // It takes its own mounts off. One that does not answer is killed by the teardown.
            let _ = shim.call(Request::Shutdown, Vec::new()).await;
        }
        self.remove_in_background(meta, network);
        Ok(())
    }

    pub(super) fn disconnect_in_background(&self, meta: SandboxMeta, network: Arc<Mutex<Network>>) {
        let this = self.clone();
        self.0.background.spawn(async move {
            if let Err(error) = this.disconnect(&meta, &network).await {
                tracing::warn!(sandbox = meta.id, %error, "network of a stopped sandbox is left for its removal");
            }
        });
    }

    /// Takes the network down, once and by one at a time: a sandbox that is stopped and removed has both ask for it.
    async fn disconnect(&self, meta: &SandboxMeta, network: &Mutex<Network>) -> Result<(), Error> {
        if !meta.own_network {
            return Ok(());
        }
        let mut network = network.lock().await;
        if *network == Network::Up {
            let _permit = self.0.teardowns.acquire().await;
            let netns = self.0.config.netns_path(&meta.id);
            self.0.network.del(&meta.id, &meta.config, &netns).await?;
            *network = Network::Down;
        }
        Ok(())
    }

    /// Takes everything of a sandbox down, again and again until it works.
    pub(super) fn remove_in_background(&self, meta: SandboxMeta, network: Arc<Mutex<Network>>) {
        let this = self.clone();
        self.0.background.spawn(async move {
            let mut pause = TEARDOWN_PAUSE;
            for _ in 0..TEARDOWN_TRIES {
                match this.tear_down(&meta, &network).await {
                    Ok(()) => return,
                    Err(error) => tracing::warn!(sandbox = meta.id, %error, "sandbox is not removed yet"),
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(TEARDOWN_LONGEST_PAUSE);
            }
            tracing::error!(sandbox = meta.id, "sandbox is left for the next start of the runtime");
        });
    }

    /// Network, shim, mounts, directory, in this order; each step is fine when there is nothing to do.
    async fn tear_down(&self, meta: &SandboxMeta, network: &Mutex<Network>) -> Result<(), Error> {
        let disconnected = self.disconnect(meta, network).await;
        let (config, id) = (self.0.config.clone(), meta.id.clone());
        let own_group = meta.config.linux.cgroup_parent == format!("/orlop/{id}");
        let group = self.0.layout.group(&meta.config.linux.cgroup_parent);
        let _ = tokio::task::spawn_blocking(move || {
            shims::destroy(&config, &id);
            if let (true, Ok(group)) = (own_group, group) {
                let _ = group.remove();
            }
        })
        .await;
        disconnected?;
        remove_directory(&self.0.config.sandbox_dir(&meta.id))
    }
}

/// The kernel parameters of a pod.
pub(crate) fn sysctls(meta: &SandboxMeta) -> BTreeMap<String, String> {
    let defaults = NETWORK_SYSCTLS.into_iter().filter(|_| meta.own_network);
    let mut sysctls: BTreeMap<String, String> =
        defaults.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    sysctls.extend(meta.config.linux.sysctls.clone());
    sysctls
}

impl Inner {
    pub(super) fn containers_of(&self, sandbox: &str) -> Vec<ContainerMeta> {
        let tables = self.tables();
        tables
            .containers
            .values()
            .filter(|other| other.meta.sandbox == sandbox)
            .map(|other| other.meta.clone())
            .collect()
    }
}

pub(super) fn remove_directory(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Io { operation: format!("remove {}", path.display()), source })
        }
        _ => Ok(()),
    }
}

/// `hostname`, `hosts` and `resolv.conf`, which containers see unless the caller mounts its own.
pub(super) fn write_pod_files(config: &SandboxConfig, directory: &Path) -> Result<(), Error> {
    let node = |path: &str| std::fs::read(path).unwrap_or_default();
    let hostname = match config.hostname.as_str() {
        "" => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        own => own.to_owned(),
    };
    let resolv = match &config.dns {
        Some(dns) => resolv_conf(dns).into_bytes(),
        None => node("/etc/resolv.conf"),
    };
    let files: [(PathBuf, Vec<u8>); 3] = [
        (directory.join("hostname"), format!("{hostname}\n").into_bytes()),
        (directory.join("hosts"), node("/etc/hosts")),
        (directory.join("resolv.conf"), resolv),
    ];
    for (path, bytes) in files {
        std::fs::write(&path, bytes)
            .and_then(|()| set_mode(&path, 0o644))
            .map_err(|source| Error::Io { operation: format!("write {}", path.display()), source })?;
    }
    Ok(())
}

pub(crate) fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}
