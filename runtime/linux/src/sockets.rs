//! Sockets of a network namespace, whoever owns them: which are connected over UDP, and ending one.
//!
//! Owns: one socket per [`Sockets`], bound for good to the network namespace that it was opened in. Formats are from
//! `linux/inet_diag.h` and `linux/sock_diag.h`. Ending needs a kernel with `CONFIG_INET_DIAG_DESTROY`, which distributions set.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;

use netlink_bindings::inet_diag::{Msg, ReqV2, Sockid};
use nix::sys::socket::SockProtocol;

use crate::{
    blocking::{Request, Socket, frame},
    netlink::Error,
    netns::{self, Netns},
};

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY`.
const LIST: u16 = 20;
const DESTROY: u16 = 21;
/// `TCP_ESTABLISHED`, which is what a connected socket of any protocol is in.
const CONNECTED: u8 = 1;

/// Requests in one datagram: the answers to all of them fit the socket's buffer.
const BATCH: usize = 128;

/// Of sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Family {
    V4 = libc::AF_INET as u8,
    V6 = libc::AF_INET6 as u8,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];
}

/// See the module.
#[derive(Debug)]
pub struct Sockets {
    socket: Socket,
}

/// A UDP socket with a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectedSocket {
    /// The number that no other socket ever has, as BPF programs know it.
    pub cookie: u64,
    pub peer: SocketAddr,
    family: u8,
    id: Sockid,
}

impl Sockets {
    /// Opens a socket in `netns`. Blocks for the life of one short thread.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the kernel refuses the socket.
    pub fn open_in(netns: &Netns) -> Result<Self, Error> {
        let open = || Socket::open_for(SockProtocol::NetlinkSockDiag);
        Ok(Self { socket: netns.run(open).map_err(Error::Netns)?? })
    }

    /// The number by which BPF programs know the namespace.
    ///
    /// # Errors
    /// On kernels before 5.14.
    pub fn netns_cookie(&self) -> io::Result<u64> {
        netns::cookie_of(self.socket.as_fd())
    }

    /// Every connected UDP socket of a family; the peer of one of IPv6 that is connected to a mapped address is of IPv4. The kernel goes through the
    /// sockets of all namespaces for it.
    ///
    /// # Errors
    /// When the kernel refuses the list.
    pub fn connected_datagrams(&self, family: Family) -> Result<Vec<ConnectedSocket>, Error> {
        let family = family as u8;
        let wanted = ReqV2 { states: 1 << CONNECTED, ..of_udp(family) };
        let request = request("list", format!("UDP sockets of family {family}"), LIST, &wanted);
        self.socket.list(&request, |message| read(message.body).map(Some))
    }

    /// Ends sockets: they have no peer any more, and their owners get ECONNABORTED, or EDESTADDRREQ for sending. Returns which, in
    /// order: not those that are gone or have another peer by now.
    ///
    /// # Errors
    /// When the kernel refuses; `EOPNOTSUPP` where it cannot.
    pub fn end(&self, sockets: &[ConnectedSocket]) -> Result<Vec<bool>, Error> {
        let mut ended = Vec::with_capacity(sockets.len());
        for batch in sockets.chunks(BATCH) {
            self.end_batch(batch, &mut ended)?;
        }
        Ok(ended)
    }

    /// One datagram of requests. The kernel answers those that fail, and the last one, which says that all were worked on.
    fn end_batch(&self, batch: &[ConnectedSocket], ended: &mut Vec<bool>) -> Result<(), Error> {
        let requests: Vec<Request> = batch.iter().map(destruction).collect();
        let Some(last) = requests.last() else { return Ok(()) };
        let count = u32::try_from(requests.len()).unwrap_or(u32::MAX);
        let first = self.socket.take_sequence(count);
        let mut bytes = Vec::new();
        for (place, request) in (0..count).zip(&requests) {
            let acknowledged = if place + 1 == count { libc::NLM_F_ACK } else { 0 };
            frame(&mut bytes, request, (libc::NLM_F_REQUEST | acknowledged) as u16, first + place);
        }
        self.socket.send(&bytes).map_err(|error| last.refused(error))?;
        let begin = ended.len();
        ended.resize(begin + requests.len(), true);
        self.socket.receive(last, |message| {
            let place = message.sequence.wrapping_sub(first) as usize;
            let (request, code) = (requests.get(place)?, message.verdict()?);
            match code {
                0 => {}
                libc::ENOENT => ended[begin + place] = false,
                code => return Some(Err(request.refused(io::Error::from_raw_os_error(code)))),
            }
            (place + 1 == requests.len()).then_some(Ok(()))
        })
    }
}

fn destruction(socket: &ConnectedSocket) -> Request {
    let wanted = ReqV2 { sockid: socket.id.clone(), ..of_udp(socket.family) };
    request("end", format!("the UDP socket to {}", socket.peer), DESTROY, &wanted)
}

fn of_udp(family: u8) -> ReqV2 {
    ReqV2 { family, protocol: libc::IPPROTO_UDP as u8, ..ReqV2::new() }
}

fn request(operation: &'static str, object: String, kind: u16, wanted: &ReqV2) -> Request {
    Request { operation, object, kind, flags: 0, body: wanted.as_slice().to_vec() }
}

fn read(body: &[u8]) -> Result<ConnectedSocket, String> {
    let fixed = body.get(..Msg::len()).and_then(Msg::new_from_slice);
    let Msg { family, sockid: id, .. } = fixed.ok_or("a socket that is cut off")?;
    let address = match i32::from(family) {
        libc::AF_INET => {
            let [a, b, c, d, ..] = id.dst;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        libc::AF_INET6 => Ipv6Addr::from(id.dst).to_canonical(),
        other => return Err(format!("a socket of family {other}")),
    };
    let peer = SocketAddr::new(address, id.dport());
    // Two words of the kernel's, the lower one first.
    let [low, high] = [&id.cookie[..4], &id.cookie[4..]]
        .map(|word| word.first_chunk().map_or(0, |word| u64::from(u32::from_ne_bytes(*word))));
    Ok(ConnectedSocket { cookie: high << 32 | low, peer, family, id })
}
