//! Several streams on one WebSocket: the `channel.k8s.io` protocols. Pure.
//!
//! The first byte of a binary message is its channel: 0 stdin, 1 stdout, 2 stderr, 3 the status that ends an exec (a
//! `metav1.Status` as JSON), 4 terminal sizes (`{"Width":…,"Height":…}`). Version 5 adds 255: its second byte names a channel
//! that the client closes, such as stdin at its end. Port forwarding takes two channels per port: data and error.

use bytes::{BufMut, Bytes, BytesMut};
use serde::Deserialize;
use serde_json::{Value, json};

#[cfg(test)]
mod tests;

pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
pub const STATUS: u8 = 3;
pub const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

pub const V5: &str = "v5.channel.k8s.io";
pub const V4: &str = "v4.channel.k8s.io";
/// The versions that are spoken, the preferred one first.
pub const PROTOCOLS: &[(&str, Protocol)] = &[(V5, Protocol::V5), (V4, Protocol::V4)];

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    V4,
    V5,
}

/// A terminal's size as clients send it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

/// What a message of the client says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    Data {
        channel: u8,
        data: Bytes,
    },
    Resize(TerminalSize),
    /// The client will send nothing more on this channel.
    Closed {
        channel: u8,
    },
    /// An empty message, or a size that is none: no reason to end the stream.
    Nothing,
}

/// Reads a message.
pub fn decode(protocol: Protocol, mut message: Bytes) -> Input {
    if message.is_empty() {
        return Input::Nothing;
    }
    let data = message.split_off(1);
    match (message[0], protocol) {
        (CLOSE, Protocol::V5) => match data.first() {
            Some(channel) => Input::Closed { channel: *channel },
            None => Input::Nothing,
        },
        (channel, _) => Input::Data { channel, data },
    }
}

/// Reads what came in on the resize channel.
pub fn decode_size(data: &[u8]) -> Input {
    serde_json::from_slice(data).map_or(Input::Nothing, Input::Resize)
}

/// Makes a message.
pub fn encode(channel: u8, data: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(1 + data.len());
    message.put_u8(channel);
    message.put_slice(data);
    message.freeze()
}

/// How an exec ended, as the last message says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending<'a> {
    Exited { command: &'a [String], code: i32 },
    Failed { reason: String },
}

impl Ending<'_> {
    /// The status message with its channel.
    pub fn encode(&self) -> Bytes {
        encode(STATUS, self.status().to_string().as_bytes())
    }

    fn status(&self) -> Value {
        match self {
            Self::Exited { code: 0, .. } => json!({"metadata": {}, "status": "Success"}),
            Self::Exited { command, code } => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!(
                    "command terminated with non-zero exit code: error executing command [{}], exit code {code}",
                    command.join(" ")
                ),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failed { reason } => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {reason}"),
                "reason": "InternalError",
                "details": {"causes": [{"message": reason}]},
                "code": 500,
            }),
        }
    }
}
