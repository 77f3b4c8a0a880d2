//! The configuration of `bridge`: the reference plugin's keys, checked.

use cni::{Dns, ErrorReply};
use linux::netlink::{BridgePortOptions, MacAddress};

use super::{filters::Filters, vlans::Vlans};
use crate::{
    delegate,
    hardware_address::{self, Source},
    plugin::{Request, decoding},
};

const DEFAULT_BRIDGE: &str = "cni0";

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(super) bridge: String,
    /// The bridge carries the gateway addresses.
    pub(super) is_gateway: bool,
    pub(super) is_default_gateway: bool,
    /// Replaces other addresses of the bridge.
    pub(super) force_address: bool,
    /// Of the bridge when it is made, and of both ends of the link.
    pub(super) mtu: Option<u32>,
    pub(super) promiscuous: bool,
    pub(super) port: BridgePortOptions,
    pub(super) vlans: Vlans,
    pub(super) filters: Filters,
    pub(super) enable_dad: bool,
    /// The container's end stays down.
    pub(super) disable_container_interface: bool,
    pub(super) mac: Option<MacAddress>,
    pub(super) dns: Dns,
    /// None for a network without addresses.
    pub(super) ipam: Option<String>,
}

impl Config {
    pub(crate) fn read(request: &Request) -> Result<Self, ErrorReply> {
        let root = request.root();
        let switch = |key: &str| -> Result<bool, ErrorReply> {
            Ok(root.boolean(key).map_err(decoding)?.unwrap_or(false))
        };
        let bridge = root.string("bridge").map_err(decoding)?.unwrap_or(DEFAULT_BRIDGE).to_owned();
        cni::interface_name(&bridge)
            .map_err(|error| ErrorReply::config(format!("key \"bridge\": {error}")))?;
        let is_default_gateway = switch("isDefaultGateway")?;
        let config = Self {
            bridge,
            is_gateway: switch("isGateway")? || is_default_gateway,
            is_default_gateway,
            force_address: switch("forceAddress")?,
            mtu: root.number::<u32>("mtu").map_err(decoding)?.filter(|mtu| *mtu > 0),
            promiscuous: switch("promiscMode")?,
            port: BridgePortOptions { hairpin: switch("hairpinMode")?, isolated: switch("portIsolation")? },
            vlans: Vlans::read(&root)?,
            filters: Filters::read(request)?,
            enable_dad: switch("enabledad")?,
            disable_container_interface: switch("disableContainerInterface")?,
            mac: hardware_address::wanted(request, &[Source::Environment, Source::Args, Source::Runtime])?,
            dns: Dns::read(&root).map_err(decoding)?,
            ipam: delegate::ipam_type(request)?,
        };
        config.check()
    }

    fn check(self) -> Result<Self, ErrorReply> {
        if self.ipam.is_some() && self.disable_container_interface {
            let message = "cannot use IPAM when DisableContainerInterface flag is set";
            return Err(ErrorReply::config(message));
        }
        if self.port.hairpin && self.promiscuous {
            let message = "cannot set hairpin mode and promiscuous mode at the same time";
            return Err(ErrorReply::config(message));
        }
        if let Some(name) = self.vlans.gateway_name(&self.bridge).filter(|_| self.is_gateway) {
            cni::interface_name(&name).map_err(|error| {
                ErrorReply::config(format!("keys \"bridge\" and \"vlan\": link of the gateway: {error}"))
            })?;
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests;
