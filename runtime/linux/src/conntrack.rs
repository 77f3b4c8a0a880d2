//! Connection tracking: forgetting flows, so that their next packets meet the rules of now.
//!
//! Owns: one socket per [`Conntrack`], bound for good to the network namespace that it was opened in. Formats are from
//! `linux/netfilter/nfnetlink_conntrack.h`. It refuses to make or change flows.

use netlink_bindings::{
    nftables::Nfgenmsg,
    utils::{IterateAttrs, find_attr},
};

use crate::{
    blocking::{Request, Socket},
    netlink::Error,
    nftables::{Family, Transport},
};

/// `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE`.
const GET: u16 = 1;
const DELETE: u16 = 2;
/// `CTA_TUPLE_ORIG`: the flow as its first packet had it.
const ORIGINAL: u16 = 1;
/// `CTA_ID` and `CTA_ZONE`, which with the flow say exactly which entry is meant.
const ID: u16 = 12;
const ZONE: u16 = 18;
/// `CTA_TUPLE_PROTO`, and in it `CTA_PROTO_NUM` and `CTA_PROTO_DST_PORT`.
const PROTOCOL: u16 = 2;
const NUMBER: u16 = 1;
const DESTINATION_PORT: u16 = 3;

/// See the module.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

/// Flows by the ports that their first packets were sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flows<'a> {
    /// [`Family::Ip`] or [`Family::Ip6`].
    pub family: Family,
    pub transport: Transport,
    pub destination_ports: &'a [u16],
}

impl Conntrack {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open()? })
    }

    /// Forgets `flows`, and returns how many there were. Proportional to the number of all flows of the family.
    ///
    /// # Errors
    /// When the listing or a deletion fails. A flow that ended in between is success.
    pub fn delete(&self, flows: Flows<'_>) -> Result<usize, Error> {
        let list = request("list flows of", flows, GET, Vec::new());
        let keys = self.socket.list(&list, |message| {
            let attributes = message.body.get(Nfgenmsg::len()..).unwrap_or_default();
            Ok(is_of(attributes, flows).then(|| key(attributes)))
        })?;
        let mut deleted = 0;
        for key in keys {
            match self.socket.tell(&request("delete flow of", flows, DELETE, key)) {
                Ok(()) => deleted += 1,
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(deleted)
    }
}

fn request(operation: &'static str, flows: Flows<'_>, message: u16, attributes: Vec<u8>) -> Request {
    let header = Nfgenmsg { nfgen_family: flows.family.number(), ..Nfgenmsg::default() };
    let object = format!("{} {:?} ports {:?}", flows.family, flows.transport, flows.destination_ports);
    let kind = (libc::NFNL_SUBSYS_CTNETLINK << 8) as u16 | message;
    Request { operation, object, kind, flags: 0, body: [header.as_slice(), &attributes].concat() }
}

fn is_of(attributes: &[u8], flows: Flows<'_>) -> bool {
    let protocol = find_attr(attributes, ORIGINAL).and_then(|flow| find_attr(flow, PROTOCOL));
    let Some(protocol) = protocol else { return false };
    let port = find_attr(protocol, DESTINATION_PORT).and_then(|bytes| bytes.first_chunk());
    find_attr(protocol, NUMBER) == Some(&[flows.transport as u8])
        && port.is_some_and(|port| flows.destination_ports.contains(&u16::from_be_bytes(*port)))
}

/// The attributes that name one entry.
fn key(attributes: &[u8]) -> Vec<u8> {
    let wanted = |attribute: &&[u8]| {
        let number = attribute.get(2..4).and_then(|bytes| bytes.first_chunk());
        let number = number.map(|bytes| netlink_bindings::utils::nla_type(u16::from_ne_bytes(*bytes)));
        matches!(number, Some(ORIGINAL | ID | ZONE))
    };
    IterateAttrs::new(attributes).filter(wanted).flatten().copied().collect()
}

#[cfg(test)]
mod tests;
