//! The links by which traffic from outside comes in, and the node's addresses on them.
//!
//! In: settings, and what rtnetlink says. Out: [`Uplinks`]. The choice is pure; `discover` asks the kernel.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use linux::netlink::{self, MAIN_TABLE, Netlink, Route};

use crate::settings::Settings;

#[cfg(test)]
mod tests;

/// Where this node meets the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplinks {
    /// Names of the links.
    pub names: Vec<String>,
    /// IPv4 addresses on them, the node's own first: node ports answer here.
    pub addresses: Vec<Ipv4Addr>,
    /// The smallest of their MTUs, bytes.
    pub mtu: u32,
}

/// Why the uplinks are not known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("ask the kernel for links, addresses and routes")]
    Netlink(#[source] netlink::Error),
    #[error("uplink {name}: no such link")]
    NoSuchLink { name: String },
    #[error(
        "find uplinks: no link has address {node_ip} and there is no default route; name one with --uplink"
    )]
    None { node_ip: Ipv4Addr },
}

/// What the choice depends on.
#[derive(Debug, Default)]
struct Facts {
    /// Index, name, MTU.
    links: Vec<(u32, String, u32)>,
    /// Link and address.
    addresses: Vec<(u32, Ipv4Addr)>,
    /// Links of IPv4 default routes.
    default_routes: BTreeSet<u32>,
}

/// Asks the kernel and chooses.
pub async fn discover(settings: &Settings) -> Result<Uplinks, Error> {
    let netlink = Netlink::open().map_err(Error::Netlink)?;
    let links = netlink.links().await.map_err(Error::Netlink)?;
    let addresses = netlink.addresses(None).await.map_err(Error::Netlink)?;
    let routes = netlink.routes().await.map_err(Error::Netlink)?;
    let facts = Facts {
        links: links.into_iter().map(|link| (link.index, link.name, link.mtu)).collect(),
        addresses: addresses
            .into_iter()
            .filter_map(|address| match address.network.ip() {
                IpAddr::V4(ip) => Some((address.link, ip)),
                IpAddr::V6(_) => None,
            })
            .collect(),
        default_routes: default_routes(&routes),
    };
    choose(&settings.uplinks, settings.node_ip, &facts)
}

/// Those of other tables are for packets that a rule chooses, as of a VPN: the world does not come in there.
fn default_routes(routes: &[Route]) -> BTreeSet<u32> {
    let is_default = |route: &&Route| {
        route.table == MAIN_TABLE && route.destination.is_ipv4() && route.destination.prefix() == 0
    };
    routes.iter().filter(is_default).filter_map(|route| route.link).collect()
}

fn choose(configured: &[String], node_ip: Ipv4Addr, facts: &Facts) -> Result<Uplinks, Error> {
    let known = |name: &String| facts.links.iter().any(|(_, link, _)| link == name);
    if let Some(name) = configured.iter().find(|name| !known(name)) {
        return Err(Error::NoSuchLink { name: name.clone() });
    }
    let has_node_ip = |index: u32| facts.addresses.contains(&(index, node_ip));
    let chosen: Vec<&(u32, String, u32)> = facts
        .links
        .iter()
        .filter(|(index, name, _)| match configured {
            [] => name != "lo" && (facts.default_routes.contains(index) || has_node_ip(*index)),
            names => names.contains(name),
        })
        .collect();
    let Some(mtu) = chosen.iter().map(|(_, _, mtu)| *mtu).min() else {
        return Err(Error::None { node_ip });
    };
    let on_them = facts.addresses.iter().filter(|(link, _)| chosen.iter().any(|(index, _, _)| index == link));
    let mut addresses = vec![node_ip];
    addresses.extend(on_them.map(|(_, address)| *address).filter(|address| *address != node_ip));
    Ok(Uplinks { names: chosen.iter().map(|(_, name, _)| name.clone()).collect(), addresses, mtu })
}
