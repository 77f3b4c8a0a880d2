//! The link that wraps packets to other nodes' pods, for the backends `vxlan` and `wireguard`.
//!
//! In: settings, uplinks, and the link as an earlier agent left it. Out: [`Overlay`], a link that is up and has an identity
//! that other nodes are told ([`End`]). It is found by its name; one that is as it should be is adopted, so that packets go on
//! while the agent restarts, and the link of another backend is removed. What goes through it is `routes`' work.
//!
//! A private key is made once per life of its link, goes to the kernel and is kept nowhere else.

use std::net::IpAddr;
use std::sync::Arc;

use linux::netlink::{self, Link, LinkChange, LinkKind, MacAddress, Netlink, NewLink, Vxlan};
use linux::wireguard::{PrivateKey, PublicKey, Wireguard};
use sha2::{Digest, Sha256};

use super::Uplinks;
use super::lease::{self, End, VXLAN_ID, VXLAN_PORT, WIREGUARD_PORT};
use super::routes::Way;
use crate::settings::{NetworkBackend, Settings};

#[cfg(test)]
mod tests;

/// A backend with a link of its own.
struct Kind {
    backend: &'static str,
    /// The link's name, and its kind as the kernel says it.
    link: &'static str,
    kind: &'static str,
    /// What wrapping adds to a packet, bytes.
    overhead: u32,
}

const VXLAN: Kind = Kind {
    backend: lease::VXLAN,
    link: "orlop-vxlan",
    kind: "vxlan",
    // IPv4, UDP and VXLAN headers, and the Ethernet header inside.
    overhead: 20 + 8 + 8 + 14,
};
const WIREGUARD: Kind = Kind {
    backend: lease::WIREGUARD,
    link: "orlop-wg",
    kind: "wireguard",
    // IPv4 and UDP headers, and WireGuard's header and authentication tag.
    overhead: 20 + 8 + 16 + 16,
};

/// Why there is no such link.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("make the link {link} of the network backend {backend}")]
    Make { link: &'static str, backend: &'static str, source: netlink::Error },
    #[error("remove links of other network backends")]
    Remove(#[source] netlink::Error),
    #[error("make a private key for WireGuard")]
    Key(#[source] std::io::Error),
    #[error("the link {link} has no public key, though it was given a private one")]
    NoPublicKey { link: &'static str },
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
        let wanted = match settings.network_backend {
            NetworkBackend::Vxlan => Some(VXLAN),
            NetworkBackend::Wireguard => Some(WIREGUARD),
            NetworkBackend::HostGw | NetworkBackend::None => None,
        };
        let netlink = Netlink::open().map_err(Error::Remove)?;
        for other in [VXLAN, WIREGUARD] {
            if wanted.as_ref().is_none_or(|wanted| wanted.link != other.link) {
                remove_any(&netlink, &other).await.map_err(Error::Remove)?;
            }
        }
        let Some(Kind { backend, link: name, overhead, .. }) = wanted else { return Ok(None) };
        // The least that an IPv4 host must take (RFC 791).
        let mtu = uplinks.mtu.checked_sub(overhead).filter(|mtu| *mtu >= 576);
        let mtu = mtu.ok_or(Error::Mtu { mtu: uplinks.mtu, backend })?;
        let failed = move |source| Error::Make { link: name, backend, source };
        if settings.network_backend == NetworkBackend::Vxlan {
            let new = vxlan(&netlink, settings, mtu).await.map_err(failed)?;
            let link = ensure(&netlink, &new, &VXLAN).await.map_err(failed)?;
            let end = End::Vxlan(hardware_address(&settings.node_name));
            return Ok(Some(Self { name, link, mtu, end, wireguard: None }));
        }
        let new = NewLink { mtu: Some(mtu), ..NewLink::new(name, LinkKind::Wireguard) };
        let link = ensure(&netlink, &new, &WIREGUARD).await.map_err(failed)?;
        let identified = tokio::task::spawn_blocking(move || identify(name, link, failed)).await;
        let (wireguard, key) = identified.map_err(|error| Error::Key(error.into()))??;
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

/// Removes our link of a backend that is not wanted.
async fn remove_any(netlink: &Netlink, other: &Kind) -> Result<(), netlink::Error> {
    match netlink.find_link(other.link).await?.filter(|link| link.is_kind(other.kind)) {
        Some(link) => remove(netlink, &link).await,
        None => Ok(()),
    }
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
    let carrier = addresses.iter().find(|address| address.network.ip() == IpAddr::V4(settings.node_ips.v4));
    let vxlan = Vxlan {
        id: VXLAN_ID,
        port: VXLAN_PORT,
        local: settings.node_ips.v4,
        carrier: carrier.map_or(0, |address| address.link),
    };
    Ok(NewLink {
        mtu: Some(mtu),
        mac: Some(hardware_address(&settings.node_name)),
        up: true,
        ..NewLink::new(VXLAN.link, LinkKind::Vxlan(vxlan))
    })
}

/// The index of a link that is as `wanted`: the one that is there, brought to that if it can be, or a new one.
async fn ensure(netlink: &Netlink, wanted: &NewLink, kind: &Kind) -> Result<u32, netlink::Error> {
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
        Some(link) if link.is_kind(kind.kind) => remove(netlink, &link).await?,
        _ => {}
    }
    netlink.add_link(wanted).await?;
    Ok(netlink.link(&wanted.name).await?.index)
}

/// The link's public key; one that has none gets a private key. Blocks.
fn identify(
    name: &'static str,
    link: u32,
    failed: impl Fn(netlink::Error) -> Error,
) -> Result<(Wireguard, PublicKey), Error> {
    let wireguard = Wireguard::open().map_err(&failed)?;
    let device = wireguard.device(link).map_err(&failed)?;
    if let Some(key) = device.public_key {
        if device.port != WIREGUARD_PORT {
            wireguard.set_port(link, WIREGUARD_PORT).map_err(failed)?;
        }
        return Ok((wireguard, key));
    }
    let key = PrivateKey::random().map_err(Error::Key)?;
    wireguard.set_identity(link, &key, WIREGUARD_PORT).map_err(&failed)?;
    let key = wireguard.device(link).map_err(failed)?.public_key;
    Ok((wireguard, key.ok_or(Error::NoPublicKey { link: name })?))
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
