//! The one set of watches that all controllers and the scheduler share, with their indexes.
//!
//! Input: one client. Output: a [`Store`] per kind. Only the objects that a controller reads are held: of ConfigMaps the
//! root certificate's, of ServiceAccounts the default ones, of Leases the nodes' heartbeats. Refuses to write.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ownership::controller_uid;
use crate::pods::{self, label_pair};
use crate::store::{IndexFn, IndexId, Store};
use crate::watch::feed;

/// Pods by the uid of their controller.
pub const POD_BY_CONTROLLER: IndexId = IndexId(0);
/// Pods without a controller, by namespace.
pub const POD_ORPHAN: IndexId = IndexId(1);
/// Pods by node name.
pub const POD_BY_NODE: IndexId = IndexId(2);
/// Pods by namespace.
pub const POD_BY_NAMESPACE: IndexId = IndexId(3);
/// Pods by each of their labels; values are made by `pods::label_pair`.
pub const POD_BY_LABEL: IndexId = IndexId(4);

/// ReplicaSets by the uid of their controller.
pub const SET_BY_CONTROLLER: IndexId = IndexId(0);
/// ReplicaSets without a controller, by namespace.
pub const SET_ORPHAN: IndexId = IndexId(1);
/// ReplicaSets by namespace.
pub const SET_BY_NAMESPACE: IndexId = IndexId(2);

/// Deployments by namespace.
pub const DEPLOYMENT_BY_NAMESPACE: IndexId = IndexId(0);

/// Services by the first pair of their selector; values are made by `pods::label_pair`.
pub const SERVICE_BY_SELECTOR: IndexId = IndexId(0);

/// EndpointSlices by "namespace/service".
pub const SLICE_BY_SERVICE: IndexId = IndexId(0);

/// The label that ties an EndpointSlice to its Service.
pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The namespace of the nodes' heartbeats.
pub const NODE_LEASE_NAMESPACE: &str = "kube-node-lease";
/// The ConfigMap with the cluster's certificate authority.
pub const ROOT_CA_CONFIG_MAP: &str = "kube-root-ca.crt";
/// The ServiceAccount that every namespace has.
pub const DEFAULT_SERVICE_ACCOUNT: &str = "default";

/// One store per kind.
#[derive(Clone)]
pub struct Caches {
    pub pods: Arc<Store<Pod>>,
    pub nodes: Arc<Store<Node>>,
    pub namespaces: Arc<Store<Namespace>>,
    pub services: Arc<Store<Service>>,
    pub endpoints: Arc<Store<Endpoints>>,
    pub slices: Arc<Store<EndpointSlice>>,
    pub replica_sets: Arc<Store<ReplicaSet>>,
    pub deployments: Arc<Store<Deployment>>,
    /// Of the namespace kube-node-lease.
    pub leases: Arc<Store<Lease>>,
    /// Those named "default".
    pub service_accounts: Arc<Store<ServiceAccount>>,
    /// Those named "kube-root-ca.crt".
    pub config_maps: Arc<Store<ConfigMap>>,
}

impl Caches {
    /// Empty stores; nothing is watched yet, so that controllers can add their handlers first.
    pub fn new() -> Self {
        Self {
            pods: Arc::new(Store::new(pod_indexes())),
            nodes: Arc::new(Store::new(Vec::new())),
            namespaces: Arc::new(Store::new(Vec::new())),
            services: Arc::new(Store::new(service_indexes())),
            endpoints: Arc::new(Store::new(Vec::new())),
            slices: Arc::new(Store::new(slice_indexes())),
            replica_sets: Arc::new(Store::new(set_indexes())),
            deployments: Arc::new(Store::new(deployment_indexes())),
            leases: Arc::new(Store::new(Vec::new())),
            service_accounts: Arc::new(Store::new(Vec::new())),
            config_maps: Arc::new(Store::new(Vec::new())),
        }
    }

    /// Starts one watch per store; each is a task of `tasks` and ends with `shutdown`.
    pub fn start(&self, client: &Client, tasks: &TaskTracker, shutdown: &CancellationToken) {
        let all = watcher::Config::default;
        let named = |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
        let stop = || shutdown.clone();
        let client = || client.clone();
        tasks.spawn(feed(Api::all(client()), all(), self.pods.clone(), stop()));
        tasks.spawn(feed(Api::all(client()), all(), self.nodes.clone(), stop()));
        tasks.spawn(feed(Api::all(client()), all(), self.namespaces.clone(), stop()));
        tasks.spawn(feed(Api::all(client()), all(), self.services.clone(), stop()));
        tasks.spawn(feed(Api::all(client()), all(), self.endpoints.clone(), stop()));
        tasks.spawn(feed(Api::all(client()), all(), self.slices.clone(), stop()));
        tasks.spawn(feed(Api::all(client()), all(), self.replica_sets.clone(), stop()));
        tasks.spawn(feed(Api::all(client()), all(), self.deployments.clone(), stop()));
        let leases = Api::namespaced(client(), NODE_LEASE_NAMESPACE);
        tasks.spawn(feed(leases, all(), self.leases.clone(), stop()));
        let accounts = named(DEFAULT_SERVICE_ACCOUNT);
        tasks.spawn(feed(Api::all(client()), accounts, self.service_accounts.clone(), stop()));
        let maps = named(ROOT_CA_CONFIG_MAP);
        tasks.spawn(feed(Api::all(client()), maps, self.config_maps.clone(), stop()));
    }

    /// Waits until every first list is complete.
    pub async fn wait_synced(&self) {
        self.pods.wait_synced().await;
        self.nodes.wait_synced().await;
        self.namespaces.wait_synced().await;
        self.services.wait_synced().await;
        self.endpoints.wait_synced().await;
        self.slices.wait_synced().await;
        self.replica_sets.wait_synced().await;
        self.deployments.wait_synced().await;
        self.leases.wait_synced().await;
        self.service_accounts.wait_synced().await;
        self.config_maps.wait_synced().await;
    }
}

impl Default for Caches {
    fn default() -> Self {
        Self::new()
    }
}

/// The value under which a Service's slices stand in [`SLICE_BY_SERVICE`].
pub fn service_value(namespace: &str, service: &str) -> String {
    format!("{namespace}/{service}")
}

fn namespace_of(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or_default()
}

fn by_controller(meta: &ObjectMeta) -> Vec<String> {
    controller_uid(meta).map(str::to_owned).into_iter().collect()
}

fn orphan(meta: &ObjectMeta) -> Vec<String> {
    if controller_uid(meta).is_some() { Vec::new() } else { vec![namespace_of(meta).to_owned()] }
}

fn pod_indexes() -> Vec<IndexFn<Pod>> {
    let indexes: [IndexFn<Pod>; 5] = [
        |pod: &Pod| by_controller(&pod.metadata),
        |pod: &Pod| orphan(&pod.metadata),
        |pod: &Pod| pods::node_name(pod).map(str::to_owned).into_iter().collect(),
        |pod: &Pod| vec![namespace_of(&pod.metadata).to_owned()],
        pod_labels,
    ];
    indexes.to_vec()
}

fn pod_labels(pod: &Pod) -> Vec<String> {
    let namespace = namespace_of(&pod.metadata);
    let labels = pod.metadata.labels.iter().flatten();
    labels.map(|(key, value)| label_pair(namespace, key, value)).collect()
}

fn set_indexes() -> Vec<IndexFn<ReplicaSet>> {
    let indexes: [IndexFn<ReplicaSet>; 3] = [
        |set: &ReplicaSet| by_controller(&set.metadata),
        |set: &ReplicaSet| orphan(&set.metadata),
        |set: &ReplicaSet| vec![namespace_of(&set.metadata).to_owned()],
    ];
    indexes.to_vec()
}

fn deployment_indexes() -> Vec<IndexFn<Deployment>> {
    let indexes: [IndexFn<Deployment>; 1] =
        [|deployment: &Deployment| vec![namespace_of(&deployment.metadata).to_owned()]];
    indexes.to_vec()
}

fn service_indexes() -> Vec<IndexFn<Service>> {
    let indexes: [IndexFn<Service>; 1] = [service_first_pair];
    indexes.to_vec()
}

fn service_first_pair(service: &Service) -> Vec<String> {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let first = selector.and_then(|selector| selector.first_key_value());
    let value = first.map(|(key, value)| label_pair(namespace_of(&service.metadata), key, value));
    value.into_iter().collect()
}

fn slice_indexes() -> Vec<IndexFn<EndpointSlice>> {
    let indexes: [IndexFn<EndpointSlice>; 1] = [slice_service];
    indexes.to_vec()
}

fn slice_service(slice: &EndpointSlice) -> Vec<String> {
    let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get(LABEL_SERVICE_NAME));
    let value = service.map(|service| service_value(namespace_of(&slice.metadata), service));
    value.into_iter().collect()
}
