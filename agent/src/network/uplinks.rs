//! The links by which traffic from outside comes in, and the node's addresses on them.
//!
//! In: the links that the settings name, the node's addresses, and what rtnetlink says. Out: [`Uplinks`]. The choice is pure; `discover`
//! asks the kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;

use linux::netlink::{self, Address, AddressFlags, MAIN_TABLE, Netlink, Route};

#[cfg(test)]
mod tests;

/// Where this node meets the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplinks {
    /// Names of the links.
    pub names: Vec<String>,
    /// Addresses on them that others can use, the node's own first: node ports answer here.
    pub addresses: Vec<IpAddr>,
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
        "find uplinks: no link has address {node_ips} and there is no default route; name one with --uplink"
    )]
    None { node_ips: String },
    #[error(
        "find uplinks: the Node has no InternalIP, and no default route of IPv4 tells one; register the Node with its \
         address, or name a link with --uplink"
    )]
    NoNodeIp,
}

/// What the choice depends on.
#[derive(Debug, Default)]
struct Facts {
    /// Index, name, MTU.
    links: Vec<(u32, String, u32)>,
    /// Link and address.
    addresses: Vec<(u32, IpAddr)>,
    /// Links of default routes.
    default_routes: BTreeSet<u32>,
}

/// Asks the kernel and chooses: the links that are `configured`, or else those of the default route and of the node's addresses.
pub async fn discover(configured: &[String], node_ips: &[IpAddr]) -> Result<Uplinks, Error> {
    let netlink = Netlink::open().map_err(Error::Netlink)?;
    let links = netlink.links().await.map_err(Error::Netlink)?;
    let addresses = netlink.addresses(None).await.map_err(Error::Netlink)?;
    let routes = netlink.routes().await.map_err(Error::Netlink)?;
    let facts = Facts {
        links: links.into_iter().map(|link| (link.index, link.name, link.mtu)).collect(),
        addresses: addresses
            .into_iter()
            .filter(is_lasting)
            .map(|address| (address.link, address.network.ip()))
            .filter(|(_, ip)| has_family(node_ips, ip.is_ipv4()))
            .collect(),
        default_routes: default_routes(&routes, node_ips),
    };
    choose(configured, node_ips, &facts)
}

/// Whether others can go on using it: not a link-local one of IPv6, which means nothing without its link, nor one that the kernel
/// makes anew now and then.
fn is_lasting(address: &Address) -> bool {
    let passing = AddressFlags::Secondary | AddressFlags::Deprecated | AddressFlags::Dadfailed;
    match address.network.ip() {
        IpAddr::V4(_) => true,
        // What is secondary in IPv4 is temporary in IPv6.
        IpAddr::V6(ip) => !ip.is_unicast_link_local() && !address.flags.intersects(passing),
    }
}

/// Without an address of its own in a family the node could not answer for backends on other nodes.
fn has_family(node_ips: &[IpAddr], is_ipv4: bool) -> bool {
    node_ips.iter().any(|ip| ip.is_ipv4() == is_ipv4)
}

/// Those of other tables are for packets that a rule chooses, as of a VPN: the world does not come in there.
fn default_routes(routes: &[Route], node_ips: &[IpAddr]) -> BTreeSet<u32> {
    let is_default = |route: &&Route| {
        let to = route.destination;
        route.table == MAIN_TABLE && to.prefix() == 0 && has_family(node_ips, to.is_ipv4())
    };
    routes.iter().filter(is_default).filter_map(|route| route.link).collect()
}

fn choose(configured: &[String], node_ips: &[IpAddr], facts: &Facts) -> Result<Uplinks, Error> {
    let known = |name: &String| facts.links.iter().any(|(_, link, _)| link == name);
    if let Some(name) = configured.iter().find(|name| !known(name)) {
        return Err(Error::NoSuchLink { name: name.clone() });
    }
    let is_node_ip = |address: &IpAddr| node_ips.contains(address);
    let has_node_ip =
        |index: u32| facts.addresses.iter().any(|(link, address)| *link == index && is_node_ip(address));
    let chosen: Vec<&(u32, String, u32)> = facts
        .links
        .iter()
        .filter(|(index, name, _)| match configured {
            [] => name != "lo" && (facts.default_routes.contains(index) || has_node_ip(*index)),
            names => names.contains(name),
        })
        .collect();
    let Some(mtu) = chosen.iter().map(|(_, _, mtu)| *mtu).min() else {
        if node_ips.is_empty() {
            return Err(Error::NoNodeIp);
        }
        let shown: Vec<String> = node_ips.iter().map(ToString::to_string).collect();
        return Err(Error::None { node_ips: shown.join(",") });
    };
    let on_them = facts.addresses.iter().filter(|(link, _)| chosen.iter().any(|(index, _, _)| index == link));
    let mut addresses = node_ips.to_vec();
    addresses.extend(on_them.map(|(_, address)| *address).filter(|address| !is_node_ip(address)));
    Ok(Uplinks { names: chosen.iter().map(|(_, name, _)| name.clone()).collect(), addresses, mtu })
}
