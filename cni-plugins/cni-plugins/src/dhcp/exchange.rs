//! Messages to and from DHCP servers on a container's link, as the client of RFC 2131.
//!
//! Owns the messages' fields, and sending again while nobody answers. A reply counts when operation, transaction number and
//! hardware address are those of the question; only then is it decoded. Sockets live as long as one exchange: an open one would
//! keep the namespace of a container that is gone.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    panic,
    time::Duration,
};

use cni::ErrorReply;
use dhcproto::{
    Decodable, Encodable,
    v4::{DhcpOption, Flags, Message, MessageType, OptionCode, UnknownOption},
};
use linux::{netlink::MacAddress, packet::PacketSocket};
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};

use super::{
    config::Options,
    datagram,
    lease::{self, Lease},
};

const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;
/// Bytes of the largest packet that a link here carries.
const PACKET_LIMIT: usize = 9216;
/// What relays expect at least (BOOTP, RFC 951).
const SHORTEST_MESSAGE: usize = 300;
/// How long the first question waits for its answer; each further one waits twice as long, up to the limit.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Where the fields are that are compared before a message is decoded.
const XID: std::ops::Range<usize> = 4..8;
const CHADDR: std::ops::Range<usize> = 28..34;
const REPLY: u8 = 2;

/// How long a client tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// The longest wait for one answer.
    pub(super) wait: Duration,
    /// For an address altogether.
    pub(super) acquire: Duration,
}

/// The client of one link.
pub(super) struct Client<'a> {
    pub(super) socket: PacketSocket,
    pub(super) mac: MacAddress,
    pub(super) client_id: &'a str,
    pub(super) options: &'a Options,
    /// Asks servers to answer to everybody.
    pub(super) broadcast: bool,
    pub(super) limits: Limits,
}

/// Whether somebody still waits for an address.
pub(super) struct Asked(watch::Receiver<()>);

impl Asked {
    /// It is given up when the first is dropped.
    pub(super) fn new() -> (watch::Sender<()>, Self) {
        let (asker, asked) = watch::channel(());
        (asker, Self(asked))
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.0.has_changed().is_err()
    }

    async fn unless_given_up<T>(&mut self, work: impl Future<Output = T>) -> Result<T, String> {
        tokio::select! {
            done = work => Ok(done),
            // Nothing is ever sent: this is the asker's end.
            _ = self.0.changed() => Err("nobody waits for an address any more".to_owned()),
        }
    }
}

/// What came of asking for more time.
pub(super) enum Extended {
    Acknowledged(Box<Message>),
    Refused,
    NoAnswer,
}

/// Opens the socket for a client on a link of a namespace.
pub(super) fn open(netns: &linux::netns::Netns, link: u32) -> Result<PacketSocket, ErrorReply> {
    PacketSocket::open_in(netns, link, CLIENT_PORT)
        .map_err(|error| ErrorReply::internal(format!("open a socket for DHCP: {error}")))
}

impl Client<'_> {
    /// Finds a server and takes what it offers. Given up at once, but for an offer that is accepted: its server may give the address in the
    /// same moment, and has to be heard.
    pub(super) async fn acquire(&self, asked: &mut Asked) -> Result<Message, String> {
        let deadline = Instant::now() + self.limits.acquire;
        let mut wait = FIRST_WAIT.min(self.limits.wait);
        let mut last = "no DHCP server answered".to_owned();
        while Instant::now() < deadline && !asked.is_given_up() {
            let until = (Instant::now() + wait).min(deadline);
            let tried = async {
                let offer = asked.unless_given_up(self.offer(None)).await??;
                self.accept(&offer, wait).await
            };
            match timeout_at(until, tried).await {
                Ok(Ok(ack)) => return Ok(ack),
                Ok(Err(error)) => {
                    last = error;
                    // Not at once again: the link may be going up, the server coming to its senses.
                    asked.unless_given_up(tokio::time::sleep_until(until)).await?;
                }
                Err(_elapsed) => {}
            }
            wait = (wait * 2).min(self.limits.wait);
        }
        Err(format!("{last} within {:?}", self.limits.acquire))
    }

    /// Any offer, or only one of this address.
    async fn offer(&self, address: Option<Ipv4Addr>) -> Result<Message, String> {
        let mut discover = self.message(MessageType::Discover, Ipv4Addr::UNSPECIFIED);
        if let Some(address) = address {
            discover.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
        }
        let is_wanted = |reply: &Message| {
            reply.opts().has_msg_type(MessageType::Offer)
                && address.is_none_or(|address| reply.yiaddr() == address)
        };
        let offer = self.ask(&mut discover, Ipv4Addr::BROADCAST, is_wanted);
        offer.await.map_err(|error| error.to_string())
    }

    async fn accept(&self, offer: &Message, wait: Duration) -> Result<Message, String> {
        let server = lease::server(offer).ok_or("a DHCP server that does not say which it is")?;
        let mut request = self.message(MessageType::Request, Ipv4Addr::UNSPECIFIED);
        // By it the server knows to which of its offers this is the answer (RFC 2131, 4.4.1).
        request.set_xid(offer.xid());
        request.opts_mut().insert(DhcpOption::RequestedIpAddress(offer.yiaddr()));
        request.opts_mut().insert(DhcpOption::ServerIdentifier(server));
        let answer = timeout(wait, self.ask(&mut request, Ipv4Addr::BROADCAST, is_decision)).await;
        let answer = answer.map_err(|_elapsed| "the DHCP server did not confirm its offer".to_owned())?;
        let answer = answer.map_err(|error| error.to_string())?;
        if answer.opts().has_msg_type(MessageType::Nak) {
            return Err(format!("the DHCP server {server} took its offer back"));
        }
        Ok(answer)
    }

    /// Asks for more time: the server that gave the lease, whose word alone counts then, or all.
    pub(super) async fn extend(&self, lease: &Lease, of_all: bool) -> Extended {
        let server = if of_all { Ipv4Addr::BROADCAST } else { lease.server };
        let mut request = self.message(MessageType::Request, lease.address);
        // Another address than the container has is no extension.
        let extends = |answer: &Message| {
            answer.opts().has_msg_type(MessageType::Ack) && answer.yiaddr() == lease.address
        };
        let mut is_refused = false;
        let wanted = |answer: &Message| {
            let counts = is_decision(answer) && (of_all || lease::server(answer) == Some(lease.server));
            is_refused |= counts;
            // Of all servers one that extends it may still answer.
            counts && (!of_all || extends(answer))
        };
        match timeout(self.limits.wait, self.ask(&mut request, server, wanted)).await {
            Ok(Ok(answer)) if extends(&answer) => Extended::Acknowledged(Box::new(answer)),
            _ if is_refused => Extended::Refused,
            _ => Extended::NoAnswer,
        }
    }

    /// The last try for a lease that has expired: more time of any server, or else the same address anew, also when a server refused to
    /// extend what it does not know any more. Another one is never asked for, so it leaves nothing when it is aborted.
    pub(super) async fn regain(&self, lease: &Lease) -> Extended {
        let extended = self.extend(lease, true).await;
        if matches!(extended, Extended::Acknowledged(_)) {
            return extended;
        }
        let wait = self.limits.wait;
        let anew = async { self.accept(&self.offer(Some(lease.address)).await?, wait).await };
        match timeout(wait, anew).await {
            Ok(Ok(ack)) if ack.yiaddr() == lease.address => Extended::Acknowledged(Box::new(ack)),
            Ok(Ok(_) | Err(_)) | Err(_) => extended,
        }
    }

    /// Gives the address back; nobody answers that.
    pub(super) async fn release(&self, lease: &Lease) -> io::Result<()> {
        let mut message = self.message(MessageType::Release, lease.address);
        message.opts_mut().remove(OptionCode::ParameterRequestList);
        message.opts_mut().insert(DhcpOption::ServerIdentifier(lease.server));
        self.send(&message, lease.server).await
    }

    fn message(&self, kind: MessageType, own: Ipv4Addr) -> Message {
        let none = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new_with_id(fastrand::u32(..), own, none, none, none, &self.mac.0);
        if self.broadcast {
            message.set_flags(Flags::default().set_broadcast());
        }
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        // Type 0: an identifier that is no hardware address.
        let identifier = [&[0], self.client_id.as_bytes()].concat();
        options.insert(DhcpOption::ClientIdentifier(identifier));
        options.insert(DhcpOption::ParameterRequestList(
            self.options.requested.iter().map(|number| OptionCode::from(*number)).collect(),
        ));
        for (number, value) in &self.options.provided {
            let value = value.clone().into_bytes();
            options.insert(DhcpOption::Unknown(UnknownOption::new(OptionCode::from(*number), value)));
        }
        message
    }

    /// Sends the question and waits for an answer of the wanted kind, without a limit.
    async fn ask(
        &self,
        question: &mut Message,
        server: Ipv4Addr,
        mut wanted: impl FnMut(&Message) -> bool,
    ) -> io::Result<Message> {
        self.send(question, server).await?;
        let mut buffer = vec![0; PACKET_LIMIT];
        loop {
            let length = self.socket.receive(&mut buffer).await?;
            let answer = datagram::unwrap(&buffer[..length])
                .and_then(|(_, payload)| decode(payload, question.xid(), self.mac))
                .filter(&mut wanted);
            if let Some(answer) = answer {
                return Ok(answer);
            }
        }
    }

    async fn send(&self, message: &Message, server: Ipv4Addr) -> io::Result<()> {
        let mut payload = message.to_vec().map_err(io::Error::other)?;
        payload.resize(payload.len().max(SHORTEST_MESSAGE), 0);
        let from = SocketAddrV4::new(message.ciaddr(), CLIENT_PORT);
        let packet = datagram::wrap(from, SocketAddrV4::new(server, SERVER_PORT), &payload);
        self.socket.broadcast(&packet.ok_or_else(|| io::Error::other("options of more than a packet"))?).await
    }
}

fn is_decision(answer: &Message) -> bool {
    matches!(answer.opts().msg_type(), Some(MessageType::Ack | MessageType::Nak))
}

/// Reads a reply to a question. The library asserts that options have their lengths, and must not take the daemon along.
pub(super) fn decode(payload: &[u8], xid: u32, mac: MacAddress) -> Option<Message> {
    let is_answer = payload.first() == Some(&REPLY)
        && payload.get(XID) == Some(xid.to_be_bytes().as_slice())
        && payload.get(CHADDR) == Some(mac.0.as_slice());
    if !is_answer {
        return None;
    }
    panic::catch_unwind(|| Message::from_bytes(payload)).ok()?.ok()
}

#[cfg(test)]
mod tests;
