//! The configuration of `bridge`: the reference plugin's keys, checked.
//!
//! Keys that need what is not built yet (VLAN filtering) are refused with the key and its value, rather than ignored.

use cni::{Dns, ErrorReply, code, json::Object};
use linux::netlink::{BridgePortOptions, MacAddress};

use super::filters::Filters;
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
        refuse_unsupported(&root)?;
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
        Ok(self)
    }
}

fn refuse_unsupported(root: &Object<'_>) -> Result<(), ErrorReply> {
    let vlan = root.number::<i64>("vlan").map_err(decoding)?.unwrap_or(0);
    if !(0..=4094).contains(&vlan) {
        let message = format!("invalid VLAN ID {vlan} (must be between 0 and 4094)");
        return Err(ErrorReply::config(message));
    }
    let trunk = !root.array("vlanTrunk").map_err(decoding)?.is_empty();
    for (key, is_set) in [("vlan", vlan != 0), ("vlanTrunk", trunk)] {
        if is_set {
            let value = root.value(key).cloned().unwrap_or_default();
            let message = format!("unsupported field {key:?}: {value}");
            let reply = ErrorReply::new(code::UNSUPPORTED_FIELD, message);
            return Err(reply.with_details("VLAN filtering is not supported yet"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
