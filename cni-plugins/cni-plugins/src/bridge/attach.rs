//! ADD, step by step.

use std::time::Duration;

use cni::{AddResult, ErrorReply};
use linux::{
    netlink::{BridgePortOptions, Link, LinkWatch, Netlink, OperState},
    netns::Netns,
};

use super::{
    config::Config,
    gateway::{CONTAINER_INTERFACE, complete},
    host::{ensure_bridge, make_gateway},
    vlans::ensure_gateway,
};
use crate::{
    inside::{Inside, NDISC_NOTIFY, Switch, interface},
    made::Made,
    pair::{self, Alias, Mark, PairOptions},
    plugin::Request,
};

/// How long the bridge's port may take to come up. The kernel does that in a work of its own, after everyone else who waits for
/// the lock that all namespaces share: 50 pods at once on two emulated processors took up to 3.3 s. The reference plugin gives
/// it 2.5 s.
const PORT_UP_LIMIT: Duration = Duration::from_secs(10);

/// An ADD in progress: what it works with.
pub(super) struct Attach<'a> {
    pub(super) request: &'a Request,
    pub(super) config: &'a Config,
    pub(super) netns: &'a Netns,
    pub(super) host: Netlink,
}

impl<'a> Attach<'a> {
    pub(super) async fn run(&self, made: &mut Made<'a>) -> Result<AddResult, ErrorReply> {
        let config = self.config;
        if config.ipam.is_some() {
            config.filters.masquerade.validate()?;
        }
        let bridge = ensure_bridge(&self.host, config).await?;
        let port = self.connect(&bridge, made).await?;
        let wishes = if config.ipam.is_some() { switches(config) } else { Vec::new() };
        let inside = Inside::open_and_switch(self.netns, &self.request.ifname, &wishes).await?;
        if config.filters.are_any() {
            made.also(|| config.filters.tear_down(self.request));
        }
        config.filters.guard(self.request, &port, &inside.link)?;
        let mut result = match &config.ipam {
            Some(ipam) => made.addresses(ipam, CONTAINER_INTERFACE).await?,
            None => AddResult::default(),
        };
        let gateways = complete(&mut result, config);
        let mut of_vlan = None;
        if config.ipam.is_some() {
            let has_ipv6 = result.ips.iter().any(|ip| ip.address.is_ipv6());
            inside.configure(&result, if has_ipv6 { &[NDISC_NOTIFY] } else { &[] }).await?;
            if !gateways.is_empty() {
                of_vlan = ensure_gateway(&self.host, &bridge, &config.vlans).await?;
            }
            make_gateway(&self.host, of_vlan.as_ref().unwrap_or(&bridge), &gateways, config).await?;
            config.filters.masquerade.set_up(self.request, &result)?;
        } else if !config.disable_container_interface {
            inside.set_up().await?;
        }
        let port = if config.disable_container_interface { port } else { port_up(&self.host, &port).await? };
        if config.ipam.is_some() {
            inside.announce().await?;
        }
        // Its hardware address may have changed with its first port.
        let bridge = self.host.link(&bridge.name).await.map_err(ErrorReply::internal)?;
        result.interfaces = vec![interface(&bridge, None), interface(&port, None), inside.interface()];
        result.interfaces.extend(of_vlan.map(|link| interface(&link, None)));
        // The configuration's DNS wins over IPAM's.
        if !config.dns.is_empty() {
            result.dns = config.dns.clone();
        }
        Ok(result)
    }

    /// Makes the pair, with the host's end a port of the bridge.
    async fn connect(&self, bridge: &Link, made: &mut Made<'a>) -> Result<Link, ErrorReply> {
        let Self { request, config, netns, host } = self;
        let options = PairOptions { mtu: config.mtu, mac: config.mac, master: Some(bridge.index) };
        let port = pair::make(host, request, netns, &options).await?;
        made.link(host, port.index);
        let dressed = async {
            let bridge_port = Some(config.port).filter(|port| *port != BridgePortOptions::default());
            let mark = Mark { alias: Alias::of(request), ipam: config.ipam.as_deref(), bridge_port };
            pair::mark(host, &port, mark).await?;
            config.vlans.dress_port(host, port.index).await
        };
        dressed
            .await
            .map_err(|error| ErrorReply::internal(format!("failed to connect {:?}: {error}", port.name)))?;
        Ok(port)
    }
}

/// Duplicate detection is off unless asked for: IPAM gives no address twice.
fn switches(config: &Config) -> Vec<Switch> {
    let dad = if config.enable_dad { "1" } else { "0" };
    let enhanced = config.enable_dad.then_some(("ipv6", "enhanced_dad", "1"));
    enhanced.into_iter().chain([("ipv6", "accept_dad", dad)]).collect()
}

async fn port_up(host: &Netlink, port: &Link) -> Result<Link, ErrorReply> {
    let failed = |error| ErrorReply::internal(format!("bridge port in error state: {error}"));
    let is_up = |link: &Link| link.oper_state == OperState::Up;
    // Most are by now, and a watch is told of every link of the host.
    if let Some(link) = host.find_link_by_index(port.index).await.map_err(failed)?.filter(is_up) {
        return Ok(link);
    }
    let mut watch = LinkWatch::beside(host).map_err(failed)?;
    watch.wait_until(port.index, PORT_UP_LIMIT, "bring bridge port up", is_up).await.map_err(failed)
}
