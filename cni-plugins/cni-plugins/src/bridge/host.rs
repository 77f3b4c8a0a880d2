//! The host's half: the bridge, its gateway addresses, its ports.

use std::net::IpAddr;

use cni::ErrorReply;
use ipnetwork::IpNetwork;
use linux::netlink::{BridgeOptions, Error, Link, LinkChange, Netlink, NewAddress};

use super::config::Config;
use crate::sysctl;

/// Finds the bridge, or makes it, and sees that it is up.
pub(super) async fn ensure_bridge(host: &Netlink, config: &Config) -> Result<Link, ErrorReply> {
    let name = &config.bridge;
    let failed = |error: Error| ErrorReply::internal(format!("failed to create bridge {name:?}: {error}"));
    let bridge = match host.find_link(name).await.map_err(failed)? {
        Some(link) => link,
        None => {
            let options = BridgeOptions {
                name: name.clone(),
                mtu: config.mtu,
                mac: None,
                vlan_filtering: config.vlans.need_filtering(),
            };
            match host.add_bridge(&options).await {
                // Another ADD made it in between.
                Err(error) if error.is_exists() => {}
                made => {
                    made.map_err(failed)?;
                    sysctl::skip_duplicate_detection(name);
                }
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

/// Makes the bridge, or the link of its VLAN, a gateway: its addresses, then forwarding for their families.
pub(super) async fn make_gateway(
    host: &Netlink,
    carrier: &Link,
    gateways: &[IpNetwork],
    config: &Config,
) -> Result<(), ErrorReply> {
    for gateway in gateways {
        ensure_address(host, carrier, *gateway, config.force_address)
            .await
            .map_err(|error| ErrorReply::internal(format!("failed to set bridge addr: {error}")))?;
    }
    sysctl::forward(gateways)
        .map_err(|error| ErrorReply::internal(format!("failed to enable forwarding: {error}")))
}

async fn ensure_address(host: &Netlink, bridge: &Link, wanted: IpNetwork, force: bool) -> Result<(), String> {
    let present = host.addresses(Some(bridge.index)).await.map_err(|error| error.to_string())?;
    if present.iter().any(|address| address.network == wanted) {
        return Ok(());
    }
    for other in present.iter().map(|address| address.network).filter(|other| conflicts(*other, wanted)) {
        if !force {
            let name = &bridge.name;
            return Err(format!(
                "{name:?} already has an IP address different from {wanted}: {other} (forceAddress replaces it)"
            ));
        }
        match host.del_address(bridge.index, other).await {
            Err(error) if !error.is_gone() => return Err(error.to_string()),
            _ => {}
        }
    }
    // A bridge without an address of its own choice takes the lowest of its ports', and changes it as ports come and go. One
    // that had lost all its ports had none before the new one. First, for who finds the gateway's address looks no further.
    let had = bridge.mac.filter(|mac| mac.0 != [0; 6]);
    let mac = match had {
        None => host.link(&bridge.name).await.map_err(|error| error.to_string())?.mac,
        had => had,
    };
    let change = LinkChange { mac, ..LinkChange::default() };
    host.change_link(bridge.index, &change).await.map_err(|error| error.to_string())?;
    match host.add_address(&NewAddress::new(bridge.index, wanted)).await {
        Err(error) if !error.is_exists() => Err(error.to_string()),
        _ => Ok(()),
    }
}

/// A bridge has one IPv4 address, and IPv6 addresses of networks that lie apart.
fn conflicts(present: IpNetwork, wanted: IpNetwork) -> bool {
    match (present.ip(), wanted.ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => true,
        (IpAddr::V6(_), IpAddr::V6(_)) => present.contains(wanted.ip()) || wanted.contains(present.ip()),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
