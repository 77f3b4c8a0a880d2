//! NetworkPolicies: what they come to for the pods of this node.
//!
//! In: watches of policies, namespaces and pods, and the sandboxes of this node ([`Guard`]). Out: rules in the dataplane, and links of pods
//! whose packets it filters. `convert` reads API objects, `plan` decides (pure), `enforce` owns the one task that watches and writes, `link` asks
//! the kernel, `guard` lets containers wait.

pub mod convert;
mod enforce;
mod guard;
mod link;
#[cfg(test)]
pub mod oracle;
pub mod plan;
pub mod selector;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use guard::Guard;
pub use link::{Error as LinkError, find as find_link};

use crate::events::Recorder;
use crate::services::Dataplane;

/// What the policies' task needs.
pub struct Context {
    pub client: kube::Client,
    pub dataplane: Dataplane,
    /// Those that an earlier agent made.
    pub sandboxes: Vec<runtime::SandboxStatus>,
    pub recorder: Recorder,
    pub shutdown: CancellationToken,
}

/// Starts the task that enforces policies on this node.
pub fn start(context: Context) -> (Guard, JoinHandle<()>) {
    let (guard, notices) = Guard::channel();
    (guard, tokio::spawn(enforce::run(context, notices)))
}

/// Leaves policies to somebody else: what an earlier agent enforced ends.
pub fn give_up(dataplane: &Dataplane) -> anyhow::Result<()> {
    dataplane.with(|dataplane| dataplane.retain_policies())?;
    dataplane::wait_for_readers()?;
    dataplane.with(|dataplane| dataplane.release_policies())?;
    Ok(())
}
