//! Notifications: links that change, and addresses that finish duplicate detection.
//!
//! Owns: one multicast socket per watch. Beside it stands a socket for questions, often one that its user has anyway. The kernel drops notifications when the
//! reader is slow and says so; a watch then tells its reader to look again ([`LinkEvent::Lost`]), or looks again itself.
//! Nothing is queued but in the multicast socket's receive buffer, whose size is the limit. Questions never go through
//! that socket: the kernel drops a reply that finds the buffer full, without a word to anybody.

use std::{collections::VecDeque, io, time::Duration};

use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload},
    packet_route::{AddressFamily, RouteNetlinkMessage},
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};
use tokio::{
    io::unix::AsyncFd,
    time::{Instant, timeout_at},
};

use super::{Error, Link, Netlink, current_runtime, link};
use crate::netns::Netns;

/// Messages of one datagram start at multiples of this.
const NLMSG_ALIGN: usize = 4;

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
    notifications: Notifications,
}

impl LinkWatch {
    /// Watches the calling thread's namespace, from now on. Questions go through `netlink`, which must be of the same namespace.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn beside(netlink: &Netlink) -> Result<Self, Error> {
        let notifications =
            Notifications::subscribe(MulticastGroup::Link).map_err(|error| Error::Open { error })?;
        Ok(Self { netlink: netlink.clone(), notifications })
    }

    /// Watches another namespace, from now on.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the kernel refuses the socket.
    pub fn open_in(netns: &Netns) -> Result<Self, Error> {
        let notifications = Notifications::subscribe_in(netns, MulticastGroup::Link)?;
        Ok(Self { netlink: Netlink::open_in(netns)?, notifications })
    }

    /// A socket in the watched namespace, for questions.
    pub fn netlink(&self) -> &Netlink {
        &self.netlink
    }

    /// The next event; none when the socket failed, and then for good.
    ///
    /// Cancel-safe: an event is taken only when it is returned.
    pub async fn next(&mut self) -> Option<LinkEvent> {
        self.event().await.ok()
    }

    async fn event(&mut self) -> io::Result<LinkEvent> {
        loop {
            if let Some(event) = link_event(self.notifications.next().await?) {
                return Ok(event);
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
        let late = |_elapsed| Error::Deadline { operation: what, object: object(), seconds: limit.as_secs() };
        let mut look = true;
        loop {
            if look {
                let question = self.netlink.find_link_by_index(index);
                match timeout_at(deadline, question).await.map_err(late)?? {
                    Some(link) if ready(&link) => return Ok(link),
                    Some(_) => {}
                    None => return Err(Error::NoLink { object: format!("index {index}") }),
                }
            }
            let event = timeout_at(deadline, self.event()).await.map_err(late)?;
            look = match event.map_err(|error| Error::Kernel { operation: what, object: object(), error })? {
                LinkEvent::Changed(link) if link.index == index && ready(&link) => return Ok(link),
                LinkEvent::Removed { index: removed, .. } if removed == index => {
                    return Err(Error::NoLink { object: format!("index {index}") });
                }
                LinkEvent::Lost => true,
                LinkEvent::Changed(_) | LinkEvent::Removed { .. } => false,
            };
        }
    }
}

/// Follows the IPv6 addresses of one network namespace.
#[derive(Debug)]
pub struct AddressWatch {
    netlink: Netlink,
    notifications: Notifications,
}

impl AddressWatch {
    /// Watches another namespace, from now on. Questions go through `netlink`, which must be of the same namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the kernel refuses the socket.
    pub fn open_in(netns: &Netns, netlink: &Netlink) -> Result<Self, Error> {
        let notifications = Notifications::subscribe_in(netns, MulticastGroup::Ipv6Ifaddr)?;
        Ok(Self { netlink: netlink.clone(), notifications })
    }

    /// Waits until no address of the link is tentative any more.
    ///
    /// # Errors
    /// [`Error::Deadline`] after `limit`; [`Error::Protocol`] when an address turned out to be somebody else's.
    pub async fn wait_settled(&mut self, link: u32, limit: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + limit;
        let operation = "settle addresses";
        let object = || format!("of link index {link}");
        let late = |_elapsed| Error::Deadline { operation, object: object(), seconds: limit.as_secs() };
        loop {
            let question = self.netlink.addresses(Some(link));
            let addresses = timeout_at(deadline, question).await.map_err(late)??;
            if let Some(duplicate) = addresses.iter().find(|address| address.is_duplicate()) {
                let detail = format!("{} is in use by another node", duplicate.network);
                return Err(Error::Protocol { operation, object: object(), detail });
            }
            if !addresses.iter().any(super::Address::is_tentative) {
                return Ok(());
            }
            // Any notification is a reason to look again; a namespace of a container has few of them.
            let notification = timeout_at(deadline, self.notifications.next()).await.map_err(late)?;
            notification.map_err(|error| Error::Kernel { operation, object: object(), error })?;
        }
    }
}

/// What a multicast socket has to say.
#[derive(Debug)]
enum Notification {
    Message(RouteNetlinkMessage),
    /// The kernel dropped some; everything that was queued before this was read.
    Lost,
}

/// One multicast socket.
#[derive(Debug)]
struct Notifications {
    socket: AsyncFd<Socket>,
    /// The rest of the datagram that was read last.
    read: VecDeque<RouteNetlinkMessage>,
    /// Some were dropped, and the reader was not told yet.
    lost: bool,
}

impl Notifications {
    fn subscribe(group: MulticastGroup) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        socket.bind(&SocketAddr::new(0, 1 << (group as u32 - 1)))?;
        // SAFETY: the socket owns its descriptor and always gives the same one; the AsyncFd owns the socket, is never asked
        // for it back, and so ends its registration before the descriptor is closed.
        let socket = unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)?;
        Ok(Self { socket, read: VecDeque::new(), lost: false })
    }

    fn subscribe_in(netns: &Netns, group: MulticastGroup) -> Result<Self, Error> {
        let runtime = current_runtime()?;
        let opened = netns.run(|| {
            let _reactor = runtime.enter();
            Self::subscribe(group)
        });
        opened.map_err(Error::Netns)?.map_err(|error| Error::Open { error })
    }

    /// The next one. After a loss the kernel drops everything until its queue is empty, and says so only once; so a
    /// loss is told when the queue is empty, for whoever looks again before that may miss what is dropped after.
    ///
    /// Cancel-safe: a notification is taken only when it is returned.
    async fn next(&mut self) -> io::Result<Notification> {
        loop {
            if let Some(message) = self.read.pop_front() {
                return Ok(Notification::Message(message));
            }
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| socket.get_ref().recv_from_full()) {
                // Only the kernel has port 0; what others send is nobody's business here.
                Ok(Ok((datagram, from))) if from.port_number() == 0 => self.take(&datagram),
                Ok(Ok(_)) => {}
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => self.lost = true,
                Ok(Err(error)) => return Err(error),
                Err(_would_block) if self.lost => {
                    self.lost = false;
                    return Ok(Notification::Lost);
                }
                Err(_would_block) => {}
            }
        }
    }

    /// What cannot be decoded counts as lost.
    fn take(&mut self, datagram: &[u8]) {
        let mut rest = datagram;
        while !rest.is_empty() {
            let length = NetlinkBuffer::new_checked(rest).map(|message| message.length() as usize);
            let (Ok(length), Ok(message)) = (length, NetlinkMessage::deserialize(rest)) else {
                self.lost = true;
                return;
            };
            if let NetlinkPayload::InnerMessage(message) = message.payload {
                self.read.push_back(message);
            }
            rest = rest.get(length.next_multiple_of(NLMSG_ALIGN)..).unwrap_or_default();
        }
    }
}

/// None for messages about something else. Bridges also send their own view of a port, family `AF_BRIDGE`, which
/// lacks most properties.
fn link_event(notification: Notification) -> Option<LinkEvent> {
    match notification {
        Notification::Lost => Some(LinkEvent::Lost),
        Notification::Message(RouteNetlinkMessage::NewLink(message))
            if message.header.interface_family == AddressFamily::Unspec =>
        {
            Some(LinkEvent::Changed(link::parse(&message)))
        }
        Notification::Message(RouteNetlinkMessage::DelLink(message))
            if message.header.interface_family == AddressFamily::Unspec =>
        {
            let link = link::parse(&message);
            Some(LinkEvent::Removed { index: link.index, name: link.name })
        }
        Notification::Message(_) => None,
    }
}
