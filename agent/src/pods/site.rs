//! What all pods of this node share: clients, caches, paths, facts about the node.
//!
//! Made once from the settings and the machine; only `allocatable` changes. Decides nothing.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};

use super::images::Puller;
use super::objects;
use super::observed::NodeFacts;
use super::resources::{Amounts, Qos};
use super::sandbox::{NameService, Names, parse_resolv_conf};
use super::{Context, StartError};
use crate::events::{EventType, Recorder};
use crate::metrics::Metrics;

/// After a failed cleaning step, volume or sandbox: when it is tried again (kubelet: the next sync of the pod).
pub const RETRY_AFTER: SignedDuration = SignedDuration::from_secs(2);

/// What pods share.
pub struct Site {
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
    pub bypass: Arc<crate::services::Bypass>,
    /// Told of each pod's addresses before that.
    pub clients: Arc<crate::services::Clients>,
    /// Events.
    pub recorder: Recorder,
    /// What is measured.
    pub metrics: Metrics,
    /// ConfigMaps and Secrets.
    pub objects: objects::Cache,
    /// Images.
    pub images: Puller,
    /// About the node.
    pub node: Arc<NodeFacts>,
    /// How pods find names.
    pub names: NameService,
    /// The node's /etc/hosts.
    pub node_hosts: String,
    /// One folder per pod.
    pub root: PathBuf,
    /// One folder of logs per pod.
    pub log_root: PathBuf,
    /// The control group that pods live below.
    pub cgroup_parent: String,
    /// The control group hierarchies.
    pub cgroups: linux::cgroup::Layout,
    /// A container that is out of memory ends as a whole.
    pub group_oom_kill: bool,
    allocatable: RwLock<Arc<Amounts>>,
}

impl Site {
    /// Reads what the machine says and makes the control groups of the QoS classes.
    ///
    /// # Errors
    /// No control groups, or they cannot be made.
    pub fn new(context: &Context) -> Result<Site, StartError> {
        let settings = &context.settings;
        let resolv_conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let cgroups = linux::cgroup::Layout::detect(&settings.cgroup_root)
            .map_err(|source| StartError::Cgroup { operation: "find the control groups", source })?;
        let mut site = Site {
            client: context.client.clone(),
            runtime: context.runtime.clone(),
            services: context.services.clone(),
            departures: context.departures.clone(),
            policies: context.policies.clone(),
            bypass: context.bypass.clone(),
            clients: context.clients.clone(),
            recorder: context.recorder.clone(),
            metrics: context.metrics.clone(),
            objects: objects::Cache::new(context.client.clone()),
            images: Puller::new(context.runtime.clone()),
            node: Arc::new(NodeFacts {
                name: settings.node_name.clone(),
                ips: settings.node_ips.iter().collect(),
                memory: i64::try_from(crate::node::machine_memory()).unwrap_or(i64::MAX),
            }),
            names: NameService {
                servers: settings.cluster_dns.clone(),
                domain: settings.cluster_domain.clone(),
                node: parse_resolv_conf(&resolv_conf),
            },
            node_hosts: std::fs::read_to_string("/etc/hosts").unwrap_or_default(),
            root: settings.pods_dir(),
            log_root: settings.log_dir.clone(),
            cgroup_parent: settings.cgroup_parent.clone(),
            cgroups,
            group_oom_kill: false,
            allocatable: RwLock::default(),
        };
        site.make_qos_groups()?;
        site.group_oom_kill = !settings.single_process_oom_kill && site.can_kill_groups();
        Ok(site)
    }

    /// Whether the kernel can end all processes of a group that is out of memory (Linux 4.19, with the memory controller on v2). Groups must
    /// have been made: the root has no such file.
    fn can_kill_groups(&self) -> bool {
        let path = super::resources::qos_cgroup_path(&self.cgroup_parent, Qos::Guaranteed);
        let directory = self.cgroups.group(&path).ok().and_then(|group| group.unified_directory());
        let can = directory.is_some_and(|directory| directory.join(super::container::OOM_GROUP).exists());
        if !can {
            tracing::warn!(
                file = super::container::OOM_GROUP,
                path,
                "the control group has no such file: out of memory, one process of a container ends and not the whole container"
            );
        }
        can
    }

    fn make_qos_groups(&self) -> Result<(), StartError> {
        for class in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            let path = super::resources::qos_cgroup_path(&self.cgroup_parent, class);
            let failed =
                |source| StartError::Cgroup { operation: "make the control group of a class", source };
            let group = self.cgroups.group(&path).map_err(failed)?;
            group.create().map_err(failed)?;
            if class == Qos::BestEffort {
                let limits =
                    linux::cgroup::Limits { cpu_shares: Some(2), ..linux::cgroup::Limits::default() };
                if let Err(error) = group.apply(&limits) {
                    tracing::warn!(%error, path, "limit control group");
                }
            }
        }
        Ok(())
    }

    /// The CPU weight of all Burstable pods together.
    pub fn set_burstable_cpu(&self, milli_cpu: i64) {
        let path = super::resources::qos_cgroup_path(&self.cgroup_parent, Qos::Burstable);
        let shares = Some(super::resources::shares(milli_cpu));
        let limits = linux::cgroup::Limits { cpu_shares: shares, ..linux::cgroup::Limits::default() };
        let applied = self.cgroups.group(&path).and_then(|group| group.apply(&limits));
        if let Err(error) = applied {
            tracing::warn!(%error, path, "limit control group");
        }
    }

    /// What the node can give to pods.
    pub fn allocatable(&self) -> Arc<Amounts> {
        self.allocatable.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The Node object says something new.
    pub fn set_allocatable(&self, amounts: Amounts) {
        *self.allocatable.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(amounts);
    }

    /// A pod's folder.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root.join(uid)
    }

    /// An Event about a pod.
    pub fn pod_event(&self, pod: &Pod, kind: EventType, reason: &str, message: impl Into<String>) {
        self.recorder.record(reference(pod, None), kind, reason, message.into());
    }

    /// An Event about a container of a pod.
    pub fn container_event(
        &self,
        pod: &Pod,
        container: &str,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.recorder.record(reference(pod, Some(container)), kind, reason, message.into());
    }
}

/// A reference to a pod, or to a container in it.
pub fn reference(pod: &Pod, container: Option<&str>) -> ObjectReference {
    let names = Names::of(pod);
    let is_init = |name: &str| {
        let inits = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_ref());
        inits.into_iter().flatten().any(|init| init.name == name)
    };
    let field_path = container.map(|name| {
        let list = if is_init(name) { "initContainers" } else { "containers" };
        format!("spec.{list}{{{name}}}")
    });
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(names.namespace.into()),
        name: Some(names.name.into()),
        uid: Some(names.uid.into()),
        resource_version: pod.metadata.resource_version.clone(),
        field_path,
    }
}
