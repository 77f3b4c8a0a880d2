//! CHECK: the kernel's state against the result that ADD returned.
//!
//! Owns the comparisons that more than one plugin makes; the first difference is the error.

use cni::{AddResult, ErrorReply, Interface, IpConfig};
use linux::netlink::{Link, MAIN_TABLE, Netlink, Route};

use crate::{inside::router_of, plugin::Request};

/// The container's link as `prevResult` has it.
pub(crate) fn find_inside<'a>(
    expected: &'a AddResult,
    request: &Request,
) -> Result<&'a Interface, ErrorReply> {
    let sandbox = request.netns.as_ref().map(|path| path.to_string_lossy()).unwrap_or_default();
    let named = |interface: &&Interface| interface.name == request.ifname && interface.sandbox.is_some();
    let mut all = expected.interfaces.iter().filter(named);
    if let Some(inside) = all.clone().find(|inside| inside.sandbox.as_deref() == Some(&*sandbox)) {
        return Ok(inside);
    }
    let other = all.next().and_then(|interface| interface.sandbox.as_deref()).unwrap_or_default();
    Err(different(format!("Sandbox in prevResult {other} doesn't match configured netns: {sandbox}")))
}

/// The link that an interface of `prevResult` names.
pub(crate) async fn existing(netlink: &Netlink, interface: &Interface) -> Result<Link, ErrorReply> {
    let found = netlink.find_link(&interface.name).await.map_err(ErrorReply::internal)?;
    found.ok_or_else(|| different(format!("Interface name {} not found", interface.name)))
}

/// The container's link: there, of the kind, with the hardware address.
pub(crate) async fn inside(
    netlink: &Netlink,
    request: &Request,
    expected: &AddResult,
    kind: Option<&str>,
) -> Result<Link, ErrorReply> {
    let interface = find_inside(expected, request)?;
    let link = existing(netlink, interface).await?;
    if let Some(kind) = kind.filter(|kind| !link.is_kind(kind)) {
        return Err(different(format!("Container interface {} not of type {kind}", link.name)));
    }
    same_mac(interface, &link)?;
    Ok(link)
}

pub(crate) fn same_mac(interface: &Interface, link: &Link) -> Result<(), ErrorReply> {
    let Some(wanted) = &interface.mac else { return Ok(()) };
    let found = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if wanted.eq_ignore_ascii_case(&found) {
        return Ok(());
    }
    Err(different(format!("Interface {} Mac {wanted} doesn't match interface Mac: {found}", interface.name)))
}

/// The addresses on the link, with routes to their networks.
pub(crate) async fn addresses(
    netlink: &Netlink,
    expected: &AddResult,
    link: &Link,
) -> Result<(), ErrorReply> {
    let present = netlink.addresses(Some(link.index)).await.map_err(ErrorReply::internal)?;
    let routes = netlink.routes().await.map_err(ErrorReply::internal)?;
    for ip in of_link(expected, link) {
        if !present.iter().any(|address| address.network == ip.address) {
            let message = format!("Failed to match addr {} on interface {}", ip.address, link.name);
            return Err(different(message));
        }
        if !routes.iter().any(|route| leads_to(route, ip)) {
            let gateway = ip.gateway.map(|gateway| gateway.to_string()).unwrap_or_default();
            let message = format!("Failed to find Gateway {gateway} for interface {}", link.name);
            return Err(different(message));
        }
    }
    Ok(())
}

/// The network of an address without one (`10.0.0.1/32`) is the address itself, which needs no route.
fn leads_to(route: &Route, ip: &IpConfig) -> bool {
    let whole = if ip.address.is_ipv4() { 32 } else { 128 };
    ip.address.prefix() == whole
        || (route.destination.ip() == ip.address.network()
            && route.destination.prefix() == ip.address.prefix())
}

/// Those of this link, and those that say of none whose they are.
fn of_link<'a>(expected: &'a AddResult, link: &Link) -> impl Iterator<Item = &'a IpConfig> {
    let position = expected
        .interfaces
        .iter()
        .position(|interface| interface.name == link.name && interface.sandbox.is_some());
    expected.ips.iter().filter(move |ip| ip.interface.is_none() || ip.interface == position)
}

/// The routes that IPAM asked for.
pub(crate) async fn routes(netlink: &Netlink, expected: &AddResult, link: &Link) -> Result<(), ErrorReply> {
    if expected.routes.is_empty() {
        return Ok(());
    }
    let present = netlink.routes().await.map_err(ErrorReply::internal)?;
    for route in &expected.routes {
        let gateway = router_of(route, expected);
        let wanted_table = route.table.unwrap_or(MAIN_TABLE);
        let network = route.dst.network();
        let found = present.iter().any(|found| {
            found.destination.ip() == network
                && found.destination.prefix() == route.dst.prefix()
                && found.gateway == gateway
                && found.table == wanted_table
                && found.link == Some(link.index)
        });
        if !found {
            let message = format!("Expected Route {} not found in routing table", route.dst);
            return Err(different(message));
        }
    }
    Ok(())
}

pub(crate) fn different(message: String) -> ErrorReply {
    ErrorReply::internal(message)
}
