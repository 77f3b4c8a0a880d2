//! This node's place in the pod network: uplinks, forwarding, the CNI configuration, masquerade.
//!
//! In: the own Node's `spec.podCIDRs`, settings. Out: `10-orlop.conflist` (written atomically, only when it differs),
//! forwarding in the node's own network namespace, the dataplane's masquerade, and [`State`] for the Node's Ready condition.
//! What leads to the pods of other nodes is [`routes`]'s, the link that it may lead through [`overlay`]'s. Pods' interfaces are
//! the CNI plugins' work. With the network backend `none` all this is somebody else's, and only [`State`] is told.

mod conflist;
pub mod lease;
pub mod overlay;
pub mod routes;
mod uplinks;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dataplane::Masquerade;
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::Node;
use runtime::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use uplinks::{Error as UplinkError, Uplinks, discover};

use crate::api::chain;
use crate::services::Dataplane;
use crate::settings::{NetworkBackend, Settings};
use overlay::Overlay;

/// The file that we write; the runtime takes the first of its folder.
const CONFLIST_NAME: &str = "10-orlop.conflist";
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
/// How soon a network that is not ready is looked at again, and what failed is tried again (kubelet: the period of its runtime state).
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How soon a network that is ready is looked at again: plugins tell only who asks them.
const CHECK_EVERY: Duration = Duration::from_secs(60);
const FORWARDING_V6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
/// Multicast is never masqueraded, and neither is what stays on a link.
const KEPT: [(IpAddr, u8); 3] = [
    (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
    (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
];

/// Whether pods can get a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Ready,
    NotReady {
        /// In the words of the Node's Ready condition.
        message: String,
    },
}

impl State {
    /// The runtime's words while there is no configuration.
    pub fn uninitialized() -> Self {
        Self::NotReady { message: "Network plugin returns error: cni plugin not initialized".to_owned() }
    }

    /// What the runtime says: whether there is a configuration, and whether its plugins are ready.
    pub async fn of(runtime: &Runtime) -> Self {
        Self::said(runtime.network_status().await)
    }

    fn said(status: Result<(), runtime::Error>) -> Self {
        match status {
            Ok(()) => Self::Ready,
            Err(error) => {
                Self::NotReady { message: format!("Network plugin returns error: {}", chain(&error)) }
            }
        }
    }

    /// When it is looked at again.
    fn look_again_after(&self) -> Duration {
        match self {
            Self::Ready => CHECK_EVERY,
            Self::NotReady { .. } => RETRY_AFTER,
        }
    }
}

/// What did not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{operation} {path}")]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("set masquerade of pods {pods:?}")]
    Masquerade { pods: Vec<IpNetwork>, source: Box<dataplane::WriteError> },
    #[error("end masquerade of pods")]
    NoMasquerade(#[source] dataplane::WriteError),
    #[error("remove routes to other nodes")]
    Routes(#[source] linux::netlink::Error),
}

/// What the network task needs.
pub struct Context {
    pub settings: Arc<Settings>,
    pub uplinks: Uplinks,
    /// Where packets to other nodes are wrapped.
    pub overlay: Option<Overlay>,
    pub dataplane: Option<Dataplane>,
    pub runtime: Runtime,
    /// The own Node as the API server has it.
    pub node: watch::Receiver<Option<Arc<Node>>>,
    pub state: watch::Sender<State>,
    pub shutdown: CancellationToken,
}

/// Lets packets pass between pods and the world. Needed before the first pod, with or without an API server.
pub fn enable_forwarding() -> Result<(), Error> {
    switch_on(Path::new(FORWARDING))
}

/// A link that learns its routers from their advertisements would stop to once the node forwards.
fn keep_routers(uplink: &str) -> Result<(), Error> {
    let path = PathBuf::from(format!("/proc/sys/net/ipv6/conf/{uplink}/accept_ra"));
    let failed = |operation, source| Error::File { operation, path: path.clone(), source };
    match fs::read_to_string(&path) {
        Ok(accepts) if accepts.trim() == "1" => {
            fs::write(&path, "2").map_err(|source| failed("write", source))
        }
        // Without IPv6 on the link there is none.
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed("read", source)),
        _ => Ok(()),
    }
}

fn switch_on(path: &Path) -> Result<(), Error> {
    let failed = |operation| move |source| Error::File { operation, path: path.to_owned(), source };
    if fs::read_to_string(path).map_err(failed("read"))?.trim() == "1" {
        return Ok(());
    }
    fs::write(path, "1").map_err(failed("write"))
}

/// What this node tells other nodes about its pods' network.
pub fn annotations(settings: &Settings, overlay: Option<&Overlay>) -> BTreeMap<String, String> {
    match settings.network_backend {
        NetworkBackend::None => BTreeMap::new(),
        _ => lease::annotations(overlay.map(|overlay| overlay.end), settings.node_ips.v4.into()),
    }
}

/// Follows the own Node's podCIDRs and the runtime's network until shutdown.
pub async fn run(mut context: Context) {
    let is_ours = context.settings.network_backend != NetworkBackend::None;
    if !is_ours && let Err(error) = leave(&context).await {
        tracing::error!(
            error = chain(&error),
            "cannot take away what an earlier agent made of the pod network"
        );
    }
    let mut applied = None;
    loop {
        let node = context.node.borrow_and_update().clone();
        let pods = node.as_deref().map(routes::pods).unwrap_or_default();
        let is_new = !pods.is_empty() && applied.as_ref() != Some(&pods);
        let state = match (is_new && is_ours).then(|| apply(&context, &pods)) {
            None => State::of(&context.runtime).await,
            Some(Ok(())) => {
                tracing::info!(?pods, "pod network is configured");
                applied = Some(pods);
                State::of(&context.runtime).await
            }
            Some(Err(error)) => {
                let message = chain(&error);
                tracing::error!(error = message, "cannot configure the pod network, retrying");
                State::NotReady { message }
            }
        };
        let again = state.look_again_after();
        context.state.send_if_modified(|before| std::mem::replace(before, state.clone()) != state);
        // All three wait without taking anything: cancel-safe.
        tokio::select! {
            () = context.shutdown.cancelled() => return,
            changed = context.node.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(again) => {}
        }
    }
}

fn apply(context: &Context, pods: &[IpNetwork]) -> Result<(), Error> {
    let settings = &context.settings;
    if pods.iter().any(IpNetwork::is_ipv6) {
        context.uplinks.names.iter().try_for_each(|uplink| keep_routers(uplink))?;
        switch_on(Path::new(FORWARDING_V6))?;
    }
    if let Some(dataplane) = &context.dataplane {
        let overlay = context.overlay.as_ref();
        let families: Vec<_> = pods.iter().filter_map(|pods| masquerade(settings, overlay, *pods)).collect();
        dataplane
            .with(|dataplane| dataplane.set_masquerade(&families))
            .map_err(|source| Error::Masquerade { pods: pods.to_vec(), source: Box::new(source) })?;
    }
    let content = conflist::render(&conflist::Options {
        pods: pods.to_vec(),
        mtu: context.overlay.as_ref().map_or(context.uplinks.mtu, |overlay| overlay.mtu),
        data_dir: settings.state_dir.join("cni/networks"),
    });
    write_if_different(&settings.cni_conf_dir.join(CONFLIST_NAME), &content)
}

/// Takes away what an agent with another backend made, but what the pods hang on.
async fn leave(context: &Context) -> Result<(), Error> {
    if let Some(dataplane) = &context.dataplane {
        dataplane.with(|dataplane| dataplane.set_masquerade(&[])).map_err(Error::NoMasquerade)?;
    }
    let path = context.settings.cni_conf_dir.join(CONFLIST_NAME);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(Error::File { operation: "remove", path, source });
        }
        _ => {}
    }
    routes::remove_all().await.map_err(Error::Routes)
}

/// Without an address of the node in the family there is nothing that pods could show.
fn masquerade(settings: &Settings, overlay: Option<&Overlay>, pods: IpNetwork) -> Option<Masquerade> {
    let Some(address) = settings.node_ips.like(&pods) else {
        tracing::warn!(%pods, "pods show their own addresses outside: the node has none of that family (--node-ip)");
        return None;
    };
    let cluster = settings.cluster_cidr.iter().find(|cluster| cluster.is_ipv4() == pods.is_ipv4());
    let kept = KEPT.iter().filter_map(|(network, prefix)| IpNetwork::new(*network, *prefix).ok());
    // Without a cluster network, at least the pods of this node see each other's own addresses.
    let excluded = std::iter::once(*cluster.unwrap_or(&pods)).chain(kept).collect();
    // The link's own address, which `routes` gives it.
    let overlay = overlay.map(|overlay| dataplane::Overlay { link: overlay.link, address: pods.network() });
    Some(Masquerade { pods, address, excluded, overlay })
}

/// Readers see the old file or the new one.
fn write_if_different(path: &Path, content: &str) -> Result<(), Error> {
    let failed = |operation| move |source| Error::File { operation, path: path.to_owned(), source };
    if fs::read_to_string(path).is_ok_and(|before| before == content) {
        return Ok(());
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(failed("create the folder of"))?;
    }
    // The ending keeps the runtime from reading it.
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary).map_err(failed("create the new version of"))?;
    file.write_all(content.as_bytes()).map_err(failed("write the new version of"))?;
    file.sync_all().map_err(failed("write the new version of"))?;
    fs::rename(&temporary, path).map_err(failed("replace"))
}
