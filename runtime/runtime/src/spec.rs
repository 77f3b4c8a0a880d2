//! From CRI fields and an image to an OCI runtime specification. Pure: everything that had to be read from the machine is in [`Input`].
//!
//! Limits and device rules are not in the result: the shim applies them itself (see `shim_protocol::StartContainer`). Namespaces that the pod's
//! containers share are not in it either, except a shared pid namespace: the shim's worker is inside them when libcontainer begins.

pub(crate) mod devices;
pub(crate) mod resources;
mod seccomp;
pub(crate) mod user;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use serde_json::{Value, json};

use crate::container::{ContainerConfig, MountPropagation, SecurityProfile};
use crate::error::Error;
use crate::sandbox::{NamespaceMode, SandboxConfig};
use user::User;

/// Version of the runtime specification that is written.
const OCI_VERSION: &str = "1.2.0";
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// As containerd's default.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// All that Linux has, by number (`linux/capability.h`).
const ALL_CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    // Power readings give away what others compute (GHSA-7ww5-4wqc-m92c).
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
];

const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What a specification is made from.
pub(crate) struct Input<'a> {
    /// The pod.
    pub sandbox: &'a SandboxConfig,
    /// The container.
    pub container: &'a ContainerConfig,
    /// Its image's config.
    pub image: &'a ImageConfiguration,
    /// Who it runs as.
    pub user: &'a User,
    /// What the process holds by itself: all of the caller's bounding set.
    pub bounding: &'a BTreeSet<String>,
    /// Files of the pod: `hostname`, `hosts`, `resolv.conf`.
    pub sandbox_dir: &'a Path,
    /// The pod's /dev/shm.
    pub shm: &'a Path,
    /// The machine has only cgroup v2.
    pub cgroup_v2: bool,
    /// The kernel has AppArmor.
    pub apparmor: bool,
    /// Pid of the container whose pid namespace is joined.
    pub target_pid: Option<i32>,
    /// Content of a `Localhost` seccomp profile.
    pub seccomp_file: Option<Value>,
    /// Places of Bidirectional mounts in the bundle, by index of the mount.
    pub staged: &'a [(usize, PathBuf)],
    /// Nodes of all host devices (privileged) and of the asked-for ones.
    pub devices: &'a [devices::Node],
}

fn invalid(field: &str, reason: impl Into<String>) -> Error {
    Error::InvalidArgument { field: field.into(), reason: reason.into() }
}

/// Makes the specification.
pub(crate) fn generate(input: &Input<'_>) -> Result<Value, Error> {
    let security = &input.container.security;
    let mut linux = json!({
        "namespaces": namespaces(input),
        "maskedPaths": paths(security.masked_paths.as_deref(), &MASKED_PATHS, security.privileged),
        "readonlyPaths": paths(security.readonly_paths.as_deref(), &READONLY_PATHS, security.privileged),
        "devices": input.devices.iter().map(devices::Node::to_spec).collect::<Vec<_>>(),
    });
    let capabilities = capabilities(input)?;
    if let Some(profile) = seccomp_profile(input, &capabilities)? {
        linux["seccomp"] = profile;
    }
    if let Some(propagation) = rootfs_propagation(input.container) {
        linux["rootfsPropagation"] = propagation.into();
    }
    let spec = json!({
        "ociVersion": OCI_VERSION,
        "root": { "path": "rootfs", "readonly": security.readonly_rootfs },
        "process": process(input, &capabilities)?,
        "mounts": mounts(input),
        "linux": linux,
    });
    match serde_json::from_value::<oci_spec::runtime::Spec>(spec.clone()) {
        Ok(_) => Ok(spec),
        Err(error) => Err(invalid("container config", format!("makes no OCI specification: {error}"))),
    }
}

fn process(input: &Input<'_>, capabilities: &BTreeSet<String>) -> Result<Value, Error> {
    let container = input.container;
    let mut process = json!({
        "terminal": container.tty,
        "user": { "uid": input.user.uid, "gid": input.user.gid, "additionalGids": input.user.groups },
        "args": arguments(input)?,
        "env": environment(input),
        "cwd": working_directory(input),
        "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
    });
    // Absent and false mean different things to libcontainer: with `false` it would load the filter too late.
    if container.security.no_new_privs {
        process["noNewPrivileges"] = true.into();
    }
    let rlimits = &container.security.rlimits;
    if !rlimits.is_empty() {
        let one =
            |(name, soft, hard): &(String, u64, u64)| json!({ "type": name, "soft": soft, "hard": hard });
        process["rlimits"] = rlimits.iter().map(one).collect();
    }
    match (&container.security.apparmor, input.apparmor) {
        (SecurityProfile::Localhost(name), true) => process["apparmorProfile"] = name.as_str().into(),
        (SecurityProfile::Localhost(name), false) => {
            return Err(Error::Unsupported {
                what: format!("apparmor profile \"{name}\": the kernel has no AppArmor"),
            });
        }
        _ => {}
    }
    Ok(process)
}

/// Kubernetes' rule: a command replaces both of the image's lists, args alone replace its cmd.
pub(crate) fn arguments(input: &Input<'_>) -> Result<Vec<String>, Error> {
    let image = input.image.config().as_ref();
    let entrypoint = image.and_then(|config| config.entrypoint().clone()).unwrap_or_default();
    let cmd = image.and_then(|config| config.cmd().clone()).unwrap_or_default();
    let container = input.container;
    let arguments: Vec<String> = match (container.command.is_empty(), container.args.is_empty()) {
        (false, _) => container.command.iter().chain(&container.args).cloned().collect(),
        (true, false) => entrypoint.into_iter().chain(container.args.clone()).collect(),
        (true, true) => entrypoint.into_iter().chain(cmd).collect(),
    };
    if arguments.is_empty() {
        return Err(invalid("command", "no command specified"));
    }
    Ok(arguments)
}

fn working_directory(input: &Input<'_>) -> String {
    let image =
        input.image.config().as_ref().and_then(|config| config.working_dir().clone()).unwrap_or_default();
    let chosen = [&input.container.working_dir, &image].into_iter().find(|directory| !directory.is_empty());
    match chosen {
        Some(directory) if directory.starts_with('/') => directory.clone(),
        Some(directory) => format!("/{directory}"),
        None => "/".into(),
    }
}

/// Later values win; the order is: defaults, image, container.
fn environment(input: &Input<'_>) -> Vec<String> {
    let mut environment = vec![DEFAULT_PATH.to_owned()];
    if !input.sandbox.hostname.is_empty() {
        environment.push(format!("HOSTNAME={}", input.sandbox.hostname));
    }
    if input.container.tty {
        environment.push("TERM=xterm".into());
    }
    let mut set = |entry: String| {
        let key = entry.split('=').next().unwrap_or_default().to_owned();
        environment.retain(|other| other.split('=').next() != Some(&key));
        environment.push(entry);
    };
    let image = input.image.config().as_ref().and_then(|config| config.env().clone()).unwrap_or_default();
    image.into_iter().for_each(&mut set);
    input.container.env.iter().map(|(key, value)| format!("{key}={value}")).for_each(&mut set);
    environment
}

fn capabilities(input: &Input<'_>) -> Result<BTreeSet<String>, Error> {
    let security = &input.container.security;
    let all = || ALL_CAPABILITIES.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let known = |names: &[String]| -> Result<(bool, Vec<String>), Error> {
        let mut list = Vec::new();
        let mut everything = false;
        for name in names {
            let upper = name.to_ascii_uppercase();
            let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
            if full == "CAP_ALL" {
                everything = true;
            } else if ALL_CAPABILITIES.contains(&full.as_str()) {
                list.push(full);
            } else {
                return Err(invalid("capabilities", format!("unknown capability \"{name}\"")));
            }
        }
        Ok((everything, list))
    };
    let (add_all, added) = known(&security.add_capabilities)?;
    let (drop_all, dropped) = known(&security.drop_capabilities)?;
    let mut set = match (security.privileged || add_all, drop_all) {
        (true, _) => all(),
        (false, true) => BTreeSet::new(),
        (false, false) => DEFAULT_CAPABILITIES.iter().map(|name| (*name).to_owned()).collect(),
    };
    if !security.privileged {
        set.extend(added);
        set.retain(|name| !dropped.contains(name));
    }
    // What the runtime itself does not hold, it cannot give.
    set.retain(|name| input.bounding.contains(name));
    Ok(set)
}

/// The runtime's own bounding set, from the hexadecimal mask of `/proc/self/status`.
pub(crate) fn capabilities_of_mask(mask: u64) -> BTreeSet<String> {
    let held = |(number, _): &(usize, &&str)| mask & (1 << *number) != 0;
    ALL_CAPABILITIES.iter().enumerate().filter(held).map(|(_, name)| (*name).to_owned()).collect()
}

fn seccomp_profile(input: &Input<'_>, capabilities: &BTreeSet<String>) -> Result<Option<Value>, Error> {
    let security = &input.container.security;
    if security.privileged {
        return Ok(None);
    }
    match &security.seccomp {
        SecurityProfile::Unconfined => Ok(None),
        SecurityProfile::RuntimeDefault => Ok(Some(seccomp::runtime_default(capabilities))),
        SecurityProfile::Localhost(path) => match &input.seccomp_file {
            Some(profile) => Ok(Some(profile.clone())),
            None => Err(invalid("seccomp", format!("profile \"{path}\" was not read"))),
        },
    }
}

fn namespaces(input: &Input<'_>) -> Value {
    let mut list = vec![json!({ "type": "mount" })];
    if input.cgroup_v2 {
        list.push(json!({ "type": "cgroup" }));
    }
    match (input.target_pid, input.sandbox.linux.namespaces.pid) {
        (Some(pid), _) => list.push(json!({ "type": "pid", "path": format!("/proc/{pid}/ns/pid") })),
        (None, NamespaceMode::Container) => list.push(json!({ "type": "pid" })),
        (None, NamespaceMode::Pod) => {
            let path = format!("/proc/self/fd/{}", shim_protocol::PID_NAMESPACE_FD);
            list.push(json!({ "type": "pid", "path": path }));
        }
        (None, NamespaceMode::Node) => {}
    }
    list.into()
}

fn paths(wanted: Option<&[String]>, default: &[&str], privileged: bool) -> Value {
    match wanted {
        _ if privileged => json!([]),
        Some(wanted) => json!(wanted),
        None => json!(default),
    }
}

fn rootfs_propagation(container: &ContainerConfig) -> Option<&'static str> {
    let any = |kind| container.mounts.iter().any(|mount| mount.propagation == kind);
    if any(MountPropagation::Bidirectional) {
        Some("shared")
    } else if any(MountPropagation::HostToContainer) {
        Some("slave")
    } else {
        None
    }
}

/// Where containers see the files of their pod.
pub const POD_FILES: [(&str, &str); 3] =
    [("/etc/hostname", "hostname"), ("/etc/hosts", "hosts"), ("/etc/resolv.conf", "resolv.conf")];

fn mounts(input: &Input<'_>) -> Value {
    let privileged = input.container.security.privileged;
    let taken: BTreeSet<&str> =
        input.container.mounts.iter().map(|mount| mount.container_path.trim_end_matches('/')).collect();
    let mut list = base_mounts(input.cgroup_v2, privileged);
    list.retain(|mount| !taken.contains(mount["destination"].as_str().unwrap_or_default()));
    let own = |destination: &str, source: PathBuf, options: Value| {
        (!taken.contains(destination)).then(
            || json!({ "destination": destination, "type": "bind", "source": source, "options": options }),
        )
    };
    list.extend(own(
        "/dev/shm",
        input.shm.to_path_buf(),
        json!(["rbind", "rprivate", "nosuid", "nodev", "noexec"]),
    ));
    let access = if input.container.security.readonly_rootfs { "ro" } else { "rw" };
    for (destination, file) in POD_FILES {
        list.extend(own(destination, input.sandbox_dir.join(file), json!(["rbind", "rprivate", access])));
    }
    for (index, mount) in input.container.mounts.iter().enumerate() {
        let staged = input.staged.iter().find(|(other, _)| *other == index).map(|(_, path)| path);
        let access = match (mount.readonly, mount.recursive_read_only) {
            (_, true) => "rro",
            (true, false) => "ro",
            (false, false) => "rw",
        };
        let propagation = match mount.propagation {
            MountPropagation::Private => "rprivate",
            MountPropagation::HostToContainer => "rslave",
            MountPropagation::Bidirectional => "rshared",
        };
        list.push(json!({
            "destination": mount.container_path,
            "type": "bind",
            "source": staged.unwrap_or(&mount.host_path),
            "options": ["rbind", propagation, access],
        }));
    }
    list.into()
}

fn base_mounts(cgroup_v2: bool, privileged: bool) -> Vec<Value> {
    let sys = if privileged { "rw" } else { "ro" };
    let mut list = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] }),
        json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] }),
        json!({ "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", sys] }),
    ];
    if cgroup_v2 {
        list.push(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup2", "source": "cgroup",
            "options": [sys, "nosuid", "noexec", "nodev", "relatime"] }));
    }
    list
}

/// The `process` object of an exec: the container's own, with another command.
pub(crate) fn exec_process(container_spec: &Value, command: &[String], tty: bool) -> Value {
    let mut process = container_spec["process"].clone();
    process["args"] = json!(command);
    process["terminal"] = tty.into();
    if tty && let Some(environment) = process["env"].as_array_mut() {
        let has_term =
            environment.iter().any(|entry| entry.as_str().is_some_and(|text| text.starts_with("TERM=")));
        if !has_term {
            environment.push("TERM=xterm".into());
        }
    }
    process
}
