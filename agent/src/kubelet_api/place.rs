//! Where connections into a pod are made: to the loopback inside it; for a pod in the node's network, to the node's.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Duration;

use linux::netns::Netns;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::Context;
use super::route::Target;

#[cfg(test)]
pub(super) mod tests;

/// Longest wait for a connection inside the pod.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where connections of a pod are made.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Network {
    Node,
    Pod(PathBuf),
}

/// A pod as connections are made into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Namespace and name, for messages.
    pod: String,
    network: Network,
}

impl Place {
    /// None when this node has no such pod with a network.
    pub fn find(context: &Context, target: &Target) -> Option<Self> {
        let network = network_of(context, target)?;
        Some(Self { pod: format!("{}/{}", target.namespace, target.pod), network })
    }

    #[cfg(test)]
    pub fn node() -> Self {
        Self { pod: "default/p".to_owned(), network: Network::Node }
    }

    /// Connects to a port on the loopback of the pod. Only the socket is made inside of the pod, on a thread that may block:
    /// it stays there, so that the wait for the connection holds no thread.
    pub async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let socket = match self.network.clone() {
            Network::Node => TcpSocket::new_v4()?,
            Network::Pod(path) => {
                let making = tokio::task::spawn_blocking(move || {
                    let netns = Netns::open(&path).map_err(io::Error::other)?;
                    netns.run(TcpSocket::new_v4).map_err(io::Error::other)?
                });
                making.await.map_err(io::Error::other)??
            }
        };
        let address = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
        timeout(CONNECT_TIMEOUT, socket.connect(address))
            .await
            .map_err(|_elapsed| io::Error::new(io::ErrorKind::TimedOut, "connection timed out"))?
    }

    /// Why a port is not forwarded, for the client.
    pub fn failure_text(&self, port: u16, error: &io::Error) -> String {
        tracing::debug!(pod = self.pod, port, %error, "forward a port");
        format!("error forwarding port {port} to pod {}: {error}", self.pod)
    }
}

fn network_of(context: &Context, target: &Target) -> Option<Network> {
    if let Some(path) = context.pods.sandbox_netns(&target.namespace, &target.pod) {
        return Some(Network::Pod(path));
    }
    let own = |pod: &k8s_openapi::api::core::v1::Pod| {
        pod.metadata.namespace.as_deref() == Some(&target.namespace)
            && pod.metadata.name.as_deref() == Some(&target.pod)
            && pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true)
    };
    context.pods.list().iter().any(|pod| own(pod)).then_some(Network::Node)
}
