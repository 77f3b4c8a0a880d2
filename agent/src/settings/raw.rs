//! The first step: flags and file as the user wrote them, and which of the two wins.
//!
//! In: the command line, a YAML or JSON file. Out: [`Raw`], all strings. Checks nothing but that keys are known.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, ProxyFlags};

/// The command line of `orlop-agent`.
#[derive(Debug, Clone, Default, clap::Parser)]
#[command(
    name = "orlop-agent",
    about = "The node agent: runs this node's pods, network and services",
    // Of a flag that is given twice the last counts, as with upstream's programs.
    args_override_self = true,
    args_conflicts_with_subcommands = true,
    version
)]
pub struct Flags {
    #[command(subcommand)]
    pub command: Option<Command>,
    /// YAML or JSON file with the same keys as --print-config shows; flags win over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the settings that would be used, as YAML, and exit
    #[arg(long)]
    pub print_config: bool,
    #[command(flatten)]
    pub settings: Raw,
}

/// What to be instead of the whole agent.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Only lead connections to Services, beside any kubelet: in kube-proxy's place
    Proxy(Box<ProxyFlags>),
}

/// Settings as text. `None` and empty lists: not said.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Raw {
    /// Name of this Node [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Address of this Node, or one of IPv4, which counts as the first, and one of IPv6 with a comma between them [default: the source address of the
    /// default route]
    #[arg(long, value_name = "IP")]
    pub node_ip: Option<String>,
    /// Label of this Node, KEY=VALUE
    #[arg(long = "node-label", value_name = "LABEL")]
    #[serde(deserialize_with = "pairs")]
    pub node_labels: Vec<String>,
    /// How to reach the API server
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<String>,
    /// Durable state [default: /var/lib/orlop]
    #[arg(long, value_name = "DIR")]
    pub root_dir: Option<String>,
    /// Volatile state [default: /run/orlop]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<String>,
    /// Container logs [default: /var/log/pods]
    #[arg(long, value_name = "DIR")]
    pub log_dir: Option<String>,
    /// The shim's executable [default: orlop-shim beside this program]
    #[arg(long, value_name = "FILE")]
    pub shim: Option<String>,
    /// CNI configurations [default: /etc/cni/net.d]
    #[arg(long, value_name = "DIR")]
    pub cni_conf_dir: Option<String>,
    /// CNI executables, searched in order [default: /opt/cni/bin]
    #[arg(long = "cni-bin-dir", value_name = "DIR")]
    pub cni_bin_dirs: Vec<String>,
    /// Where the control groups are mounted [default: /sys/fs/cgroup]
    #[arg(long, value_name = "DIR")]
    pub cgroup_root: Option<String>,
    /// Control group of all that runs here [default: /orlop]
    #[arg(long, value_name = "PATH")]
    pub cgroup_parent: Option<String>,
    /// Serving certificate of the kubelet API
    #[arg(long, value_name = "FILE")]
    pub tls_cert_file: Option<String>,
    /// Private key of that certificate
    #[arg(long, value_name = "FILE")]
    pub tls_private_key_file: Option<String>,
    /// Authorities whose client certificates the kubelet API accepts
    #[arg(long, value_name = "FILE")]
    pub client_ca_file: Option<String>,
    /// Port of the kubelet API [default: 10250]
    #[arg(long, value_name = "PORT")]
    #[serde(deserialize_with = "text")]
    pub port: Option<String>,
    /// Name server of pods
    #[arg(long, value_name = "IP")]
    pub cluster_dns: Vec<String>,
    /// DNS domain of the cluster [default: cluster.local]
    #[arg(long, value_name = "DOMAIN")]
    pub cluster_domain: Option<String>,
    /// Most pods on this node [default: 110]
    #[arg(long, value_name = "N")]
    #[serde(deserialize_with = "text")]
    pub max_pods: Option<String>,
    /// How long this Node's Lease holds [default: 40]
    #[arg(long, value_name = "SECONDS")]
    #[serde(deserialize_with = "text")]
    pub node_lease_duration_seconds: Option<String>,
    /// Network of all pods of the cluster, or one of each family with a comma between them
    #[arg(long, value_name = "CIDR")]
    pub cluster_cidr: Option<String>,
    /// How packets get to pods of other nodes: host-gw, vxlan, wireguard, or none [default: host-gw]
    #[arg(long, value_name = "BACKEND")]
    pub network_backend: Option<String>,
    /// Who translates Services: ebpf or none [default: ebpf]
    #[arg(long, value_name = "MODE")]
    pub service_proxy: Option<String>,
    /// Who enforces NetworkPolicies: ebpf (not without the service proxy) or none [default: ebpf]
    #[arg(long, value_name = "MODE")]
    pub network_policy: Option<String>,
    /// Link that traffic from outside comes in by [default: those of the default route and of the node's address]
    #[arg(long = "uplink", value_name = "LINK")]
    pub uplinks: Vec<String>,
    /// Whether drivers of uplinks send packets of known flows on by XDP: disabled, best-effort, or native [default: disabled]
    #[arg(long, value_name = "MODE")]
    pub uplink_acceleration: Option<String>,
    /// Folder on a BPF file system [default: /sys/fs/bpf/orlop]
    #[arg(long, value_name = "DIR")]
    pub bpf_pin_root: Option<String>,
    /// Control group whose sockets are translated [default: the root of the unified hierarchy]
    #[arg(long, value_name = "DIR")]
    pub dataplane_cgroup: Option<String>,
    /// YAML file with mirrors and credentials of registries
    #[arg(long, value_name = "FILE")]
    pub registries_file: Option<String>,
    /// Folder with OCI image archives to import at start
    #[arg(long, value_name = "DIR")]
    pub image_archives_dir: Option<String>,
    /// Out of memory, one process of a container ends instead of the whole container [default: false, with cgroup v1 true]
    #[arg(long, value_name = "BOOL")]
    #[serde(rename = "singleProcessOOMKill", deserialize_with = "text")]
    pub single_process_oom_kill: Option<String>,
    /// What pods do not get, RESOURCE=QUANTITY
    #[arg(long, value_name = "AMOUNT", value_delimiter = ',')]
    #[serde(deserialize_with = "reserved")]
    pub system_reserved: Vec<String>,
    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

impl Raw {
    /// Reads a settings file. An empty one says nothing.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text =
            fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|reason| Error::Parse { path: path.to_owned(), reason })
    }

    /// YAML, and with it JSON.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_yaml_ng::from_str(text).map_err(|error| error.to_string())
    }

    /// What `self` says, and where it says nothing, what `other` says.
    pub fn or(self, other: Self) -> Self {
        Self {
            node_name: self.node_name.or(other.node_name),
            node_ip: self.node_ip.or(other.node_ip),
            node_labels: list(self.node_labels, other.node_labels),
            kubeconfig: self.kubeconfig.or(other.kubeconfig),
            root_dir: self.root_dir.or(other.root_dir),
            state_dir: self.state_dir.or(other.state_dir),
            log_dir: self.log_dir.or(other.log_dir),
            shim: self.shim.or(other.shim),
            cni_conf_dir: self.cni_conf_dir.or(other.cni_conf_dir),
            cni_bin_dirs: list(self.cni_bin_dirs, other.cni_bin_dirs),
            cgroup_root: self.cgroup_root.or(other.cgroup_root),
            cgroup_parent: self.cgroup_parent.or(other.cgroup_parent),
            tls_cert_file: self.tls_cert_file.or(other.tls_cert_file),
            tls_private_key_file: self.tls_private_key_file.or(other.tls_private_key_file),
            client_ca_file: self.client_ca_file.or(other.client_ca_file),
            port: self.port.or(other.port),
            cluster_dns: list(self.cluster_dns, other.cluster_dns),
            cluster_domain: self.cluster_domain.or(other.cluster_domain),
            max_pods: self.max_pods.or(other.max_pods),
            node_lease_duration_seconds: self
                .node_lease_duration_seconds
                .or(other.node_lease_duration_seconds),
            cluster_cidr: self.cluster_cidr.or(other.cluster_cidr),
            network_backend: self.network_backend.or(other.network_backend),
            service_proxy: self.service_proxy.or(other.service_proxy),
            network_policy: self.network_policy.or(other.network_policy),
            uplinks: list(self.uplinks, other.uplinks),
            uplink_acceleration: self.uplink_acceleration.or(other.uplink_acceleration),
            bpf_pin_root: self.bpf_pin_root.or(other.bpf_pin_root),
            dataplane_cgroup: self.dataplane_cgroup.or(other.dataplane_cgroup),
            registries_file: self.registries_file.or(other.registries_file),
            image_archives_dir: self.image_archives_dir.or(other.image_archives_dir),
            single_process_oom_kill: self.single_process_oom_kill.or(other.single_process_oom_kill),
            system_reserved: list(self.system_reserved, other.system_reserved),
            log_format: self.log_format.or(other.log_format),
        }
    }
}

fn list(first: Vec<String>, second: Vec<String>) -> Vec<String> {
    if first.is_empty() { second } else { first }
}

/// A scalar of the file that people write with and without quotes.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Truth(bool),
    Integer(i64),
    Text(String),
}

impl From<Scalar> for String {
    fn from(scalar: Scalar) -> Self {
        match scalar {
            Scalar::Truth(truth) => truth.to_string(),
            Scalar::Integer(number) => number.to_string(),
            Scalar::Text(text) => text,
        }
    }
}

fn text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<Scalar>::deserialize(deserializer)?.map(String::from))
}

/// A map of the file, or a list of `key=value`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Pairs {
    List(Vec<String>),
    Map(std::collections::BTreeMap<String, Scalar>),
}

fn pairs<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(match Pairs::deserialize(deserializer)? {
        Pairs::List(list) => list,
        Pairs::Map(map) => {
            map.into_iter().map(|(key, value)| format!("{key}={}", String::from(value))).collect()
        }
    })
}

/// As [`pairs`], with the keys that `--print-config` shows.
fn reserved<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let spelled = |pair: String| match pair.split_once('=') {
        Some(("cpuMillis", value)) => format!("cpu={value}m"),
        Some(("memoryBytes", value)) => format!("memory={value}"),
        Some(("ephemeralStorageBytes", value)) => format!("ephemeral-storage={value}"),
        _ => pair,
    };
    Ok(pairs(deserializer)?.into_iter().map(spelled).collect())
}
