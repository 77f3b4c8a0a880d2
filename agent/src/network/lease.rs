//! What nodes tell each other about how to reach their pods: annotations of the Node, with flannel's names and formats. Pure.
//!
//! In: a Node. Out: [`Lease`]. The other way: the annotations of this node's own [`End`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Node;
use linux::netlink::MacAddress;
use linux::wireguard::PublicKey;
use serde_json::{Value, json};

#[cfg(test)]
mod tests;

/// Names of backends.
pub const HOST_GW: &str = "host-gw";
pub const VXLAN: &str = "vxlan";
pub const WIREGUARD: &str = "wireguard";

/// Network identifier and UDP port of the VXLAN, flannel's defaults (the port is the kernel's, not IANA's 4789).
pub const VXLAN_ID: u32 = 1;
pub const VXLAN_PORT: u16 = 8472;
/// UDP port of WireGuard.
pub const WIREGUARD_PORT: u16 = 51820;

pub const BACKEND_TYPE: &str = "flannel.alpha.coreos.com/backend-type";
pub const BACKEND_DATA: &str = "flannel.alpha.coreos.com/backend-data";
const PUBLIC_IP: &str = "flannel.alpha.coreos.com/public-ip";
const SUBNET_MANAGER: &str = "flannel.alpha.coreos.com/kube-subnet-manager";

/// Where packets for a node's pods are to go, wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// The hardware address of its VXLAN link.
    Vxlan(MacAddress),
    /// Who its WireGuard link is.
    Wireguard(PublicKey),
}

/// What a Node says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lease {
    /// None: nothing was said, as by a node whose network somebody else takes care of.
    pub backend: Option<String>,
    /// None where the backend needs none, or it cannot be read.
    pub end: Option<End>,
}

impl Lease {
    /// Reads a Node.
    pub fn of(node: &Node) -> Self {
        let said = |key: &str| node.metadata.annotations.as_ref().and_then(|all| all.get(key));
        let Some(backend) = said(BACKEND_TYPE) else { return Self::default() };
        let data = said(BACKEND_DATA).and_then(|text| serde_json::from_str::<Value>(text).ok());
        let end = data.and_then(|data| read_end(backend, &data));
        Self { backend: Some(backend.clone()), end }
    }
}

fn read_end(backend: &str, data: &Value) -> Option<End> {
    let text = |key: &str| data[key].as_str();
    match backend {
        // Another network would not take our packets.
        VXLAN if data["VNI"] != VXLAN_ID => None,
        VXLAN => text("VtepMAC")?.parse().ok().filter(|mac| is_of_one_station(*mac)).map(End::Vxlan),
        WIREGUARD => text("PublicKey")?.parse().ok().map(End::Wireguard),
        _ => None,
    }
}

/// The kernel takes no other for where packets go.
fn is_of_one_station(mac: MacAddress) -> bool {
    mac.0[0] & 1 == 0 && mac.0 != [0; 6]
}

/// What this node says.
pub fn annotations(end: Option<End>, address: IpAddr) -> BTreeMap<String, String> {
    let (backend, data) = match end {
        None => (HOST_GW, Value::Null),
        Some(End::Vxlan(mac)) => (VXLAN, json!({"VNI": VXLAN_ID, "VtepMAC": mac.to_string()})),
        Some(End::Wireguard(key)) => (WIREGUARD, json!({"PublicKey": key.to_string()})),
    };
    BTreeMap::from([
        (BACKEND_TYPE.to_owned(), backend.to_owned()),
        (BACKEND_DATA.to_owned(), data.to_string()),
        (PUBLIC_IP.to_owned(), address.to_string()),
        (SUBNET_MANAGER.to_owned(), "true".to_owned()),
    ])
}
