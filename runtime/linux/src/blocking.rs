//! The netlink socket of what is no routing: `nftables`, `conntrack` and `wireguard` speak through it.
//!
//! Owns: one blocking socket bound for good to the network namespace that it was opened in, the framing of messages, and
//! the collection of answers. The kernel works on such a request within the system call that sends it, so an answer is
//! there at once or when the lock of what is asked for is free; it is waited for up to [`REPLY_LIMIT`]. It refuses to
//! read what is inside a message.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
            sockopt,
        },
        time::TimeVal,
    },
};

use crate::{
    netlink::{Error, REPLY_LIMIT},
    netns::Netns,
};

/// More than the kernel puts into one datagram.
const RECEIVE_BUFFER: usize = 64 << 10;
/// What the kernel takes in one piece without being asked for more.
const USUAL_SEND_BUFFER: usize = 64 << 10;
/// How often a listing is begun again because the list changed under it.
const DUMP_TRIES: usize = 64;
const HEADER: usize = 16;

/// A request of one message: what it is called in errors, and its bytes.
pub(crate) struct Request {
    pub(crate) operation: &'static str,
    pub(crate) object: String,
    /// Subsystem and message, as in the header's type.
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    /// The family header, and the attributes after it.
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// The failure of this request.
    pub(crate) fn refused(&self, error: io::Error) -> Error {
        Error::Kernel { operation: self.operation, object: self.object.clone(), error }
    }

    fn unanswered(&self) -> Error {
        let seconds = REPLY_LIMIT.as_secs();
        Error::NoReply { operation: self.operation, object: self.object.clone(), seconds }
    }

    fn malformed(&self, detail: impl ToString) -> Error {
        Error::Protocol { operation: self.operation, object: self.object.clone(), detail: detail.to_string() }
    }
}

/// One message of an answer.
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) body: &'a [u8],
}

impl Message<'_> {
    /// The error number of an answer that is yes (0) or no.
    pub(crate) fn verdict(&self) -> Option<i32> {
        let is_verdict = matches!(i32::from(self.kind), libc::NLMSG_ERROR | libc::NLMSG_DONE);
        let code = self.body.first_chunk().filter(|_| is_verdict)?;
        Some(i32::from_ne_bytes(*code).saturating_neg())
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: OwnedFd,
    sequence: AtomicU32,
}

impl Socket {
    /// Opens a socket of the packet filter in the calling thread's namespace.
    pub(crate) fn open() -> Result<Self, Error> {
        Self::open_for(SockProtocol::NetlinkNetFilter)
    }

    /// Opens a socket of `protocol` in the calling thread's namespace.
    pub(crate) fn open_for(protocol: SockProtocol) -> Result<Self, Error> {
        let failed = |errno: Errno| Error::Open { error: errno.into() };
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, Some(protocol))
            .map_err(failed)?;
        let limit = TimeVal::new(REPLY_LIMIT.as_secs().cast_signed(), 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &limit).map_err(failed)?;
        Ok(Self { socket, sequence: AtomicU32::new(1) })
    }

    /// Opens a socket in `netns`. Blocks for the life of one short thread.
    pub(crate) fn open_in(netns: &Netns) -> Result<Self, Error> {
        netns.run(Self::open).map_err(Error::Netns)?
    }

    /// Takes `count` sequence numbers and returns the first.
    pub(crate) fn take_sequence(&self, count: u32) -> u32 {
        self.sequence.fetch_add(count, Ordering::Relaxed)
    }

    /// Sends framed messages in one datagram.
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > USUAL_SEND_BUFFER {
            // Without the capability for it the kernel answers EMSGSIZE, which says the same.
            let _ = setsockopt(&self.socket, sockopt::SndBufForce, &(2 * bytes.len()));
        }
        loop {
            match send(self.socket.as_raw_fd(), bytes, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                sent => return sent.map(drop).map_err(io::Error::from),
            }
        }
    }

    /// Hands every message that arrives to `take`, until that has its answer.
    pub(crate) fn receive<T>(
        &self,
        request: &Request,
        mut take: impl FnMut(&Message<'_>) -> Option<Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut buffer = [0; RECEIVE_BUFFER];
        loop {
            let flags = MsgFlags::MSG_TRUNC;
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, flags) {
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Err(request.unanswered()),
                received => received.map_err(|errno| request.refused(errno.into()))?,
            };
            let datagram = buffer.get(..length).ok_or_else(|| request.malformed("a message too long"))?;
            for message in messages(datagram) {
                if let Some(answer) = take(&message) {
                    return answer;
                }
            }
        }
    }

    /// One request and its single answer, which `read` makes of the message that is no error.
    pub(crate) fn ask<T>(
        &self,
        request: &Request,
        mut read: impl FnMut(&Message<'_>) -> Result<T, String>,
    ) -> Result<T, Error> {
        let sequence = self.take_sequence(1);
        let mut bytes = Vec::new();
        frame(&mut bytes, request, libc::NLM_F_REQUEST as u16, sequence);
        self.send(&bytes).map_err(|error| request.refused(error))?;
        self.receive(request, |message| {
            if message.sequence != sequence {
                return None;
            }
            Some(match message.verdict() {
                Some(code) if code != 0 => Err(request.refused(io::Error::from_raw_os_error(code))),
                _ => read(message).map_err(|detail| request.malformed(detail)),
            })
        })
    }

    /// One request that the kernel answers with yes or no.
    pub(crate) fn tell(&self, request: &Request) -> Result<(), Error> {
        let acknowledged = Request {
            operation: request.operation,
            object: request.object.clone(),
            flags: request.flags | libc::NLM_F_ACK as u16,
            body: request.body.clone(),
            ..*request
        };
        self.ask(&acknowledged, |_| Ok(()))
    }

    /// Everything that a listing yields. One that the kernel says has missed changes is begun again.
    pub(crate) fn list<T>(
        &self,
        request: &Request,
        read: impl Fn(&Message<'_>) -> Result<Option<T>, String>,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..DUMP_TRIES {
            let sequence = self.take_sequence(1);
            let mut bytes = Vec::new();
            frame(&mut bytes, request, (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16, sequence);
            self.send(&bytes).map_err(|error| request.refused(error))?;
            let mut found = Vec::new();
            let mut is_whole = true;
            let ended = self.receive(request, |message| {
                if message.sequence != sequence {
                    return None;
                }
                is_whole &= message.flags & libc::NLM_F_DUMP_INTR as u16 == 0;
                match message.verdict() {
                    Some(0) => return Some(Ok(())),
                    Some(code) => return Some(Err(request.refused(io::Error::from_raw_os_error(code)))),
                    None => {}
                }
                match read(message) {
                    Ok(item) => found.extend(item),
                    Err(detail) => return Some(Err(request.malformed(detail))),
                }
                None
            });
            match ended {
                Ok(()) if is_whole => return Ok(found),
                Err(error) if error.errno() != Some(libc::EINTR) => return Err(error),
                _ => {}
            }
        }
        Err(request.malformed(format!("the list changed during each of {DUMP_TRIES} readings")))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Appends one message.
pub(crate) fn frame(bytes: &mut Vec<u8>, request: &Request, flags: u16, sequence: u32) {
    let length = u32::try_from(HEADER + request.body.len()).unwrap_or(u32::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(request.kind.to_ne_bytes());
    bytes.extend((request.flags | flags).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend(&request.body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The messages of a datagram; what does not fit ends it.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header: &[u8; HEADER] = datagram.first_chunk()?;
        let word =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let length = usize::try_from(word(0)).ok()?;
        let body = datagram.get(HEADER..length)?;
        let message = Message { kind: half(4), flags: half(6), sequence: word(8), body };
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

#[cfg(test)]
mod tests;
