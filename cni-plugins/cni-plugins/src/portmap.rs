//! The plugin `portmap`: publishes ports of a container on the host.
//!
//! Inputs: the reference plugin's configuration keys, the mappings of `runtimeConfig.portMappings`, and the result of the
//! plugins before it, which passes through. Owns: the tables `ip cni_hostport` and `ip6 cni_hostport`, with the chains,
//! rules and comments of the reference's nftables backend, so that either implementation deletes what the other made. A
//! rule's comment is the container's id; a tag that `nft` does not show says of which network and link it is, so that GC of
//! one network leaves others' rules.
//!
//! It uses nftables whatever `backend` says, and masquerades by itself where `externalSetMarkChain` asks for a chain of
//! iptables. Conditions are read as far as [`conditions`] says; others are refused, never ignored. Nobody reserves a port of the
//! host: the first of two mappings of one port wins.

mod conditions;
pub(crate) mod config;
mod rules;

use std::net::IpAddr;

use cni::{AddResult, ErrorReply};
use linux::{
    conntrack::{Conntrack, Flows},
    nftables::{Family, Transport},
    outgoing,
};

use self::{config::Config, rules::Publisher};
use crate::{
    plugin::{Plugin, Request},
    ruleset, sysctl,
};

/// See the module.
#[derive(Debug)]
pub struct Portmap;

impl Plugin for Portmap {
    const NAME: &'static str = "portmap";

    /// The transaction is the last step that can fail, so there is nothing to undo.
    fn add(&self, request: &Request) -> Result<AddResult, ErrorReply> {
        let config = Config::read(request)
            .map_err(|error| ErrorReply { msg: format!("failed to parse config: {}", error.msg), ..error })?;
        let result =
            request.prev_result()?.ok_or_else(|| ErrorReply::internal("must be called as chained plugin"))?;
        if config.mappings.is_empty() {
            return Ok(result);
        }
        config.announce_substitutes();
        let addresses = addresses(&result, &request.ifname);
        if config.snat {
            for address in addresses.iter().filter(|address| address.is_ipv4()) {
                route_loopback_addresses(*address)?;
            }
        }
        Publisher::of(request).publish(&*ruleset::open()?, &config, &addresses).map_err(|error| {
            ErrorReply::internal(format!("unable to set up nftables rules for port mappings: {error}"))
        })?;
        forget_flows(&config, &addresses);
        Ok(result)
    }

    fn del(&self, request: &Request) -> Result<(), ErrorReply> {
        let Some(nftables) = ruleset::open_to_remove()? else { return Ok(()) };
        Publisher::of(request)
            .withdraw(&nftables)
            .map_err(|error| ErrorReply::internal(format!("error deleting nftables rules: {error}")))
    }

    fn check(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        let result =
            request.prev_result()?.ok_or_else(|| ErrorReply::internal("Required prevResult missing"))?;
        if config.mappings.is_empty() {
            return Ok(());
        }
        let addresses = addresses(&result, &request.ifname);
        let missing = Publisher::of(request).find_missing(&*ruleset::open()?, &config, &addresses);
        match missing.map_err(ErrorReply::internal)? {
            Some(chain) => Err(ErrorReply::internal(format!("missing hostport rules in {chain:?} chain"))),
            None => Ok(()),
        }
    }

    fn gc(&self, request: &Request) -> Result<(), ErrorReply> {
        let valid = request.valid_attachments()?;
        let Some(nftables) = ruleset::open_to_remove()? else { return Ok(()) };
        rules::collect(&nftables, &request.network, &valid).map_err(ErrorReply::internal)
    }

    fn status(&self, request: &Request) -> Result<(), ErrorReply> {
        Config::read(request)?;
        ruleset::status()
    }
}

/// The first address of each family that is the container's, as far as the result says whose one is.
fn addresses(result: &AddResult, ifname: &str) -> Vec<IpAddr> {
    let is_elsewhere = |index: usize| {
        let interface = result.interfaces.get(index);
        interface.is_some_and(|interface| interface.name != ifname || interface.sandbox.is_none())
    };
    let ours = result.ips.iter().filter(|ip| !ip.interface.is_some_and(is_elsewhere));
    let all: Vec<IpAddr> = ours.map(|ip| ip.address.ip()).collect();
    let first = |is_ipv4: bool| all.iter().copied().find(|address| address.is_ipv4() == is_ipv4);
    [first(true), first(false)].into_iter().flatten().collect()
}

/// Lets packets with addresses of the loopback network go to the container, until they are masqueraded on the way out.
fn route_loopback_addresses(container: IpAddr) -> Result<(), ErrorReply> {
    let name = outgoing::link_towards(container).map_err(ErrorReply::internal)?;
    let Some(name) = name else { return Ok(()) };
    sysctl::set(&format!("ipv4/conf/{name}/route_localnet"), "1")
        .map_err(|error| ErrorReply::internal(format!("unable to enable route_localnet: {error}")))
}

/// UDP has no end of a flow: who sent to the port before would go on sending to where it led. A failure is told, and is no
/// reason to take the container's ports away.
fn forget_flows(config: &Config, addresses: &[IpAddr]) {
    let udp = config.mappings.iter().filter(|mapping| mapping.transport == Transport::Udp);
    let destination_ports: Vec<u16> = udp.map(|mapping| mapping.host_port).collect();
    if destination_ports.is_empty() {
        return;
    }
    for address in addresses {
        let family = if address.is_ipv4() { Family::Ip } else { Family::Ip6 };
        let flows = Flows { family, transport: Transport::Udp, destination_ports: &destination_ports };
        if let Err(error) = Conntrack::open().and_then(|conntrack| conntrack.delete(flows)) {
            eprintln!("failed to delete stale UDP conntrack entries for {address}: {error}");
        }
    }
}

#[cfg(test)]
mod tests;
