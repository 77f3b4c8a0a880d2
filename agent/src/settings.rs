//! What the agent is told: raw strings from flags and an optional file, validated once into [`Settings`].
//!
//! In: [`Flags`] (command line over file over what the machine itself knows). Out: values that the rest of the agent uses
//! without checking again. A wrong value is an error that names the key, the value and what was expected; an unknown key in
//! the file is an error too. Reads nothing of the API and creates nothing.

mod machine;
mod node_labels;
mod proxy;
pub mod quantity;
mod raw;
mod registries;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use serde::Serialize;

pub use machine::{Machine, route_source};
pub use proxy::{NodePortAddresses, ProxyFlags, ProxySettings, ProxyTask, Surroundings};
pub use raw::{Command, Flags, Raw};
pub use registries::read as read_registries;

#[cfg(test)]
mod tests;

/// Who translates Services on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceProxy {
    /// Our BPF programs.
    Ebpf,
    /// Somebody else, such as kube-proxy.
    None,
}

/// Who enforces NetworkPolicies on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyEnforcement {
    /// Our BPF programs.
    Ebpf,
    /// Somebody else, such as the network's own plugin, or nobody.
    None,
}

/// How packets get to the pods of other nodes; the names are flannel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkBackend {
    /// As they are, to nodes on the same network.
    HostGw,
    /// Wrapped in UDP.
    Vxlan,
    /// Encrypted.
    Wireguard,
    /// Somebody else sees to the pods' network, and writes the CNI configuration.
    None,
}

/// Whether packets of known flows are sent on by the drivers of the uplinks; the words are Cilium's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UplinkAcceleration {
    Disabled,
    /// Where the driver can.
    BestEffort,
    /// By each driver, or the agent does not start.
    Native,
}

impl UplinkAcceleration {
    pub fn of_dataplane(self) -> dataplane::Acceleration {
        match self {
            Self::Disabled => dataplane::Acceleration::Disabled,
            Self::BestEffort => dataplane::Acceleration::BestEffort,
            Self::Native => dataplane::Acceleration::Native,
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

/// What the node keeps for itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reserved {
    pub cpu_millis: i64,
    pub memory_bytes: i64,
    pub ephemeral_storage_bytes: i64,
}

/// The addresses by which others reach a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeIps {
    /// The kubelet API listens here.
    pub v4: Ipv4Addr,
    pub v6: Option<Ipv6Addr>,
}

impl NodeIps {
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        [Some(self.v4.into()), self.v6.map(IpAddr::V6)].into_iter().flatten()
    }

    /// Of the same family as `other`.
    pub fn like(&self, other: &IpNetwork) -> Option<IpAddr> {
        self.iter().find(|ip| ip.is_ipv4() == other.is_ipv4())
    }
}

/// As the setting is written.
impl std::fmt::Display for NodeIps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.v4)?;
        self.v6.map_or(Ok(()), |v6| write!(f, ",{v6}"))
    }
}

impl Serialize for NodeIps {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Validated settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// `metadata.name` of the Node.
    pub node_name: String,
    /// InternalIPs of the Node.
    #[serde(rename = "nodeIp")]
    pub node_ips: NodeIps,
    /// Labels that the Node gets at registration, besides the well-known ones.
    pub node_labels: BTreeMap<String, String>,
    pub kubeconfig: PathBuf,
    /// Durable state.
    pub root_dir: PathBuf,
    /// Volatile state.
    pub state_dir: PathBuf,
    /// Container logs: `<log_dir>/<namespace>_<name>_<uid>/<container>/<n>.log`.
    pub log_dir: PathBuf,
    /// The shim's executable.
    pub shim: PathBuf,
    pub cni_conf_dir: PathBuf,
    pub cni_bin_dirs: Vec<PathBuf>,
    /// Where the control groups are mounted.
    pub cgroup_root: PathBuf,
    /// Relative to the root, with a leading slash; pods go to `<cgroup_parent>/kubepods/…`.
    pub cgroup_parent: String,
    /// The kubelet API's serving certificate and key, PEM.
    pub tls_cert_file: PathBuf,
    pub tls_private_key_file: PathBuf,
    /// Who may sign client certificates of the kubelet API, PEM.
    pub client_ca_file: PathBuf,
    /// Port of the kubelet API.
    pub port: u16,
    /// Name servers of pods with dnsPolicy ClusterFirst; empty: they get the node's.
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    pub max_pods: u32,
    /// How long the Node's Lease holds; it is renewed four times in that.
    pub node_lease_duration_seconds: i32,
    /// All pods of the cluster, a network of each family: never masqueraded towards each other.
    #[serde(serialize_with = "with_commas")]
    pub cluster_cidr: Vec<IpNetwork>,
    pub network_backend: NetworkBackend,
    pub service_proxy: ServiceProxy,
    pub network_policy: PolicyEnforcement,
    /// Links that traffic from outside comes in by; empty: the links of the default route and of the node's address.
    pub uplinks: Vec<String>,
    pub uplink_acceleration: UplinkAcceleration,
    pub bpf_pin_root: PathBuf,
    /// Sockets of processes in this cgroup and below are translated.
    pub dataplane_cgroup: PathBuf,
    pub registries_file: Option<PathBuf>,
    /// OCI archives here are imported at start.
    pub image_archives_dir: Option<PathBuf>,
    /// A container that is out of memory loses one process, not all of them.
    #[serde(rename = "singleProcessOOMKill")]
    pub single_process_oom_kill: bool,
    pub system_reserved: Reserved,
    pub log_format: LogFormat,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read settings file {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("parse settings file {path}: {reason}")]
    Parse { path: PathBuf, reason: String },
    #[error("setting {key}: \"{value}\" is not {expected}")]
    Invalid { key: &'static str, value: String, expected: &'static str },
    #[error(
        "unknown 'kubernetes.io' or 'k8s.io' labels specified with --node-labels: [{labels}]\n--node-labels in the \
         'kubernetes.io' namespace must begin with an allowed prefix ({namespaces}) or be in the specifically allowed set \
         ({allowed})"
    )]
    ForeignLabels { labels: String, namespaces: String, allowed: String },
    #[error("no way to the API server: {reason}; give --kubeconfig, or run in a pod")]
    NoAccess { reason: &'static str },
    #[error("setting {key} is missing: give --{flag}")]
    Missing { key: &'static str, flag: &'static str },
    #[error(
        "invalid configuration: singleProcessOOMKill must not be explicitly set to false when using cgroup v1"
    )]
    GroupKill,
}

impl Settings {
    /// Reads the file that the flags name, asks the machine for what neither says, and validates.
    pub fn load(flags: Flags) -> Result<Self, Error> {
        let file = match &flags.config {
            Some(path) => Raw::read(path)?,
            None => Raw::default(),
        };
        let raw = flags.settings.or(file);
        let machine = Machine::read(Path::new(raw.cgroup_root.as_deref().unwrap_or(machine::CGROUP_ROOT)));
        Self::validate(raw, &machine)
    }

    /// The second step: every value is checked, none is looked up. Pure.
    pub fn validate(raw: Raw, machine: &Machine) -> Result<Self, Error> {
        let root_dir = absolute("rootDir", raw.root_dir, "/var/lib/orlop")?;
        let state_dir = absolute("stateDir", raw.state_dir, "/run/orlop")?;
        Ok(Self {
            node_name: node_name(raw.node_name, machine)?,
            node_ips: node_ips(raw.node_ip, machine)?,
            node_labels: node_labels::validate(&raw.node_labels)?,
            kubeconfig: required("kubeconfig", "kubeconfig", raw.kubeconfig)?,
            log_dir: absolute("logDir", raw.log_dir, "/var/log/pods")?,
            shim: shim(raw.shim, machine)?,
            cni_conf_dir: absolute("cniConfDir", raw.cni_conf_dir, "/etc/cni/net.d")?,
            cni_bin_dirs: absolute_list("cniBinDirs", raw.cni_bin_dirs, "/opt/cni/bin")?,
            cgroup_root: absolute("cgroupRoot", raw.cgroup_root, machine::CGROUP_ROOT)?,
            cgroup_parent: cgroup_parent(raw.cgroup_parent)?,
            tls_cert_file: required("tlsCertFile", "tls-cert-file", raw.tls_cert_file)?,
            tls_private_key_file: required(
                "tlsPrivateKeyFile",
                "tls-private-key-file",
                raw.tls_private_key_file,
            )?,
            client_ca_file: required("clientCaFile", "client-ca-file", raw.client_ca_file)?,
            port: number("port", raw.port, 10250, "a port from 1 to 65535", |port| port != 0)?,
            cluster_dns: raw.cluster_dns.iter().map(|text| address(text)).collect::<Result<_, _>>()?,
            cluster_domain: cluster_domain(raw.cluster_domain)?,
            max_pods: number("maxPods", raw.max_pods, 110, "a number of pods from 1 on", |pods| pods != 0)?,
            node_lease_duration_seconds: number(
                "nodeLeaseDurationSeconds",
                raw.node_lease_duration_seconds,
                40,
                "a number of seconds from 1 on",
                |seconds| seconds > 0,
            )?,
            cluster_cidr: networks(raw.cluster_cidr)?,
            network_backend: network_backend(raw.network_backend)?,
            service_proxy: service_proxy(raw.service_proxy)?,
            network_policy: network_policy(raw.network_policy)?,
            uplinks: raw.uplinks.into_iter().map(link_name).collect::<Result<_, _>>()?,
            uplink_acceleration: uplink_acceleration("uplinkAcceleration", raw.uplink_acceleration)?,
            bpf_pin_root: absolute("bpfPinRoot", raw.bpf_pin_root, "/sys/fs/bpf/orlop")?,
            dataplane_cgroup: dataplane_cgroup(raw.dataplane_cgroup, machine)?,
            registries_file: optional("registriesFile", raw.registries_file)?,
            image_archives_dir: optional("imageArchivesDir", raw.image_archives_dir)?,
            single_process_oom_kill: single_process_oom_kill(raw.single_process_oom_kill, machine)?,
            system_reserved: reserved(&raw.system_reserved)?,
            log_format: log_format(raw.log_format)?,
            root_dir,
            state_dir,
        })
    }

    /// The settings as YAML, as `--print-config` shows them.
    pub fn to_yaml(&self) -> Result<String, serde_yaml_ng::Error> {
        serde_yaml_ng::to_string(self)
    }

    /// The runtime's own configuration.
    pub fn runtime(&self, registries: runtime::Registries) -> runtime::Config {
        runtime::Config {
            root: self.root_dir.join("runtime"),
            state: self.state_dir.clone(),
            shim: self.shim.clone(),
            cni_conf_dir: self.cni_conf_dir.clone(),
            cni_bin_dirs: self.cni_bin_dirs.clone(),
            cni_cache_dir: self.state_dir.join("cni/cache"),
            cgroup_root: self.cgroup_root.clone(),
            shim_cgroup: Some(format!("{}/shims", self.cgroup_parent.trim_end_matches('/'))),
            registries,
        }
    }

    /// What the node keeps of its pods, a folder for each.
    pub fn pods_dir(&self) -> PathBuf {
        self.root_dir.join("pods")
    }

    /// The unix socket that `orlopctl` asks.
    pub fn admin_socket(&self) -> PathBuf {
        self.state_dir.join("agent.sock")
    }
}

fn invalid(key: &'static str, value: impl Into<String>, expected: &'static str) -> Error {
    Error::Invalid { key, value: value.into(), expected }
}

fn absolute(key: &'static str, value: Option<String>, default: &str) -> Result<PathBuf, Error> {
    let value = value.unwrap_or_else(|| default.to_owned());
    if Path::new(&value).is_absolute() {
        Ok(value.into())
    } else {
        Err(invalid(key, value, "an absolute path"))
    }
}

fn absolute_list(key: &'static str, values: Vec<String>, default: &str) -> Result<Vec<PathBuf>, Error> {
    let values = if values.is_empty() { vec![default.to_owned()] } else { values };
    values.into_iter().map(|value| absolute(key, Some(value), default)).collect()
}

fn optional(key: &'static str, value: Option<String>) -> Result<Option<PathBuf>, Error> {
    value.map(|value| absolute(key, Some(value), "")).transpose()
}

fn required(key: &'static str, flag: &'static str, value: Option<String>) -> Result<PathBuf, Error> {
    optional(key, value)?.ok_or(Error::Missing { key, flag })
}

fn number<T: std::str::FromStr + Copy>(
    key: &'static str,
    value: Option<String>,
    default: T,
    expected: &'static str,
    valid: impl Fn(T) -> bool,
) -> Result<T, Error> {
    let Some(text) = value else { return Ok(default) };
    text.parse().ok().filter(|number| valid(*number)).ok_or_else(|| invalid(key, text, expected))
}

fn node_name(value: Option<String>, machine: &Machine) -> Result<String, Error> {
    // The kubelet takes the host name in lower case, too.
    let name = value
        .or_else(|| machine.hostname.as_ref().map(|name| name.to_lowercase()))
        .ok_or(Error::Missing { key: "nodeName", flag: "node-name" })?;
    if is_dns_subdomain(&name) {
        Ok(name)
    } else {
        Err(invalid("nodeName", name, "a DNS subdomain: lower-case letters, digits, '-' and '.'"))
    }
}

/// One that needs a link beside it, or that is one of IPv4.
fn is_of_no_use(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local() || ip.to_ipv4_mapped().is_some())
}

/// One address, or one of each family in either order with a comma between them (kubelet).
fn node_ips(value: Option<String>, machine: &Machine) -> Result<NodeIps, Error> {
    let Some(text) = value else {
        let v4 = machine.address.ok_or(Error::Missing { key: "nodeIp", flag: "node-ip" })?;
        return Ok(NodeIps { v4, v6: None });
    };
    let address = |part: &str| {
        let ip: Option<IpAddr> = part.trim().parse().ok();
        ip.filter(|ip| !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast() && !is_of_no_use(ip))
    };
    let all: Vec<Option<IpAddr>> = text.split(',').map(address).collect();
    match all.as_slice() {
        [Some(IpAddr::V4(v4))] => Ok(NodeIps { v4: *v4, v6: None }),
        [Some(IpAddr::V4(v4)), Some(IpAddr::V6(v6))] | [Some(IpAddr::V6(v6)), Some(IpAddr::V4(v4))] => {
            Ok(NodeIps { v4: *v4, v6: Some(*v6) })
        }
        _ => {
            let expected = "an IPv4 address of this machine other than loopback, or one and an IPv6 address with a \
                            comma between them";
            Err(invalid("nodeIp", text, expected))
        }
    }
}

fn shim(value: Option<String>, machine: &Machine) -> Result<PathBuf, Error> {
    match (value, &machine.program_dir) {
        (Some(value), _) => absolute("shim", Some(value), ""),
        (None, Some(dir)) => Ok(dir.join("orlop-shim")),
        (None, None) => absolute("shim", None, "/usr/local/bin/orlop-shim"),
    }
}

fn cgroup_parent(value: Option<String>) -> Result<String, Error> {
    let value = value.unwrap_or_else(|| "/orlop".to_owned());
    let inside = value.starts_with('/') && !value.split('/').any(|part| part == "." || part == "..");
    if inside {
        Ok(value.trim_end_matches('/').to_owned())
    } else {
        Err(invalid("cgroupParent", value, "a path from the root of the control groups, such as /orlop"))
    }
}

fn dataplane_cgroup(value: Option<String>, machine: &Machine) -> Result<PathBuf, Error> {
    match (value, &machine.unified_hierarchy) {
        (Some(value), _) => absolute("dataplaneCgroup", Some(value), ""),
        (None, Some(path)) => Ok(path.clone()),
        (None, None) => Err(Error::Missing { key: "dataplaneCgroup", flag: "dataplane-cgroup" }),
    }
}

fn address(text: &str) -> Result<IpAddr, Error> {
    text.parse().map_err(|_| invalid("clusterDns", text, "an IP address"))
}

/// One network, or one of each family with a comma between them.
fn networks(value: Option<String>) -> Result<Vec<IpNetwork>, Error> {
    let Some(text) = value else { return Ok(Vec::new()) };
    let network = |part: &str| {
        let network: Option<IpNetwork> = part.trim().parse().ok();
        network.filter(|network| network.network() == network.ip() && part.contains('/'))
    };
    let all: Option<Vec<IpNetwork>> = text.split(',').map(network).collect();
    let fits = |all: &Vec<IpNetwork>| match all.as_slice() {
        [one, other] => one.is_ipv4() != other.is_ipv4(),
        all => all.len() == 1,
    };
    let expected =
        "a network such as 10.244.0.0/16, or one of IPv4 and one of IPv6 with a comma between them";
    all.filter(fits).ok_or_else(|| invalid("clusterCidr", text, expected))
}

fn with_commas<S: serde::Serializer>(networks: &[IpNetwork], serializer: S) -> Result<S::Ok, S::Error> {
    let all: Vec<String> = networks.iter().map(ToString::to_string).collect();
    let text = Some(all.join(",")).filter(|text| !text.is_empty());
    text.serialize(serializer)
}

fn network_backend(value: Option<String>) -> Result<NetworkBackend, Error> {
    match value.as_deref() {
        None | Some("host-gw") => Ok(NetworkBackend::HostGw),
        Some("vxlan") => Ok(NetworkBackend::Vxlan),
        Some("wireguard") => Ok(NetworkBackend::Wireguard),
        Some("none") => Ok(NetworkBackend::None),
        Some(other) => Err(invalid("networkBackend", other, "one of host-gw, vxlan, wireguard and none")),
    }
}

fn cluster_domain(value: Option<String>) -> Result<String, Error> {
    let value = value.unwrap_or_else(|| "cluster.local".to_owned());
    let domain = value.trim_end_matches('.');
    if is_dns_subdomain(domain) {
        Ok(domain.to_owned())
    } else {
        Err(invalid("clusterDomain", value, "a DNS domain such as cluster.local"))
    }
}

fn service_proxy(value: Option<String>) -> Result<ServiceProxy, Error> {
    match value.as_deref() {
        None | Some("ebpf") => Ok(ServiceProxy::Ebpf),
        Some("none") => Ok(ServiceProxy::None),
        Some(other) => Err(invalid("serviceProxy", other, "one of ebpf and none")),
    }
}

fn network_policy(value: Option<String>) -> Result<PolicyEnforcement, Error> {
    match value.as_deref() {
        None | Some("ebpf") => Ok(PolicyEnforcement::Ebpf),
        Some("none") => Ok(PolicyEnforcement::None),
        Some(other) => Err(invalid("networkPolicy", other, "one of ebpf and none")),
    }
}

fn uplink_acceleration(key: &'static str, value: Option<String>) -> Result<UplinkAcceleration, Error> {
    match value.as_deref() {
        None | Some("disabled") => Ok(UplinkAcceleration::Disabled),
        Some("best-effort") => Ok(UplinkAcceleration::BestEffort),
        Some("native") => Ok(UplinkAcceleration::Native),
        Some(other) => Err(invalid(key, other, "one of disabled, best-effort and native")),
    }
}

/// cgroup v1 cannot end a container as a whole, so nobody may ask for that there.
fn single_process_oom_kill(value: Option<String>, machine: &Machine) -> Result<bool, Error> {
    match (value.as_deref(), machine.cgroup_v1) {
        (Some("false"), true) => Err(Error::GroupKill),
        (Some("true"), _) | (None, true) => Ok(true),
        (Some("false") | None, false) => Ok(false),
        (Some(other), _) => Err(invalid("singleProcessOOMKill", other, "true or false")),
    }
}

fn log_format(value: Option<String>) -> Result<LogFormat, Error> {
    match value.as_deref() {
        None | Some("text") => Ok(LogFormat::Text),
        Some("json") => Ok(LogFormat::Json),
        Some(other) => Err(invalid("logFormat", other, "one of text and json")),
    }
}

fn link_name(name: String) -> Result<String, Error> {
    // IFNAMSIZ is 16 with the closing zero byte.
    let usable = !name.is_empty() && name.len() < 16 && !name.contains(['/', ' ', '\0']);
    if usable { Ok(name) } else { Err(invalid("uplinks", name, "the name of a link, at most 15 bytes")) }
}

fn reserved(pairs: &[String]) -> Result<Reserved, Error> {
    let expected = "cpu=, memory= or ephemeral-storage= with a quantity, such as memory=100Mi";
    let mut reserved = Reserved::default();
    for pair in pairs {
        let wrong = || invalid("systemReserved", pair, expected);
        let (resource, text) = pair.split_once('=').ok_or_else(wrong)?;
        let amount = quantity::parse(text).filter(|amount| amount.millis() >= 0).ok_or_else(wrong)?;
        match resource {
            "cpu" => reserved.cpu_millis = amount.saturating_millis(),
            "memory" => reserved.memory_bytes = amount.units(),
            "ephemeral-storage" => reserved.ephemeral_storage_bytes = amount.units(),
            _ => return Err(wrong()),
        }
    }
    Ok(reserved)
}

/// RFC 1123 subdomain, as the API server checks names of Nodes.
fn is_dns_subdomain(name: &str) -> bool {
    let label = |part: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !part.is_empty() && part.chars().all(inner) && !part.starts_with('-') && !part.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// Value of a label, or the part of its key after the slash.
fn is_label_text(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63 && text.chars().all(inner) && edge(text.chars().next()) && edge(text.chars().next_back())
}
