//! The Lease in `kube-node-lease` by which the control plane sees that this node lives.
//!
//! In: the own Node (for its uid). Out: one Lease, renewed four times in its duration; failures, and requests that nobody answers, are
//! retried with back-off. What
//! it should look like is decided by `desired` (pure).

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::api::{Backoff, chain, is_code};

#[cfg(test)]
mod tests;

const NAMESPACE: &str = "kube-node-lease";
/// Renewals in one duration, as many as the kubelet's.
const RENEWALS: u32 = 4;
/// Longest wait for a renewal, or as long as the Lease lasts if that is shorter: the kubelet's.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a renewal failed.
#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error(transparent)]
    Request(#[from] kube::Error),
    #[error("the API server did not answer within {limit:?}")]
    Unanswered { limit: Duration },
}

pub struct Context {
    pub client: kube::Client,
    pub node_name: String,
    /// The kubelet's nodeLeaseDurationSeconds.
    pub duration_seconds: i32,
    pub node: watch::Receiver<Option<Arc<Node>>>,
    pub shutdown: CancellationToken,
}

/// Renews until shutdown.
pub async fn run(context: Context) {
    let api: Api<Lease> = Api::namespaced(context.client.clone(), NAMESPACE);
    let duration = Duration::from_secs(u64::from(context.duration_seconds.unsigned_abs()));
    let (renew_every, limit) = (duration / RENEWALS, RENEWAL_TIMEOUT.min(duration));
    let mut last = None;
    let mut backoff = Backoff::default();
    let mut node = context.node.clone();
    // Without a Node there is nobody whose life the Lease could tell of.
    // Cancel-safe: waiting takes nothing.
    tokio::select! {
        () = context.shutdown.cancelled() => return,
        found = node.wait_for(Option::is_some) => if found.is_err() { return },
    }
    loop {
        let uid = context.node.borrow().as_ref().and_then(|node| node.metadata.uid.clone());
        let pause = match within(limit, renew(&api, &context, uid, last.take())).await {
            Ok(lease) => {
                last = Some(lease);
                backoff.reset();
                renew_every
            }
            Err(error) => {
                let pause = backoff.next_pause();
                tracing::warn!(error = chain(&error), ?pause, "cannot renew the node's Lease, retrying");
                pause
            }
        };
        // Cancel-safe: a renewal is one request and repeated by whoever comes next.
        tokio::select! {
            () = context.shutdown.cancelled() => return,
            () = sleep(pause) => {}
        }
    }
}

async fn within<T>(
    limit: Duration,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, RenewalError> {
    match timeout(limit, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(RenewalError::Unanswered { limit }),
    }
}

/// `last` is what the server answered last; without it, or when it is not the server's any more, the server is asked.
async fn renew(
    api: &Api<Lease>,
    context: &Context,
    uid: Option<String>,
    last: Option<Lease>,
) -> Result<Lease, kube::Error> {
    let node_name = &context.node_name;
    let desire = |previous| {
        let holder = Holder { node_name, uid: uid.as_deref(), duration_seconds: context.duration_seconds };
        desired(previous, &holder, Timestamp::now())
    };
    if let Some(last) = last {
        match api.replace(node_name, &PostParams::default(), &desire(Some(last))).await {
            Err(error) if is_code(&error, 409) || is_code(&error, 404) => {}
            renewed => return renewed,
        }
    }
    match api.get_opt(node_name).await? {
        Some(existing) => api.replace(node_name, &PostParams::default(), &desire(Some(existing))).await,
        None => api.create(&PostParams::default(), &desire(None)).await,
    }
}

/// Who holds the Lease.
struct Holder<'a> {
    node_name: &'a str,
    uid: Option<&'a str>,
    duration_seconds: i32,
}

/// The Lease at `now`, on top of what the server has.
fn desired(previous: Option<Lease>, holder: &Holder<'_>, now: Timestamp) -> Lease {
    let Holder { node_name, uid, duration_seconds } = *holder;
    let metadata = ObjectMeta {
        name: Some(node_name.to_owned()),
        namespace: Some(NAMESPACE.to_owned()),
        ..ObjectMeta::default()
    };
    let mut lease = previous.unwrap_or(Lease { metadata, spec: None });
    if let Some(uid) = uid {
        lease.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node_name.to_owned(),
            uid: uid.to_owned(),
            ..OwnerReference::default()
        }]);
    }
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    spec.holder_identity = Some(node_name.to_owned());
    spec.lease_duration_seconds = Some(duration_seconds);
    spec.renew_time = Some(MicroTime(now));
    lease
}
