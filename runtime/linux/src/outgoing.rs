//! Where packets leave: a question to the routing tables, without an event loop.
//!
//! Owns: the question, for programs that are gone within milliseconds. It refuses to change routes: that is [`crate::netlink`]'s.
//! Formats are from `linux/rtnetlink.h`.

use std::net::IpAddr;

use netlink_bindings::utils::{find_attr, push_header};
use nix::sys::socket::SockProtocol;

use crate::{
    blocking::{Request, Socket},
    interface,
    netlink::Error,
};

/// Length of `struct rtmsg`.
const HEADER: usize = 12;

/// Name of the link that packets to an address leave by, in the calling thread's network namespace; none where there is no route.
///
/// # Errors
/// When the kernel cannot say.
pub fn link_towards(address: IpAddr) -> Result<Option<String>, Error> {
    let request = question(address);
    let answer = Socket::open_for(SockProtocol::NetlinkRoute)?.ask(&request, |message| {
        let index = message.body.get(HEADER..).and_then(|attributes| find_attr(attributes, libc::RTA_OIF));
        Ok(index.and_then(|bytes| bytes.first_chunk()).map(|bytes| u32::from_ne_bytes(*bytes)))
    });
    match answer {
        Err(error) if matches!(error.errno(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => Ok(None),
        Ok(Some(index)) => interface::name(index).map_err(|error| request.refused(error.source)),
        Ok(None) => Ok(None),
        Err(error) => Err(error),
    }
}

fn question(address: IpAddr) -> Request {
    let (family, bytes) = match address {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    let mut body = vec![0; HEADER];
    body[0] = family as u8;
    body[1] = (8 * bytes.len()) as u8;
    push_header(&mut body, libc::RTA_DST, bytes.len() as u16);
    body.extend(bytes);
    let object = address.to_string();
    Request { operation: "find route to", object, kind: libc::RTM_GETROUTE, flags: 0, body }
}
