//! The service load balancer alone, in kube-proxy's place beside any kubelet: what it needs besides [`crate::services`].
//!
//! In: the own Node, which somebody else writes, and the dataplane's progress. Out: kube-proxy's health and figures over HTTP, where node
//! ports answer, and clear words about a machine that does not fit. `node` watches, `pages` answers, `place` looks at the machine.
//! Asks the API server for no more than upstream's ClusterRole `system:node-proxier` allows.

pub mod node;
pub mod pages;
pub mod place;

use std::net::IpAddr;

use dataplane::{Masquerade, WriteError};
use ipnetwork::IpNetwork;

use crate::services::Dataplane;

/// Networks of which no packet comes: pods whose packets are masqueraded are somebody else's business.
const NOBODY: [&str; 2] = ["255.255.255.255/32", "ff00::/128"];

/// A node port's flow that goes on to another node shows this one's address, so that the answers come back here; nothing else changes
/// its address. What an earlier agent did for its pods ends.
pub fn show_as(dataplane: &Dataplane, node_ips: &[IpAddr]) -> Result<(), WriteError> {
    let families: Vec<Masquerade> = NOBODY
        .iter()
        .filter_map(|nobody| nobody.parse::<IpNetwork>().ok())
        .filter_map(|pods| {
            let address = node_ips.iter().find(|ip| ip.is_ipv4() == pods.is_ipv4())?;
            Some(Masquerade { pods, address: *address, excluded: Vec::new(), overlay: None })
        })
        .collect();
    dataplane.with(|dataplane| dataplane.set_masquerade(&families))
}

#[cfg(test)]
mod tests;
