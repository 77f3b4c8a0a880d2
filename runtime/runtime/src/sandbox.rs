//! What a pod sandbox is to a caller: CRI v1's PodSandboxConfig in Rust types, and what the runtime reports about one.
//!
//! Only data. Names, defaults and meanings are those of `k8s.io/cri-api` v1.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::container::SecurityProfile;

/// Identifies a sandbox: 64 hexadecimal digits, made by the runtime.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SandboxId(pub(crate) String);

impl SandboxId {
    /// The id as text, as it appears in paths, cgroup names and the shim's command line.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for SandboxId {
    fn from(text: String) -> Self {
        SandboxId(text)
    }
}

impl std::fmt::Display for SandboxId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// PodSandboxConfig.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SandboxConfig {
    /// The pod's name.
    pub name: String,
    /// The pod's uid.
    pub uid: String,
    /// The pod's namespace.
    pub namespace: String,
    /// How often a sandbox was made for this pod before.
    pub attempt: u32,
    /// Host name inside the pod; empty takes the node's (a pod in the node's network always has the node's).
    pub hostname: String,
    /// Directory under which container log paths are resolved. Empty: containers have no logs.
    pub log_directory: String,
    /// Content of the containers' /etc/resolv.conf; `None` copies the node's.
    pub dns: Option<DnsConfig>,
    /// Handed to CNI as the `portMappings` capability.
    pub port_mappings: Vec<PortMapping>,
    /// Labels, for the caller's own use.
    pub labels: BTreeMap<String, String>,
    /// Annotations, for the caller's own use.
    pub annotations: BTreeMap<String, String>,
    /// LinuxPodSandboxConfig.
    pub linux: LinuxSandboxConfig,
}

/// LinuxPodSandboxConfig. Its `overhead` and `resources` are the caller's to apply to the cgroup it names.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LinuxSandboxConfig {
    /// The pod's control group relative to the root (`/kubepods/besteffort/pod…`); container groups are made below it.
    pub cgroup_parent: String,
    /// Which namespaces are the pod's, the container's or the node's.
    pub namespaces: NamespaceOptions,
    /// Kernel parameters of the pod's own namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Seccomp profile of the sandbox's own process. There is no pause container: kept and reported, not needed.
    pub seccomp: SecurityProfile,
}

/// NamespaceOption.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct NamespaceOptions {
    /// `Pod` or `Node`.
    pub network: NamespaceMode,
    /// `Container` (default of Kubernetes), `Pod` (shareProcessNamespace) or `Node`.
    pub pid: NamespaceMode,
    /// `Pod` or `Node`.
    pub ipc: NamespaceMode,
}

/// NamespaceMode. CRI's TARGET (a debug container in another container's pid namespace) carries the target's id.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub enum NamespaceMode {
    /// Shared by the containers of the pod.
    #[default]
    Pod,
    /// Each container its own.
    Container,
    /// The node's.
    Node,
}

/// DNSConfig.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct DnsConfig {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// One `search` line.
    pub searches: Vec<String>,
    /// One `options` line.
    pub options: Vec<String>,
}

/// PortMapping.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct PortMapping {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: Protocol,
    /// Port inside the pod.
    pub container_port: u16,
    /// Port on the node.
    pub host_port: u16,
    /// Address on the node; empty: every address.
    pub host_ip: String,
}

/// Protocol of a port mapping.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

/// PodSandboxState.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub enum SandboxState {
    /// SANDBOX_READY
    Ready,
    /// SANDBOX_NOTREADY: stopped, or its shim is gone.
    NotReady,
}

/// PodSandboxStatus together with the config it was made from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxStatus {
    /// Its id.
    pub id: SandboxId,
    /// What it was made from.
    pub config: SandboxConfig,
    /// Ready or not.
    pub state: SandboxState,
    /// When `run_sandbox` was called, nanoseconds since 1970.
    pub created_at: i64,
    /// Addresses, the first is the primary one. Empty in the node's network.
    pub ips: Vec<IpAddr>,
    /// Where the network namespace is bound; `None` in the node's network.
    pub netns: Option<PathBuf>,
    /// The shim's pid while it lives.
    pub shim_pid: Option<i32>,
}
