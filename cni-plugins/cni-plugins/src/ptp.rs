//! The plugin `ptp`: joins a container to the host by a pair of virtual Ethernet links, without a bridge.
//!
//! Inputs: the reference plugin's keys; outputs: both ends, with the gateway's address on the host's. A virtual link has
//! no point-to-point mode, and a gateway must be on a network of the link's addresses. So the container's end gets its
//! address with the network's prefix, but the route to the network is replaced: the gateway alone is on the link, and
//! everything else, the network's other containers too, is behind it.
//!
//! The host's end carries the alias that `pair` finds it by.

use std::net::IpAddr;

use cni::{AddResult, Dns, ErrorReply, IpConfig, exec::Verb};
use ipnetwork::IpNetwork;
use linux::{
    netlink::{AddressFlags, Link, Netlink, NewAddress, Route},
    netns::Netns,
};

use crate::{
    delegate,
    inside::{Inside, interface},
    made::Made,
    masquerade::{self, Masquerade},
    pair::{self, Alias, Mark, PairOptions},
    plugin::{Plugin, Request, block_on, decoding},
    single, sysctl, verify,
};

/// Position of the container's link in the result's interfaces.
const CONTAINER_INTERFACE: usize = 1;
/// `RT_SCOPE_HOST`, `RT_SCOPE_LINK`, and the scope that stands for any when a route is deleted.
const SCOPE_HOST: u8 = 254;
const SCOPE_LINK: u8 = 253;
const SCOPE_ANY: u8 = 255;
/// `RTPROT_UNSPEC`, which stands for any when a route is deleted.
const PROTOCOL_ANY: u8 = 0;

/// See the module.
#[derive(Debug)]
pub struct Ptp;

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    mtu: Option<u32>,
    dns: Dns,
    masquerade: Masquerade,
    ipam: String,
}

impl Config {
    pub(crate) fn read(request: &Request) -> Result<Self, ErrorReply> {
        let root = request.root();
        Ok(Self {
            mtu: root.number::<u32>("mtu").map_err(decoding)?.filter(|mtu| *mtu > 0),
            dns: Dns::read(&root).map_err(decoding)?,
            masquerade: Masquerade::read(request)?,
            ipam: delegate::required_ipam(request)?,
        })
    }
}

/// An address of the container, and its gateway, which is an address of the host's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hop {
    address: IpNetwork,
    gateway: IpAddr,
}

impl Hop {
    fn of(ip: &IpConfig) -> Result<Self, ErrorReply> {
        let gateway = ip.gateway.ok_or_else(|| {
            ErrorReply::internal(format!(
                "IPAM plugin gave {} without a gateway, which ptp needs",
                ip.address
            ))
        })?;
        Ok(Self { address: ip.address, gateway })
    }

    /// What the container has instead of the route that came with its address.
    fn routes(&self, link: u32) -> [Route; 2] {
        let own = Some(self.address.ip());
        let to_gateway =
            Route { link: Some(link), scope: SCOPE_LINK, source: own, ..Route::to(alone(self.gateway)) };
        let to_network = Route {
            link: Some(link),
            gateway: Some(self.gateway),
            source: own,
            ..Route::to(network(self.address))
        };
        [to_gateway, to_network]
    }
}

fn alone(ip: IpAddr) -> IpNetwork {
    IpNetwork::from(ip)
}

/// The network that an address is in.
fn network(address: IpNetwork) -> IpNetwork {
    IpNetwork::new(address.network(), address.prefix()).unwrap_or(address)
}

async fn attach<'a>(
    request: &'a Request,
    config: &'a Config,
    netns: &Netns,
    made: &mut Made<'a>,
) -> Result<AddResult, ErrorReply> {
    config.masquerade.validate()?;
    let host = Netlink::open().map_err(ErrorReply::internal)?;
    let options = PairOptions { mtu: config.mtu, ..PairOptions::default() };
    let port = pair::make(&host, request, netns, &options).await?;
    made.link(&host, port.index);
    let mark = Mark { alias: Alias::of(request), ipam: Some(&config.ipam), bridge_port: None };
    pair::mark(&host, &port, mark).await.map_err(ErrorReply::internal)?;
    let inside = Inside::open(netns, &request.ifname).await?;
    let mut result = made.addresses(&config.ipam, CONTAINER_INTERFACE).await?;
    let hops = result.ips.iter().map(Hop::of).collect::<Result<Vec<_>, _>>()?;
    let addresses: Vec<IpNetwork> = hops.iter().map(|hop| hop.address).collect();
    sysctl::forward(&addresses)
        .map_err(|error| ErrorReply::internal(format!("Could not enable IP forwarding: {error}")))?;
    // The host's half first: its addresses are there when the container's are found to be unique.
    for hop in &hops {
        connect_host(&host, &port, hop).await?;
    }
    inside.configure(&result, &[]).await?;
    for hop in &hops {
        lead_to_gateway(&inside, hop).await?;
    }
    if config.masquerade.is_wanted() {
        made.also(|| config.masquerade.tear_down(request));
        config.masquerade.set_up(request, &result)?;
    }
    result.interfaces = vec![interface(&port, None), inside.interface()];
    // The configuration's DNS wins over IPAM's.
    if !config.dns.is_empty() {
        result.dns = config.dns.clone();
    }
    Ok(result)
}

/// The gateway's address on the host's end, and the route to the container. The address is the same on the ends of all
/// containers, and nobody but this one could have it too: so there is no search for duplicates.
async fn connect_host(host: &Netlink, port: &Link, hop: &Hop) -> Result<(), ErrorReply> {
    let gateway = alone(hop.gateway);
    let flags = if gateway.is_ipv6() { AddressFlags::Nodad } else { AddressFlags::empty() };
    let address = NewAddress { flags, ..NewAddress::new(port.index, gateway) };
    match host.add_address(&address).await {
        // Several addresses of the container have one gateway.
        Err(error) if error.is_exists() => {}
        added => {
            added.map_err(|error| ErrorReply::internal(format!("failed to add IP addr to veth: {error}")))?
        }
    }
    let route = Route { link: Some(port.index), scope: SCOPE_HOST, ..Route::to(alone(hop.address.ip())) };
    match host.add_route(&route).await {
        Err(error) if error.is_exists() => Ok(()),
        added => added.map_err(|error| ErrorReply::internal(format!("failed to add route on host: {error}"))),
    }
}

async fn lead_to_gateway(inside: &Inside<'_>, hop: &Hop) -> Result<(), ErrorReply> {
    let automatic = Route {
        link: Some(inside.link.index),
        scope: SCOPE_ANY,
        protocol: PROTOCOL_ANY,
        ..Route::to(network(hop.address))
    };
    let deleted = inside.netlink.del_route(&automatic).await;
    deleted.map_err(|error| ErrorReply::internal(format!("failed to delete route: {error}")))?;
    for route in hop.routes(inside.link.index) {
        let added = inside.netlink.add_route(&route).await;
        added.map_err(|error| ErrorReply::internal(format!("failed to add route: {error}")))?;
    }
    Ok(())
}

impl Plugin for Ptp {
    const NAME: &'static str = "ptp";

    fn add(&self, request: &Request) -> Result<AddResult, ErrorReply> {
        let config = Config::read(request)?;
        let netns = request.open_netns()?;
        block_on(async {
            let mut made = Made::nothing(request);
            let done = attach(request, &config, &netns, &mut made).await;
            made.keep_or_undo(done).await
        })
    }

    fn del(&self, request: &Request) -> Result<(), ErrorReply> {
        let (ipam, masquerade) = (delegate::ipam_type(request)?, Masquerade::read(request)?);
        let remove_link = async {
            let unlinked = pair::detach(request).await;
            ErrorReply::first_of([unlinked, masquerade.tear_down(request)])
        };
        block_on(delegate::detach(request, ipam.as_deref(), remove_link))
    }

    fn check(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        let check = single::Check {
            kind: Some("veth"),
            no_prev_result: "ptp: Required prevResult missing",
            compare: |_: &Link| Ok(()),
        };
        block_on(async {
            single::check(request, &check).await?;
            let expected = request.required_prev_result(check.no_prev_result)?;
            let host = Netlink::open().map_err(ErrorReply::internal)?;
            for port in expected.interfaces.iter().filter(|interface| interface.sandbox.is_none()) {
                let found = verify::existing(&host, port).await?;
                verify::same_mac(port, &found)?;
            }
            config.masquerade.check(request, &expected)
        })
    }

    fn gc(&self, request: &Request) -> Result<(), ErrorReply> {
        let ipam = delegate::ipam_type(request)?;
        block_on(pair::gc(request, ipam.as_deref(), async { masquerade::collect_of(request) }))
    }

    fn status(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        block_on(delegate::run(request, &config.ipam, Verb::Status))
    }
}

#[cfg(test)]
mod tests;
