//! What a pod's sandbox is made from: names, name service, hosts file, ports, namespaces. Pure.
//!
//! In: the pod, the settings that concern it, the node's own resolv.conf and hosts file. Out: a [`runtime::SandboxConfig`] and texts.
//! Rules: the kubelet's `network/dns` and `kuberuntime_sandbox.go`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{ContainerPort, Pod, PodSpec};
use runtime::{
    DnsConfig, LinuxSandboxConfig, NamespaceMode, NamespaceOptions, PortMapping, Protocol, SandboxConfig,
};

use super::{container, labels, resources};

#[cfg(test)]
mod tests;

/// Longest host name in Linux.
const HOSTNAME_BYTES: usize = 63;
/// `nameserver` lines that resolvers read.
const NAME_SERVERS: usize = 3;
/// Entries of a `search` line (validation of the API: `MaxDNSSearchPaths`).
const SEARCHES: usize = 32;

/// The names and paths of a pod, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// metadata.namespace
    pub namespace: &'a str,
    /// metadata.name
    pub name: &'a str,
    /// metadata.uid
    pub uid: &'a str,
}

impl<'a> Names<'a> {
    /// Of a pod.
    pub fn of(pod: &'a Pod) -> Names<'a> {
        let text = |value: &'a Option<String>| value.as_deref().unwrap_or_default();
        let meta = &pod.metadata;
        Names { namespace: text(&meta.namespace), name: text(&meta.name), uid: text(&meta.uid) }
    }

    /// The pod's folder of logs below `root`.
    pub fn log_directory(&self, root: &Path) -> PathBuf {
        root.join(format!("{}_{}_{}", self.namespace, self.name, self.uid))
    }
}

/// How pods find names.
#[derive(Clone, Debug, Default)]
pub struct NameService {
    /// Of the cluster; may be empty.
    pub servers: Vec<IpAddr>,
    /// Of the cluster.
    pub domain: String,
    /// What the node's own resolv.conf says.
    pub node: DnsConfig,
}

/// Parses a resolv.conf.
pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => config.servers.extend(words.next().map(str::to_owned)),
            Some("search" | "domain") => {
                config.searches = words.map(|word| word.trim_end_matches('.').to_owned()).collect();
            }
            Some("options") => config.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    config
}

/// The resolv.conf of a pod by its dnsPolicy and dnsConfig. The second value: ClusterFirst was asked for and there is no cluster DNS.
pub fn dns(pod: &Pod, service: &NameService) -> (DnsConfig, bool) {
    let Some(spec) = &pod.spec else { return (service.node.clone(), false) };
    let host_network = spec.host_network == Some(true);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let wants_cluster = policy == "ClusterFirstWithHostNet" || (policy == "ClusterFirst" && !host_network);
    let missing = wants_cluster && service.servers.is_empty();
    let mut config = match policy {
        "None" => DnsConfig::default(),
        _ if wants_cluster && !missing => cluster_dns(Names::of(pod).namespace, service),
        _ => service.node.clone(),
    };
    if let Some(own) = &spec.dns_config {
        extend_unique(&mut config.servers, own.nameservers.iter().flatten());
        extend_unique(&mut config.searches, own.searches.iter().flatten());
        let options = own.options.iter().flatten();
        for (name, value) in
            options.filter_map(|option| Some((option.name.as_deref()?, option.value.as_deref())))
        {
            config.options.retain(|other| other.split(':').next() != Some(name));
            config.options.push(match value.filter(|value| !value.is_empty()) {
                Some(value) => format!("{name}:{value}"),
                None => name.to_owned(),
            });
        }
    }
    config.servers.truncate(NAME_SERVERS);
    config.searches.truncate(SEARCHES);
    (config, missing)
}

fn cluster_dns(namespace: &str, service: &NameService) -> DnsConfig {
    let domain = &service.domain;
    let mut searches = Vec::new();
    if !domain.is_empty() {
        searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
    }
    extend_unique(&mut searches, service.node.searches.iter());
    DnsConfig {
        servers: service.servers.iter().map(ToString::to_string).collect(),
        searches,
        options: vec!["ndots:5".into()],
    }
}

fn extend_unique<'a>(list: &mut Vec<String>, more: impl Iterator<Item = &'a String>) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

/// The host name inside the pod, and its domain; both empty in the node's network.
pub fn hostname(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let Some(spec) = &pod.spec else { return Default::default() };
    if let Some(name) = spec.hostname_override.as_ref().filter(|name| !name.is_empty()) {
        return (name.clone(), String::new());
    }
    if spec.host_network == Some(true) {
        return Default::default();
    }
    let names = Names::of(pod);
    let host = spec.hostname.as_deref().filter(|name| !name.is_empty()).unwrap_or(names.name);
    let host = truncated(host);
    let subdomain = spec.subdomain.as_deref().filter(|name| !name.is_empty());
    let domain =
        subdomain.map(|name| format!("{name}.{}.svc.{cluster_domain}", names.namespace)).unwrap_or_default();
    (host, domain)
}

fn truncated(name: &str) -> String {
    if name.len() <= HOSTNAME_BYTES {
        return name.to_owned();
    }
    let end = (0..=HOSTNAME_BYTES).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
    name[..end].trim_end_matches(['-', '.']).to_owned()
}

/// The pod's /etc/hosts. `node_hosts` is the node's own, for pods in the node's network.
pub fn hosts_file(pod: &Pod, pod_ips: &[String], cluster_domain: &str, node_hosts: &str) -> String {
    let Some(spec) = &pod.spec else { return String::new() };
    let mut text = if spec.host_network == Some(true) {
        format!("# Kubernetes-managed hosts file (host network).\n{node_hosts}")
    } else {
        let (host, domain) = hostname(pod, cluster_domain);
        let mut text = String::from("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n");
        text.push_str("::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n");
        text.push_str("fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n");
        for ip in pod_ips {
            text.push_str(&match domain.as_str() {
                "" => format!("{ip}\t{host}\n"),
                domain => format!("{ip}\t{host}.{domain}\t{host}\n"),
            });
        }
        text
    };
    let aliases = spec.host_aliases.iter().flatten();
    let lines: Vec<String> = aliases
        .map(|alias| {
            format!(
                "{}\t{}\n",
                alias.ip,
                alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t")
            )
        })
        .collect();
    if !lines.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        text.extend(lines);
    }
    text
}

/// What a sandbox needs to know beside the pod.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// How many sandboxes there were before.
    pub attempt: u32,
    /// Below it the pod's logs are.
    pub log_root: &'a Path,
    /// Below it the pods' control groups are.
    pub cgroup_parent: &'a str,
    /// How pods find names.
    pub names: &'a NameService,
}

/// The sandbox of a pod.
pub fn config(pod: &Pod, inputs: Inputs<'_>) -> SandboxConfig {
    let names = Names::of(pod);
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    let (host, domain) = hostname(pod, &inputs.names.domain);
    let fqdn = spec.set_hostname_as_fqdn == Some(true) && !domain.is_empty();
    SandboxConfig {
        name: names.name.into(),
        uid: names.uid.into(),
        namespace: names.namespace.into(),
        attempt: inputs.attempt,
        hostname: if fqdn { truncated(&format!("{host}.{domain}")) } else { host },
        log_directory: names.log_directory(inputs.log_root).to_string_lossy().into_owned(),
        dns: Some(dns(pod, inputs.names).0),
        port_mappings: resources::all_containers(spec)
            .flat_map(|container| container.ports.iter().flatten())
            .filter_map(port_mapping)
            .collect(),
        labels: labels::of_pod(pod.metadata.labels.as_ref(), names.namespace, names.name, names.uid),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        linux: LinuxSandboxConfig {
            cgroup_parent: resources::cgroup_path(inputs.cgroup_parent, resources::qos(spec), names.uid),
            namespaces: namespaces(spec),
            sysctls: sysctls(spec),
            seccomp: container::security::pod_seccomp(spec),
        },
    }
}

fn port_mapping(port: &ContainerPort) -> Option<PortMapping> {
    let host_port = u16::try_from(port.host_port?).ok().filter(|port| *port > 0)?;
    Some(PortMapping {
        protocol: match port.protocol.as_deref() {
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            _ => Protocol::Tcp,
        },
        container_port: u16::try_from(port.container_port).ok()?,
        host_port,
        host_ip: port.host_ip.clone().unwrap_or_default(),
    })
}

/// Whether ports of the node are to lead to a sandbox with a network of its own.
pub fn needs_port_mapping(config: &SandboxConfig) -> bool {
    config.linux.namespaces.network != NamespaceMode::Node && !config.port_mappings.is_empty()
}

fn namespaces(spec: &PodSpec) -> NamespaceOptions {
    let node = |asked: Option<bool>, otherwise| {
        if asked == Some(true) { NamespaceMode::Node } else { otherwise }
    };
    let own_pid = match spec.share_process_namespace {
        Some(true) => NamespaceMode::Pod,
        _ => NamespaceMode::Container,
    };
    NamespaceOptions {
        network: node(spec.host_network, NamespaceMode::Pod),
        pid: node(spec.host_pid, own_pid),
        ipc: node(spec.host_ipc, NamespaceMode::Pod),
    }
}

fn sysctls(spec: &PodSpec) -> BTreeMap<String, String> {
    let list = spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten());
    list.map(|sysctl| (sysctl.name.replace('/', "."), sysctl.value.clone())).collect()
}
