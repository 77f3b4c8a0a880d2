//! What can be asked on the admin socket, as it stands on the wire and on a command line.
//!
//! Pure. A question is one line of JSON of at most [`MAX_BYTES`]: the name alone (`"images"`), or with its arguments
//! (`{"service":{"of":"default/web"}}`). What is not expected is refused, with what was.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use dataplane::Protocol;
use serde::{Deserialize, Serialize};

use crate::services::plan::Key;

#[cfg(test)]
mod tests;

/// Longest question.
pub const MAX_BYTES: usize = 1024;
/// Longest name of an object, and of a namespace.
const MAX_NAME: usize = 253;

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Question {
    Images,
    Sandboxes,
    Containers,
    Policies,
    Counters,
    /// What was refused or dropped, and why.
    Drops,
    /// The Services that are served, of one namespace or all.
    Services {
        namespace: Option<Namespace>,
    },
    /// All about a Service, or about whose an address is.
    Service {
        of: ServiceName,
    },
    /// Endpoints as the kernel has them.
    Backends {
        of: Option<ServiceName>,
    },
    /// Clients that stay with an endpoint.
    Affinity {
        of: Option<ServiceName>,
    },
    /// Where a client that asks would be led, and why.
    Trace {
        to: Address,
        from: Client,
    },
}

impl Question {
    /// The question of a line.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        if line.len() > MAX_BYTES {
            return Err(format!("a question is one line of at most {MAX_BYTES} bytes"));
        }
        serde_json::from_slice(line).map_err(|error| {
            format!("this question is not understood ({error}): are orlopctl and the agent of one version?")
        })
    }
}

/// Why a word cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not {expected}")]
pub struct Unclear {
    text: String,
    expected: &'static str,
}

impl Unclear {
    /// As much of the word as is worth repeating.
    const SHOWN: usize = 80;

    fn new(text: &str, expected: &'static str) -> Self {
        Self { text: text.chars().take(Self::SHOWN).collect(), expected }
    }
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Namespace(pub String);

/// A Service: by namespace and name, or by an address that it answers at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ServiceName {
    Key(Key),
    Address(Address),
}

/// Where a Service may answer; without a protocol, over all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    pub address: SocketAddr,
    pub protocol: Option<Protocol>,
}

/// Who asks a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Client {
    /// A process in the node's network.
    Node,
    /// A pod of this node.
    Pod(Key),
    /// A host, whose packets come in by an uplink.
    Outside { address: IpAddr, port: Option<u16> },
}

impl FromStr for Namespace {
    type Err = Unclear;

    fn from_str(text: &str) -> Result<Self, Unclear> {
        let expected = "a namespace: small letters, digits, '-' and '.', 253 at most";
        is_name(text).then(|| Self(text.to_owned())).ok_or_else(|| Unclear::new(text, expected))
    }
}

impl FromStr for ServiceName {
    type Err = Unclear;

    fn from_str(text: &str) -> Result<Self, Unclear> {
        let expected = "a Service: NAMESPACE/NAME, or ADDRESS:PORT with or without /TCP, /UDP or /SCTP";
        let parsed = Address::parse(text).map(Self::Address).or_else(|| key(text).map(Self::Key));
        parsed.ok_or_else(|| Unclear::new(text, expected))
    }
}

impl Address {
    fn parse(text: &str) -> Option<Self> {
        let (address, protocol) = match text.split_once('/') {
            Some((address, protocol)) => (address, Some(Protocol::named(protocol)?)),
            None => (text, None),
        };
        let address: SocketAddr = address.parse().ok()?;
        let ip = address.ip().to_canonical();
        Some(Self { address: SocketAddr::new(ip, address.port()), protocol })
    }
}

impl FromStr for Address {
    type Err = Unclear;

    fn from_str(text: &str) -> Result<Self, Unclear> {
        let expected =
            "an address and port with or without a protocol, such as 10.96.0.10:53/UDP or [fd00::a]:80";
        Self::parse(text).ok_or_else(|| Unclear::new(text, expected))
    }
}

impl FromStr for Client {
    type Err = Unclear;

    fn from_str(text: &str) -> Result<Self, Unclear> {
        let outside = || {
            let with_port: Option<SocketAddr> = text.parse().ok().filter(|a: &SocketAddr| a.port() != 0);
            let parsed = with_port.map(|address| (address.ip(), Some(address.port())));
            let (address, port) = parsed.or_else(|| Some((text.parse().ok()?, None)))?;
            Some(Self::Outside { address: address.to_canonical(), port })
        };
        let parsed = match text.strip_prefix("pod:") {
            Some(pod) => key(pod).map(Self::Pod),
            None if text == "node" => Some(Self::Node),
            None => outside(),
        };
        let expected = "a client: an address outside with or without a port, pod:NAMESPACE/NAME, or node";
        parsed.ok_or_else(|| Unclear::new(text, expected))
    }
}

fn key(text: &str) -> Option<Key> {
    let (namespace, name) = text.split_once('/')?;
    (is_name(namespace) && is_name(name))
        .then(|| Key { namespace: namespace.to_owned(), name: name.to_owned() })
}

/// As the API takes names; that a namespace's is shorter is the API's business.
fn is_name(text: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(allowed)
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => key.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Some(protocol) => write!(f, "{}/{}", self.address, protocol.name()),
            None => self.address.fmt(f),
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("node"),
            Self::Pod(key) => write!(f, "pod:{key}"),
            Self::Outside { address, port: Some(port) } => SocketAddr::new(*address, *port).fmt(f),
            Self::Outside { address, port: None } => address.fmt(f),
        }
    }
}

/// On the wire they stand as they are written on a command line.
macro_rules! words {
    ($($kind:ident)+) => { $(
        impl TryFrom<String> for $kind {
            type Error = Unclear;

            fn try_from(text: String) -> Result<Self, Unclear> {
                text.parse()
            }
        }

        impl From<$kind> for String {
            fn from(word: $kind) -> Self {
                word.to_string()
            }
        }
    )+ };
}

words! { Namespace ServiceName Address Client }
