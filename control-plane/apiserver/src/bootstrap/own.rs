//! The objects that the server keeps for itself: the namespaces of every cluster and the Service `kubernetes`.
//!
//! Made or corrected at start, and made again when somebody deletes them: by watching, not by looking now and then.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::StartError;
use crate::api::Api;
use crate::auth::{MASTERS, User};
use crate::cache::{EventType, Filter, WatchStart};
use crate::error::ApiError;
use crate::selectors::FieldSelector;
use crate::storage::Revision;
use crate::verbs::{Target, WriteOptions};

/// The namespaces of every cluster.
const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];
/// The kinds of the objects named `kubernetes`.
const KINDS: &[&str] = &["services", "endpoints", "endpointslices"];

const RESTORE_TRIES: usize = 10;
const RESTORE_DELAY: Duration = Duration::from_millis(50);

/// The server itself, when it makes objects.
pub(super) fn masters() -> User {
    User { name: "system:apiserver".into(), groups: vec![MASTERS.into()] }
}

/// What the objects say.
pub(super) struct OwnObjects {
    pub api: Arc<Api>,
    pub user: User,
    pub service_address: IpAddr,
    /// Where this server listens, for clients.
    pub endpoint: SocketAddr,
}

/// Whether the stored object (second) has to become the wanted one (first).
type Differs = fn(&Value, &Value) -> bool;

impl OwnObjects {
    pub(super) async fn ensure_all(&self) -> Result<(), StartError> {
        for name in NAMESPACES {
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            self.ensure("", "namespaces", "", namespace, |_, _| false).await?;
        }
        let metadata =
            |labels: Value| json!({"name": "kubernetes", "namespace": "default", "labels": labels});
        let (address, port) = (self.endpoint.ip().to_string(), self.endpoint.port());
        let cluster = self.service_address.to_string();
        let service = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": metadata(json!({"component": "apiserver", "provider": "kubernetes"})),
            "spec": {"clusterIP": cluster, "clusterIPs": [cluster], "type": "ClusterIP",
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}]}});
        let ports = |new: &Value, old: &Value| new["spec"]["ports"] != old["spec"]["ports"];
        self.ensure("", "services", "default", service, ports).await?;
        let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints",
            "metadata": metadata(json!({"endpointslice.kubernetes.io/skip-mirror": "true"})),
            "subsets": [{"addresses": [{"ip": address}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}]});
        self.ensure("", "endpoints", "default", endpoints, |new, old| new["subsets"] != old["subsets"])
            .await?;
        let family = if self.endpoint.is_ipv4() { "IPv4" } else { "IPv6" };
        let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": metadata(json!({"kubernetes.io/service-name": "kubernetes"})), "addressType": family,
            "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}]});
        let differs =
            |new: &Value, old: &Value| new["endpoints"] != old["endpoints"] || new["ports"] != old["ports"];
        self.ensure("discovery.k8s.io", "endpointslices", "default", slice, differs).await
    }

    /// Makes again what is deleted, until `stop`.
    pub(super) async fn keep(self, stop: CancellationToken) {
        loop {
            // Taken before the look, so that a deletion during it is seen by the watches.
            let revision = self.api.cache.revision();
            self.restore().await;
            // Cancel safe: a watch that is dropped is begun again after a look at the whole state.
            tokio::select! {
                () = self.deletion_after(revision) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// The address of a deleted Service is given back a moment after the deletion is seen, hence the tries.
    async fn restore(&self) {
        for _ in 0..RESTORE_TRIES {
            match self.ensure_all().await {
                Ok(()) => return,
                Err(error) => {
                    let error = &error as &(dyn std::error::Error + 'static);
                    tracing::debug!(error, "make the objects of the server again");
                }
            }
            tokio::time::sleep(RESTORE_DELAY).await;
        }
        tracing::warn!("the objects of the server could not be made again");
    }

    /// Waits until one of the objects was deleted after `revision`, or until a watch cannot tell.
    async fn deletion_after(&self, revision: Revision) {
        let named = |namespace: &str, name: &str| Filter {
            namespace: namespace.into(),
            fields: FieldSelector::parse(&format!("metadata.name={name}")).unwrap_or_default(),
            ..Filter::default()
        };
        let namespaces = NAMESPACES.iter().map(|name| ("namespaces", named("", name)));
        let objects = KINDS.iter().map(|storage| (*storage, named("default", "kubernetes")));
        let watches = namespaces.chain(objects).map(|(storage, filter)| {
            Box::pin(async move {
                let start = WatchStart::After(revision);
                let Ok(mut watch) = self.api.cache.watch(storage, filter, start) else { return };
                while let Some(event) = watch.events.recv().await {
                    if event.kind == EventType::Deleted {
                        return;
                    }
                }
            })
        });
        futures::future::select_all(watches).await;
    }

    /// Creates the object, or updates it when `differs` says so.
    async fn ensure(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        object: Value,
        differs: Differs,
    ) -> Result<(), StartError> {
        let name = crate::object::name(&object).to_owned();
        let failed = |source| StartError::Object { object: format!("{plural} {namespace}/{name}"), source };
        let Some(kind) = self.api.registry.find(group, "v1", plural) else {
            return Err(failed(ApiError::no_such_path()));
        };
        let target = Target { kind, namespace, name: &name, user: &self.user };
        match self.api.find(kind, namespace, &name) {
            Ok(stored) if differs(&object, &stored.value()) => {
                let bytes = object.to_string();
                self.api
                    .update(target, "", bytes.as_bytes(), WriteOptions::default())
                    .await
                    .map_err(failed)?;
            }
            Ok(_) => {}
            Err(_) => {
                self.api.create_decoded(target, object, false).await.map_err(failed)?;
            }
        }
        Ok(())
    }
}
