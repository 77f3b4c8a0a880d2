//! VLANs on the bridge: the keys `vlan`, `vlanTrunk` and `preserveDefaultVlan`.
//!
//! Owns which VLANs a port is in, and the link `<bridge>.<vlan>` that carries a VLAN's gateway addresses: one end of a pair
//! whose other end is a port like the containers'. It is made when it is missing and stays, like the bridge. A bridge that was
//! there and does not filter is left so, as the reference does, and keeps nothing apart.

use std::collections::BTreeSet;

use cni::{ErrorReply, json::Object};
use linux::netlink::{Error, Link, Netlink, PortVlan, VethOptions, VethPeer};

use crate::{pair, plugin::decoding, sysctl};

const LAST: i64 = 4094;
/// Where frames without a tag are when only a trunk is configured.
const DEFAULT: u16 = 1;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Vlans {
    /// Of frames without a tag.
    native: Option<u16>,
    /// Of frames with a tag; an empty list still asks for a bridge that filters.
    trunk: Option<BTreeSet<u16>>,
    /// A port stays in the bridge's default VLAN too.
    keep_default: bool,
}

impl Vlans {
    pub(super) fn read(root: &Object<'_>) -> Result<Self, ErrorReply> {
        let vlan = root.number::<i64>("vlan").map_err(decoding)?.unwrap_or(0);
        let native = u16::try_from(vlan).ok().filter(|_| vlan <= LAST).ok_or_else(|| {
            ErrorReply::config(format!("invalid VLAN ID {vlan} (must be between 0 and {LAST})"))
        })?;
        let mut trunk = BTreeSet::new();
        for (place, value) in root.array("vlanTrunk").map_err(decoding)? {
            read_trunk(&Object::of(value, place).map_err(decoding)?, &mut trunk)?;
        }
        Ok(Self {
            native: Some(native).filter(|native| *native != 0),
            trunk: root.value("vlanTrunk").map(|_| trunk),
            keep_default: root.boolean("preserveDefaultVlan").map_err(decoding)?.unwrap_or(false),
        })
    }

    /// Whether a bridge that is made must keep VLANs apart.
    pub(super) fn need_filtering(&self) -> bool {
        self.native.is_some() || self.trunk.is_some()
    }

    /// The link of the gateway addresses, where they are not the bridge's own.
    pub(super) fn gateway_name(&self, bridge: &str) -> Option<String> {
        self.native.map(|native| format!("{bridge}.{native}"))
    }

    /// What a container's port is in; nothing where no VLAN is configured.
    fn of_port(&self) -> Vec<PortVlan> {
        let trunk = || self.trunk.iter().flatten().copied();
        let native = self.native.or_else(|| trunk().next().map(|_| DEFAULT));
        let tagged = trunk().filter(|id| Some(*id) != native);
        let native = native.map(|id| PortVlan { id, untagged: true });
        native.into_iter().chain(tagged.map(|id| PortVlan { id, untagged: false })).collect()
    }

    /// Puts a port into its VLANs.
    pub(super) async fn dress_port(&self, host: &Netlink, port: u32) -> Result<(), Error> {
        let vlans = self.of_port();
        if vlans.is_empty() {
            return Ok(());
        }
        if !self.keep_default {
            host.clear_port_vlans(port).await?;
        }
        host.add_port_vlans(port, &vlans).await
    }
}

/// An element of `vlanTrunk`: an identifier, a range, or both.
fn read_trunk(object: &Object<'_>, ids: &mut BTreeSet<u16>) -> Result<(), ErrorReply> {
    let id = |key: &str| -> Result<Option<u16>, ErrorReply> {
        let Some(number) = object.number::<i64>(key).map_err(decoding)? else { return Ok(None) };
        let id = u16::try_from(number).ok().filter(|_| (1..=LAST).contains(&number));
        let wrong = || {
            let place = object.place_of(key);
            format!("incorrect trunk {key} parameter: key {place:?}: {number}: expected 1 to {LAST}")
        };
        id.map(Some).ok_or_else(|| ErrorReply::config(wrong()))
    };
    match (id("minID")?, id("maxID")?) {
        (Some(first), Some(last)) if first > last => {
            let message = format!("minID is greater than maxID in trunk parameter: {first} and {last}");
            return Err(ErrorReply::config(message));
        }
        (Some(first), Some(last)) => ids.extend(first..=last),
        (None, None) => {}
        (first, _) => {
            let missing = if first.is_none() { "minID" } else { "maxID" };
            let message =
                format!("minID and maxID should be configured simultaneously, {missing} is missing");
            return Err(ErrorReply::config(message));
        }
    }
    ids.extend(id("id")?);
    Ok(())
}

/// Finds the link that carries the VLAN's gateway addresses, or makes it; none where they are the bridge's own.
pub(super) async fn ensure_gateway(
    host: &Netlink,
    bridge: &Link,
    vlans: &Vlans,
) -> Result<Option<Link>, ErrorReply> {
    let Some(name) = vlans.gateway_name(&bridge.name) else { return Ok(None) };
    let failed =
        |error: Error| ErrorReply::internal(format!("failed to create vlan interface {name:?}: {error}"));
    let found = host.find_link(&name).await.map_err(failed)?;
    let link = match found {
        Some(link) => link,
        None => make_gateway_pair(host, bridge, &name).await.map_err(failed)?,
    };
    // Up is the last that it becomes: one that is down was left half made, or is somebody else's.
    if let Some(port) = link.peer.filter(|_| !link.up && link.is_kind("veth")) {
        let alone = Vlans { trunk: None, ..vlans.clone() };
        alone.dress_port(host, port).await.map_err(failed)?;
        sysctl::skip_duplicate_detection(&name);
        host.set_link_up(link.index).await.map_err(failed)?;
    }
    Ok(Some(link))
}

async fn make_gateway_pair(host: &Netlink, bridge: &Link, name: &str) -> Result<Link, Error> {
    let port = pair::port_name(&bridge.name, "", name);
    let options = VethOptions {
        name: port.clone(),
        mtu: Some(bridge.mtu),
        mac: None,
        master: Some(bridge.index),
        group: None,
        up: true,
        peer: VethPeer { name: name.to_owned(), mtu: Some(bridge.mtu), mac: None, netns: None },
    };
    match host.add_veth(&options).await {
        // Another ADD made it in between.
        Err(error) if error.is_exists() => {}
        made => made?,
    }
    sysctl::wish(&format!("ipv6/conf/{port}/accept_ra"), "0");
    host.link(name).await
}

#[cfg(test)]
mod tests;
