//! What `orlop-agent proxy` is told: flags, under kube-proxy's names where it has them, validated once.
//!
//! In: [`ProxyFlags`], and what the machine and the pod around us know ([`Machine`], [`Surroundings`]). Out: [`ProxyTask`]. Reads the
//! environment, and nothing of the API.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use http::Uri;
use ipnetwork::IpNetwork;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::{
    Error, LogFormat, Machine, UplinkAcceleration, absolute, dataplane_cgroup, invalid, is_dns_subdomain,
    link_name, log_format, machine, uplink_acceleration,
};
use crate::api::Access;

#[cfg(test)]
mod tests;

/// Where a pod finds its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const HEALTHZ_ADDRESS: &str = "0.0.0.0";
const HEALTHZ_PORT: u16 = 10256;
const METRICS_ADDRESS: &str = "127.0.0.1";
const METRICS_PORT: u16 = 10249;
/// Not the agent's, which may run beside a proxy and lead no Services.
const ADMIN_SOCKET: &str = "/run/orlop/proxy.sock";
/// As `--nodeport-addresses`: only at the addresses that the Node has first.
const PRIMARY: &str = "primary";

/// The command line of `orlop-agent proxy`.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(args_override_self = true)]
pub struct ProxyFlags {
    /// How to reach the API server [default: the pod's service account]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<String>,
    /// The API server, whatever kubeconfig or pod say: a pod knows it by a cluster IP, which only this very program makes work
    #[arg(long, value_name = "URL")]
    pub master: Option<String>,
    /// Name of this Node [default: the host name, in lower case]
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// Where /healthz and /livez answer; empty: nowhere [default: 0.0.0.0:10256]
    #[arg(long, value_name = "IP:PORT")]
    pub healthz_bind_address: Option<String>,
    /// Where /metrics answers; empty: nowhere [default: 127.0.0.1:10249]
    #[arg(long, value_name = "IP:PORT")]
    pub metrics_bind_address: Option<String>,
    /// Networks of the node's addresses that node ports answer at, or `primary` for the Node's InternalIPs alone [default: all
    /// addresses of the uplinks, and 127.0.0.1]
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,
    /// Link that traffic from outside comes in by, or that leads to other nodes' pods [default: those of the default route and of the
    /// Node's addresses]
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
    /// Unix socket on which orlopctl asks; empty: none [default: /run/orlop/proxy.sock]
    #[arg(long, value_name = "FILE")]
    pub admin_socket: Option<String>,
    /// Remove everything that was programmed, and exit
    #[arg(long)]
    pub cleanup: bool,
    /// Print the settings that would be used, as YAML, and exit
    #[arg(long, conflicts_with = "cleanup")]
    pub print_config: bool,
    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

/// What a process learns from whoever started it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`.
    pub service_host: Option<String>,
    pub service_port: Option<String>,
    /// Where a service account is mounted.
    pub service_account: Option<PathBuf>,
}

impl Surroundings {
    pub fn read() -> Self {
        let folder = PathBuf::from(SERVICE_ACCOUNT);
        Self {
            service_host: std::env::var("KUBERNETES_SERVICE_HOST").ok(),
            service_port: std::env::var("KUBERNETES_SERVICE_PORT").ok(),
            service_account: folder.join("token").exists().then_some(folder),
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxyTask {
    Serve(Box<ProxySettings>),
    CleanUp { bpf_pin_root: PathBuf, log_format: LogFormat },
}

/// Validated settings of the service proxy. They are shown under the flags' names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxySettings {
    #[serde(flatten, serialize_with = "flags_of_access")]
    pub access: Access,
    /// `metadata.name` of the own Node.
    #[serde(rename = "hostnameOverride")]
    pub node_name: String,
    /// None: nobody asks.
    #[serde(rename = "healthzBindAddress", serialize_with = "or_empty")]
    pub healthz: Option<SocketAddr>,
    #[serde(rename = "metricsBindAddress", serialize_with = "or_empty")]
    pub metrics: Option<SocketAddr>,
    #[serde(rename = "nodeportAddresses")]
    pub node_ports: NodePortAddresses,
    /// Empty: the links of the default route and of the Node's addresses.
    pub uplinks: Vec<String>,
    pub uplink_acceleration: UplinkAcceleration,
    pub bpf_pin_root: PathBuf,
    pub dataplane_cgroup: PathBuf,
    /// None: nobody asks.
    #[serde(serialize_with = "path_or_empty")]
    pub admin_socket: Option<PathBuf>,
    pub log_format: LogFormat,
}

impl ProxySettings {
    /// The settings as YAML, as `--print-config` shows them.
    pub fn to_yaml(&self) -> Result<String, serde_yaml_ng::Error> {
        serde_yaml_ng::to_string(self)
    }
}

/// A service account, which no flag names, under a name of its own.
fn flags_of_access<S: Serializer>(access: &Access, serializer: S) -> Result<S::Ok, S::Error> {
    let (key, path, server) = match access {
        Access::Kubeconfig { path, server } => ("kubeconfig", path, server.as_ref()),
        Access::ServiceAccount { folder, server } => ("serviceAccount", folder, Some(server)),
    };
    let mut map = serializer.serialize_map(Some(2))?;
    map.serialize_entry(key, path)?;
    map.serialize_entry("master", &server.map(ToString::to_string))?;
    map.end()
}

fn or_empty<S: Serializer>(address: &Option<SocketAddr>, serializer: S) -> Result<S::Ok, S::Error> {
    match address {
        Some(address) => serializer.collect_str(address),
        None => serializer.serialize_str(""),
    }
}

fn path_or_empty<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_deref().unwrap_or(Path::new("")).serialize(serializer)
}

/// At which of the node's addresses node ports answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodePortAddresses {
    All,
    /// Those that the Node has first in each family.
    Primary,
    Within(Vec<IpNetwork>),
}

/// As the flag is written.
impl Serialize for NodePortAddresses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.collect_seq::<[&str; 0]>([]),
            Self::Primary => serializer.collect_seq([PRIMARY]),
            Self::Within(networks) => serializer.collect_seq(networks),
        }
    }
}

impl NodePortAddresses {
    /// Chooses among the addresses of the uplinks, of which `primary` are the Node's, and the loopback.
    pub fn choose(&self, primary: &[IpAddr], all: &[IpAddr]) -> Vec<IpAddr> {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let candidates = all.iter().copied().chain([loopback]);
        match self {
            Self::All => candidates.collect(),
            Self::Primary => primary.to_vec(),
            Self::Within(networks) => candidates
                .filter(|address| networks.iter().any(|network| network.contains(*address)))
                .collect(),
        }
    }
}

impl ProxyFlags {
    /// Looks around, and validates.
    pub fn load(self) -> Result<ProxyTask, Error> {
        let machine = Machine::read(Path::new(machine::CGROUP_ROOT));
        self.validate(&machine, &Surroundings::read())
    }

    /// Every value is checked, none is looked up. Nothing but the pins has to be known to remove them.
    pub fn validate(self, machine: &Machine, surroundings: &Surroundings) -> Result<ProxyTask, Error> {
        let log_format = log_format(self.log_format)?;
        let bpf_pin_root = absolute("bpf-pin-root", self.bpf_pin_root, "/sys/fs/bpf/orlop")?;
        if self.cleanup {
            return Ok(ProxyTask::CleanUp { bpf_pin_root, log_format });
        }
        let (healthz, metrics) = ((HEALTHZ_ADDRESS, HEALTHZ_PORT), (METRICS_ADDRESS, METRICS_PORT));
        let settings = ProxySettings {
            node_name: node_name(self.hostname_override, machine)?,
            access: access(self.kubeconfig, self.master, surroundings)?,
            healthz: bind_address("healthz-bind-address", self.healthz_bind_address, healthz)?,
            metrics: bind_address("metrics-bind-address", self.metrics_bind_address, metrics)?,
            node_ports: node_ports(&self.nodeport_addresses)?,
            uplinks: self.uplinks.into_iter().map(link_name).collect::<Result<_, _>>()?,
            uplink_acceleration: uplink_acceleration("uplink-acceleration", self.uplink_acceleration)?,
            bpf_pin_root,
            dataplane_cgroup: dataplane_cgroup(self.dataplane_cgroup, machine)?,
            admin_socket: admin_socket(self.admin_socket)?,
            log_format,
        };
        Ok(ProxyTask::Serve(Box::new(settings)))
    }
}

fn admin_socket(value: Option<String>) -> Result<Option<PathBuf>, Error> {
    if value.as_deref() == Some("") {
        return Ok(None);
    }
    absolute("admin-socket", value, ADMIN_SOCKET).map(Some)
}

/// In lower case, as kube-proxy takes both.
fn node_name(value: Option<String>, machine: &Machine) -> Result<String, Error> {
    let name = value.filter(|name| !name.trim().is_empty()).or_else(|| machine.hostname.clone());
    let name = name.ok_or(Error::Missing { key: "hostname-override", flag: "hostname-override" })?;
    let name = name.trim().to_lowercase();
    if is_dns_subdomain(&name) {
        Ok(name)
    } else {
        Err(invalid("hostname-override", name, "the name of a Node: letters, digits, '-' and '.'"))
    }
}

fn access(
    kubeconfig: Option<String>,
    master: Option<String>,
    surroundings: &Surroundings,
) -> Result<Access, Error> {
    let master = master.filter(|url| !url.is_empty()).map(server).transpose()?;
    if let Some(path) = kubeconfig.filter(|path| !path.is_empty()) {
        return Ok(Access::Kubeconfig { path: absolute("kubeconfig", Some(path), "")?, server: master });
    }
    let missing = |reason| Error::NoAccess { reason };
    let Some(folder) = surroundings.service_account.clone() else {
        return Err(missing("there is no token in /var/run/secrets/kubernetes.io/serviceaccount"));
    };
    let server = match (master, &surroundings.service_host, &surroundings.service_port) {
        (Some(master), ..) => master,
        (None, Some(host), Some(port)) => in_cluster(host, port)?,
        _ => {
            return Err(missing(
                "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set, nor is --master",
            ));
        }
    };
    Ok(Access::ServiceAccount { folder, server })
}

fn server(url: String) -> Result<Uri, Error> {
    let expected = "the URL of an API server, such as https://192.0.2.10:6443";
    let parsed: Option<Uri> = url.parse().ok();
    let is_whole = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some();
    parsed.filter(is_whole).ok_or_else(|| invalid("master", url, expected))
}

fn in_cluster(host: &str, port: &str) -> Result<Uri, Error> {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let url = format!("https://{host}:{port}");
    url.parse().map_err(|_| {
        invalid("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT", url, "the URL of an API server")
    })
}

/// An address with or without port; empty: none.
fn bind_address(
    key: &'static str,
    value: Option<String>,
    (address, port): (&str, u16),
) -> Result<Option<SocketAddr>, Error> {
    let text = value.unwrap_or_else(|| address.to_owned());
    if text.is_empty() {
        return Ok(None);
    }
    let alone = || text.parse().ok().map(|ip: IpAddr| SocketAddr::new(ip, port));
    let whole = text.parse().ok().filter(|address: &SocketAddr| address.port() != 0);
    let expected = "an address to listen on, such as 0.0.0.0:10256 or [::]:10256";
    whole.or_else(alone).map(Some).ok_or_else(|| invalid(key, text, expected))
}

fn node_ports(values: &[String]) -> Result<NodePortAddresses, Error> {
    let values: Vec<&str> =
        values.iter().map(|value| value.trim()).filter(|value| !value.is_empty()).collect();
    match values.as_slice() {
        [] => return Ok(NodePortAddresses::All),
        [PRIMARY] => return Ok(NodePortAddresses::Primary),
        _ => {}
    }
    let expected = "networks such as 192.0.2.0/24, or `primary` alone";
    let network = |text: &&str| {
        let network = text.parse().ok().filter(|_| text.contains('/'));
        network.ok_or_else(|| invalid("nodeport-addresses", *text, expected))
    };
    Ok(NodePortAddresses::Within(values.iter().map(network).collect::<Result<_, _>>()?))
}
