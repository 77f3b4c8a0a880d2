//! What the addresses of IPAM mean for the bridge: gateways, and the default routes of the container. Pure.

use std::net::IpAddr;

use cni::{AddResult, Route};
use ipnetwork::IpNetwork;

use super::config::Config;

/// Position of the container's link in the result's interfaces.
pub(super) const CONTAINER_INTERFACE: usize = 2;

/// Completes `result`, which holds what IPAM answered, and returns the addresses that the bridge is to carry.
pub(super) fn complete(result: &mut AddResult, config: &Config) -> Vec<IpNetwork> {
    let AddResult { ips, routes, .. } = result;
    let mut gateways = Vec::new();
    for ip in ips {
        if ip.gateway.is_none() && config.is_gateway {
            ip.gateway = first_of(ip.address);
        }
        if config.is_default_gateway {
            add_default_route(routes, ip.address, ip.gateway);
        }
        if config.is_gateway {
            gateways.extend(ip.gateway.and_then(|gateway| IpNetwork::new(gateway, ip.address.prefix()).ok()));
        }
    }
    gateways
}

/// Unless IPAM gave a default route of this family with a gateway.
fn add_default_route(routes: &mut Vec<Route>, address: IpNetwork, gateway: Option<IpAddr>) {
    let is_default = |route: &Route| {
        route.dst.prefix() == 0 && route.dst.is_ipv4() == address.is_ipv4() && route.gw.is_some()
    };
    if routes.iter().any(is_default) {
        return;
    }
    let everything = if address.is_ipv4() {
        IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)
    };
    routes.extend(IpNetwork::new(everything, 0).map(|dst| Route::new(dst, gateway)));
}

/// The first address of the network, by custom the gateway; none where there is no next one.
fn first_of(network: IpNetwork) -> Option<IpAddr> {
    match network.network() {
        IpAddr::V4(ip) => u32::from(ip).checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(ip) => u128::from(ip).checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    }
}

#[cfg(test)]
mod tests;
