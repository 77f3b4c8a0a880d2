//! A lease: what the server gave, until when, and what has to be done next. Pure; times are seconds since the boot.
//!
//! ```text
//! bound ── T1 ──▶ renewing (ask its server) ── T2 ──▶ rebinding (ask any server) ── expiry ──▶ expired (ask once more) ──▶ over: the link goes down
//!   ▲                   │ an answer                     │ an answer                      │ an answer
//!   └───────────────────┴───────────────────────────────┴────────────────────────────────┘     a refusal: expired at once
//! ```

use std::net::{IpAddr, Ipv4Addr};

use cni::{AddResult, IpConfig, Route};
use dhcproto::v4::{DhcpOption, Message, OptionCode};
use ipnetwork::{IpNetwork, Ipv4Network};
use serde::{Deserialize, Serialize};

use crate::inside::SCOPE_LINK;

/// Of a server that names none.
const DEFAULT_LIFETIME: u64 = 60 * 60;
/// Of shorter times a server would make its client spin, or take an address away as soon as it gave it.
const SHORTEST_LEASE: u64 = 10;
const SHORTEST_RENEWAL: u64 = 5;
/// The shortest pause between two tries to extend a lease (RFC 2131, 4.4.5).
const SHORTEST_PAUSE: u64 = 60;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lease {
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
    pub(super) server: Ipv4Addr,
    gateway: Option<Ipv4Addr>,
    /// Destination and router; an unspecified router means directly on the link.
    routes: Vec<(Ipv4Network, Ipv4Addr)>,
    renew_at: u64,
    rebind_at: u64,
    expire_at: u64,
    /// Not before this time is it to be extended; for the time after a try that failed.
    #[serde(skip)]
    retry_at: u64,
    /// Refused, or not given once more.
    #[serde(skip)]
    is_over: bool,
}

/// What is to be done with a lease at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing for so many seconds.
    Wait(u64),
    /// Ask the server that gave it; after a failure wait so many seconds.
    Renew {
        pause: u64,
    },
    /// Ask any server.
    Rebind {
        pause: u64,
    },
    /// Ask once more: who slept through its end, or was down, has not been refused yet.
    LastTry,
    Over,
}

impl Lease {
    /// Reads an acknowledgement.
    pub(super) fn of(ack: &Message, now: u64) -> Result<Self, String> {
        let mask = match ack.opts().get(OptionCode::SubnetMask) {
            Some(DhcpOption::SubnetMask(mask)) => *mask,
            _ => return Err("DHCP option Subnet Mask not found in DHCPACK".to_owned()),
        };
        let prefix =
            ipnetwork::ipv4_mask_to_prefix(mask).map_err(|_| format!("invalid subnet mask {mask}"))?;
        let seconds = |code: OptionCode| match ack.opts().get(code) {
            Some(
                DhcpOption::AddressLeaseTime(time) | DhcpOption::Renewal(time) | DhcpOption::Rebinding(time),
            ) => Some(u64::from(*time)),
            _ => None,
        };
        let lifetime = seconds(OptionCode::AddressLeaseTime).unwrap_or(DEFAULT_LIFETIME);
        if lifetime < SHORTEST_LEASE {
            return Err(format!("a lease of {lifetime} s: expected at least {SHORTEST_LEASE} s"));
        }
        let rebind = seconds(OptionCode::Rebinding).unwrap_or(lifetime * 85 / 100);
        let rebind = rebind.clamp(SHORTEST_RENEWAL, lifetime);
        let renew = seconds(OptionCode::Renewal).unwrap_or(lifetime / 2).clamp(SHORTEST_RENEWAL, rebind);
        let gateway = gateway(ack);
        Ok(Self {
            address: ack.yiaddr(),
            prefix,
            server: server(ack).ok_or("DHCP option Server Identifier not found in DHCPACK")?,
            gateway,
            routes: routes(ack, gateway),
            renew_at: now + renew,
            rebind_at: now + rebind,
            expire_at: now + lifetime,
            retry_at: 0,
            is_over: false,
        })
    }

    pub(super) fn next(&self, now: u64) -> Next {
        let pause = |until: u64| ((until - now) / 2).max(SHORTEST_PAUSE.min(until - now)).max(1);
        if self.is_over {
            Next::Over
        } else if now < self.renew_at {
            Next::Wait(self.renew_at - now)
        } else if now < self.retry_at {
            Next::Wait(self.retry_at - now)
        } else if now < self.rebind_at {
            Next::Renew { pause: pause(self.rebind_at) }
        } else if now < self.expire_at {
            Next::Rebind { pause: pause(self.expire_at) }
        } else {
            Next::LastTry
        }
    }

    /// Not to be extended before this time, since a try just failed.
    pub(super) fn retry_at(&mut self, time: u64) {
        self.retry_at = time;
    }

    /// Seconds until it expires.
    pub(super) fn left(&self, now: u64) -> u64 {
        self.expire_at.saturating_sub(now)
    }

    /// Makes it one that has expired.
    pub(super) fn expire(&mut self) {
        (self.renew_at, self.rebind_at, self.expire_at, self.retry_at) = (0, 0, 0, 0);
    }

    /// Makes it one that is over.
    pub(super) fn end(&mut self) {
        self.expire();
        self.is_over = true;
    }

    /// What the plugin answers.
    pub(super) fn result(&self, priority: Option<u32>) -> AddResult {
        let network = |ip: Ipv4Addr, prefix| {
            let network = Ipv4Network::new(ip, prefix).unwrap_or_else(|_| Ipv4Network::from(ip));
            IpNetwork::V4(network)
        };
        let route = |(destination, router): &(Ipv4Network, Ipv4Addr)| {
            // An unspecified one is named, too: without a router the gateway of the address would be taken.
            let scope = router.is_unspecified().then_some(SCOPE_LINK);
            Route { priority, scope, ..Route::new(IpNetwork::V4(*destination), Some(IpAddr::V4(*router))) }
        };
        let ip = IpConfig {
            interface: None,
            address: network(self.address, self.prefix),
            gateway: self.gateway.map(IpAddr::V4),
        };
        AddResult { ips: vec![ip], routes: self.routes.iter().map(route).collect(), ..AddResult::default() }
    }
}

/// Who sent an offer or an acknowledgement.
pub(super) fn server(message: &Message) -> Option<Ipv4Addr> {
    match message.opts().get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(server)) => Some(*server),
        _ => None,
    }
}

fn gateway(ack: &Message) -> Option<Ipv4Addr> {
    match ack.opts().get(OptionCode::Router) {
        Some(DhcpOption::Router(routers)) => routers.first().copied(),
        _ => None,
    }
}

/// Classless routes alone where there are any (RFC 3442); else classful ones, and the default route.
fn routes(ack: &Message, gateway: Option<Ipv4Addr>) -> Vec<(Ipv4Network, Ipv4Addr)> {
    if let Some(DhcpOption::ClasslessStaticRoute(routes)) = ack.opts().get(OptionCode::ClasslessStaticRoute)
        && !routes.is_empty()
    {
        let read = routes.iter().filter_map(|(destination, router)| {
            Some((Ipv4Network::new(destination.network(), destination.prefix_len()).ok()?, *router))
        });
        return read.collect();
    }
    let mut routes = Vec::new();
    if let Some(DhcpOption::StaticRoutingTable(table)) = ack.opts().get(OptionCode::StaticRoutingTable) {
        let read = table
            .iter()
            .filter_map(|(net, router)| Some((Ipv4Network::new(*net, classful_prefix(*net)).ok()?, *router)));
        routes.extend(read);
    }
    let everything = Ipv4Network::new(Ipv4Addr::UNSPECIFIED, 0).ok();
    routes.extend(everything.zip(gateway));
    routes
}

/// What a network's length was before lengths were written down.
fn classful_prefix(network: Ipv4Addr) -> u8 {
    match network.octets()[0] {
        0..128 => 8,
        128..192 => 16,
        _ => 24,
    }
}

#[cfg(test)]
mod tests;
