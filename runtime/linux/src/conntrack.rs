//! Connection tracking: forgetting flows, so that their next packets meet the rules of now.
//!
//! Owns: one socket per [`Conntrack`], bound for good to the network namespace that it was opened in. Formats are from
//! `linux/netfilter/nfnetlink_conntrack.h`. It refuses to make or change flows.

use netlink_bindings::{
    nftables::Nfgenmsg,
    utils::{IterateAttrs, finalize_nested_header, find_attr, push_header, push_nested_header},
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
/// `CTA_FILTER`: by what of the flow entries are chosen, and in it `CTA_FILTER_ORIG_FLAGS`.
const FILTER: u16 = 25;
const ORIGINAL_FLAGS: u16 = 1;
/// `CTA_FILTER_F_CTA_PROTO_NUM` and `CTA_FILTER_F_CTA_PROTO_DST_PORT` of the kernel's `nf_internals.h`.
const BY_PROTOCOL_AND_PORT: u32 = 1 << 3 | 1 << 5;

/// Up to so many ports it is quicker to have the kernel search for each; beyond, to list all flows once.
const SEARCHED_PORTS: usize = 4;

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

    /// Forgets `flows`; none is success. The kernel looks at its whole table once for each port, which is quick where that is empty.
    ///
    /// # Errors
    /// When a deletion fails.
    pub fn delete(&self, flows: Flows<'_>) -> Result<(), Error> {
        if flows.destination_ports.len() > SEARCHED_PORTS {
            return self.delete_each(flows);
        }
        for port in flows.destination_ports {
            let filter = filter(flows.transport, *port);
            match self.socket.tell(&request("delete flows of", flows, DELETE, filter)) {
                // Kernels before 6.11 take this for one flow, of which something is missing.
                Err(error) if error.errno() == Some(libc::EINVAL) => return self.delete_each(flows),
                deleted => deleted?,
            }
        }
        Ok(())
    }

    /// As [`Conntrack::delete`], by a listing of all flows of the family, for which the kernel locks each of its table's parts in
    /// turn: 9 ms on an idle machine. A flow that ended in between is success.
    fn delete_each(&self, flows: Flows<'_>) -> Result<(), Error> {
        let list = request("list flows of", flows, GET, Vec::new());
        let keys = self.socket.list(&list, |message| {
            let attributes = message.body.get(Nfgenmsg::len()..).unwrap_or_default();
            Ok(is_of(attributes, flows).then(|| key(attributes)))
        })?;
        for key in keys {
            match self.socket.tell(&request("delete flow of", flows, DELETE, key)) {
                Err(error) if !error.is_gone() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn request(operation: &'static str, flows: Flows<'_>, message: u16, attributes: Vec<u8>) -> Request {
    let header = Nfgenmsg { nfgen_family: flows.family.number(), ..Nfgenmsg::default() };
    let object = format!("{} {:?} ports {:?}", flows.family, flows.transport, flows.destination_ports);
    let kind = (libc::NFNL_SUBSYS_CTNETLINK << 8) as u16 | message;
    Request { operation, object, kind, flags: 0, body: [header.as_slice(), &attributes].concat() }
}

/// The attributes that choose flows.
fn filter(transport: Transport, port: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    let flow = push_nested_header(&mut bytes, ORIGINAL);
    let protocol = push_nested_header(&mut bytes, PROTOCOL);
    push_header(&mut bytes, NUMBER, 1);
    bytes.push(transport as u8);
    push_header(&mut bytes, DESTINATION_PORT, 2);
    bytes.extend(port.to_be_bytes());
    finalize_nested_header(&mut bytes, protocol);
    finalize_nested_header(&mut bytes, flow);
    let filter = push_nested_header(&mut bytes, FILTER);
    push_header(&mut bytes, ORIGINAL_FLAGS, 4);
    bytes.extend(BY_PROTOCOL_AND_PORT.to_ne_bytes());
    finalize_nested_header(&mut bytes, filter);
    bytes
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
