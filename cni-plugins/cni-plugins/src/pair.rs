//! A pair of virtual Ethernet links: one end on the host, the other in the container's namespace from birth.
//!
//! Owns both ends, and finding the host's end without a state file, for GC and for a DEL whose namespace is gone. Its
//! alias says whose it is. The kernel takes an alias only after the link exists: between both, the name (a hash of the
//! attachment) and the link group (a hash of the network) say it, so that a plugin may be killed at any point.

use std::{collections::HashSet, fs::File, io::Read};

use cni::{ErrorReply, exec::Verb};
use linux::{
    netlink::{
        BridgePortOptions, Error, Link, LinkChange, MacAddress, Netlink, OWN_GROUPS, VethOptions, VethPeer,
    },
    netns::Netns,
};

use crate::{
    delegate::{self, DHCP},
    inside, made,
    plugin::{Request, Valid},
    sysctl,
};

/// Random names that are tried before giving up.
const NAME_TRIES: usize = 10;
/// `IFALIASZ`, with the terminating zero.
const ALIAS_LIMIT: usize = 255;
const ALIAS_PREFIX: &str = "cni";

/// What differs between the plugins that make pairs.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PairOptions {
    /// Of both ends.
    pub(crate) mtu: Option<u32>,
    /// Of the container's end.
    pub(crate) mac: Option<MacAddress>,
    /// Bridge that the host's end is a port of from birth.
    pub(crate) master: Option<u32>,
}

/// Whose a link on the host is, as its alias says: `cni:<network>:<container id>:<link>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Alias<'a> {
    pub(crate) network: &'a str,
    container_id: &'a str,
    ifname: &'a str,
}

impl<'a> Alias<'a> {
    pub(crate) fn of(request: &'a Request) -> Self {
        Self { network: &request.network, container_id: &request.container_id, ifname: &request.ifname }
    }

    pub(crate) fn parse(text: &'a str) -> Option<Self> {
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
    pub(crate) fn text(&self) -> Option<String> {
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
    // Never 0, the group that links are in by default, nor one of links that go together.
    (fnv1a(&["unfinished", network]) % OWN_GROUPS) | 1
}

/// A hash that stays the same in every build (FNV-1a), with a divider that no part contains.
fn fnv1a(parts: &[&str]) -> u32 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Makes the pair in one message: the host's end up, the container's end in its namespace. Returns the host's end.
pub(crate) async fn make(
    host: &Netlink,
    request: &Request,
    netns: &Netns,
    pair: &PairOptions,
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
            mtu: pair.mtu,
            mac: None,
            master: pair.master,
            group: Some(unfinished_group(&request.network)),
            up: true,
            peer: VethPeer {
                name: request.ifname.clone(),
                mtu: pair.mtu,
                mac: pair.mac,
                netns: Some(netns.as_fd()),
            },
        };
        match host.add_veth(&options).await {
            Ok(()) => return made::find(host, &name, failed).await,
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

/// What the host's end gets when it is there.
pub(crate) struct Mark<'a> {
    pub(crate) alias: Alias<'a>,
    /// The IPAM plugin, if any.
    pub(crate) ipam: Option<&'a str>,
    /// For a port of a bridge.
    pub(crate) bridge_port: Option<BridgePortOptions>,
}

/// Gives the host's end its alias, and its switches where it is a bridge's port. Routes through it are the plugin's to make.
///
/// It leaves the group of its birth, unless a DHCP server is to be told through the pair that the address is free: only a link in
/// the default group is taken away together with others (see [`crate::bandwidth`]).
pub(crate) async fn mark(host: &Netlink, port: &Link, mark: Mark<'_>) -> Result<(), Error> {
    sysctl::wish(&format!("ipv6/conf/{}/accept_ra", port.name), "0");
    let Mark { alias, ipam, bridge_port } = mark;
    let alias = alias.text();
    if alias.is_none() && bridge_port.is_none() {
        return Ok(());
    }
    let group = alias.as_ref().filter(|_| ipam != Some(DHCP)).map(|_| 0);
    host.change_link(port.index, &LinkChange { alias, group, bridge_port, ..LinkChange::default() }).await
}

/// DEL: deletes the pair by the container's end; where the namespace is gone or not told, by the host's end, which is
/// usually gone with it.
pub(crate) async fn detach(request: &Request) -> Result<(), ErrorReply> {
    match request.existing_netns()? {
        Some(netns) => inside::delete(&netns, &request.ifname).await,
        None => {
            let host = Netlink::open().map_err(ErrorReply::internal)?;
            delete_port(&host, Alias::of(request)).await
        }
    }
}

/// GC: links, rules and leases of the network's attachments that are not to be kept. It goes on after an error, but for the
/// leases: while a link may stand that was to go, nobody else may get its address.
pub(crate) async fn gc(
    request: &Request,
    ipam: Option<&str>,
    collect_rules: impl Future<Output = Result<(), ErrorReply>>,
) -> Result<(), ErrorReply> {
    let valid = request.valid_attachments()?;
    let links = collect(request, &valid);
    let leases = delegate::run_if_any(request, ipam, Verb::Gc);
    if ipam == Some(DHCP) {
        // Its server is told through the links.
        let released = leases.await;
        return ErrorReply::first_of([released, in_order(links, collect_rules, async { Ok(()) }).await]);
    }
    in_order(links, collect_rules, leases).await
}

async fn in_order(
    links: impl Future<Output = Result<(), ErrorReply>>,
    rules: impl Future<Output = Result<(), ErrorReply>>,
    leases: impl Future<Output = Result<(), ErrorReply>>,
) -> Result<(), ErrorReply> {
    let unlinked = links.await;
    let unfiltered = rules.await;
    let released = if unlinked.is_ok() { leases.await } else { Ok(()) };
    ErrorReply::first_of([unlinked, unfiltered, released])
}

/// Deletes the host's ends of the network's attachments that are not to be kept, and of those never finished.
async fn collect(request: &Request, valid: &Valid) -> Result<(), ErrorReply> {
    let host = Netlink::open().map_err(ErrorReply::internal)?;
    delete_leftovers(&host, &request.network, valid).await
}

/// Deletes the host's end of an attachment whose namespace cannot be entered. None is success.
async fn delete_port(host: &Netlink, alias: Alias<'_>) -> Result<(), ErrorReply> {
    match host.find_link(&alias.port_name()).await.map_err(ErrorReply::internal)? {
        Some(link) if alias.is_of(&link) => {
            inside::delete_found(host, &link).await.map_err(ErrorReply::internal)
        }
        // It could not have its usual name, or is gone: its alias tells.
        _ => delete_ports(host, |link| alias.is_of(link)).await,
    }
}

async fn delete_leftovers(host: &Netlink, network: &str, keep: &Valid) -> Result<(), ErrorReply> {
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
async fn delete_ports(host: &Netlink, unwanted: impl Fn(&Link) -> bool) -> Result<(), ErrorReply> {
    let links = host.links().await.map_err(ErrorReply::internal)?;
    let mut deleted = Vec::new();
    for link in links.iter().filter(|link| link.is_kind("veth") && unwanted(link)) {
        deleted.push(inside::delete_found(host, link).await.map_err(ErrorReply::internal));
    }
    ErrorReply::first_of(deleted)
}

/// `veth` and eight hexadecimal digits.
fn random_name() -> std::io::Result<String> {
    let mut bytes = [0; 4];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("veth{:08x}", u32::from_ne_bytes(bytes)))
}

#[cfg(test)]
mod tests;
