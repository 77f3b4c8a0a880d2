//! The addresses of this node's clients, which source ranges are about: a socket that connects may have none yet, but it has a network namespace.
//!
//! In: sandboxes, and the node's own addresses. Out: what the dataplane knows of network namespaces, before the first container starts. Whoever is not
//! known is led whatever source ranges say: where the dataplane has no room for one more, or its namespace cannot be read, the log says so, and the pod starts.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use linux::netns::Netns;
use runtime::{SandboxId, SandboxState, SandboxStatus};

use super::Dataplane;

/// Tells the dataplane of clients.
pub struct Clients {
    dataplane: Option<Dataplane>,
    /// The cookies of the namespaces that it was told of.
    known: Mutex<HashMap<SandboxId, u64>>,
}

impl Clients {
    /// Tells of the node itself and of the sandboxes that there are. What an earlier agent told of others goes. Blocks.
    pub fn start(dataplane: Option<Dataplane>, node: &[IpAddr], sandboxes: &[SandboxStatus]) -> Self {
        let clients = Self { dataplane, known: Mutex::default() };
        let ready = sandboxes.iter().filter(|sandbox| sandbox.state == SandboxState::Ready);
        let mut is_whole = true;
        for sandbox in ready {
            is_whole &= clients.admit(sandbox);
        }
        if let Some(dataplane) = &clients.dataplane
            && let Err(error) = clients.begin(dataplane, node, is_whole)
        {
            tracing::warn!(%error, "source ranges may not be asked for clients on this node");
        }
        clients
    }

    fn begin(&self, dataplane: &Dataplane, node: &[IpAddr], is_whole: bool) -> anyhow::Result<()> {
        dataplane.with(|dataplane| {
            let own = dataplane.node_netns()?;
            dataplane.set_client(own, node).context("tell of the node's own addresses")?;
            // What could not be read may be what an earlier agent knew.
            if is_whole {
                let keep = self.known().values().copied().chain([own]).collect();
                dataplane.retain_clients(&keep).context("forget pods that are gone")?;
            }
            Ok(())
        })
    }

    /// Returns when source ranges are about the sandbox's sockets, or it was logged why not. Whoever is in the node's network is the node. Whether
    /// all is as it should be. Blocks.
    pub fn admit(&self, sandbox: &SandboxStatus) -> bool {
        let (Some(dataplane), Some(netns)) = (&self.dataplane, &sandbox.netns) else { return true };
        match self.tell(dataplane, sandbox, netns) {
            Ok(()) => true,
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(sandbox = %sandbox.id, error, "source ranges are not asked for this pod's sockets");
                false
            }
        }
    }

    fn tell(&self, dataplane: &Dataplane, sandbox: &SandboxStatus, netns: &Path) -> anyhow::Result<()> {
        let mut known = self.known();
        if known.contains_key(&sandbox.id) {
            return Ok(());
        }
        let cookie = Netns::open(netns).and_then(|netns| netns.cookie())?;
        dataplane.with(|dataplane| dataplane.set_client(cookie, &sandbox.ips))?;
        known.insert(sandbox.id.clone(), cookie);
        Ok(())
    }

    /// A sandbox has no network any more. Blocks.
    pub fn ended(&self, sandbox: &SandboxId) {
        let cookie = self.known().remove(sandbox);
        if let (Some(cookie), Some(dataplane)) = (cookie, &self.dataplane)
            && let Err(error) = dataplane.with(|dataplane| dataplane.forget_client(cookie))
        {
            let error = crate::api::chain(&error);
            tracing::warn!(%sandbox, error, "forget the addresses of a pod that ended");
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<SandboxId, u64>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
