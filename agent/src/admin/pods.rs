//! Pods of this node, as clients of Services: found by name or address, and named by their network namespace.
//!
//! In: the runtime's sandboxes; none where somebody else runs the pods. Blocks for a thread's life per namespace that is looked into.

use std::collections::HashMap;
use std::net::IpAddr;

use linux::netns::Netns;
use runtime::{SandboxState, SandboxStatus};

use crate::api::chain;
use crate::services::plan::Key;

/// The pods that run here.
pub struct Pods(Option<Vec<SandboxStatus>>);

impl Pods {
    /// `None`: their container runtime is somebody else's.
    pub fn new(sandboxes: Option<Vec<SandboxStatus>>) -> Self {
        let ready = |all: Vec<SandboxStatus>| {
            all.into_iter().filter(|sandbox| sandbox.state == SandboxState::Ready).collect()
        };
        Self(sandboxes.map(ready))
    }

    /// The cookie of a pod's network namespace.
    pub fn cookie(&self, pod: &Key) -> Result<u64, String> {
        let Some(sandboxes) = &self.0 else {
            return Err(
                "this agent does not run the pods: ask as `node`, or as an address outside".to_owned()
            );
        };
        let is_it = |sandbox: &&SandboxStatus| key(sandbox) == *pod;
        match sandboxes.iter().find(is_it) {
            Some(sandbox) => cookie(sandbox),
            None => Err(format!("no pod {pod} runs on this node: `orlopctl sandboxes` lists those that do")),
        }
    }

    /// The pod that has an address.
    pub fn at(&self, address: IpAddr) -> Option<Key> {
        let mut sandboxes = self.0.iter().flatten();
        sandboxes.find(|sandbox| sandbox.ips.contains(&address)).map(key)
    }

    /// Who is behind each network namespace, as a question would name them.
    pub fn by_cookie(&self) -> HashMap<u64, String> {
        let own = self.0.iter().flatten().filter(|sandbox| sandbox.netns.is_some());
        // One whose namespace goes just now has no clients any more.
        let named = own.filter_map(|sandbox| Some((cookie(sandbox).ok()?, format!("pod:{}", key(sandbox)))));
        let node = node_cookie().map(|cookie| (cookie, "node".to_owned()));
        named.chain(node).collect()
    }
}

/// The cookie of the node's own network namespace.
pub fn node_cookie() -> Result<u64, String> {
    Netns::current().and_then(|own| own.cookie()).map_err(|error| chain(&error))
}

fn key(sandbox: &SandboxStatus) -> Key {
    Key { namespace: sandbox.config.namespace.clone(), name: sandbox.config.name.clone() }
}

fn cookie(sandbox: &SandboxStatus) -> Result<u64, String> {
    match &sandbox.netns {
        Some(path) => Netns::open(path).and_then(|netns| netns.cookie()).map_err(|error| chain(&error)),
        None => node_cookie(),
    }
}
