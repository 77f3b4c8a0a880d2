//! The CNI configuration list of this node. Pure.

use std::path::PathBuf;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

#[cfg(test)]
mod tests;

/// Name of the bridge that pods hang on.
const BRIDGE: &str = "orlop0";

/// What the list depends on.
pub struct Options {
    /// A pod gets an address of each.
    pub pods: Vec<IpNetwork>,
    /// Bytes; pods must not send more than the way to other nodes takes.
    pub mtu: u32,
    /// Where host-local keeps its leases.
    pub data_dir: PathBuf,
}

/// The list as JSON text.
pub fn render(options: &Options) -> String {
    let range = |pods: &IpNetwork| json!([{"subnet": pods.to_string()}]);
    let ranges: Vec<Value> = options.pods.iter().map(range).collect();
    let list = json!({
        "cniVersion": "1.0.0",
        "name": "orlop",
        "plugins": [{
            "type": "bridge",
            "bridge": BRIDGE,
            "isDefaultGateway": true,
            "hairpinMode": true,
            "mtu": options.mtu,
            "ipam": {
                "type": "host-local",
                "ranges": ranges,
                "dataDir": options.data_dir.to_string_lossy(),
            },
        }],
    });
    format!("{list:#}\n")
}
