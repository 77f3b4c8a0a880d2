//! What a container is to a caller: CRI v1's ContainerConfig in Rust types, and what the runtime reports about one.
//!
//! Only data. Names, defaults and meanings are those of `k8s.io/cri-api` v1.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::sandbox::SandboxId;

/// Identifies a container: 64 hexadecimal digits, made by the runtime.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContainerId(pub(crate) String);

impl ContainerId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for ContainerId {
    fn from(text: String) -> Self {
        ContainerId(text)
    }
}

impl std::fmt::Display for ContainerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// ContainerConfig.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Name within the pod.
    pub name: String,
    /// How often it was made before.
    pub attempt: u32,
    /// Image reference or image id; it must be present (`Runtime::image_status`).
    pub image: String,
    /// Replaces the image's entrypoint when not empty (and then its cmd too).
    pub command: Vec<String>,
    /// Replaces the image's cmd when not empty.
    pub args: Vec<String>,
    /// Empty: the image's.
    pub working_dir: String,
    /// Added to, or replacing, the image's.
    pub env: Vec<(String, String)>,
    /// Bind mounts, in order.
    pub mounts: Vec<Mount>,
    /// Host devices.
    pub devices: Vec<Device>,
    /// Labels, for the caller's own use.
    pub labels: BTreeMap<String, String>,
    /// Annotations, for the caller's own use.
    pub annotations: BTreeMap<String, String>,
    /// Below the sandbox's log directory. Empty: no log.
    pub log_path: String,
    /// Keep stdin open for `attach`.
    pub stdin: bool,
    /// Close stdin when the first `attach` that had it ends.
    pub stdin_once: bool,
    /// Give it a terminal.
    pub tty: bool,
    /// Limits.
    pub resources: Resources,
    /// Who it is and what it may do.
    pub security: SecurityContext,
    /// Signal of `stop_container`; empty: the image's, or SIGTERM.
    pub stop_signal: String,
}

/// Mount of a host path.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Mount {
    /// Path inside the container.
    pub container_path: String,
    /// Path on the node. A missing one is created as a directory, as containerd does.
    pub host_path: PathBuf,
    /// Read only.
    pub readonly: bool,
    /// Read only below too (needs `readonly` and private propagation).
    pub recursive_read_only: bool,
    /// How mounts made later travel.
    pub propagation: MountPropagation,
}

/// MountPropagation.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub enum MountPropagation {
    /// None (rprivate).
    #[default]
    Private,
    /// HostToContainer (rslave).
    HostToContainer,
    /// Bidirectional (rshared).
    Bidirectional,
}

/// Device of the host.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Device {
    /// Path inside the container.
    pub container_path: String,
    /// Path on the node.
    pub host_path: PathBuf,
    /// Some of `r`, `w`, `m`.
    pub permissions: String,
}

/// LinuxContainerResources. Zero and empty mean: not set.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Resources {
    /// Length of a CFS period in microseconds.
    pub cpu_period: u64,
    /// CFS quota in microseconds; negative: no limit.
    pub cpu_quota: i64,
    /// Relative weight, 2 to 262144.
    pub cpu_shares: u64,
    /// Bytes.
    pub memory_limit: i64,
    /// Memory and swap together, bytes; negative: no limit.
    pub memory_swap_limit: i64,
    /// oom_score_adj of the container's processes.
    pub oom_score_adj: Option<i32>,
    /// CPUs, in cpuset list format.
    pub cpuset_cpus: String,
    /// Memory nodes, in cpuset list format.
    pub cpuset_mems: String,
    /// Largest number of tasks.
    pub pids_limit: i64,
    /// Huge page limits: page size (`2MB`) and bytes.
    pub hugepage_limits: Vec<(String, u64)>,
    /// Raw cgroup v2 files (`memory.high`) and values; rejected where the machine has v1 controllers.
    pub unified: BTreeMap<String, String>,
}

/// LinuxContainerSecurityContext.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SecurityContext {
    /// Everything that is allowed to the node's root.
    pub privileged: bool,
    /// Added capabilities without `CAP_`; `ALL` for all.
    pub add_capabilities: Vec<String>,
    /// Dropped capabilities without `CAP_`; `ALL` for all.
    pub drop_capabilities: Vec<String>,
    /// User id; wins over `run_as_username`.
    pub run_as_user: Option<i64>,
    /// Group id; needs a user.
    pub run_as_group: Option<i64>,
    /// User name, resolved in the image's /etc/passwd.
    pub run_as_username: String,
    /// Further groups.
    pub supplemental_groups: Vec<i64>,
    /// Whether the groups that /etc/group gives the user are added.
    pub supplemental_groups_policy: SupplementalGroupsPolicy,
    /// Root file system mounted read only.
    pub readonly_rootfs: bool,
    /// no_new_privs.
    pub no_new_privs: bool,
    /// Paths to hide; `None` takes the default list.
    pub masked_paths: Option<Vec<String>>,
    /// Paths to make read only; `None` takes the default list.
    pub readonly_paths: Option<Vec<String>>,
    /// Seccomp.
    pub seccomp: SecurityProfile,
    /// AppArmor. `Localhost` is refused where the kernel has no AppArmor; `RuntimeDefault` means no profile, since the runtime loads none.
    pub apparmor: SecurityProfile,
    /// Pid namespace of another container of the pod (`kubectl debug --target`).
    pub target_container: Option<ContainerId>,
    /// RLIMIT_… limits as (name, soft, hard).
    pub rlimits: Vec<(String, u64, u64)>,
}

/// SupplementalGroupsPolicy.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub enum SupplementalGroupsPolicy {
    /// The image's groups of the user are added.
    #[default]
    Merge,
    /// Only the given ones.
    Strict,
}

/// SecurityProfile.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub enum SecurityProfile {
    /// The runtime's own profile.
    #[default]
    RuntimeDefault,
    /// No profile.
    Unconfined,
    /// A file on the node (seccomp) or the name of a loaded profile (AppArmor).
    Localhost(String),
}

/// ContainerState.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub enum ContainerState {
    /// CONTAINER_CREATED
    Created,
    /// CONTAINER_RUNNING
    Running,
    /// CONTAINER_EXITED
    Exited,
    /// CONTAINER_UNKNOWN: nobody can say any more.
    Unknown,
}

/// ContainerStatus together with the config it was made from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Its id.
    pub id: ContainerId,
    /// Its sandbox.
    pub sandbox: SandboxId,
    /// What it was made from.
    pub config: ContainerConfig,
    /// Where it is in its life.
    pub state: ContainerState,
    /// Pid in the node's pid namespace while it lives.
    pub pid: Option<i32>,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// Nanoseconds since 1970; 0: never started.
    pub started_at: i64,
    /// Nanoseconds since 1970; 0: not finished.
    pub finished_at: i64,
    /// Valid once exited; 128 + signal for a killed one.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `Unknown`; empty before the exit.
    pub reason: String,
    /// More about the reason.
    pub message: String,
    /// Digest of the image's config: the image id.
    pub image_id: String,
    /// `name@digest` as Kubernetes reports it in `imageID`; the image id when it was never pulled.
    pub image_ref: String,
    /// Absolute path of the log; empty: none.
    pub log_path: PathBuf,
}

/// ContainerStats: the counters of a container's control group, and its writable layer.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct ContainerStats {
    /// When they were read, nanoseconds since 1970.
    pub timestamp: i64,
    /// Nanoseconds of CPU time since the start.
    pub cpu_usage_nanos: u64,
    /// Bytes: usage without inactive file pages.
    pub memory_working_set: u64,
    /// Bytes.
    pub memory_usage: u64,
    /// Bytes of anonymous memory.
    pub memory_rss: u64,
    /// Bytes still allowed; `None` without a limit.
    pub memory_available: Option<u64>,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults that needed I/O.
    pub major_page_faults: u64,
    /// Tasks now.
    pub pids: u64,
    /// Bytes in the writable layer.
    pub writable_layer_bytes: u64,
    /// Inodes in the writable layer.
    pub writable_layer_inodes: u64,
}
