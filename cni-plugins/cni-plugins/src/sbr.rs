//! The plugin `sbr`: what a container sends from an address of this link leaves through this link (source based routing).
//!
//! Inputs: the reference plugin's keys, and a result of the plugins before it, which it passes on. Each address gets a
//! rule and a table of its own with the link's routes, which leave the main table. What is made is planned first (see
//! `plan`), then done step by step; a step that fails takes the steps before it back. DEL removes the rules; the routes
//! go with the link.

pub(crate) mod config;
mod plan;
mod steps;

use std::net::IpAddr;

use cni::{AddResult, ErrorReply, IpConfig};
use linux::netlink::{Error, Netlink, Rule};

use self::{
    config::Config,
    plan::{Found, plan},
};
use crate::{
    netns_lock::NetnsLock,
    plugin::{Plugin, Request, block_on},
    verify::different,
};

/// See the module.
#[derive(Debug)]
pub struct Sbr;

/// The addresses of this link; one that says of no link is taken for this link's.
fn addresses_of<'a>(result: &'a AddResult, ifname: &str) -> Vec<&'a IpConfig> {
    let is_of_link = |ip: &&IpConfig| match ip.interface.map(|index| result.interfaces.get(index)) {
        None | Some(None) => true,
        Some(Some(interface)) => interface.name == ifname,
    };
    result.ips.iter().filter(is_of_link).collect()
}

/// What the link and the namespace have before anything is made.
async fn look(netlink: &Netlink, ifname: &str) -> Result<Found, ErrorReply> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: Error| ErrorReply::internal(format!("{what}: {error}"))
    };
    let link =
        netlink.link(ifname).await.map_err(failed(&format!("Cannot find network interface {ifname}")))?;
    Ok(Found {
        link: link.index,
        rules: netlink.rules().await.map_err(failed("Failed to list all rules"))?,
        routes: netlink.routes().await.map_err(failed("Failed to list all routes"))?,
    })
}

/// Deletes the rules for these addresses; goes on after a failure.
async fn tidy(netlink: &Netlink, addresses: &[IpAddr], table: Option<u32>) -> Result<(), ErrorReply> {
    let rules = netlink.rules().await;
    let rules =
        rules.map_err(|error| ErrorReply::internal(format!("Failed to list all rules to tidy: {error}")))?;
    let is_ours = |rule: &&Rule| {
        let source = rule.source.map(|source| source.ip());
        source.is_some_and(|source| addresses.contains(&source))
            && table.is_none_or(|table| rule.table == table)
    };
    let mut left = Vec::new();
    for rule in rules.iter().filter(is_ours) {
        match netlink.del_rule(rule).await {
            Err(error) if !error.is_gone() => left.push(error.to_string()),
            _ => {}
        }
    }
    if left.is_empty() { Ok(()) } else { Err(ErrorReply::internal(left.join("; "))) }
}

/// The addresses that the link has, or had: it may be gone.
async fn known_addresses(netlink: &Netlink, request: &Request) -> Result<Vec<IpAddr>, ErrorReply> {
    let mut known = Vec::new();
    if let Some(result) = request.prev_result()? {
        known.extend(addresses_of(&result, &request.ifname).iter().map(|ip| ip.address.ip()));
    }
    if let Some(link) = netlink.find_link(&request.ifname).await.map_err(ErrorReply::internal)? {
        let present = netlink.addresses(Some(link.index)).await.map_err(ErrorReply::internal)?;
        known.extend(present.iter().map(|address| address.network.ip()));
    }
    Ok(known)
}

impl Plugin for Sbr {
    const NAME: &'static str = "sbr";

    fn add(&self, request: &Request) -> Result<AddResult, ErrorReply> {
        let config = Config::read(request)?;
        let result = request.required_prev_result("This plugin must be called as chained plugin")?;
        if result.ips.is_empty() {
            let message = format!("No IP addresses supplied on interface: {}", request.ifname);
            return Err(ErrorReply::internal(message));
        }
        let netns = request.open_netns()?;
        let _lock = NetnsLock::take(netns.path())?;
        block_on(async {
            let netlink = Netlink::open_in(&netns).map_err(ErrorReply::internal)?;
            let found = look(&netlink, &request.ifname).await?;
            let steps = plan(&config, &addresses_of(&result, &request.ifname), &found);
            steps::take(&netlink, &steps).await
        })?;
        Ok(result)
    }

    fn del(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        let Some(netns) = request.existing_netns()? else { return Ok(()) };
        let _lock = NetnsLock::take(netns.path())?;
        block_on(async {
            let netlink = Netlink::open_in(&netns).map_err(ErrorReply::internal)?;
            let addresses = known_addresses(&netlink, request).await?;
            tidy(&netlink, &addresses, config.table).await
        })
    }

    fn check(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        let result = request.required_prev_result("This plugin must be called as chained plugin")?;
        let netns = request.open_netns()?;
        block_on(async {
            let netlink = Netlink::open_in(&netns).map_err(ErrorReply::internal)?;
            let rules = netlink.rules().await.map_err(ErrorReply::internal)?;
            for ip in addresses_of(&result, &request.ifname) {
                let address = ip.address.ip();
                let is_its = |rule: &Rule| {
                    rule.source.is_some_and(|source| source.ip() == address)
                        && config.table.is_none_or(|table| rule.table == table)
                };
                if !rules.iter().any(is_its) {
                    return Err(different(format!("no rule for source {address} found")));
                }
            }
            Ok(())
        })
    }

    fn gc(&self, _request: &Request) -> Result<(), ErrorReply> {
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), ErrorReply> {
        Config::read(request).map(drop)
    }
}
