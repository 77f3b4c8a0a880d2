//! The addresses of this node's clients, which source ranges are about: a socket that connects may have none yet, but it has a network namespace.
//!
//! In: sandboxes, and the node's own addresses. Out: what the dataplane knows of network namespaces, before the first container starts. Whoever is not
//! known is led whatever source ranges say, so no container starts in a network that the dataplane was not told of.

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
        if let Some(dataplane) = &clients.dataplane
            && let Err(error) = clients.begin(dataplane, node, sandboxes)
        {
            let error = format!("{error:#}");
            tracing::warn!(error, "source ranges may not be asked for processes in the node's own network");
        }
        clients
    }

    fn begin(
        &self,
        dataplane: &Dataplane,
        node: &[IpAddr],
        sandboxes: &[SandboxStatus],
    ) -> anyhow::Result<()> {
        let own = dataplane.with(|dataplane| dataplane.node_netns())?;
        let ready = sandboxes.iter().filter(|sandbox| sandbox.state == SandboxState::Ready);
        let open = |netns: &Path| Netns::open(netns).and_then(|netns| netns.cookie());
        let cookies: Vec<_> =
            ready.clone().filter_map(|sandbox| sandbox.netns.as_deref().map(open)).collect();
        // First, so that there is room. What cannot be read may be what an earlier agent knew.
        if cookies.iter().all(Result::is_ok) {
            let keep = cookies.into_iter().flatten().chain([own]).collect();
            dataplane
                .with(|dataplane| dataplane.retain_clients(&keep))
                .context("forget pods that are gone")?;
        }
        let told = dataplane.with(|dataplane| dataplane.set_client(own, node));
        for sandbox in ready {
            if let Err(error) = self.admit(sandbox) {
                tracing::warn!(sandbox = %sandbox.id, error, "source ranges may not be asked for this pod");
            }
        }
        told.context("tell of the node's own addresses")
    }

    /// Returns when source ranges are about the sandbox's sockets. Whoever is in the node's network is the node. Blocks.
    ///
    /// # Errors
    /// The dataplane could not be told: in words.
    pub fn admit(&self, sandbox: &SandboxStatus) -> Result<(), String> {
        let (Some(dataplane), Some(netns)) = (&self.dataplane, &sandbox.netns) else { return Ok(()) };
        let told = self.tell(dataplane, sandbox, netns);
        told.map_err(|error| format!("source ranges cannot be asked for its sockets: {error:#}"))
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
