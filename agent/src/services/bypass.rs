//! Pods that reach services by packets, because sockets of this node do not make those: a network stack of their own, or a virtual
//! machine. Their annotation says so; it is read when the sandbox is made.
//!
//! In: sandboxes. Out: programs on the links of such pods, before the first container starts. Decides nothing else.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use dataplane::policy::PodLink;
use runtime::{SandboxId, SandboxState, SandboxStatus};

use super::Dataplane;
use crate::api::chain;
use crate::policies::find_link;

/// The annotation of pods.
const ANNOTATION: &str = "orlop.dev/services";
/// The pod's sockets are led to backends, as all are.
const SOCKETS: &str = "sockets";
/// So are its packets.
const PACKETS: &str = "packets";

/// Serves pods by packets.
pub struct Bypass {
    dataplane: Option<Dataplane>,
    links: Mutex<HashMap<SandboxId, PodLink>>,
}

impl Bypass {
    /// Goes on with what an earlier agent did for the sandboxes that there are. Blocks.
    pub fn start(dataplane: Option<Dataplane>, sandboxes: &[SandboxStatus]) -> Self {
        let bypass = Self { dataplane, links: Mutex::default() };
        // One that asks for something else is not served.
        let asks = |sandbox: &&SandboxStatus| wanted(sandbox).is_ok();
        let ready = sandboxes.iter().filter(|sandbox| sandbox.state == SandboxState::Ready).filter(asks);
        let mut whole = true;
        for sandbox in ready {
            if let Err(error) = bypass.serve(sandbox) {
                whole = false;
                tracing::warn!(sandbox = %sandbox.id, error, "this pod may not reach services by packets");
            }
        }
        // What was not found may still be at work.
        if let Some(dataplane) = bypass.dataplane.as_ref().filter(|_| whole)
            && let Err(error) = dataplane.with(|dataplane| dataplane.retain_packets())
        {
            tracing::warn!(error = chain(&error), "remove the programs of pods that are gone");
        }
        bypass
    }

    /// Returns when the pod's packets reach services, if it asks for that. Blocks.
    ///
    /// # Errors
    /// The annotation says something else, or the pod's link cannot be served: in words.
    pub fn serve(&self, sandbox: &SandboxStatus) -> Result<(), String> {
        let Some(netns) = wanted(sandbox)? else { return Ok(()) };
        // Whoever leads services in this agent's place does so by packets.
        let Some(dataplane) = &self.dataplane else { return Ok(()) };
        if self.links().contains_key(&sandbox.id) {
            return Ok(());
        }
        let link = served(dataplane, netns)
            .map_err(|reason| format!("services cannot be served by packets: {reason}"))?;
        self.links().insert(sandbox.id.clone(), link);
        Ok(())
    }

    /// A sandbox has no network any more. Blocks.
    pub fn ended(&self, sandbox: &SandboxId) {
        let link = self.links().remove(sandbox);
        if let (Some(link), Some(dataplane)) = (link, &self.dataplane)
            && let Err(error) = dataplane.with(|dataplane| dataplane.end_packets(&link))
        {
            tracing::warn!(
                link = link.name,
                error = chain(&error),
                "remove the programs of a pod that ended"
            );
        }
    }

    fn links(&self) -> std::sync::MutexGuard<'_, HashMap<SandboxId, PodLink>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The network namespace of a pod that asks for it.
fn wanted(sandbox: &SandboxStatus) -> Result<Option<&Path>, String> {
    match sandbox.config.annotations.get(ANNOTATION).map(String::as_str) {
        None | Some(SOCKETS) => Ok(None),
        // Whoever is in the node's network has no link of its own, and its packets are the node's.
        Some(PACKETS) => match &sandbox.netns {
            Some(netns) => Ok(Some(netns)),
            None => Err(format!(
                "annotation {ANNOTATION}: a pod in the node's network is served by sockets alone"
            )),
        },
        Some(other) => {
            Err(format!("annotation {ANNOTATION}: \"{other}\" is neither {SOCKETS} nor {PACKETS}"))
        }
    }
}

fn served(dataplane: &Dataplane, netns: &Path) -> Result<PodLink, String> {
    let link = find_link(netns).map_err(|error| chain(&error))?;
    dataplane.with(|dataplane| dataplane.serve_packets(&link)).map_err(|error| chain(&error))?;
    Ok(link)
}
