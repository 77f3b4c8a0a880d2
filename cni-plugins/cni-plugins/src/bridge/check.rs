//! CHECK: the kernel's state against the result that ADD returned.

use cni::{AddResult, ErrorReply, Interface};
use linux::netlink::{Link, Netlink};

use super::config::Config;
use crate::{
    plugin::Request,
    verify::{self, different, existing, same_mac},
};

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
    let bridge = find_bridge(expected, config)?;
    let bridge_link = existing(&sides.host, bridge).await?;
    let inside_link = verify::inside(&sides.container, request, expected, Some("veth")).await?;
    same_mac(bridge, &bridge_link)?;
    check_bridge(&bridge_link, config)?;
    let port = check_pair(expected, &bridge_link, &inside_link, sides).await?;
    config.filters.check(request, expected, &port)?;
    verify::addresses(&sides.container, expected, &inside_link).await?;
    verify::routes(&sides.container, expected, &inside_link).await
}

fn find_bridge<'a>(expected: &'a AddResult, config: &Config) -> Result<&'a Interface, ErrorReply> {
    let mut named = expected.interfaces.iter().filter(|interface| interface.name == config.bridge);
    let found = named.find(|interface| interface.sandbox.is_none());
    found.ok_or_else(|| different(format!("bridge {:?} is not in prevResult", config.bridge)))
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

/// The other end of the container's, which must be a port of the bridge.
async fn check_pair(
    expected: &AddResult,
    bridge: &Link,
    inside: &Link,
    sides: &Sides,
) -> Result<Link, ErrorReply> {
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
