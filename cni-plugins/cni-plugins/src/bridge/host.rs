//! The host's half: the bridge, its gateway addresses, the new pair, and finding leftovers.
//!
//! The kernel takes a link's alias only after the link exists. Between both, the name (a hash of the attachment) and the
//! link group (a hash of the network) say whose it is, so that a plugin may be killed at any point.

use std::{collections::HashSet, fs::File, io::Read, net::IpAddr};

use cni::ErrorReply;
use ipnetwork::IpNetwork;
use linux::{
    netlink::{
        BridgeOptions, BridgePortOptions, Error, Link, LinkChange, Netlink, NewAddress, VethOptions, VethPeer,
    },
    netns::Netns,
};

use super::config::Config;
use crate::{
    plugin::{Request, Valid},
    sysctl,
};

/// Random names that are tried before giving up.
const NAME_TRIES: usize = 10;
/// `IFALIASZ`, with the terminating zero.
const ALIAS_LIMIT: usize = 255;
const ALIAS_PREFIX: &str = "cni";

/// Whose a link on the host is, as its alias says: `cni:<network>:<container id>:<link>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alias<'a> {
    pub(super) network: &'a str,
    pub(super) container_id: &'a str,
    pub(super) ifname: &'a str,
}

impl<'a> Alias<'a> {
    pub(super) fn of(request: &'a Request) -> Self {
        Self { network: &request.network, container_id: &request.container_id, ifname: &request.ifname }
    }

    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(':');
        let is_ours = parts.next() == Some(ALIAS_PREFIX);
        let (network, container_id, ifname) = (parts.next()?, parts.next()?, parts.next()?);
        (is_ours && parts.next().is_none()).then_some(Self { network, container_id, ifname })
    }

    /// The name of the host's end, the same for every attempt: `veth` and eight hexadecimal digits.
    fn port_name(&self) -> String {
        port_name(self.network, self.container_id, self.ifname)
    }

    /// True for the host's end of this attachment, finished or not.
    fn is_of(&self, link: &Link) -> bool {
        match link.alias.as_deref().and_then(Alias::parse) {
            Some(alias) => alias == *self,
            None => link.group == unfinished_group(self.network) && link.name == self.port_name(),
        }
    }

    /// None where the kernel would not take it, which container runtimes' ids are too short for.
    fn text(&self) -> Option<String> {
        let text = format!("{ALIAS_PREFIX}:{}:{}:{}", self.network, self.container_id, self.ifname);
        (text.len() <= ALIAS_LIMIT).then_some(text)
    }
}

/// The name that the host's end of an attachment has, unless a link of this name was there before.
pub fn port_name(network: &str, container_id: &str, ifname: &str) -> String {
    format!("veth{:08x}", fnv1a(&[network, container_id, ifname]))
}

/// The link group that the host's end is in from its birth until it has its alias: a plugin that is killed in between
/// leaves a link that can be told from others' by its group, and from each other by its name.
pub fn unfinished_group(network: &str) -> u32 {
    // Never 0, the group that links are in by default.
    fnv1a(&["unfinished", network]) | 1
}

/// A hash that stays the same in every build (FNV-1a), with a divider that no part contains.
fn fnv1a(parts: &[&str]) -> u32 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Finds the bridge, or makes it, and sees that it is up.
pub(super) async fn ensure_bridge(host: &Netlink, config: &Config) -> Result<Link, ErrorReply> {
    let name = &config.bridge;
    let failed = |error: Error| ErrorReply::internal(format!("failed to create bridge {name:?}: {error}"));
    let bridge = match host.find_link(name).await.map_err(failed)? {
        Some(link) => link,
        None => {
            let options = BridgeOptions { name: name.clone(), mtu: config.mtu, mac: None };
            match host.add_bridge(&options).await {
                // Another ADD made it in between.
                Err(error) if error.is_exists() => {}
                made => made.map_err(failed)?,
            }
            host.link(name).await.map_err(failed)?
        }
    };
    if !bridge.is_kind("bridge") {
        let message =
            format!("failed to create bridge {name:?}: {name:?} already exists but is not a bridge");
        return Err(ErrorReply::internal(message));
    }
    // Routes through this link are ours to make.
    sysctl::wish(&format!("ipv6/conf/{name}/accept_ra"), "0");
    let promiscuous = config.promiscuous && bridge.promiscuity == 0;
    if promiscuous || !bridge.up {
        let change =
            LinkChange { up: Some(true), promiscuous: promiscuous.then_some(true), ..LinkChange::default() };
        host.change_link(bridge.index, &change).await.map_err(failed)?;
    }
    Ok(bridge)
}

/// Makes the pair in one message: the host's end up and a port of the bridge, the container's end in its namespace
/// from birth. Returns the host's end.
pub(super) async fn make_pair(
    host: &Netlink,
    bridge: &Link,
    request: &Request,
    config: &Config,
    netns: &Netns,
) -> Result<Link, ErrorReply> {
    use std::os::fd::AsFd;
    let failed = |error: Error| ErrorReply::internal(format!("failed to make veth pair: {error}"));
    for attempt in 0..NAME_TRIES {
        let name = match attempt {
            0 => Alias::of(request).port_name(),
            _ => random_name().map_err(|error| {
                ErrorReply::internal(format!("failed to generate random veth name: {error}"))
            })?,
        };
        let options = VethOptions {
            name: name.clone(),
            mtu: config.mtu,
            mac: None,
            master: Some(bridge.index),
            group: Some(unfinished_group(&request.network)),
            up: true,
            peer: VethPeer {
                name: request.ifname.clone(),
                mtu: config.mtu,
                mac: config.mac,
                netns: Some(netns.as_fd()),
            },
        };
        match host.add_veth(&options).await {
            Ok(()) => return host.link(&name).await.map_err(failed),
            Err(error) if error.is_exists() => {
                let container = Netlink::open_in(netns).map_err(failed)?;
                if container.find_link(&request.ifname).await.map_err(failed)?.is_some() {
                    let message = format!("container veth name provided ({}) already exists", request.ifname);
                    return Err(ErrorReply::internal(message));
                }
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Err(ErrorReply::internal(format!("failed to find a unique veth name in {NAME_TRIES} tries")))
}

/// What a new port needs besides being one: its alias, its switches.
pub(super) async fn dress_port(
    host: &Netlink,
    port: &Link,
    alias: Alias<'_>,
    config: &Config,
) -> Result<(), Error> {
    sysctl::wish(&format!("ipv6/conf/{}/accept_ra", port.name), "0");
    if let Some(alias) = alias.text() {
        let change = LinkChange { alias: Some(alias), group: Some(0), ..LinkChange::default() };
        host.change_link(port.index, &change).await?;
    }
    if config.port != BridgePortOptions::default() {
        host.set_bridge_port(port.index, config.port).await?;
    }
    Ok(())
}

/// Makes the bridge a gateway: its addresses, then forwarding for their families.
pub(super) async fn make_gateway(
    host: &Netlink,
    bridge: &Link,
    gateways: &[IpNetwork],
    config: &Config,
) -> Result<(), ErrorReply> {
    for gateway in gateways {
        ensure_address(host, bridge, *gateway, config.force_address)
            .await
            .map_err(|error| ErrorReply::internal(format!("failed to set bridge addr: {error}")))?;
    }
    for (is_ipv4, switch) in [(true, "ipv4/ip_forward"), (false, "ipv6/conf/all/forwarding")] {
        if gateways.iter().any(|gateway| gateway.is_ipv4() == is_ipv4) {
            sysctl::set(switch, "1").map_err(|error| {
                ErrorReply::internal(format!("failed to enable forwarding: set sysctl {switch}: {error}"))
            })?;
        }
    }
    Ok(())
}

async fn ensure_address(host: &Netlink, bridge: &Link, wanted: IpNetwork, force: bool) -> Result<(), String> {
    let present = host.addresses(Some(bridge.index)).await.map_err(|error| error.to_string())?;
    if present.iter().any(|address| address.network == wanted) {
        return Ok(());
    }
    for other in present.iter().map(|address| address.network).filter(|other| conflicts(*other, wanted)) {
        if !force {
            return Err(format!("{:?} already has an IP address different from {wanted}", bridge.name));
        }
        match host.del_address(bridge.index, other).await {
            Err(error) if !error.is_gone() => return Err(error.to_string()),
            _ => {}
        }
    }
    match host.add_address(&NewAddress::new(bridge.index, wanted)).await {
        Err(error) if !error.is_exists() => return Err(error.to_string()),
        _ => {}
    }
    // A bridge without an address of its own choice takes the lowest of its ports', and changes it as ports come and go. One
    // that had lost all its ports had none before the new one.
    let had = bridge.mac.filter(|mac| mac.0 != [0; 6]);
    let mac = match had {
        None => host.link(&bridge.name).await.map_err(|error| error.to_string())?.mac,
        had => had,
    };
    let change = LinkChange { mac, ..LinkChange::default() };
    host.change_link(bridge.index, &change).await.map_err(|error| error.to_string())
}

/// A bridge has one IPv4 address, and IPv6 addresses of networks that lie apart.
fn conflicts(present: IpNetwork, wanted: IpNetwork) -> bool {
    match (present.ip(), wanted.ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => true,
        (IpAddr::V6(_), IpAddr::V6(_)) => present.contains(wanted.ip()) || wanted.contains(present.ip()),
        _ => false,
    }
}

/// Deletes the host's end of an attachment whose namespace cannot be entered. None is success.
pub(super) async fn delete_port(host: &Netlink, alias: Alias<'_>) -> Result<(), Error> {
    match host.find_link(&alias.port_name()).await? {
        Some(link) if alias.is_of(&link) => delete(host, &link).await,
        // It could not have its usual name, or is gone: its alias tells.
        _ => delete_ports(host, |link| alias.is_of(link)).await,
    }
}

/// Deletes the host's ends of a network's attachments that are not to be kept, and of those that were never finished.
pub(super) async fn delete_leftovers(host: &Netlink, network: &str, keep: &Valid) -> Result<(), Error> {
    let names: HashSet<String> = keep.iter().map(|(id, ifname)| port_name(network, id, ifname)).collect();
    let is_leftover = |link: &Link| match link.alias.as_deref().and_then(Alias::parse) {
        Some(alias) => {
            let attachment = (alias.container_id.to_owned(), alias.ifname.to_owned());
            alias.network == network && !keep.contains(&attachment)
        }
        None => link.group == unfinished_group(network) && !names.contains(&link.name),
    };
    delete_ports(host, is_leftover).await
}

/// Proportional to the number of links: not for the usual path.
async fn delete_ports(host: &Netlink, unwanted: impl Fn(&Link) -> bool) -> Result<(), Error> {
    for link in host.links().await?.iter().filter(|link| link.is_kind("veth") && unwanted(link)) {
        delete(host, link).await?;
    }
    Ok(())
}

async fn delete(host: &Netlink, link: &Link) -> Result<(), Error> {
    match host.del_link(link.index).await {
        Err(error) if error.is_gone() => Ok(()),
        deleted => deleted,
    }
}

/// `veth` and eight hexadecimal digits.
fn random_name() -> std::io::Result<String> {
    let mut bytes = [0; 4];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("veth{:08x}", u32::from_ne_bytes(bytes)))
}

#[cfg(test)]
mod tests;
