//! What needs no netlink: switching a network interface on, and its name.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::Error;

/// Switches the loopback of the calling process's network namespace on.
///
/// # Errors
/// The kernel's.
pub fn loopback_up() -> Result<(), Error> {
    let socket = socket()?;
    // SAFETY: ifreq is plain data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *slot = byte.cast_signed();
    }
    // SAFETY: SIOCGIFFLAGS reads the name from and writes the flags into the ifreq, which outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as libc::Ioctl, &mut request) } < 0 {
        return Err(Error::last("ioctl SIOCGIFFLAGS", "lo"));
    }
    // SAFETY: the call above made ifru_flags the active member.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    // SAFETY: SIOCSIFFLAGS reads name and flags from the ifreq, which outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as libc::Ioctl, &request) } < 0 {
        return Err(Error::last("ioctl SIOCSIFFLAGS", "lo"));
    }
    Ok(())
}

/// Name of the interface with this number in the calling thread's network namespace; none when it is gone.
///
/// # Errors
/// The kernel's.
pub fn name(index: u32) -> Result<Option<String>, Error> {
    match rustix::net::netdevice::index_to_name(socket()?, index) {
        Err(rustix::io::Errno::NODEV) => Ok(None),
        found => found.map(Some).map_err(|errno| Error::new("ioctl SIOCGIFNAME", index, errno)),
    }
}

fn socket() -> Result<OwnedFd, Error> {
    rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .map_err(|errno| Error::new("socket", "AF_INET", errno))
}
