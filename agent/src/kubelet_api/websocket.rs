//! From an HTTP request to a WebSocket that speaks one of our protocols.
//!
//! In: a request that asks for an upgrade, and the protocols that fit it. Out: the 101 answer, and the socket once it is sent.
//! A request that asks for SPDY, for nothing, or for protocols that we do not speak is refused with a sentence.

use std::future::Future;

use futures::stream::{SplitSink, SplitStream};
use http::header::{
    CONNECTION, HeaderMap, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::answer::{self, Answer, text};

/// Largest message that a client may send; kubectl sends 32 KiB.
const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// Streams at a time: each has buffers and, for an exec, a process.
const MAX_STREAMS: usize = 256;
/// Buffers per direction and connection.
const BUFFER_BYTES: usize = 32 * 1024;

static STREAMS: Semaphore = Semaphore::const_new(MAX_STREAMS);

pub type Socket = WebSocketStream<TokioIo<Upgraded>>;
pub type Sender = SplitSink<Socket, Message>;
pub type Receiver = SplitStream<Socket>;

/// What was agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Agreement<P> {
    accept: String,
    protocol_name: &'static str,
    protocol: P,
}

/// Names of protocols and what they stand for, the preferred one first.
pub type Protocols<P> = &'static [(&'static str, P)];

/// Answers the request; `serve` runs with the socket and the protocol agreed on once the answer is sent.
pub fn upgrade<P, F, S>(mut request: Request<Incoming>, protocols: Protocols<P>, serve: S) -> Answer
where
    P: Copy + Send + 'static,
    S: FnOnce(Socket, P) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let agreement = match agree(request.headers(), protocols) {
        Ok(agreement) => agreement,
        Err(sentence) => return text(StatusCode::BAD_REQUEST, sentence),
    };
    let Ok(slot) = STREAMS.try_acquire() else {
        return text(
            StatusCode::TOO_MANY_REQUESTS,
            format!("{MAX_STREAMS} streams are open, try again later"),
        );
    };
    let upgraded = hyper::upgrade::on(&mut request);
    let protocol = agreement.protocol;
    tokio::spawn(async move {
        match upgraded.await {
            Ok(upgraded) => {
                let config = WebSocketConfig::default()
                    .read_buffer_size(BUFFER_BYTES)
                    .write_buffer_size(BUFFER_BYTES)
                    .max_message_size(Some(MAX_MESSAGE_BYTES))
                    .max_frame_size(Some(MAX_MESSAGE_BYTES));
                let io = TokioIo::new(upgraded);
                serve(WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await, protocol).await;
            }
            Err(error) => tracing::debug!(%error, "upgrade of a stream request"),
        }
        drop(slot);
    });
    let answer = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_ACCEPT, agreement.accept)
        .header(SEC_WEBSOCKET_PROTOCOL, agreement.protocol_name);
    answer::finish(answer, answer::empty())
}

/// Whether a client offers a protocol.
pub fn offers(headers: &HeaderMap, protocol: &str) -> bool {
    contains(headers, SEC_WEBSOCKET_PROTOCOL, protocol)
}

fn contains(headers: &HeaderMap, name: HeaderName, wanted: &str) -> bool {
    let said = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    said.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(wanted))
}

fn agree<P: Copy>(headers: &HeaderMap, protocols: Protocols<P>) -> Result<Agreement<P>, String> {
    let contains = |name: HeaderName, wanted: &str| contains(headers, name, wanted);
    let names = protocols.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" and ");
    if contains(UPGRADE, "SPDY/3.1") {
        return Err(format!("SPDY streams are not supported by this node: use WebSocket with {names}"));
    }
    if !contains(UPGRADE, "websocket") || !contains(CONNECTION, "upgrade") {
        return Err("Upgrade request required".to_owned());
    }
    if !contains(SEC_WEBSOCKET_VERSION, "13") {
        return Err("only version 13 of WebSocket is supported".to_owned());
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or("the header Sec-WebSocket-Key is missing")?;
    let chosen = protocols.iter().find(|(name, _)| offers(headers, name)).copied();
    let (protocol_name, protocol) =
        chosen.ok_or_else(|| format!("unsupported WebSocket subprotocol: {names} are supported"))?;
    Ok(Agreement { accept: derive_accept_key(key.as_bytes()), protocol_name, protocol })
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue};

    use super::agree;
    use crate::kubelet_api::channels::{PROTOCOLS, Protocol};

    fn headers(changes: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let usual = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            // The example of RFC 6455, section 1.3.
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", "v5.channel.k8s.io"),
        ];
        for (name, value) in usual.iter().chain(changes) {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn agrees_as_the_rfc_says() {
        let agreement = agree(&headers(&[]), PROTOCOLS).expect("agreed");
        assert_eq!(agreement.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(agreement.protocol_name, "v5.channel.k8s.io");
    }

    #[test]
    fn takes_the_preferred_protocol_of_what_is_offered() {
        let cases = [
            ("v4.channel.k8s.io, v5.channel.k8s.io", Some(Protocol::V5)),
            ("v4.channel.k8s.io", Some(Protocol::V4)),
            ("v3.channel.k8s.io", None),
        ];
        for (offer, expected) in cases {
            let agreement = agree(&headers(&[("sec-websocket-protocol", offer)]), PROTOCOLS);
            assert_eq!(agreement.ok().map(|agreement| agreement.protocol), expected, "{offer}");
        }
    }

    #[test]
    fn refuses_with_a_sentence() {
        let cases = [
            (("upgrade", "SPDY/3.1"), "SPDY streams are not supported"),
            (("upgrade", "h2c"), "Upgrade request required"),
            (("connection", "close"), "Upgrade request required"),
            (("sec-websocket-version", "8"), "only version 13"),
            (("sec-websocket-protocol", "v2.portforward.k8s.io"), "unsupported WebSocket subprotocol"),
        ];
        for (change, beginning) in cases {
            let sentence = agree(&headers(&[change]), PROTOCOLS).expect_err(beginning);
            assert!(sentence.starts_with(beginning), "{sentence}");
        }
    }
}
