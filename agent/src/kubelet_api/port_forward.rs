//! Connections into a pod's network namespace, over a WebSocket.
//!
//! In: a request for a pod and ports. Out: two channels per port, data (even) and error (odd), each opened with the port in
//! little-endian order. What does not connect is said on the error channel. So much for the `channel.k8s.io` protocols;
//! kubectl's, which opens connections as it needs them, is `tunnel`.

use futures::{SinkExt, StreamExt};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::Context;
use super::answer::{Answer, text};
use super::channels::{self, Input, Protocol};
use super::frames;
use super::place::Place;
use super::query;
use super::route::Target;
use super::tunnel;
use super::websocket::{self, Receiver, Sender, Socket};

/// Frames that wait for the client, over all ports.
const QUEUE_FRAMES: usize = 8;

/// What a client may ask to speak, the preferred first.
#[derive(Debug, Clone, Copy)]
enum Spoken {
    Tunnel,
    Channels(Protocol),
}

const SPOKEN: &[(&str, Spoken)] = &[
    (tunnel::PROTOCOL, Spoken::Tunnel),
    (channels::V5, Spoken::Channels(Protocol::V5)),
    (channels::V4, Spoken::Channels(Protocol::V4)),
];

/// Answers a port-forward request.
pub fn forward(context: Context, target: &Target, request: Request<Incoming>) -> Answer {
    let ports = query::ports(request.uri().query().unwrap_or_default());
    let is_tunnel = websocket::offers(request.headers(), tunnel::PROTOCOL);
    let ports = match ports {
        Ok(ports) => ports,
        // Each connection names its own.
        Err(_) if is_tunnel => Vec::new(),
        Err(error) => return text(StatusCode::BAD_REQUEST, error.to_string()),
    };
    let Some(place) = Place::find(&context, target) else {
        return text(StatusCode::NOT_FOUND, format!("pod \"{}\" does not exist", target.pod));
    };
    websocket::upgrade(request, SPOKEN, move |socket, spoken| async move {
        match spoken {
            Spoken::Tunnel => tunnel::serve(socket, place).await,
            Spoken::Channels(protocol) => serve(socket, protocol, &place, &ports).await,
        }
    })
}

async fn serve(socket: Socket, protocol: Protocol, place: &Place, ports: &[u16]) {
    let (mut sink, source) = socket.split();
    let (sender, queue) = mpsc::channel(QUEUE_FRAMES);
    let mut inputs = Vec::new();
    let mut copies = Vec::new();
    // At most 16 ports: two channels for each fit into a byte.
    for (data_channel, port) in (0_u8..).step_by(2).zip(ports) {
        let connected = place.connect(*port).await;
        let failure = connected.as_ref().err().map(|error| place.failure_text(*port, error));
        if open_channels(&mut sink, data_channel, *port, failure).await.is_err() {
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
    failure: Option<String>,
) -> Result<(), tokio_tungstenite::tungstenite::Error> {
    for channel in [data_channel, data_channel + 1] {
        sink.send(Message::Binary(channels::encode(channel, &port.to_le_bytes()))).await?;
    }
    if let Some(failure) = failure {
        sink.send(Message::Binary(channels::encode(data_channel + 1, failure.as_bytes()))).await?;
    }
    Ok(())
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
    frames::copy_stream(stream, |data| channels::encode(channel, data), &sender).await;
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
