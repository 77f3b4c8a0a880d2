//! Bytes and descriptors over unix sockets (SCM_RIGHTS). Refuses more descriptors than [`MAX_FDS`] in one message.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use crate::Error;

/// Descriptors in one message.
pub const MAX_FDS: usize = 8;

/// Sends bytes, with descriptors attached to the first of them, and returns how many bytes went out.
///
/// # Errors
/// The kernel's; EAGAIN on a full non-blocking socket, E2BIG for too many descriptors.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, Error> {
    if fds.len() > MAX_FDS {
        return Err(Error::new("sendmsg", "unix socket", rustix::io::Errno::TOOBIG));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
        .map_err(|errno| Error::new("sendmsg", "unix socket", errno))
}

/// Receives bytes and the descriptors that came with them; 0 bytes is the end of the stream.
///
/// # Errors
/// The kernel's; EAGAIN on an empty non-blocking socket.
pub fn receive(socket: impl AsFd, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize, Error> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)
            .map_err(|errno| Error::new("recvmsg", "unix socket", errno))?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(arrived) = message {
            fds.extend(arrived);
        }
    }
    Ok(received.bytes)
}
