//! rtnetlink: links, addresses, routes, rules, neighbours, filters, and notifications about links and addresses.
//!
//! Owns: one netlink socket per [`Netlink`], bound for good to the network namespace that it was opened in, whichever
//! thread uses it. Inputs are plain values; outputs are plain values, and errors that name the operation and the
//! object (`add veth "veth0123abcd": File exists (os error 17)`). It refuses to decide what should exist: one method
//! is one request to the kernel, or one dump.
//!
//! Every method needs a tokio runtime with I/O and time enabled: a task on it serves the socket, and ends with the last
//! clone of the handle. The kernel drops a reply that finds the socket's receive buffer full, and tells nobody: so
//! requests never share a socket with notifications, which fill it, and no answer is waited for longer than
//! [`REPLY_LIMIT`].

mod address;
mod classifier;
mod link;
mod mac;
mod namespace_id;
mod neighbour;
mod port_vlan;
mod route;
mod rule;
mod shaping;
mod watch;

use std::{io, time::Duration};

use futures::StreamExt;
use rtnetlink::{
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
};

pub use address::{Address, AddressFlags, AddressScope, NewAddress};
pub use classifier::{Classifiers, Direction, Filter, FilterPlace};
pub use link::{
    BridgeOptions, BridgePortOptions, IpVlanMode, Link, LinkChange, LinkKind, MacVlanMode, NewLink,
    OWN_GROUPS, OperState, Parent, VethOptions, VethPeer, Vxlan,
};
pub use mac::{InvalidMac, MacAddress};
pub use neighbour::{FdbEntry, Neighbour};
pub use port_vlan::PortVlan;
pub use route::{MAIN_TABLE, Route};
pub use rule::{Rule, RuleFamily};
pub use shaping::TokenBucket;
pub use watch::{AddressWatch, LinkEvent, LinkWatch};

use crate::netns::{self, Netns};

/// How long the kernel may take to answer one request or dump. It answers at once when it is its turn, but every change
/// of a link waits for the lock that all namespaces share, which is held for tens of milliseconds per deleted link.
pub const REPLY_LIMIT: Duration = Duration::from_secs(60);

/// What failed, on which object, and the kernel's answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("{operation} {object}: {error}")]
    Kernel { operation: &'static str, object: String, error: io::Error },
    #[error("find link {object}: no such link")]
    NoLink { object: String },
    #[error("{operation} {object}: {detail}")]
    Protocol { operation: &'static str, object: String, detail: String },
    #[error("{operation} {object}: not reached within {seconds} s")]
    Deadline { operation: &'static str, object: String, seconds: u64 },
    #[error("{operation} {object}: no reply from the kernel within {seconds} s")]
    NoReply { operation: &'static str, object: String, seconds: u64 },
    #[error("open netlink socket: {error}")]
    Open { error: io::Error },
    #[error("open netlink socket: {0}")]
    Netns(netns::Error),
}

impl Error {
    /// The kernel's error number, if it was the kernel that refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel { error, .. } | Self::Open { error } => error.raw_os_error(),
            _ => None,
        }
    }

    /// The object was there already.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// The kernel does not have what was asked for: a protocol, a table's family, an expression.
    pub fn is_unsupported(&self) -> bool {
        matches!(self.errno(), Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
    }

    /// The object was not there (any more): what a teardown may take for success.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::NoLink { .. })
            || matches!(self, Self::Netns(error) if error.is_gone())
            || matches!(
                self.errno(),
                Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENXIO)
            )
    }
}

/// A netlink socket in one network namespace. Clones share the socket.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: rtnetlink::Handle,
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open() -> Result<Self, Error> {
        let (connection, handle, _unsolicited) =
            rtnetlink::new_connection().map_err(|error| Error::Open { error })?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Opens a socket in `netns`, for use from the calling thread's runtime. Blocks for the life of one short thread.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the kernel refuses the socket.
    pub fn open_in(netns: &Netns) -> Result<Self, Error> {
        Self::open_in_and(netns, || ()).map(|(netlink, ())| netlink)
    }

    /// As [`Netlink::open_in`], with something else to do for that thread, before the socket is opened.
    ///
    /// # Errors
    /// As [`Netlink::open_in`].
    pub fn open_in_and<R: Send>(netns: &Netns, work: impl FnOnce() -> R + Send) -> Result<(Self, R), Error> {
        let runtime = current_runtime()?;
        let opened = netns.run(|| {
            let done = work();
            let _reactor = runtime.enter();
            rtnetlink::new_connection().map(|connection| (connection, done))
        });
        let ((connection, handle, _unsolicited), done) =
            opened.map_err(Error::Netns)?.map_err(|error| Error::Open { error })?;
        tokio::spawn(connection);
        Ok((Self { handle }, done))
    }
}

fn current_runtime() -> Result<tokio::runtime::Handle, Error> {
    tokio::runtime::Handle::try_current().map_err(|error| Error::Open { error: io::Error::other(error) })
}

/// Sends what rtnetlink has no request for, and gives the messages of the answer.
async fn exchange(
    handle: &rtnetlink::Handle,
    message: RouteNetlinkMessage,
    flags: u16,
) -> Result<Vec<RouteNetlinkMessage>, rtnetlink::Error> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = flags;
    let mut replies = handle.clone().request(request)?;
    let mut answers = Vec::new();
    while let Some(reply) = replies.next().await {
        match reply.payload {
            NetlinkPayload::Error(error) => return Err(rtnetlink::Error::NetlinkError(error)),
            NetlinkPayload::InnerMessage(message) => answers.push(message),
            _ => {}
        }
    }
    Ok(answers)
}

/// Waits for the kernel's answer, for at most [`REPLY_LIMIT`], and names what was being done when there is none, or when
/// it is no.
async fn answer<T>(
    operation: &'static str,
    object: impl Into<String>,
    reply: impl Future<Output = Result<T, rtnetlink::Error>>,
) -> Result<T, Error> {
    answer_within(REPLY_LIMIT, operation, object.into(), reply).await
}

async fn answer_within<T>(
    limit: Duration,
    operation: &'static str,
    object: String,
    reply: impl Future<Output = Result<T, rtnetlink::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(limit, reply).await {
        Ok(reply) => reply.map_err(failed(operation, object)),
        Err(_elapsed) => Err(Error::NoReply { operation, object, seconds: limit.as_secs() }),
    }
}

/// Names what was being done when the kernel said no.
fn failed(operation: &'static str, object: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Error {
    let object = object.into();
    move |error| match error {
        rtnetlink::Error::NetlinkError(message) => {
            Error::Kernel { operation, object, error: message.to_io() }
        }
        other => Error::Protocol { operation, object, detail: other.to_string() },
    }
}

#[cfg(test)]
mod tests;
