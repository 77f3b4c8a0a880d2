//! The configuration of `sbr`: the reference plugin's keys.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni::{
    ErrorReply,
    json::{self, JsonError},
};

use crate::plugin::{Request, decoding};

/// How to route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Config {
    /// Somebody else fills this table: only the rules are made.
    pub(super) table: Option<u32>,
    /// Instead of those of the result.
    pub(super) gateway_v4: Option<Ipv4Addr>,
    pub(super) gateway_v6: Option<Ipv6Addr>,
    /// The main table keeps routes to the networks, so that what has no source address yet gets this link's.
    pub(super) add_source_hints: bool,
}

impl Config {
    pub(crate) fn read(request: &Request) -> Result<Self, ErrorReply> {
        let root = request.root();
        let mut config = Self {
            table: root.number("table").map_err(decoding)?,
            add_source_hints: root.boolean("addSourceHints").map_err(decoding)?.unwrap_or(false),
            ..Self::default()
        };
        let gateways = root.strings("gateways").map_err(decoding)?;
        if gateways.len() > 2 {
            let message = "gateways list cannot contain more than 2 entries (one IPv4, one IPv6)";
            return Err(ErrorReply::config(message));
        }
        for (index, text) in gateways.iter().enumerate() {
            let place = format!("gateways[{index}]");
            let gateway = json::ip(text).map_err(|error| decoding(JsonError::key(place, error)))?;
            config.set_gateway(gateway)?;
        }
        Ok(config)
    }

    fn set_gateway(&mut self, gateway: IpAddr) -> Result<(), ErrorReply> {
        let (family, other) = match gateway {
            IpAddr::V4(ip) => ("IPv4", self.gateway_v4.replace(ip).map(IpAddr::V4)),
            IpAddr::V6(ip) => ("IPv6", self.gateway_v6.replace(ip).map(IpAddr::V6)),
        };
        match other {
            None => Ok(()),
            Some(other) => {
                let message =
                    format!("gateways list contains multiple {family} addresses: {other} and {gateway}");
                Err(ErrorReply::config(message))
            }
        }
    }

    /// The configured gateway for the family of `ip`.
    pub(super) fn gateway_for(&self, ip: IpAddr) -> Option<IpAddr> {
        match ip {
            IpAddr::V4(_) => self.gateway_v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.gateway_v6.map(IpAddr::V6),
        }
    }
}
