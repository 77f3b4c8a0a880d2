//! What the caller decides about the controllers.
//!
//! Input: the server's configuration. Output: [`Options`] for [`crate::run`] and the [`Context`] that every controller
//! gets. Defaults are those of kube-controller-manager and kube-scheduler.

use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use kube::Client;

use crate::caches::Caches;
use crate::events::Recorder;

/// The configuration of all controllers and of the scheduler.
#[derive(Clone)]
pub struct Options {
    /// A client with the scheduler's identity.
    pub scheduler_client: Client,
    /// A client with the controllers' identity.
    pub controller_client: Client,
    /// The ranges that the nodes' pod ranges are cut from, one of each family at most.
    pub cluster_cidrs: Vec<IpNetwork>,
    /// How soon an unhealthy node is looked at again where time alone decides.
    pub node_monitor_period: Duration,
    /// How long a node may be silent before it counts as unreachable.
    pub node_monitor_grace_period: Duration,
    /// How long a node that never reported may take to start.
    pub node_startup_grace_period: Duration,
    /// How long pods without tolerations of their own stay on a node that is not ready or unreachable.
    pub pod_eviction_toleration: Duration,
    /// Terminated pods that are kept.
    pub terminated_pod_threshold: usize,
    /// The certificate authority of the API server, in PEM, for the ConfigMap kube-root-ca.crt.
    pub cluster_ca_pem: String,
    pub concurrency: Concurrency,
}

impl Options {
    /// The upstream defaults for a cluster.
    pub fn new(
        scheduler_client: Client,
        controller_client: Client,
        cluster_cidrs: Vec<IpNetwork>,
        cluster_ca_pem: String,
    ) -> Self {
        Self {
            scheduler_client,
            controller_client,
            cluster_cidrs,
            node_monitor_period: Duration::from_secs(5),
            node_monitor_grace_period: Duration::from_secs(50),
            node_startup_grace_period: Duration::from_secs(60),
            pod_eviction_toleration: Duration::from_secs(300),
            terminated_pod_threshold: 12_500,
            cluster_ca_pem,
            concurrency: Concurrency::default(),
        }
    }
}

/// How many objects each controller works on at once.
#[derive(Clone, Copy, Debug)]
pub struct Concurrency {
    pub deployments: usize,
    pub replica_sets: usize,
    pub endpoint_slices: usize,
    pub endpoints: usize,
    pub garbage: usize,
    pub namespaces: usize,
    pub nodes: usize,
    pub evictions: usize,
    pub namespace_defaults: usize,
    pub pod_garbage: usize,
    /// Bindings that the scheduler has under way.
    pub bindings: usize,
}

impl Default for Concurrency {
    fn default() -> Self {
        Self {
            deployments: 5,
            replica_sets: 5,
            endpoint_slices: 5,
            endpoints: 5,
            garbage: 20,
            namespaces: 10,
            nodes: 8,
            evictions: 8,
            namespace_defaults: 5,
            pod_garbage: 5,
            bindings: 32,
        }
    }
}

/// What a controller works with.
#[derive(Clone)]
pub struct Context {
    /// With the identity of the part that uses it.
    pub client: Client,
    pub caches: Caches,
    pub events: Recorder,
    pub options: Arc<Options>,
}
