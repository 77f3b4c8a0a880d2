//! Moves bytes between a WebSocket and the streams behind it; for exec, attach and port forwarding alike.
//!
//! In: the halves of a socket, streams to read, a bounded queue of frames. Out: frames in the order of the queue, and the
//! client's binary messages. A slow client holds the readers back through the queue. Refuses to know what a channel means.

use bytes::Bytes;
use futures::{SinkExt, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::{self, Message};

use super::channels;
use super::websocket::Sender;

/// Bytes of a stream per frame.
const FRAME_BYTES: usize = 32 * 1024;

/// Sends what is in the queue until it ends or the client is gone; gives the sink back in the first case.
pub async fn send_all(mut sink: Sender, mut queue: mpsc::Receiver<Message>) -> Option<Sender> {
    while let Some(frame) = queue.recv().await {
        if let Err(error) = sink.send(frame).await {
            tracing::debug!(%error, "a stream's client is gone");
            return None;
        }
    }
    Some(sink)
}

/// Makes frames of a channel from a stream until its end, or until nobody takes them.
pub async fn copy_stream(mut stream: impl AsyncRead + Unpin, channel: u8, frames: &mpsc::Sender<Message>) {
    let mut buffer = vec![0; FRAME_BYTES];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => return,
            Ok(count) => {
                let frame = Message::Binary(channels::encode(channel, &buffer[..count]));
                if frames.send(frame).await.is_err() {
                    return;
                }
            }
            Err(error) => return tracing::debug!(%error, channel, "read a stream"),
        }
    }
}

/// The client's next binary message; `None` when it has closed the connection or is gone. Cancel safe, as the socket is.
pub async fn next_binary(
    source: &mut (impl Stream<Item = Result<Message, tungstenite::Error>> + Unpin),
) -> Option<Bytes> {
    loop {
        match source.next().await? {
            Ok(Message::Binary(data)) => return Some(data),
            // Pings are answered by the library.
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Text(_) | Message::Frame(_)) => {}
            Ok(Message::Close(_)) => return None,
            Err(error) => {
                tracing::debug!(%error, "a stream's client is gone");
                return None;
            }
        }
    }
}
