//! The link that wraps packets to other nodes' pods, for the backends `vxlan` and `wireguard`.
//!
//! In: settings, uplinks, and the link as an earlier agent left it. Out: [`Overlay`], a link that is up and has an identity
//! that other nodes are told ([`End`]). It is found by its name; one that is as it should be is adopted, so that packets go on
//! while the agent restarts, and the link of another backend is removed. What goes through it is `routes`' work.
//!
//! A private key is made once per life of its link, goes to the kernel and is nowhere else.

use std::net::IpAddr;
use std::sync::Arc;

use linux::netlink::{self, Link, LinkChange, LinkKind, MacAddress, Netlink, NewLink, Vxlan};
use linux::wireguard::{PrivateKey, PublicKey, Wireguard};
use sha2::{Digest, Sha256};

use super::Uplinks;
use super::lease::{End, VXLAN_ID, VXLAN_PORT, WIREGUARD_PORT};
use super::routes::Way;
use crate::settings::{NetworkBackend, Settings};

#[cfg(test)]
mod tests;

const VXLAN_NAME: &str = "orlop-vxlan";
const WIREGUARD_NAME: &str = "orlop-wg";
/// What wrapping adds to a packet, bytes: IPv4, UDP and VXLAN headers, and the Ethernet header inside.
const VXLAN_OVERHEAD: u32 = 20 + 8 + 8 + 14;
/// IPv4 and UDP headers, and WireGuard's header and authentication tag.
const WIREGUARD_OVERHEAD: u32 = 20 + 8 + 16 + 16;

/// Why there is no such link.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("make the link {name} of the network backend {backend}")]
    Netlink { name: &'static str, backend: &'static str, source: netlink::Error },
    #[error("make a private key for WireGuard")]
    Key(#[source] std::io::Error),
    #[error("the link {name} has no public key, though it was given a private one")]
    NoPublicKey { name: &'static str },
    #[error(
        "an MTU of {mtu} bytes of the uplinks leaves no room for packets of the network backend {backend}"
    )]
    Mtu { mtu: u32, backend: &'static str },
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Overlay {
    pub name: &'static str,
    /// Index.
    pub link: u32,
    /// Bytes; pods must not send more.
    pub mtu: u32,
    pub end: End,
    /// Of the backend `wireguard`.
    pub wireguard: Option<Arc<Wireguard>>,
}

impl Overlay {
    /// Makes or adopts the link; none where packets are not wrapped.
    pub async fn open(settings: &Settings, uplinks: &Uplinks) -> Result<Option<Self>, Error> {
        let (name, backend, overhead) = match settings.network_backend {
            NetworkBackend::Vxlan => (VXLAN_NAME, super::lease::VXLAN, VXLAN_OVERHEAD),
            NetworkBackend::Wireguard => (WIREGUARD_NAME, super::lease::WIREGUARD, WIREGUARD_OVERHEAD),
            NetworkBackend::HostGw | NetworkBackend::None => ("", "host-gw", 0),
        };
        let failed = |source| Error::Netlink { name, backend, source };
        let netlink = Netlink::open().map_err(failed)?;
        remove_others(&netlink, name).await.map_err(failed)?;
        if name.is_empty() {
            return Ok(None);
        }
        // The least that an IPv4 host must take (RFC 791).
        let mtu = uplinks.mtu.checked_sub(overhead).filter(|mtu| *mtu >= 576);
        let mtu = mtu.ok_or(Error::Mtu { mtu: uplinks.mtu, backend })?;
        if settings.network_backend == NetworkBackend::Vxlan {
            let wanted = vxlan(&netlink, settings, mtu).await.map_err(failed)?;
            let link = ensure(&netlink, &wanted).await.map_err(failed)?;
            let end = End::Vxlan(hardware_address(&settings.node_name));
            return Ok(Some(Self { name, link, mtu, end, wireguard: None }));
        }
        let wanted = NewLink { mtu: Some(mtu), ..NewLink::new(name, LinkKind::Wireguard) };
        let link = ensure(&netlink, &wanted).await.map_err(failed)?;
        let wireguard = Wireguard::open().map_err(failed)?;
        let key = identify(&wireguard, name, link, failed)?;
        netlink.set_link_up(link).await.map_err(failed)?;
        Ok(Some(Self { name, link, mtu, end: End::Wireguard(key), wireguard: Some(Arc::new(wireguard)) }))
    }

    /// How packets travel by it.
    pub fn way(&self) -> Way {
        match self.end {
            End::Vxlan(_) => Way::Vxlan { link: self.link },
            End::Wireguard(_) => Way::Wireguard { link: self.link },
        }
    }
}

/// Removes our links of other backends.
async fn remove_others(netlink: &Netlink, name: &str) -> Result<(), netlink::Error> {
    for (other, kind) in [(VXLAN_NAME, "vxlan"), (WIREGUARD_NAME, "wireguard")] {
        if other == name {
            continue;
        }
        if let Some(link) = netlink.find_link(other).await?.filter(|link| link.is_kind(kind)) {
            remove(netlink, &link).await?;
        }
    }
    Ok(())
}

async fn remove(netlink: &Netlink, link: &Link) -> Result<(), netlink::Error> {
    tracing::info!(link = link.name, "removing a link that an earlier agent made otherwise");
    match netlink.del_link(link.index).await {
        Err(error) if !error.is_gone() => Err(error),
        _ => Ok(()),
    }
}

async fn vxlan(netlink: &Netlink, settings: &Settings, mtu: u32) -> Result<NewLink, netlink::Error> {
    let addresses = netlink.addresses(None).await?;
    let carrier = addresses.iter().find(|address| address.network.ip() == IpAddr::V4(settings.node_ip));
    let vxlan = Vxlan {
        id: VXLAN_ID,
        port: VXLAN_PORT,
        local: settings.node_ip,
        carrier: carrier.map_or(0, |address| address.link),
    };
    Ok(NewLink {
        mtu: Some(mtu),
        mac: Some(hardware_address(&settings.node_name)),
        up: true,
        ..NewLink::new(VXLAN_NAME, LinkKind::Vxlan(vxlan))
    })
}

/// The index of a link that is as `wanted`: the one that is there, brought to that if it can be, or a new one.
async fn ensure(netlink: &Netlink, wanted: &NewLink) -> Result<u32, netlink::Error> {
    match netlink.find_link(&wanted.name).await? {
        Some(link) if link.settings == Some(wanted.kind) => {
            let change = LinkChange {
                mtu: wanted.mtu.filter(|mtu| *mtu != link.mtu),
                mac: wanted.mac.filter(|mac| Some(*mac) != link.mac),
                up: (wanted.up && !link.up).then_some(true),
                ..LinkChange::default()
            };
            netlink.change_link(link.index, &change).await?;
            return Ok(link.index);
        }
        // What is not ours refuses the new one its name.
        Some(link) if link.kind == Some(kind_of(wanted).to_owned()) => remove(netlink, &link).await?,
        _ => {}
    }
    netlink.add_link(wanted).await?;
    Ok(netlink.link(&wanted.name).await?.index)
}

fn kind_of(wanted: &NewLink) -> &'static str {
    match wanted.kind {
        LinkKind::Wireguard => "wireguard",
        _ => "vxlan",
    }
}

/// The link's public key; one that has none gets a private key.
fn identify(
    wireguard: &Wireguard,
    name: &'static str,
    link: u32,
    failed: impl Fn(netlink::Error) -> Error,
) -> Result<PublicKey, Error> {
    let device = wireguard.device(link).map_err(&failed)?;
    if let Some(key) = device.public_key {
        if device.port != WIREGUARD_PORT {
            wireguard.set_port(link, WIREGUARD_PORT).map_err(failed)?;
        }
        return Ok(key);
    }
    let key = PrivateKey::random().map_err(Error::Key)?;
    wireguard.set_identity(link, &key, WIREGUARD_PORT).map_err(&failed)?;
    wireguard.device(link).map_err(failed)?.public_key.ok_or(Error::NoPublicKey { name })
}

/// The hardware address of a node's VXLAN link: always the same, so that other nodes' entries hold after a reboot, and set at
/// birth, so that no rule of the system changes it later.
fn hardware_address(node_name: &str) -> MacAddress {
    let digest = Sha256::digest(node_name);
    let mut octets = [0; 6];
    octets.copy_from_slice(&digest[..6]);
    // Locally administered, of one station.
    octets[0] = octets[0] & 0xfc | 0x02;
    MacAddress(octets)
}
