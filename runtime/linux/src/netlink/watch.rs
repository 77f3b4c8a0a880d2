//! Notifications: links that change, and addresses that finish duplicate detection.
//!
//! Owns: one multicast socket per watch. The kernel drops notifications when the reader is slow and says so; a watch
//! then tells its reader to look again ([`LinkEvent::Lost`]), or looks again itself. What is queued between the socket
//! and the reader is bounded by what the kernel sends between two reads: read a watch, or drop it.

use std::time::Duration;

use futures::{StreamExt, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{AddressFamily, RouteNetlinkMessage},
    sys::SocketAddr,
};
use tokio::time::{Instant, timeout_at};

use super::{Error, Link, Netlink, current_runtime, link};
use crate::netns::Netns;

type Messages = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// What happened to a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// It is new, or some property of it is.
    Changed(Link),
    Removed {
        index: u32,
        name: String,
    },
    /// Notifications were dropped: list the links again.
    Lost,
}

/// Follows the links of one network namespace.
#[derive(Debug)]
pub struct LinkWatch {
    netlink: Netlink,
    messages: Messages,
}

impl LinkWatch {
    /// Watches the calling thread's namespace, from now on.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open() -> Result<Self, Error> {
        let (netlink, messages) = subscribe(MulticastGroup::Link)?;
        Ok(Self { netlink, messages })
    }

    /// Watches another namespace, from now on.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the kernel refuses the socket.
    pub fn open_in(netns: &Netns) -> Result<Self, Error> {
        let (netlink, messages) = subscribe_in(netns, MulticastGroup::Link)?;
        Ok(Self { netlink, messages })
    }

    /// A handle on the watch's own socket, for questions.
    pub fn netlink(&self) -> &Netlink {
        &self.netlink
    }

    /// The next event; none when the socket failed, and then for good.
    ///
    /// Cancel-safe: an event is taken only when it is returned.
    pub async fn next(&mut self) -> Option<LinkEvent> {
        loop {
            let (message, _) = self.messages.next().await?;
            if let Some(event) = link_event(message.payload) {
                return Some(event);
            }
        }
    }

    /// Waits until the link with this index is as `ready` wants it, and returns it as it then is. `what` names the
    /// condition in the error.
    ///
    /// # Errors
    /// [`Error::Deadline`] after `limit`; [`Error::NoLink`] when the link is gone.
    pub async fn wait_until(
        &mut self,
        index: u32,
        limit: Duration,
        what: &'static str,
        ready: impl Fn(&Link) -> bool,
    ) -> Result<Link, Error> {
        let deadline = Instant::now() + limit;
        let object = || format!("of link index {index}");
        let mut look = true;
        loop {
            if look {
                match self.netlink.find_link_by_index(index).await? {
                    Some(link) if ready(&link) => return Ok(link),
                    Some(_) => {}
                    None => return Err(Error::NoLink { object: format!("index {index}") }),
                }
            }
            let event = timeout_at(deadline, self.next()).await.map_err(|_elapsed| Error::Deadline {
                operation: what,
                object: object(),
                seconds: limit.as_secs(),
            })?;
            look = match event {
                Some(LinkEvent::Changed(link)) if link.index == index && ready(&link) => return Ok(link),
                Some(LinkEvent::Removed { index: removed, .. }) if removed == index => {
                    return Err(Error::NoLink { object: format!("index {index}") });
                }
                Some(LinkEvent::Lost) => true,
                Some(LinkEvent::Changed(_) | LinkEvent::Removed { .. }) => false,
                None => return Err(closed(what, object())),
            };
        }
    }
}

/// Follows the IPv6 addresses of one network namespace.
#[derive(Debug)]
pub struct AddressWatch {
    netlink: Netlink,
    messages: Messages,
}

impl AddressWatch {
    /// Watches another namespace, from now on.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the kernel refuses the socket.
    pub fn open_in(netns: &Netns) -> Result<Self, Error> {
        let (netlink, messages) = subscribe_in(netns, MulticastGroup::Ipv6Ifaddr)?;
        Ok(Self { netlink, messages })
    }

    /// Waits until no address of the link is tentative any more.
    ///
    /// # Errors
    /// [`Error::Deadline`] after `limit`; [`Error::Protocol`] when an address turned out to be somebody else's.
    pub async fn wait_settled(&mut self, link: u32, limit: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + limit;
        let operation = "settle addresses";
        let object = || format!("of link index {link}");
        loop {
            let addresses = self.netlink.addresses(Some(link)).await?;
            if let Some(duplicate) = addresses.iter().find(|address| address.is_duplicate()) {
                let detail = format!("{} is in use by another node", duplicate.network);
                return Err(Error::Protocol { operation, object: object(), detail });
            }
            if !addresses.iter().any(super::Address::is_tentative) {
                return Ok(());
            }
            // Any notification is a reason to look again; a namespace of a container has few of them.
            let message = timeout_at(deadline, self.messages.next()).await.map_err(|_elapsed| {
                Error::Deadline { operation, object: object(), seconds: limit.as_secs() }
            })?;
            if message.is_none() {
                return Err(closed(operation, object()));
            }
        }
    }
}

fn closed(operation: &'static str, object: String) -> Error {
    Error::Protocol { operation, object, detail: "the netlink socket was closed".to_owned() }
}

fn subscribe(group: MulticastGroup) -> Result<(Netlink, Messages), Error> {
    let (connection, handle, messages) =
        rtnetlink::new_multicast_connection(&[group]).map_err(|error| Error::Open { error })?;
    tokio::spawn(connection);
    Ok((Netlink { handle }, messages))
}

fn subscribe_in(netns: &Netns, group: MulticastGroup) -> Result<(Netlink, Messages), Error> {
    let runtime = current_runtime()?;
    let opened = netns.run(|| {
        let _reactor = runtime.enter();
        rtnetlink::new_multicast_connection(&[group])
    });
    let (connection, handle, messages) =
        opened.map_err(Error::Netns)?.map_err(|error| Error::Open { error })?;
    tokio::spawn(connection);
    Ok((Netlink { handle }, messages))
}

/// None for messages about something else. Bridges also send their own view of a port, family `AF_BRIDGE`, which
/// lacks most properties.
fn link_event(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<LinkEvent> {
    match payload {
        NetlinkPayload::Overrun(_) => Some(LinkEvent::Lost),
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message))
            if message.header.interface_family == AddressFamily::Unspec =>
        {
            Some(LinkEvent::Changed(link::parse(&message)))
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(message))
            if message.header.interface_family == AddressFamily::Unspec =>
        {
            let link = link::parse(&message);
            Some(LinkEvent::Removed { index: link.index, name: link.name })
        }
        _ => None,
    }
}
