//! The node's end of a pod's link, and the node's own addresses, as rtnetlink tells them.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;

use dataplane::policy::PodLink;
use linux::netlink::{self, Netlink};
use linux::netns::{self, Netns};

/// Name of the pod's end, as everywhere in Kubernetes.
const INTERFACE: &str = "eth0";

/// Why a pod's link was not found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("enter the pod's network namespace")]
    Netns(#[source] netns::Error),
    #[error("ask the kernel for the pod's link")]
    Netlink(#[source] netlink::Error),
    #[error("the pod's network has no link at the node where its packets could be seen")]
    NoLink,
}

/// Finds the node's end of the pair that the pod's interface is an end of. Blocks.
pub fn find(path: &Path) -> Result<PodLink, Error> {
    let pods = Netns::open(path).map_err(Error::Netns)?;
    let inside = in_namespace(&pods, async |netlink| netlink.find_link(INTERFACE).await)?;
    let inside = inside.filter(|link| link.is_kind("veth")).ok_or(Error::NoLink)?;
    let index = inside.peer.ok_or(Error::NoLink)?;
    let here = Netns::current().map_err(Error::Netns)?;
    let outside = in_namespace(&here, async |netlink| netlink.find_link_by_index(index).await)?;
    // The number may be another link's in a namespace that is not the node's.
    let is_its = |link: &netlink::Link| link.is_kind("veth") && link.peer == Some(inside.index);
    let outside = outside.filter(is_its).ok_or(Error::NoLink)?;
    Ok(PodLink { index, name: outside.name, netns: outside.peer_netns })
}

/// Every address that is the node's own, but for those that mean nothing without their link, of which each pod's has one. Blocks.
pub fn node_addresses() -> Result<Vec<IpAddr>, Error> {
    let here = Netns::current().map_err(Error::Netns)?;
    let addresses = in_namespace(&here, async |netlink| netlink.addresses(None).await)?;
    let mut ips: Vec<IpAddr> = addresses.iter().map(|address| address.network.ip()).collect();
    ips.retain(|ip| match ip {
        IpAddr::V4(ip) => !ip.is_loopback(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    });
    ips.sort_unstable();
    ips.dedup();
    Ok(ips)
}

fn in_namespace<T: Send>(
    netns: &Netns,
    ask: impl AsyncFnOnce(&Netlink) -> Result<T, netlink::Error> + Send,
) -> Result<T, Error> {
    let asked = netns::in_netns_async(netns.as_fd(), || async { ask(&Netlink::open()?).await });
    asked.map_err(Error::Netns)?.map_err(Error::Netlink)
}
