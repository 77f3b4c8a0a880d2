//! CHECK: the kernel's state against the result that ADD returned.

use cni::{AddResult, ErrorReply, Interface};
use linux::netlink::{Link, Netlink};

use super::config::Config;
use crate::plugin::Request;

/// Both ends of the pair, by the sockets to ask them.
pub(super) struct Sides {
    pub(super) host: Netlink,
    pub(super) container: Netlink,
}

/// Compares links, addresses and routes; the first difference is the error.
pub(super) async fn attachment(
    request: &Request,
    config: &Config,
    expected: &AddResult,
    sides: &Sides,
) -> Result<(), ErrorReply> {
    let (bridge, inside) = (find_bridge(expected, config)?, find_inside(expected, request)?);
    let bridge_link = existing(&sides.host, bridge).await?;
    let inside_link = existing(&sides.container, inside).await?;
    same_mac(bridge, &bridge_link)?;
    same_mac(inside, &inside_link)?;
    check_bridge(&bridge_link, config)?;
    let port = check_pair(expected, &bridge_link, &inside_link, sides).await?;
    config.filters.check(request, expected, &port)?;
    check_addresses(expected, &inside_link, sides).await?;
    check_routes(expected, &inside_link, sides).await
}

fn find_bridge<'a>(expected: &'a AddResult, config: &Config) -> Result<&'a Interface, ErrorReply> {
    let mut named = expected.interfaces.iter().filter(|interface| interface.name == config.bridge);
    let found = named.find(|interface| interface.sandbox.is_none());
    found.ok_or_else(|| different(format!("bridge {:?} is not in prevResult", config.bridge)))
}

fn find_inside<'a>(expected: &'a AddResult, request: &Request) -> Result<&'a Interface, ErrorReply> {
    let found = expected
        .interfaces
        .iter()
        .find(|interface| interface.name == request.ifname && interface.sandbox.is_some());
    let inside =
        found.ok_or_else(|| different(format!("interface {:?} is not in prevResult", request.ifname)))?;
    let sandbox = request.netns.as_ref().map(|path| path.to_string_lossy());
    if inside.sandbox.as_deref() != sandbox.as_deref() {
        let message = format!(
            "Sandbox in prevResult {} doesn't match configured netns: {}",
            inside.sandbox.as_deref().unwrap_or_default(),
            sandbox.unwrap_or_default()
        );
        return Err(different(message));
    }
    Ok(inside)
}

async fn existing(netlink: &Netlink, interface: &Interface) -> Result<Link, ErrorReply> {
    let found = netlink.find_link(&interface.name).await.map_err(ErrorReply::internal)?;
    found.ok_or_else(|| different(format!("Interface name {} not found", interface.name)))
}

fn same_mac(interface: &Interface, link: &Link) -> Result<(), ErrorReply> {
    let Some(wanted) = &interface.mac else { return Ok(()) };
    let found = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if wanted.eq_ignore_ascii_case(&found) {
        return Ok(());
    }
    Err(different(format!("Interface {} Mac {wanted} doesn't match interface Mac: {found}", interface.name)))
}

fn check_bridge(bridge: &Link, config: &Config) -> Result<(), ErrorReply> {
    if !bridge.is_kind("bridge") {
        return Err(different(format!("Interface {} does not have link type of bridge", bridge.name)));
    }
    if config.promiscuous && bridge.promiscuity == 0 {
        let message = format!("Bridge interface {} is not in promiscuous mode", bridge.name);
        return Err(different(message));
    }
    Ok(())
}

/// The container's end must be a veth whose other end is a port of the bridge, which it returns.
async fn check_pair(
    expected: &AddResult,
    bridge: &Link,
    inside: &Link,
    sides: &Sides,
) -> Result<Link, ErrorReply> {
    if !inside.is_kind("veth") {
        let message = format!("Container interface {} not of type veth", inside.name);
        return Err(different(message));
    }
    let port = match inside.peer {
        Some(index) => sides.host.find_link_by_index(index).await.map_err(ErrorReply::internal)?,
        None => None,
    };
    let port = port.filter(|port| port.is_kind("veth") && port.peer == Some(inside.index));
    let port = port.ok_or_else(|| different(format!("no host end of {} was found", inside.name)))?;
    if port.master != Some(bridge.index) {
        let message = format!("interface {} is not a port of bridge {}", port.name, bridge.name);
        return Err(different(message));
    }
    let named = expected.interfaces.iter().find(|interface| interface.name == port.name);
    let named = named.ok_or_else(|| different(format!("interface {} is not in prevResult", port.name)))?;
    same_mac(named, &port)?;
    Ok(port)
}

async fn check_addresses(expected: &AddResult, inside: &Link, sides: &Sides) -> Result<(), ErrorReply> {
    let present = sides.container.addresses(Some(inside.index)).await.map_err(ErrorReply::internal)?;
    for ip in of_link(expected, inside) {
        if !present.iter().any(|address| address.network == ip.address) {
            let message = format!("Failed to match addr {} on interface {}", ip.address, inside.name);
            return Err(different(message));
        }
    }
    Ok(())
}

fn of_link<'a>(expected: &'a AddResult, inside: &Link) -> impl Iterator<Item = &'a cni::IpConfig> {
    let position = expected
        .interfaces
        .iter()
        .position(|interface| interface.name == inside.name && interface.sandbox.is_some());
    expected.ips.iter().filter(move |ip| ip.interface.is_some() && ip.interface == position)
}

async fn check_routes(expected: &AddResult, inside: &Link, sides: &Sides) -> Result<(), ErrorReply> {
    if expected.routes.is_empty() {
        return Ok(());
    }
    let present = sides.container.routes().await.map_err(ErrorReply::internal)?;
    for route in &expected.routes {
        let gateway = route.gw.or_else(|| super::gateway::default_for(expected, route.dst));
        let wanted_table = route.table.unwrap_or(linux::netlink::MAIN_TABLE);
        let network = route.dst.network();
        let found = present.iter().any(|found| {
            found.destination.ip() == network
                && found.destination.prefix() == route.dst.prefix()
                && found.gateway == gateway
                && found.table == wanted_table
                && found.link == Some(inside.index)
        });
        if !found {
            let message = format!("Expected Route {} not found in routing table", route.dst);
            return Err(different(message));
        }
    }
    Ok(())
}

fn different(message: String) -> ErrorReply {
    ErrorReply::internal(message)
}
