//! Pods that reach services by packets, because sockets of this node do not make those, or because the kernel tells nobody of them.
//!
//! All packets are led of a network stack of its own or a virtual machine: the pod's annotation says so, which is read when the sandbox is made. Of
//! all other pods SCTP is led, while this node leads to a Service of it.
//!
//! In: sandboxes, and whether there is such a Service. Out: programs on the links of pods, before the first container starts. Decides nothing else.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dataplane::policy::PodLink;
use dataplane::{OpenError, Packets};
use runtime::{SandboxId, SandboxState, SandboxStatus};

use super::Dataplane;
use crate::api::chain;
use crate::policies::{LinkError, find_link};

/// The annotation of pods.
const ANNOTATION: &str = "orlop.dev/services";
/// The pod's sockets are led to backends, as all are.
const SOCKETS: &str = "sockets";
/// So are its packets.
const PACKETS: &str = "packets";

/// Serves pods by packets.
pub struct Bypass {
    dataplane: Option<Dataplane>,
    /// Held while programs are put on a link: whoever comes meanwhile finds a pod served or not, as is due.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pods: HashMap<SandboxId, Pod>,
    /// Whether SCTP is led; what an earlier agent did until Services are known.
    leads_sctp: bool,
}

struct Pod {
    netns: PathBuf,
    led: Led,
    /// Where the programs are.
    link: Option<PodLink>,
    /// It was told that it cannot be served.
    is_told: bool,
}

/// What of a pod's packets is led.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Led {
    All,
    /// While there is a Service of it.
    Sctp,
}

impl Led {
    fn packets(self) -> Packets {
        match self {
            Self::All => Packets::All,
            Self::Sctp => Packets::Sctp,
        }
    }
}

/// Why a pod is not served.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Link(LinkError),
    #[error(transparent)]
    Programs(OpenError),
}

impl Refusal {
    /// Whether an earlier agent's programs on some link may be this pod's. On one that is known there are none after a refusal.
    fn may_have_programs(&self) -> bool {
        matches!(self, Self::Link(LinkError::Netns(_) | LinkError::Netlink(_)))
    }
}

impl Bypass {
    /// Goes on with what an earlier agent did for the sandboxes that there are. Blocks.
    pub fn start(dataplane: Option<Dataplane>, sandboxes: &[SandboxStatus]) -> Self {
        let leads_sctp =
            dataplane.as_ref().is_some_and(|dataplane| dataplane.with(|dataplane| dataplane.serves_sctp()));
        let state = Mutex::new(State { leads_sctp, ..State::default() });
        let bypass = Self { dataplane, state };
        // One that asks for something else is not served.
        let ready = sandboxes.iter().filter(|sandbox| sandbox.state == SandboxState::Ready);
        let asking = ready.filter_map(|sandbox| Some((sandbox, wanted(sandbox).ok()??)));
        let mut all_found = true;
        for (sandbox, (led, netns)) in asking {
            if let Err(refusal) = bypass.serve_wanted(&sandbox.id, led, netns) {
                all_found &= !refusal.may_have_programs();
                let error = chain(&refusal);
                tracing::warn!(sandbox = %sandbox.id, error, "this pod does not reach services by packets");
            }
        }
        // What was not found may still be at work. What leads SCTP waits until Services are known.
        if let Some(dataplane) = bypass.dataplane.as_ref().filter(|_| all_found)
            && let Err(error) = dataplane.with(|dataplane| dataplane.retain_packets())
        {
            tracing::warn!(error = chain(&error), "remove the programs of pods that are gone");
        }
        bypass
    }

    /// Returns when the pod's packets reach services: all if it asks for that, else SCTP while there is a Service of it. Blocks.
    ///
    /// # Errors
    /// The annotation says something else, or the link of a pod that asks cannot be served: in words.
    pub fn serve(&self, sandbox: &SandboxStatus) -> Result<(), String> {
        let Some((led, netns)) = wanted(sandbox)? else { return Ok(()) };
        let served = self.serve_wanted(&sandbox.id, led, netns);
        served.map_err(|refusal| format!("services cannot be served by packets: {}", chain(&refusal)))
    }

    fn serve_wanted(&self, sandbox: &SandboxId, led: Led, netns: &Path) -> Result<(), Refusal> {
        // Whoever leads services in this agent's place does so by packets.
        let Some(dataplane) = &self.dataplane else { return Ok(()) };
        let mut state = self.state();
        let leads_sctp = state.leads_sctp;
        let new = || Pod { netns: netns.to_owned(), led, link: None, is_told: false };
        let pod = state.pods.entry(sandbox.clone()).or_insert_with(new);
        if pod.link.is_some() || (led == Led::Sctp && !leads_sctp) {
            return Ok(());
        }
        match (pod.serve(dataplane), led) {
            // A pod that may never say a word of SCTP does not wait for it.
            (Err(refusal), Led::Sctp) => {
                pod.tell(sandbox, &refusal);
                Ok(())
            }
            (served, _) => served,
        }
    }

    /// Leads SCTP of all pods that are not led anyway, or does not any more; the first call takes away what an earlier agent left. Whether that
    /// is done: else the same call tries again. Blocks.
    pub fn lead_sctp(&self, leads: bool) -> bool {
        let Some(dataplane) = &self.dataplane else { return true };
        let (mut state, mut done, mut all_found) = (self.state(), true, true);
        state.leads_sctp = leads;
        for (sandbox, pod) in state.pods.iter_mut().filter(|(_, pod)| pod.led == Led::Sctp) {
            let changed = match (&pod.link, leads) {
                (None, true) => pod.serve(dataplane),
                (Some(_), false) => pod.end(dataplane).map_err(Refusal::Programs),
                _ => Ok(()),
            };
            if let Err(refusal) = changed {
                pod.tell(sandbox, &refusal);
                done = false;
                all_found &= !refusal.may_have_programs();
            }
        }
        // What was not found may still be at work.
        if all_found && let Err(error) = dataplane.with(|dataplane| dataplane.retain_sctp()) {
            tracing::warn!(error = chain(&error), "remove the programs for SCTP that nobody needs");
            done = false;
        }
        done
    }

    /// A sandbox has no network any more. Blocks.
    pub fn ended(&self, sandbox: &SandboxId) {
        let pod = self.state().pods.remove(sandbox);
        if let (Some(mut pod), Some(dataplane)) = (pod, &self.dataplane)
            && let Err(error) = pod.end(dataplane)
        {
            tracing::warn!(%sandbox, error = chain(&error), "remove the programs of a pod that ended");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pod {
    fn serve(&mut self, dataplane: &Dataplane) -> Result<(), Refusal> {
        let link = find_link(&self.netns).map_err(Refusal::Link)?;
        // The kernel verifies the programs for a while, in which nobody else waits for the dataplane.
        if let Some(loader) = dataplane.with(|dataplane| dataplane.packets_loader(self.led.packets())) {
            let loaded = loader.load().map_err(Refusal::Programs)?;
            dataplane.with(|dataplane| dataplane.put_packets(loaded));
        }
        let served = dataplane.with(|dataplane| match self.led {
            Led::All => dataplane.serve_packets(&link),
            Led::Sctp => dataplane.serve_sctp(&link),
        });
        served.map_err(Refusal::Programs)?;
        (self.link, self.is_told) = (Some(link), false);
        Ok(())
    }

    fn end(&mut self, dataplane: &Dataplane) -> Result<(), OpenError> {
        let Some(link) = &self.link else { return Ok(()) };
        dataplane.with(|dataplane| match self.led {
            Led::All => dataplane.end_packets(link),
            Led::Sctp => dataplane.end_sctp(link),
        })?;
        self.link = None;
        Ok(())
    }

    /// Once, not at every attempt.
    fn tell(&mut self, sandbox: &SandboxId, refusal: &Refusal) {
        if !std::mem::replace(&mut self.is_told, true) {
            let reason = chain(refusal);
            tracing::warn!(%sandbox, reason, "cannot begin or end to lead this pod's SCTP: it goes on as it did");
        }
    }
}

/// What is led of a pod, and its network namespace. Whoever is in the node's network has no link of its own, and its packets are the node's.
fn wanted(sandbox: &SandboxStatus) -> Result<Option<(Led, &Path)>, String> {
    match sandbox.config.annotations.get(ANNOTATION).map(String::as_str) {
        None | Some(SOCKETS) => Ok(sandbox.netns.as_deref().map(|netns| (Led::Sctp, netns))),
        Some(PACKETS) => match &sandbox.netns {
            Some(netns) => Ok(Some((Led::All, netns))),
            None => Err(format!(
                "annotation {ANNOTATION}: a pod in the node's network is served by sockets alone"
            )),
        },
        Some(other) => {
            Err(format!("annotation {ANNOTATION}: \"{other}\" is neither {SOCKETS} nor {PACKETS}"))
        }
    }
}
