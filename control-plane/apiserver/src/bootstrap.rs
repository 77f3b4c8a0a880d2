//! Starting: open the store, fill the cache and the allocators, make the objects that every cluster has, listen.
//!
//! Input: validated options. Output: a running server, or the first error. The port is bound before the store is
//! opened, so a port in use changes nothing on disk but the certificates.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnetwork::Ipv4Network;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::allocators::Allocators;
use crate::api::Api;
use crate::auth::User;
use crate::cache::{Cache, Filter, Page};
use crate::error::ApiError;
use crate::http::serve::{self, TlsError};
use crate::kinds::{MissingType, Registry};
use crate::kubelet::KubeletClient;
use crate::pki::{self, Identity, Kubeconfig, Pki, PkiError};
use crate::storage::embedded;
use crate::verbs::{Target, WriteOptions};

/// How to run a server.
#[derive(Clone, Debug)]
pub struct Options {
    pub data_dir: PathBuf,
    pub bind: SocketAddr,
    pub advertise: IpAddr,
    pub extra_names: Vec<String>,
    pub service_range: Ipv4Network,
    pub node_ports: RangeInclusive<u16>,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Store(#[from] embedded::OpenError),
    #[error(transparent)]
    Registry(#[from] MissingType),
    #[error("service range {range}: too small, the first address is the API server's")]
    ServiceRange { range: Ipv4Network },
    #[error("make {object}: {source}")]
    Object { object: String, source: ApiError },
}

/// A server that listens.
pub struct Running {
    pub address: SocketAddr,
    /// What clients reach it by.
    pub url: String,
    pub api: Arc<Api>,
    pub pki: Arc<Pki>,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    /// Waits until the server has stopped.
    pub async fn stopped(self) {
        if let Err(error) = self.task.await {
            tracing::error!(%error, "server task");
        }
    }

    /// A kubeconfig file's text for one of the control plane's identities.
    pub fn kubeconfig(&self, identity: Identity<'_>, user: &str) -> Result<String, PkiError> {
        let client = self.pki.client(identity)?;
        let file = Kubeconfig { server: &self.url, ca: self.pki.ca_certificate(), user, client: &client };
        Ok(file.render())
    }
}

/// Starts a server; it runs until `stop` is cancelled.
pub async fn start(options: &Options, stop: CancellationToken) -> Result<Running, StartError> {
    let range = options.service_range;
    let service_address = range.nth(1).filter(|_| range.prefix() <= 30);
    let service_address = service_address.ok_or(StartError::ServiceRange { range })?;
    let listener = TcpListener::bind(options.bind)
        .await
        .map_err(|source| StartError::Listen { address: options.bind, source })?;
    let address =
        listener.local_addr().map_err(|source| StartError::Listen { address: options.bind, source })?;
    let pki = Arc::new(Pki::open(&options.data_dir)?);
    let names = pki::server_names(options.advertise, service_address.into(), &options.extra_names);
    let tls = serve::server_config(&pki.server(&names)?, pki.ca_certificate())?;
    let kubelet = serve::client_config(&pki.client(Identity::ServerToKubelet)?, pki.ca_certificate())?;
    let api = open_api(options, KubeletClient::new(kubelet))?;
    let bootstrap = Bootstrap { api: &api, user: masters() };
    bootstrap.namespaces().await?;
    bootstrap.kubernetes_service(service_address.into(), options.advertise, address.port()).await?;
    let url = format!("https://{}", SocketAddr::new(options.advertise, address.port()));
    let task = tokio::spawn(serve::serve(listener, tls, api.clone(), stop));
    let running = Running { address, url, api, pki, task };
    write_kubeconfigs(&options.data_dir, &running)?;
    Ok(running)
}

fn open_api(options: &Options, kubelet: KubeletClient) -> Result<Arc<Api>, StartError> {
    let registry = Registry::build()?;
    let path = options.data_dir.join("store.redb");
    let mut opened = embedded::open(&path, embedded::DEFAULT_HISTORY_LIMIT)?;
    let loaded = std::mem::take(&mut opened.loaded);
    let cache = Arc::new(Cache::new(registry.storages(), loaded));
    let sink = cache.clone();
    let store = opened.start(Box::new(move |changes| sink.apply(changes)))?;
    let allocators = Allocators::new(options.service_range, options.node_ports.clone());
    if let Ok(services) = cache.list("services", &Filter::default(), &Page::default()) {
        services.entries.iter().for_each(|service| allocators.adopt(&service.value()));
    }
    let documents = Default::default();
    Ok(Arc::new(Api { registry, cache, store: Arc::new(store), allocators, kubelet, documents }))
}

fn write_kubeconfigs(data_dir: &Path, running: &Running) -> Result<(), PkiError> {
    pki::remember_server_url(data_dir, &running.url)?;
    let admin = running.kubeconfig(Identity::Admin, "kubernetes-admin")?;
    pki::write_private_file(&data_dir.join("admin.kubeconfig"), &admin)
}

/// The server itself, when it makes objects.
fn masters() -> User {
    User { name: "system:apiserver".into(), groups: vec!["system:masters".into()] }
}

/// The namespaces of every cluster.
const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

struct Bootstrap<'a> {
    api: &'a Arc<Api>,
    user: User,
}

impl Bootstrap<'_> {
    async fn namespaces(&self) -> Result<(), StartError> {
        for name in NAMESPACES {
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            self.ensure("", "v1", "namespaces", "", namespace, |_, _| false).await?;
        }
        Ok(())
    }

    /// The Service `kubernetes` with its endpoint: this server.
    async fn kubernetes_service(
        &self,
        cluster: IpAddr,
        advertise: IpAddr,
        port: u16,
    ) -> Result<(), StartError> {
        let metadata =
            |labels: Value| json!({"name": "kubernetes", "namespace": "default", "labels": labels});
        let service = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": metadata(json!({"component": "apiserver", "provider": "kubernetes"})),
            "spec": {"clusterIP": cluster.to_string(), "clusterIPs": [cluster.to_string()], "type": "ClusterIP",
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}]}});
        let ports = |new: &Value, old: &Value| new["spec"]["ports"] != old["spec"]["ports"];
        self.ensure("", "v1", "services", "default", service, ports).await?;
        let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints",
            "metadata": metadata(json!({"endpointslice.kubernetes.io/skip-mirror": "true"})),
            "subsets": [{"addresses": [{"ip": advertise.to_string()}],
                "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}]});
        self.ensure("", "v1", "endpoints", "default", endpoints, |new, old| new["subsets"] != old["subsets"])
            .await?;
        let family = if advertise.is_ipv4() { "IPv4" } else { "IPv6" };
        let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": metadata(json!({"kubernetes.io/service-name": "kubernetes"})), "addressType": family,
            "endpoints": [{"addresses": [advertise.to_string()], "conditions": {"ready": true}}],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}]});
        let differs =
            |new: &Value, old: &Value| new["endpoints"] != old["endpoints"] || new["ports"] != old["ports"];
        self.ensure("discovery.k8s.io", "v1", "endpointslices", "default", slice, differs).await
    }

    /// Creates the object, or updates it when `differs` says so (of the wanted and the stored one).
    async fn ensure(
        &self,
        group: &str,
        version: &str,
        plural: &str,
        namespace: &str,
        object: Value,
        differs: impl Fn(&Value, &Value) -> bool,
    ) -> Result<(), StartError> {
        let name = crate::object::name(&object).to_owned();
        let failed = |source| StartError::Object { object: format!("{plural} {namespace}/{name}"), source };
        let Some(kind) = self.api.registry.find(group, version, plural) else {
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
