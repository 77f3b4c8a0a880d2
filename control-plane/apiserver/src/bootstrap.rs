//! Starting: open the store, fill the cache and the allocators, make the objects that every cluster has, listen.
//!
//! Input: validated options. Output: a running server, or the first error. The port is bound before certificates and
//! store are opened, so a port in use changes nothing on disk.

mod own;
mod roles;

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnetwork::IpNetwork;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::allocators::{Allocators, nth};
use crate::api::Api;
use crate::auth::{Rbac, References};
use crate::cache::{Cache, Filter, Page};
use crate::error::ApiError;
use crate::http::serve::{self, TlsError};
use crate::kinds::{MissingType, Registry};
use crate::kubelet::KubeletClient;
use crate::pki::{self, Identity, Kubeconfig, Pki, PkiError};
use crate::storage::embedded;
use crate::tolerations::DefaultTolerations;
use own::{OwnObjects, masters};

/// How to run a server.
#[derive(Clone, Debug)]
pub struct Options {
    pub data_dir: PathBuf,
    pub bind: SocketAddr,
    pub advertise: IpAddr,
    pub extra_names: Vec<String>,
    /// Of cluster addresses: one, or one of each family, the default one first.
    pub service_ranges: Vec<IpNetwork>,
    pub node_ports: RangeInclusive<u16>,
    pub tolerations: DefaultTolerations,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Store(#[from] embedded::OpenError),
    #[error(transparent)]
    Registry(#[from] MissingType),
    #[error("service range {range}: too small, the first address is the API server's")]
    ServiceRange { range: IpNetwork },
    #[error("no service range")]
    NoServiceRange,
    #[error(
        "service range {range} and the address {address} that the server is reached at are of two families: the Service \
         \"kubernetes\" has an address of the first range and leads there"
    )]
    ServiceFamily { range: IpNetwork, address: IpAddr },
    #[error("make {object}")]
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

    /// Waits until the store has failed: the server can then only be started again.
    pub async fn store_failed(&self) {
        self.api.store.closed().await;
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
    let range = *options.service_ranges.first().ok_or(StartError::NoServiceRange)?;
    if let Some(range) = options.service_ranges.iter().copied().find(|range| !has_room(*range)) {
        return Err(StartError::ServiceRange { range });
    }
    if range.is_ipv4() != options.advertise.is_ipv4() {
        return Err(StartError::ServiceFamily { range, address: options.advertise });
    }
    let service_address = nth(range, 1).ok_or(StartError::ServiceRange { range })?;
    let listener = TcpListener::bind(options.bind)
        .await
        .map_err(|source| StartError::Listen { address: options.bind, source })?;
    let address =
        listener.local_addr().map_err(|source| StartError::Listen { address: options.bind, source })?;
    let pki = Arc::new(Pki::open(&options.data_dir)?);
    let names = pki::server_names(options.advertise, service_address, &options.extra_names);
    let tls = serve::server_config(&pki.server(&names)?, pki.ca_certificate())?;
    let kubelet = serve::client_config(&pki.client(Identity::ServerToKubelet)?, pki.ca_certificate())?;
    let api = open_api(options, KubeletClient::new(kubelet))?;
    let own = OwnObjects {
        api: api.clone(),
        user: masters(),
        service_address,
        endpoint: SocketAddr::new(options.advertise, address.port()),
    };
    own.ensure_all().await?;
    roles::ensure_all(&api, &own.user).await;
    tokio::spawn(own.keep(stop.clone()));
    let url = format!("https://{}", SocketAddr::new(options.advertise, address.port()));
    tokio::spawn(crate::expiry::run(api.clone(), stop.clone()));
    let task = tokio::spawn(serve::serve(listener, tls, api.clone(), stop));
    let running = Running { address, url, api, pki, task };
    write_kubeconfigs(&options.data_dir, &running)?;
    Ok(running)
}

/// For an address beside the network's own, the API server's and the broadcast.
fn has_room(range: IpNetwork) -> bool {
    let bits = if range.is_ipv4() { 32 } else { 128 };
    bits - range.prefix() >= 2
}

fn open_api(options: &Options, kubelet: KubeletClient) -> Result<Arc<Api>, StartError> {
    let registry = Registry::build()?;
    let path = options.data_dir.join("store.redb");
    let mut opened = embedded::open(&path, embedded::DEFAULT_HISTORY_LIMIT)?;
    let loaded = std::mem::take(&mut opened.loaded);
    let cache = Arc::new(Cache::new(registry.storages(), loaded));
    let references = Arc::new(References::of(&cache));
    let rbac = Arc::new(Rbac::of(&cache));
    let (sink, index, roles) = (cache.clone(), references.clone(), rbac.clone());
    let store = opened.start(Box::new(move |changes| {
        index.apply(changes);
        roles.apply(changes);
        sink.apply(changes);
    }))?;
    let allocators = Allocators::new(&options.service_ranges, options.node_ports.clone());
    if let Ok(services) = cache.list("services", &Filter::default(), &Page::default()) {
        services.entries.iter().for_each(|service| allocators.adopt(&service.value()));
    }
    Ok(Arc::new(Api {
        registry,
        cache,
        references,
        rbac,
        store: Arc::new(store),
        allocators,
        kubelet,
        documents: Default::default(),
        tolerations: options.tolerations,
    }))
}

fn write_kubeconfigs(data_dir: &Path, running: &Running) -> Result<(), PkiError> {
    pki::remember_server_url(data_dir, &running.url)?;
    let admin = running.kubeconfig(Identity::Admin, "kubernetes-admin")?;
    pki::write_private_file(&data_dir.join("admin.kubeconfig"), &admin)
}
