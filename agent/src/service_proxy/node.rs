//! The own Node, which a kubelet registers and keeps: only watched here.
//!
//! In: a watch of one object. Out: [`OwnNode`], which keeps a Node that is deleted as it was last; what its addresses are, and whether load
//! balancers are to send it traffic.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watch_object;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::api::Backoff;
use crate::node::{OwnNode, next_node};

/// What the cluster autoscaler taints a Node with before it deletes it.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// How long a Node that is registered may be without addresses (kube-proxy waits about as long).
const ADDRESSES_LIMIT: Duration = Duration::from_secs(30);

/// Starts the task that watches.
pub fn watch(client: kube::Client, name: String, shutdown: CancellationToken) -> (OwnNode, JoinHandle<()>) {
    let (sender, receiver) = watch::channel(None);
    let follow = async move {
        let mut changes = Box::pin(watch_object(Api::<Node>::all(client), &name).backoff(Backoff::default()));
        loop {
            match next_node(&mut changes).await {
                Some(node) => drop(sender.send_replace(Some(Arc::new(node)))),
                None => tracing::warn!(node = name, "there is no such Node in the API: waiting for it"),
            }
        }
    };
    let task = tokio::spawn(async move {
        // Cancel-safe: a change is taken and passed on in one step.
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = follow => {}
        }
    });
    (receiver, task)
}

/// The addresses of the Node: waits until it is registered, and then for addresses as long as [`ADDRESSES_LIMIT`], since a cloud's controller
/// may tell them. Cancel-safe.
pub async fn registered(node: &OwnNode) -> Vec<IpAddr> {
    let mut node = node.clone();
    let is_there = node.wait_for(Option::is_some).await.is_ok();
    if !is_there {
        // The task that watches has ended: so does everything.
        return std::future::pending().await;
    }
    let of = |node: &Option<Arc<Node>>| node.as_deref().map(addresses).unwrap_or_default();
    match timeout(ADDRESSES_LIMIT, node.wait_for(|node| !of(node).is_empty())).await {
        Ok(Ok(node)) => of(&node),
        _ => Vec::new(),
    }
}

/// The first InternalIP of each family, in the Node's order: those that upstream calls primary.
fn addresses(node: &Node) -> Vec<IpAddr> {
    let status = node.status.as_ref();
    let all = status.and_then(|status| status.addresses.as_ref()).into_iter().flatten();
    let mut primary: Vec<IpAddr> = Vec::new();
    for address in all.filter(|address| address.type_ == "InternalIP") {
        let Ok(ip) = address.address.parse::<IpAddr>() else { continue };
        if primary.iter().all(|known| known.is_ipv4() != ip.is_ipv4()) {
            primary.push(ip);
        }
    }
    primary
}

/// Whether load balancers are to send traffic: not to a Node that is about to go. One that is not known (yet) may have some.
pub fn is_eligible(node: Option<&Node>) -> bool {
    let Some(node) = node else { return true };
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
    node.metadata.deletion_timestamp.is_none() && taints.into_iter().all(|taint| taint.key != TO_BE_DELETED)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(addresses: serde_json::Value) -> Option<Arc<Node>> {
        let node = json!({"metadata": {"name": "node-a"}, "status": {"addresses": addresses}});
        Some(Arc::new(serde_json::from_value(node).unwrap()))
    }

    #[tokio::test]
    async fn the_first_internal_address_of_each_family_counts_once_it_is_told() {
        let (sender, own) = watch::channel(None);
        let mut waiting = Box::pin(registered(&own));
        for early in [None, node(json!([{"type": "Hostname", "address": "node-a"}]))] {
            sender.send_replace(early);
            assert!(futures::poll!(&mut waiting).is_pending());
        }
        sender.send_replace(node(json!([
            {"type": "ExternalIP", "address": "203.0.113.1"}, {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "192.0.2.2"}, {"type": "InternalIP", "address": "2001:db8::1"},
        ])));
        let shown: Vec<String> = waiting.await.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["192.0.2.1", "2001:db8::1"]);
    }
}
