//! The deeds behind a plan's actions: each is one asynchronous function that may be dropped at any await and begun again.
//!
//! In: what pods share, the pod as it was when the action was planned. Out: what happened; Events are recorded on the way. Nothing here
//! decides whether something is to be done.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod, PodSpec};
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use runtime::{ContainerId, SandboxId};

use super::backoff::after;
use super::container::{self, Objects};
use super::downward::Source;
use super::images::{self, ImageFailure};
use super::objects::{Key, Kind, Object};
use super::observed::StartFailure;
use super::plan::StopCause;
use super::sandbox::{self, Names};
use super::site::Site;
use super::{cgroup, hooks, resources, volumes};
use crate::api::chain;
use crate::events::EventType;

/// When a container that could not be made is tried again (kubelet: the next sync).
const START_RETRY: SignedDuration = SignedDuration::from_secs(10);
/// What a container has at least when its preStop hook used up the grace (kubelet: `minimumGracePeriodInSeconds`).
const AFTER_HOOK: Duration = Duration::from_secs(2);
/// Grace of a container whose postStart hook failed.
const HOOK_FAILED_GRACE: Duration = Duration::from_secs(2);

/// A container of a pod by name.
pub fn find<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec: &PodSpec = pod.spec.as_ref()?;
    resources::all_containers(spec).find(|container| container.name == name)
}

/// Pulls the image of a container, with the pod's pull secrets.
///
/// # Errors
/// [`ImageFailure`].
pub async fn pull_image(site: Arc<Site>, pod: Arc<Pod>, name: String) -> Result<(), ImageFailure> {
    let Some(container) = find(&pod, &name) else { return Ok(()) };
    let names = Names::of(&pod);
    let references = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    let mut secrets = Vec::new();
    for reference in references {
        let key =
            Key { kind: Kind::Secret, namespace: names.namespace.to_owned(), name: reference.name.clone() };
        match site.objects.get(&key).await {
            Ok(Some(Object::Secret(secret))) => secrets.push(secret),
            _ => site.pod_event(
                &pod,
                EventType::Warning,
                "FailedToRetrieveImagePullSecret",
                format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                    reference.name
                ),
            ),
        }
    }
    let reference = container.image.as_deref().unwrap_or_default();
    let auth = images::auth_for(reference, secrets.iter().map(Arc::as_ref));
    images::pull(&site, &pod, container, auth).await
}

/// Makes the pod's control group, its log directory and a sandbox.
///
/// # Errors
/// What went wrong, in words; the Event is recorded.
pub async fn run_sandbox(site: Arc<Site>, pod: Arc<Pod>, attempt: u32) -> Result<SandboxId, String> {
    if attempt > 0 {
        let message = "Pod sandbox changed, it will be killed and re-created.";
        site.pod_event(&pod, EventType::Normal, "SandboxChanged", message);
    }
    let inputs = sandbox::Inputs {
        attempt,
        log_root: &site.log_root,
        cgroup_parent: &site.cgroup_parent,
        names: &site.names,
    };
    if sandbox::dns(&pod, &site.names).1 {
        let message = "pod does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. \
                       Falling back to \"Default\" policy.";
        site.pod_event(&pod, EventType::Warning, "MissingClusterDNS", message);
    }
    let config = sandbox::config(&pod, inputs);
    if sandbox::needs_port_mapping(&config) && !site.runtime.maps_ports() {
        let message = "Pod requests hostPorts, but the pod network has no plugin that maps ports. \
                       They will not be reachable on the node.";
        site.pod_event(&pod, EventType::Warning, "HostPortNotSupported", message);
    }
    let result = match prepare_sandbox(site.clone(), pod.clone(), config.clone()).await {
        Ok(()) => site.runtime.run_sandbox(config).await.map_err(|error| chain(&error)),
        Err(message) => Err(message),
    };
    result.inspect_err(|message| {
        let text = format!("Failed to create pod sandbox: {message}");
        site.pod_event(&pod, EventType::Warning, "FailedCreatePodSandBox", text);
    })
}

async fn prepare_sandbox(
    site: Arc<Site>,
    pod: Arc<Pod>,
    config: runtime::SandboxConfig,
) -> Result<(), String> {
    blocking(move || {
        cgroup::create(&site, &pod, &config.linux.cgroup_parent)?;
        std::fs::create_dir_all(&config.log_directory)
            .map_err(|error| format!("create log directory {}: {error}", config.log_directory))
    })
    .await
}

/// Runs file system work off the asynchronous threads.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(format!("the work was interrupted: {error}")),
    }
}

/// What a container is started with.
#[derive(Clone, Debug)]
pub struct Start {
    /// Its name.
    pub name: String,
    /// Where.
    pub sandbox: SandboxId,
    /// The sandbox's addresses.
    pub ips: Vec<IpAddr>,
    /// How often it was started before.
    pub restarts: u32,
    /// Set to its id as soon as it is created.
    pub created: Arc<OnceLock<ContainerId>>,
}

/// Creates and starts a container and runs its postStart hook.
///
/// # Errors
/// A waiting reason with its message; the Events are recorded.
pub async fn start_container(site: Arc<Site>, pod: Arc<Pod>, start: Start) -> Result<(), StartFailure> {
    let Some(container) = find(&pod, &start.name) else { return Ok(()) };
    let normal = |reason: &str, message: String| {
        site.container_event(&pod, &start.name, EventType::Normal, reason, message);
    };
    let config = container_config(&site, &pod, container, &start)
        .await
        .map_err(|message| failure(&site, &pod, &start.name, "CreateContainerConfigError", message))?;
    let id = site
        .runtime
        .create_container(&start.sandbox, config)
        .await
        .map_err(|error| failure(&site, &pod, &start.name, "CreateContainerError", chain(&error)))?;
    let id = start.created.get_or_init(|| id).clone();
    normal("Created", format!("Created container: {}", start.name));
    admit(&site, &pod, &start.sandbox)
        .await
        .map_err(|message| failure(&site, &pod, &start.name, "RunContainerError", message))?;
    site.runtime
        .start_container(&id)
        .await
        .map_err(|error| failure(&site, &pod, &start.name, "RunContainerError", chain(&error)))?;
    normal("Started", format!("Started container {}", start.name));
    let hook = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref());
    match hook {
        Some(hook) => post_start(&site, &pod, container, &start, &id, hook).await,
        None => Ok(()),
    }
}

/// Waits until policies hold for the pod's network, source ranges for its sockets, and services for its packets where it asks for that: all know its
/// first packet.
async fn admit(site: &Site, pod: &Pod, sandbox: &SandboxId) -> Result<(), String> {
    let Some(status) = site.runtime.sandbox_status(sandbox) else { return Ok(()) };
    tokio::task::block_in_place(|| {
        site.clients.admit(&status)?;
        site.bypass.serve(&status)
    })?;
    let Some(netns) = status.netns else { return Ok(()) };
    site.policies.admit(pod, sandbox, &status.ips, netns).await
}

fn failure(site: &Site, pod: &Pod, container: &str, reason: &'static str, message: String) -> StartFailure {
    site.container_event(pod, container, EventType::Warning, "Failed", format!("Error: {message}"));
    StartFailure { reason, message, retry_at: after(Timestamp::now(), START_RETRY) }
}

async fn post_start(
    site: &Arc<Site>,
    pod: &Pod,
    container: &Container,
    start: &Start,
    id: &ContainerId,
    hook: &LifecycleHandler,
) -> Result<(), StartFailure> {
    let target = hooks::Target { container, id, ip: start.ips.first().or(site.node.ips.first()).copied() };
    let Err(message) = hooks::run(site, target, hook).await else { return Ok(()) };
    let warn = |reason: &str, text: String| {
        site.container_event(pod, &start.name, EventType::Warning, reason, text);
    };
    warn("FailedPostStartHook", "PostStartHook failed".into());
    let text = format!("FailedPostStartHook: Container {} will be killed", start.name);
    site.container_event(pod, &start.name, EventType::Normal, "Killing", text);
    if let Err(error) = site.runtime.stop_container(id, HOOK_FAILED_GRACE).await {
        tracing::warn!(container = %id, error = %chain(&error), "stop container after its postStart hook failed");
    }
    // Only the restart delay counts here: the container has run and has ended.
    Err(StartFailure { reason: "PostStartHookError", message, retry_at: Timestamp::now() })
}

async fn container_config(
    site: &Arc<Site>,
    pod: &Arc<Pod>,
    container: &Container,
    start: &Start,
) -> Result<runtime::ContainerConfig, String> {
    let reference = container.image.as_deref().unwrap_or_default();
    let image = match site.runtime.image_status(reference) {
        Ok(Some(image)) => image,
        Ok(None) => return Err(format!("image \"{reference}\" is not present any more")),
        Err(error) => return Err(chain(&error)),
    };
    let objects = load(site, Names::of(pod).namespace, volumes::container_keys(container)).await?;
    site.services.synced().await;
    let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    let names = Names::of(pod);
    let services = crate::services::environment::variables(names.namespace, links, &site.services.get());
    let ips = if start.ips.is_empty() { &site.node.ips } else { &start.ips };
    let pod_ips: Vec<String> = ips.iter().map(ToString::to_string).collect();
    let allocatable = site.allocatable();
    let source = Source { pod: pod.as_ref(), pod_ips: &pod_ips, node: &site.node, allocatable: &allocatable };
    let files = Files::of(site, pod, container, start.restarts);
    let expand = {
        // Volume sub paths see the same variables as the command does.
        let env = container::environment::environment(container, source, &objects, services.clone())
            .map_err(|error| error.to_string())?;
        move |text: &str| {
            container::environment::expand(text, |name| {
                env.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
            })
        }
    };
    let mounts = {
        let (site, pod, container) = (site.clone(), pod.clone(), container.clone());
        let (pod_ips, files) = (pod_ips.clone(), files.clone());
        blocking(move || {
            let mut mounts = volumes::mounts(&site, &pod, &container, &expand)?;
            files.write(&site, &pod, &container, &pod_ips, &mut mounts)?;
            Ok(mounts)
        })
        .await?
    };
    let inputs = container::Inputs {
        source,
        restarts: start.restarts,
        objects: &objects,
        services,
        mounts,
        message_file: files.message,
        image: &image,
        group_oom_kill: site.group_oom_kill,
    };
    container::config(container, inputs).map_err(|error| error.to_string())
}

/// Files that the node manages for a container.
#[derive(Clone, Debug)]
struct Files {
    message: PathBuf,
    hosts: PathBuf,
}

impl Files {
    fn of(site: &Site, pod: &Pod, container: &Container, restarts: u32) -> Files {
        let folder = site.pod_dir(Names::of(pod).uid);
        Files {
            message: folder.join("containers").join(&container.name).join(restarts.to_string()),
            hosts: folder.join("etc-hosts"),
        }
    }

    /// Writes them, and mounts each unless a volume is mounted at its place.
    fn write(
        &self,
        site: &Site,
        pod: &Pod,
        container: &Container,
        pod_ips: &[String],
        mounts: &mut Vec<runtime::Mount>,
    ) -> Result<(), String> {
        use std::os::unix::fs::PermissionsExt;
        let failed = |path: &PathBuf, error: std::io::Error| format!("write {}: {error}", path.display());
        if let Some(folder) = self.message.parent() {
            std::fs::create_dir_all(folder).map_err(|error| failed(&self.message, error))?;
        }
        std::fs::write(&self.message, b"").map_err(|error| failed(&self.message, error))?;
        // The container's user, whoever it is, writes it.
        std::fs::set_permissions(&self.message, std::fs::Permissions::from_mode(0o666))
            .map_err(|error| failed(&self.message, error))?;
        let text = sandbox::hosts_file(pod, pod_ips, &site.names.domain, &site.node_hosts);
        std::fs::write(&self.hosts, text).map_err(|error| failed(&self.hosts, error))?;
        let files = [("/etc/hosts", &self.hosts), (container::message_path(container), &self.message)];
        for (container_path, host_path) in files {
            if !mounts.iter().any(|mount| mount.container_path == container_path) {
                mounts.push(runtime::Mount {
                    container_path: container_path.to_owned(),
                    host_path: host_path.clone(),
                    ..runtime::Mount::default()
                });
            }
        }
        Ok(())
    }
}

/// Reads the objects that something refers to.
///
/// # Errors
/// An object that the API server does not give, in words.
pub async fn load(
    site: &Site,
    namespace: &str,
    keys: impl IntoIterator<Item = (Kind, String)>,
) -> Result<Objects, String> {
    let mut objects = Objects::default();
    for (kind, name) in keys {
        let key = Key { kind, namespace: namespace.to_owned(), name: name.clone() };
        match (kind, site.objects.get(&key).await.map_err(|error| error.to_string())?) {
            (Kind::ConfigMap, Some(Object::ConfigMap(map))) => {
                objects.config_maps.insert(name, Some(map));
            }
            (Kind::Secret, Some(Object::Secret(secret))) => {
                objects.secrets.insert(name, Some(secret));
            }
            (Kind::ConfigMap, _) => {
                objects.config_maps.insert(name, None);
            }
            (Kind::Secret, _) => {
                objects.secrets.insert(name, None);
            }
        }
    }
    Ok(objects)
}

/// What a container is stopped with.
#[derive(Clone, Debug)]
pub struct Stop {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: ContainerId,
    /// Seconds until the kill.
    pub grace: i64,
    /// Why.
    pub cause: StopCause,
    /// It runs, so that a hook can.
    pub running: bool,
    /// The pod's address.
    pub ip: Option<IpAddr>,
}

/// Runs the preStop hook, signals, and kills at the end of the grace.
///
/// # Errors
/// What went wrong, in words.
pub async fn stop_container(site: Arc<Site>, pod: Arc<Pod>, stop: Stop) -> Result<(), String> {
    let name = &stop.name;
    let message = match stop.cause {
        StopCause::PodEnds => format!("Stopping container {name}"),
        StopCause::Liveness => format!("Container {name} failed liveness probe, will be restarted"),
        StopCause::Startup => format!("Container {name} failed startup probe, will be restarted"),
        StopCause::Changed => format!("Container {name} definition changed, will be restarted"),
    };
    site.container_event(&pod, name, EventType::Normal, "Killing", message);
    let mut grace = Duration::from_secs(u64::try_from(stop.grace).unwrap_or(0));
    let container = find(&pod, name);
    let hook = container.and_then(|container| container.lifecycle.as_ref()?.pre_stop.as_ref());
    if let (Some(container), Some(hook), true) = (container, hook, stop.running && !grace.is_zero()) {
        let started = Instant::now();
        let target = hooks::Target { container, id: &stop.id, ip: stop.ip };
        let result = tokio::time::timeout(grace, hooks::run(&site, target, hook)).await;
        if let Ok(Err(_)) = &result {
            site.container_event(&pod, name, EventType::Warning, "FailedPreStopHook", "PreStopHook failed");
        }
        grace = grace.saturating_sub(started.elapsed()).max(AFTER_HOOK);
    }
    site.runtime.stop_container(&stop.id, grace).await.map_err(|error| {
        let message = chain(&error);
        let text = format!("error killing pod: failed to \"KillContainer\" for \"{name}\": {message}");
        site.pod_event(&pod, EventType::Warning, "FailedKillPod", text);
        message
    })
}

/// Removes what the node still keeps for a pod whose end is complete: its folder and its logs.
///
/// # Errors
/// What could not be removed, in words.
pub async fn forget(site: Arc<Site>, pod: Arc<Pod>) -> Result<(), String> {
    blocking(move || volumes::forget(&site, &pod)).await
}

/// Deletes the API object, when it still is this very pod. Fine when it is gone.
///
/// # Errors
/// The API server's, in words.
pub async fn delete_object(site: Arc<Site>, pod: Arc<Pod>) -> Result<(), String> {
    // The object is deleted last: while it is there, an agent that starts again finds what is left to do.
    forget(site.clone(), pod.clone()).await?;
    let names = Names::of(&pod);
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: Some(names.uid.to_owned()), resource_version: None }),
        ..DeleteParams::default()
    };
    let pods: Api<Pod> = Api::namespaced(site.client.clone(), names.namespace);
    match pods.delete(names.name, &params).await {
        Ok(_) => Ok(()),
        // 404: gone. 409: another pod of the same name is there, so this one is gone.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}
