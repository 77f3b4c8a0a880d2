//! Which rules and routes each address gets. Pure.
//!
//! An address gets the first table from 100 on that no rule and no route names. It holds a default route through the
//! gateway, and those of the link's routes in the main table that have to do with the address's network, or with no
//! address at all. They leave the main table only after all addresses have theirs: a gateway must be on a network that
//! is known there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni::IpConfig;
use ipnetwork::IpNetwork;
use linux::netlink::{MAIN_TABLE, Route, Rule};

use super::config::Config;

const FIRST_TABLE: u32 = 100;
/// `RT_SCOPE_LINK`: a network that is on the link.
const SCOPE_LINK: u8 = 253;

/// The namespace before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Index of the link.
    pub(super) link: u32,
    pub(super) rules: Vec<Rule>,
    /// Of all tables and links.
    pub(super) routes: Vec<Route>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    AddRule(Rule),
    AddRoute(Route),
    /// In place of one that is there: the default route may be among those that are copied.
    CopyRoute(Route),
    /// Another way to where a route that was copied leads.
    CopyBeside(Route),
    /// Into the main table, in place of `before`; it is no harm when it cannot be done.
    Hint {
        route: Route,
        before: Option<Route>,
    },
    DeleteRoute(Route),
    /// It is no harm when it cannot be done.
    TryDelete(Route),
}

pub(super) fn plan(config: &Config, ips: &[&IpConfig], found: &Found) -> Vec<Step> {
    if let Some(table) = config.table {
        return ips.iter().map(|ip| Step::AddRule(rule(ip, table))).collect();
    }
    // A route with hops of other links is not this one's to move.
    let is_moved =
        |route: &&Route| route.table == MAIN_TABLE && route.link == Some(found.link) && !route.inseparable;
    let moved: Vec<&Route> = found.routes.iter().filter(is_moved).collect();
    let mut steps = Vec::new();
    let mut table = FIRST_TABLE;
    for ip in ips {
        table = free_table(found, table);
        steps.push(Step::AddRule(rule(ip, table)));
        if let Some(gateway) = config.gateway_for(ip.address.ip()).or(ip.gateway) {
            steps.push(Step::AddRoute(default_route(ip.address.ip(), gateway, table, found.link)));
        }
        let mut copied: Vec<Route> = Vec::new();
        for route in
            moved.iter().filter(|route| concerns(route, ip.address) && !is_overruled(route, ip, config))
        {
            let route = Route { table, ..(*route).clone() };
            let has_copy = copied.iter().any(|copy| copy.is_beside(&route));
            copied.push(route.clone());
            steps.push(if has_copy { Step::CopyBeside(route) } else { Step::CopyRoute(route) });
        }
        table += 1;
    }
    if config.add_source_hints {
        steps.extend(ips.iter().map(|ip| hint(ip, &moved, found.link)));
        let others = moved.iter().filter(|route| route.scope != SCOPE_LINK);
        steps.extend(others.map(|route| Step::TryDelete((*route).clone())));
    } else {
        steps.extend(moved.iter().map(|route| Step::DeleteRoute((*route).clone())));
    }
    steps
}

fn rule(ip: &IpConfig, table: u32) -> Rule {
    Rule::from_source(IpNetwork::from(ip.address.ip()), table)
}

fn free_table(found: &Found, first: u32) -> u32 {
    let is_taken = |table: u32| {
        found.rules.iter().any(|rule| rule.table == table)
            || found.routes.iter().any(|route| route.table == table)
    };
    (first..).find(|table| !is_taken(*table)).unwrap_or(first)
}

fn default_route(ip: IpAddr, gateway: IpAddr, table: u32, link: u32) -> Route {
    let all = match ip {
        IpAddr::V4(_) => IpNetwork::V4(Ipv4Addr::UNSPECIFIED.into()),
        IpAddr::V6(_) => IpNetwork::V6(Ipv6Addr::UNSPECIFIED.into()),
    };
    let destination = IpNetwork::new(all.ip(), 0).unwrap_or(all);
    Route { gateway: Some(gateway), link: Some(link), table, ..Route::to(destination) }
}

/// A route that names neither source nor gateway has to do with every address.
fn concerns(route: &Route, network: IpNetwork) -> bool {
    let named = [route.source, route.gateway];
    named == [None, None] || named.into_iter().flatten().any(|ip| network.contains(ip))
}

/// A default route of the plugins before this one, where the configuration names another gateway.
fn is_overruled(route: &Route, ip: &IpConfig, config: &Config) -> bool {
    let gateway = config.gateway_for(ip.address.ip());
    route.destination.prefix() == 0
        && gateway.is_some_and(|gateway| gateway.is_ipv4() == route.destination.is_ipv4())
}

fn hint(ip: &IpConfig, moved: &[&Route], link: u32) -> Step {
    let network = IpNetwork::new(ip.address.network(), ip.address.prefix()).unwrap_or(ip.address);
    let route =
        Route { link: Some(link), source: Some(ip.address.ip()), scope: SCOPE_LINK, ..Route::to(network) };
    let before = moved.iter().find(|before| before.destination == network);
    Step::Hint { route, before: before.map(|route| (*route).clone()) }
}

#[cfg(test)]
mod tests;
