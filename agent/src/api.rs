//! The way to the API server: the client, and how its errors are told.
//!
//! In: a kubeconfig, or a pod's service account. Out: a [`kube::Client`] that is shared by everything here. Connects to nobody yet: when
//! the API server is away, each caller retries with its own back-off. The client repeats nothing by itself (kube's own would, for minutes), and keeps few
//! connections that nobody uses (kube's own keeps all that a burst of requests made, until the server closes them). It goes through no
//! proxy: a kubeconfig that asks for one is refused.

use std::error::Error as StdError;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::Stream;
use http::Uri;
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::ResourceExt;
use kube::client::ConfigExt;
use kube::config::{
    AuthInfo, Cluster, Context, KubeConfigOptions, Kubeconfig, KubeconfigError, NamedAuthInfo, NamedCluster,
    NamedContext,
};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Event, Result as Watched};
use tower::{BoxError, ServiceBuilder};

mod listing;
pub use listing::{Kept, Listing, News};

#[cfg(test)]
mod tests;

/// Longest wait for a connection to the API server: its name, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that is silent for the first is asked whether it is there, as often as the second says; one that acknowledges nothing for the
/// third is gone. The kubelet finds out as fast, by HTTP/2 pings.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(45);
/// Connections that wait for the next request, at most, and for how long. More than 50 pods use at once; not measured against fewer.
const IDLE_CONNECTIONS: usize = 64;
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// First and longest pause between two attempts, and how the pause grows.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_LONGEST: Duration = Duration::from_secs(7);
const BACKOFF_FACTOR: u32 = 2;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("read kubeconfig {path}")]
    Kubeconfig { path: PathBuf, source: Box<KubeconfigError> },
    #[error("make a client from kubeconfig {path}")]
    Client { path: PathBuf, source: Box<kube::Error> },
    #[error("kubeconfig {path}: proxy-url {url:?} is not supported")]
    Proxy { path: PathBuf, url: String },
}

/// Whose identity a client has, and where its server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// As the file says, at another server if one is named.
    Kubeconfig { path: PathBuf, server: Option<Uri> },
    /// A pod's, by the `token` and the `ca.crt` in a folder.
    ServiceAccount { folder: PathBuf, server: Uri },
}

/// A client with the identity of `kubeconfig`.
pub async fn client(kubeconfig: &Path) -> Result<kube::Client, ClientError> {
    client_of(&Access::Kubeconfig { path: kubeconfig.to_owned(), server: None }).await
}

pub async fn client_of(access: &Access) -> Result<kube::Client, ClientError> {
    let (path, config) = match access {
        Access::Kubeconfig { path, server } => {
            let mut config = config(path).await?;
            config.cluster_url = server.clone().unwrap_or(config.cluster_url);
            (path, config)
        }
        Access::ServiceAccount { folder, server } => {
            (folder, read_config(folder, service_account(folder, server)).await?)
        }
    };
    with_config(config).map_err(|source| ClientError::Client { path: path.clone(), source: Box::new(source) })
}

async fn config(kubeconfig: &Path) -> Result<kube::Config, ClientError> {
    let failed = |source| ClientError::Kubeconfig { path: kubeconfig.to_owned(), source: Box::new(source) };
    let file = Kubeconfig::read_from(kubeconfig).map_err(failed)?;
    if let Some(url) = proxy(&file) {
        return Err(ClientError::Proxy { path: kubeconfig.to_owned(), url: url.to_owned() });
    }
    read_config(kubeconfig, file).await
}

/// `path`: where it comes from.
async fn read_config(path: &Path, file: Kubeconfig) -> Result<kube::Config, ClientError> {
    let failed = |source| ClientError::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
    let options = KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(file, &options).await.map_err(failed)?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Ok(config)
}

/// What kubeadm writes for kube-proxy: the token is read again as it is renewed.
fn service_account(folder: &Path, server: &Uri) -> Kubeconfig {
    let file = |name: &str| Some(folder.join(name).to_string_lossy().into_owned());
    let name = "default".to_owned();
    let cluster = Cluster {
        server: Some(server.to_string()),
        certificate_authority: file("ca.crt"),
        ..Cluster::default()
    };
    let user = AuthInfo { token_file: file("token"), ..AuthInfo::default() };
    let context = Context { cluster: name.clone(), user: Some(name.clone()), ..Context::default() };
    Kubeconfig {
        clusters: vec![NamedCluster {
            name: name.clone(),
            cluster: Some(cluster),
            ..NamedCluster::default()
        }],
        auth_infos: vec![NamedAuthInfo {
            name: name.clone(),
            auth_info: Some(user),
            ..NamedAuthInfo::default()
        }],
        contexts: vec![NamedContext {
            name: name.clone(),
            context: Some(context),
            ..NamedContext::default()
        }],
        current_context: Some(name),
        ..Kubeconfig::default()
    }
}

/// The proxy of the cluster that the current context means.
fn proxy(file: &Kubeconfig) -> Option<&str> {
    let current = file.current_context.as_ref()?;
    let context = file.contexts.iter().find(|named| named.name == *current)?.context.as_ref()?;
    let cluster = file.clusters.iter().find(|named| named.name == context.cluster)?.cluster.as_ref()?;
    cluster.proxy_url.as_deref().filter(|url| !url.is_empty())
}

fn with_config(config: kube::Config) -> Result<kube::Client, kube::Error> {
    let https = config.rustls_https_connector_with_connector(tcp(config.connect_timeout))?;
    let mut connector = TimeoutConnector::new(https);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_write_timeout(config.write_timeout);
    let http = HttpClient::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(kube::Client::new(service, config.default_namespace))
}

/// Connects to one address after the other, in a share of `timeout` each.
fn tcp(timeout: Option<Duration>) -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(timeout);
    connector.set_keepalive(Some(KEEPALIVE_AFTER));
    connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    connector.set_tcp_user_timeout(Some(ACKNOWLEDGE_TIMEOUT));
    connector
}

/// A watch as all of this node's are: it pauses as [`Backoff`] says, and its objects come without the fields that nobody here reads and
/// that are a large part of them.
pub fn watched<K: ResourceExt>(
    events: impl Stream<Item = Watched<Event<K>>>,
) -> impl Stream<Item = Watched<Event<K>>> {
    events.backoff(Backoff::default()).modify(|object| object.meta_mut().managed_fields = None)
}

/// Pauses between attempts: 200 ms, doubled up to 7 s (the kubelet's, for its Lease). Watches use it too: with kube's own,
/// up to a minute, a node would go on asleep that long after an API server that was restarted a few times.
#[derive(Debug, Clone, Default)]
pub struct Backoff {
    last: Option<Duration>,
}

impl Backoff {
    /// How long to wait before the next attempt.
    pub fn next_pause(&mut self) -> Duration {
        let pause = match self.last {
            None => BACKOFF_FIRST,
            Some(last) => (last * BACKOFF_FACTOR).min(BACKOFF_LONGEST),
        };
        self.last = Some(pause);
        pause
    }

    /// It worked.
    pub fn reset(&mut self) {
        self.last = None;
    }
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.next_pause())
    }
}

impl kube::runtime::utils::Backoff for Backoff {
    fn reset(&mut self) {
        Self::reset(self);
    }
}

/// Whether the API server answered with this HTTP code.
pub fn is_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// An error with its causes on one line; a cause that the text before already ends with is not repeated.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
