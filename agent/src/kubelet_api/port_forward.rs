//! Connections into a pod's network namespace, over a WebSocket.
//!
//! In: a request for a pod and ports. Out: two channels per port, data (even) and error (odd), each opened with the port in
//! little-endian order. The connection goes to the loopback inside the pod; for a pod in the node's network, to the node's.
//! What does not connect is said on the error channel. Only the `channel.k8s.io` protocols: kubectl's tunnelled SPDY is not
//! spoken.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use linux::netns::Netns;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::Context;
use super::channels::{self, Input, Protocol};
use super::frames;
use super::handler::{Answer, text};
use super::query;
use super::route::Target;
use super::websocket::{self, Receiver, Sender, Socket};

/// Frames that wait for the client, over all ports.
const QUEUE_FRAMES: usize = 8;
/// Longest wait for a connection inside the pod.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where connections of a pod are made.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Network {
    Node,
    Pod(PathBuf),
}

/// Answers a port-forward request.
pub fn forward(context: Context, target: &Target, request: Request<Incoming>) -> Answer {
    let ports = match query::ports(request.uri().query().unwrap_or_default()) {
        Ok(ports) => ports,
        Err(error) => return text(StatusCode::BAD_REQUEST, error.to_string()),
    };
    let Some(network) = network_of(&context, target) else {
        return text(StatusCode::NOT_FOUND, format!("pod \"{}\" does not exist", target.pod));
    };
    let pod = format!("{}/{}", target.namespace, target.pod);
    websocket::upgrade(request, move |socket, protocol| async move {
        serve(socket, protocol, &pod, &network, &ports).await;
    })
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

async fn serve(socket: Socket, protocol: Protocol, pod: &str, network: &Network, ports: &[u16]) {
    let (mut sink, source) = socket.split();
    let (sender, queue) = mpsc::channel(QUEUE_FRAMES);
    let mut inputs = Vec::new();
    let mut copies = Vec::new();
    // At most 16 ports: two channels for each fit into a byte.
    for (data_channel, port) in (0_u8..).step_by(2).zip(ports) {
        let connected = connect(network, *port).await;
        let failure = connected.as_ref().err().map(ToString::to_string);
        if open_channels(&mut sink, data_channel, *port, pod, failure).await.is_err() {
            return;
        }
        let (read, write) = connected.map(TcpStream::into_split).ok().unzip();
        inputs.push(write);
        copies.extend(read.map(|read| copy_output(read, data_channel, sender.clone())));
    }
    drop(sender);
    // Dropping what is unfinished closes the connections into the pod.
    tokio::select! {
        _ = futures::future::join(write_frames(sink, queue), futures::future::join_all(copies)) => {}
        () = read_frames(source, protocol, inputs) => {}
    }
}

/// Names the port on both of its channels, and says on the error channel why it cannot be reached.
async fn open_channels(
    sink: &mut Sender,
    data_channel: u8,
    port: u16,
    pod: &str,
    failure: Option<String>,
) -> Result<(), tokio_tungstenite::tungstenite::Error> {
    for channel in [data_channel, data_channel + 1] {
        sink.send(Message::Binary(channels::encode(channel, &port.to_le_bytes()))).await?;
    }
    if let Some(failure) = failure {
        let message = format!("error forwarding port {port} to pod {pod}: {failure}");
        tracing::debug!(pod, port, failure, "forward a port");
        sink.send(Message::Binary(channels::encode(data_channel + 1, message.as_bytes()))).await?;
    }
    Ok(())
}

async fn connect(network: &Network, port: u16) -> io::Result<TcpStream> {
    let address = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
    let network = network.clone();
    let connecting = tokio::task::spawn_blocking(move || {
        let connect = || std::net::TcpStream::connect_timeout(&address, CONNECT_TIMEOUT);
        match network {
            Network::Node => connect(),
            Network::Pod(path) => {
                let netns = Netns::open(&path).map_err(io::Error::other)?;
                netns.run(connect).map_err(io::Error::other)?
            }
        }
    });
    let stream = connecting.await.map_err(io::Error::other)??;
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

/// Ends when all copies have ended, and closes the socket then.
async fn write_frames(sink: Sender, queue: mpsc::Receiver<Message>) {
    if let Some(mut sink) = frames::send_all(sink, queue).await
        && let Err(error) = sink.close().await
    {
        tracing::debug!(%error, "close a port-forward socket");
    }
}

async fn copy_output(stream: OwnedReadHalf, channel: u8, sender: mpsc::Sender<Message>) {
    frames::copy_stream(stream, channel, &sender).await;
}

async fn read_frames(mut source: Receiver, protocol: Protocol, mut ports: Vec<Option<OwnedWriteHalf>>) {
    while let Some(data) = frames::next_binary(&mut source).await {
        match channels::decode(protocol, data) {
            Input::Data { channel, data } if channel % 2 == 0 => {
                let Some(slot) = ports.get_mut(usize::from(channel / 2)) else { continue };
                if let Some(stream) = slot
                    && let Err(error) = stream.write_all(&data).await
                {
                    tracing::debug!(%error, channel, "write to a forwarded port");
                    *slot = None;
                }
            }
            // Dropping the writing half sends the end of the stream into the pod.
            Input::Closed { channel } if channel % 2 == 0 => {
                if let Some(slot) = ports.get_mut(usize::from(channel / 2)) {
                    *slot = None;
                }
            }
            Input::Data { .. } | Input::Closed { .. } | Input::Resize(_) | Input::Nothing => {}
        }
    }
}
