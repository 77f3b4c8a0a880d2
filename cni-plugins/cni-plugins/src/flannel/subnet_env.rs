//! `subnet.env`: what the overlay's daemon says of this node, as `KEY=VALUE` lines.

use std::{fs::File, io::Read, path::Path};

use cni::{ErrorReply, code};
use ipnetwork::IpNetwork;

/// Bytes of the file; it has half a dozen lines.
const FILE_LIMIT: u64 = 64 << 10;

/// The daemon's word, complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SubnetEnv {
    /// All nodes' subnets are in these, of either family.
    networks: Vec<IpNetwork>,
    ipv6_networks: Vec<IpNetwork>,
    /// This node's.
    subnet: Option<IpNetwork>,
    ipv6_subnet: Option<IpNetwork>,
    pub(super) mtu: u32,
    /// The daemon masquerades what leaves the networks.
    pub(super) masquerades: bool,
}

impl SubnetEnv {
    pub(super) fn load(path: &Path) -> Result<Self, ErrorReply> {
        let failed = |error: &dyn std::fmt::Display| {
            let message = format!(
                "failed to load flannel 'subnet.env' file: {}: {error}. Check the flannel pod log for this node.",
                path.display()
            );
            ErrorReply::new(code::INTERNAL, message)
        };
        let mut text = String::new();
        let file = File::open(path).map_err(|error| failed(&error))?;
        file.take(FILE_LIMIT).read_to_string(&mut text).map_err(|error| failed(&error))?;
        Self::parse(&text).map_err(|error| failed(&error))
    }

    /// Unknown keys are the daemon's own business.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (mut networks, mut ipv6_networks) = (Vec::new(), Vec::new());
        let (mut subnet, mut ipv6_subnet, mut mtu, mut masquerades) = (None, None, None, None);
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            match key {
                "FLANNEL_NETWORK" => networks = several(key, value)?,
                "FLANNEL_IPV6_NETWORK" => ipv6_networks = several(key, value)?,
                "FLANNEL_SUBNET" => subnet = Some(one(key, value)?),
                "FLANNEL_IPV6_SUBNET" => ipv6_subnet = Some(one(key, value)?),
                "FLANNEL_MTU" => {
                    let read = value.parse::<u32>();
                    mtu = Some(read.map_err(|error| format!("invalid {key} {value:?}: {error}"))?);
                }
                "FLANNEL_IPMASQ" => masquerades = Some(value == "true"),
                _ => {}
            }
        }
        let missing: Vec<&str> = [
            (networks.is_empty() && ipv6_networks.is_empty(), "FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK"),
            (subnet.is_none() && ipv6_subnet.is_none(), "FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET"),
            (mtu.is_none(), "FLANNEL_MTU"),
            (masquerades.is_none(), "FLANNEL_IPMASQ"),
        ]
        .into_iter()
        .filter_map(|(is_missing, what)| is_missing.then_some(what))
        .collect();
        match (mtu, masquerades) {
            (Some(mtu), Some(masquerades)) if missing.is_empty() => {
                Ok(Self { networks, ipv6_networks, subnet, ipv6_subnet, mtu, masquerades })
            }
            _ => Err(format!("missing {}", missing.join(", "))),
        }
    }

    /// This node's subnets, IPv4 first.
    pub(super) fn subnets(&self) -> impl Iterator<Item = IpNetwork> {
        [self.subnet, self.ipv6_subnet].into_iter().flatten()
    }

    /// The whole networks, IPv4 first.
    pub(super) fn networks(&self) -> impl Iterator<Item = IpNetwork> + '_ {
        self.networks.iter().chain(&self.ipv6_networks).copied()
    }
}

/// Networks with commas between them, each once.
fn several(key: &str, value: &str) -> Result<Vec<IpNetwork>, String> {
    let mut networks = Vec::new();
    for text in value.split(',') {
        let network = one(key, text)?;
        if !networks.contains(&network) {
            networks.push(network);
        }
    }
    Ok(networks)
}

/// The network that an address with its prefix length is of: the daemon writes the node's first address.
fn one(key: &str, text: &str) -> Result<IpNetwork, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("invalid {key} {text:?}: {error}");
    if !text.contains('/') {
        return Err(wrong(&"expected an address with a prefix length, as 10.1.0.0/24"));
    }
    let network: IpNetwork = text.parse().map_err(|error| wrong(&error))?;
    IpNetwork::new(network.network(), network.prefix()).map_err(|error| wrong(&error))
}

#[cfg(test)]
mod tests;
