//! The pod's network: CNI's ADD and DEL for `eth0` of a sandbox, with the words that Kubernetes users know.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;

use cni::args::CniArgs;
use cni::{Attachment, Client, Options};
use linux::process::Place;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::Error;
use crate::metrics::Durations;
use crate::sandbox::SandboxConfig;

#[cfg(test)]
mod tests;

/// Name of the link inside, as everywhere in Kubernetes.
const INTERFACE: &str = "eth0";
/// The variable by which a plugin, and what it calls in turn, knows the sandbox.
const CONTAINER_VARIABLE: &str = "CNI_CONTAINERID";
/// The capability of a plugin that maps ports of the node to pods.
const PORT_MAPPINGS: &str = "portMappings";
/// How often plugins of an earlier process are looked for: each may start one more before it is killed.
const MAX_LOOKS: usize = 8;

/// Connects sandboxes.
#[derive(Debug)]
pub(crate) struct PodNetwork {
    client: Client,
    durations: Durations,
}

impl PodNetwork {
    /// For the directories of a configuration. The plugins' calls are timed.
    pub fn new(config: &Config, durations: Durations) -> PodNetwork {
        let options = Options {
            conf_dir: config.cni_conf_dir.clone(),
            bin_dirs: config.cni_bin_dirs.clone(),
            cache_dir: config.cni_cache_dir.clone(),
            ..Options::default()
        };
        PodNetwork { client: Client::new(options), durations }
    }

    /// Whether there is a network to connect to.
    pub async fn status(&self) -> Result<(), Error> {
        self.client.network().map_err(|error| Error::CniNotInitialized { reason: error.to_string() })?;
        let status = self.durations.time("status", self.client.status()).await;
        status.map_err(|error| Error::CniNotInitialized { reason: error.to_string() })
    }

    /// Whether a plugin of the network maps ports of the node.
    pub fn maps_ports(&self) -> bool {
        maps_ports(&self.client)
    }

    /// Connects a sandbox; its addresses, the primary one first.
    pub async fn add(&self, id: &str, config: &SandboxConfig, netns: &Path) -> Result<Vec<IpAddr>, Error> {
        self.client.network().map_err(|error| Error::CniNotInitialized { reason: error.to_string() })?;
        let attachment = attachment(id, config, Some(netns))?;
        let added = self.durations.time("set_up_pod", self.client.add(&attachment)).await;
        let result = added.map_err(|error| network_error(id, &error))?;
        let inside = |ip: &&cni::IpConfig| match ip.interface.and_then(|index| result.interfaces.get(index)) {
            Some(interface) => interface.sandbox.is_some(),
            None => true,
        };
        Ok(result.ips.iter().filter(inside).map(|ip| ip.address.ip()).collect())
    }

    /// Disconnects a sandbox. Succeeds when nothing is left.
    pub async fn del(&self, id: &str, config: &SandboxConfig, netns: &Path) -> Result<(), Error> {
        let netns = netns.exists().then_some(netns);
        let attachment = attachment(id, config, netns)?;
        match self.durations.time("tear_down_pod", self.client.del(&attachment)).await {
            Ok(()) | Err(cni::Error::NoNetwork { .. }) => Ok(()),
            Err(error) => Err(network_error(id, &error)),
        }
    }
}

/// Ends plugins, and what they called, that an earlier process of ours started for one of the sandboxes and did not outlive: nothing may be
/// undone while it is still being done. Blocks until they are gone; one that was about to start another is looked after again. Whoever gives it
/// up may start plugins for the same sandboxes afterwards.
pub(crate) fn end_calls(is_ours: impl Fn(&str) -> bool, given_up: &CancellationToken) {
    for _ in 0..MAX_LOOKS {
        match end_calls_once(&is_ours, given_up) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::warn!(%error, "network plugins of an earlier process cannot be looked for, and may still work");
                return;
            }
        }
    }
    tracing::warn!("network plugins of an earlier process are still there");
}

/// Whether there was any, and there may be more.
fn end_calls_once(
    is_ours: &impl Fn(&str) -> bool,
    given_up: &CancellationToken,
) -> Result<bool, linux::Error> {
    let own = Place::own()?;
    let mut any = false;
    for pid in linux::process::list()? {
        // Plugins are where the agent is. A container's author could hold us with the environment of one of his processes.
        let is_near = || Place::of(pid).is_ok_and(|place| place == own);
        let variable = || linux::process::variable_of(pid, CONTAINER_VARIABLE).filter(|id| is_ours(id));
        let called_for = || is_near().then(variable).flatten();
        let Some(sandbox) = called_for() else { continue };
        // The number may have gone to another process until the descriptor was opened.
        if let Ok(pidfd) = linux::process::pidfd(pid)
            && called_for().is_some()
        {
            // Asked last: who was there before we were given up was not started by whoever gave us up.
            if given_up.is_cancelled() {
                return Ok(false);
            }
            any = true;
            tracing::info!(sandbox, pid, "network plugin of an earlier process is ended");
            let _ = linux::process::signal(pidfd.as_fd(), rustix::process::Signal::KILL.as_raw());
            crate::shims::wait_for_end(&pidfd);
        }
    }
    Ok(any)
}

fn maps_ports(client: &Client) -> bool {
    let mut plugins = client.network().into_iter().flat_map(|network| network.plugins);
    plugins.any(|plugin| plugin.capabilities.iter().any(|capability| capability == PORT_MAPPINGS))
}

fn network_error(id: &str, error: &cni::Error) -> Error {
    Error::Network { sandbox: id.into(), reason: error.to_string() }
}

fn attachment(id: &str, config: &SandboxConfig, netns: Option<&Path>) -> Result<Attachment, Error> {
    let text = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={}",
        config.namespace, config.name, config.uid
    );
    let args = CniArgs::parse(&text)
        .map_err(|error| Error::InvalidArgument { field: "metadata".into(), reason: error.to_string() })?;
    let mut capability_args = Map::new();
    let mappings: Vec<Value> = config
        .port_mappings
        .iter()
        .filter(|mapping| mapping.host_port > 0)
        .map(|mapping| {
            json!({
                "hostPort": mapping.host_port,
                "containerPort": mapping.container_port,
                "protocol": mapping.protocol,
                "hostIP": mapping.host_ip,
            })
        })
        .collect();
    if !mappings.is_empty() {
        capability_args.insert(PORT_MAPPINGS.into(), mappings.into());
    }
    if let Some(dns) = &config.dns {
        capability_args.insert(
            "dns".into(),
            json!({ "servers": dns.servers, "searches": dns.searches, "options": dns.options }),
        );
    }
    Ok(Attachment {
        container_id: id.into(),
        netns: netns.map(Into::into),
        ifname: INTERFACE.into(),
        args,
        capability_args,
    })
}
