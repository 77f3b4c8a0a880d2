//! How those who start pods wait until policies hold for them.
//!
//! In: a pod's sandbox. Out: the answer of the task that owns the policies, once the kernel filters the pod's packets, or knows that no
//! policy selects it. Decides nothing.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use runtime::SandboxId;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::convert;
use super::plan::{self, Key};

/// How long the start of a container waits; it is tried again then.
const LIMIT: Duration = Duration::from_secs(10);
/// Notices that wait for the task.
const NOTICES: usize = 1024;

/// A pod that runs on this node, with a network of its own.
#[derive(Debug)]
pub struct Endpoint {
    pub key: Key,
    pub pod: plan::Pod,
    pub sandbox: SandboxId,
    /// Where the pod's network namespace is bound.
    pub netns: PathBuf,
}

/// What the task is told.
#[derive(Debug)]
pub enum Notice {
    Starts { endpoint: Endpoint, answer: oneshot::Sender<Result<(), String>> },
    Ended { uid: String, sandbox: SandboxId },
    List { answer: oneshot::Sender<Vec<Selected>> },
}

/// A pod of this node that policies select; `None`: none does in that direction, which is open.
#[derive(Debug, Serialize)]
pub struct Selected {
    pub namespace: String,
    pub pod: String,
    /// The node's end of its link.
    pub link: Option<String>,
    /// Names of policies.
    pub ingress: Option<Vec<String>>,
    pub egress: Option<Vec<String>>,
    /// Why they do not hold for it.
    pub problem: Option<String>,
}

/// Tells the policies about this node's pods. Clones reach the same task; without one nobody waits.
#[derive(Debug, Clone)]
pub struct Guard {
    notices: Option<mpsc::Sender<Notice>>,
}

impl Guard {
    /// Of a node where somebody else enforces policies.
    pub fn none() -> Self {
        Self { notices: None }
    }

    pub fn channel() -> (Self, mpsc::Receiver<Notice>) {
        let (sender, receiver) = mpsc::channel(NOTICES);
        (Self { notices: Some(sender) }, receiver)
    }

    /// Returns once policies hold for the pod in this sandbox.
    ///
    /// # Errors
    /// They cannot be made to, or are not known in time: in words.
    pub async fn admit(
        &self,
        pod: &Pod,
        sandbox: &SandboxId,
        ips: &[IpAddr],
        netns: PathBuf,
    ) -> Result<(), String> {
        let Some(notices) = &self.notices else { return Ok(()) };
        let Some((key, shown)) = convert::pod(pod) else { return Ok(()) };
        let pod = plan::Pod { ips: ips.to_vec(), ..shown };
        let endpoint = Endpoint { key, pod, sandbox: sandbox.clone(), netns };
        ask(notices, |answer| Notice::Starts { endpoint, answer }).await?
    }

    /// The pods that policies select, by namespace and name.
    ///
    /// # Errors
    /// Policies are not enforced by this agent, or not known in time: in words.
    pub async fn list(&self) -> Result<Vec<Selected>, String> {
        let notices = self.notices.as_ref().ok_or("NetworkPolicies are not enforced by this agent")?;
        ask(notices, |answer| Notice::List { answer }).await
    }

    /// A sandbox has no network any more.
    pub async fn ended(&self, uid: &str, sandbox: &SandboxId) {
        if let Some(notices) = &self.notices {
            // The task ends only with the agent, and the next one finds that the link has gone.
            let _ended = notices.send(Notice::Ended { uid: uid.to_owned(), sandbox: sandbox.clone() }).await;
        }
    }
}

async fn ask<T>(
    notices: &mpsc::Sender<Notice>,
    notice: impl FnOnce(oneshot::Sender<T>) -> Notice,
) -> Result<T, String> {
    let (answer, answered) = oneshot::channel();
    let asked = async {
        notices.send(notice(answer)).await.ok()?;
        answered.await.ok()
    };
    let asked = timeout(LIMIT, asked).await.map_err(|_elapsed| "NetworkPolicies are not known yet")?;
    Ok(asked.ok_or("the task that enforces NetworkPolicies has ended")?)
}
