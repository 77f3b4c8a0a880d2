//! The one change to a network interface that needs no netlink: switching it on.

use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::Error;

/// Switches the loopback of the calling process's network namespace on.
///
/// # Errors
/// The kernel's.
pub fn loopback_up() -> Result<(), Error> {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .map_err(|errno| Error::new("socket", "AF_INET", errno))?;
    // SAFETY: ifreq is plain data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *slot = byte.cast_signed();
    }
    // SAFETY: SIOCGIFFLAGS reads the name from and writes the flags into the ifreq, which outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request) } < 0 {
        return Err(Error::last("ioctl SIOCGIFFLAGS", "lo"));
    }
    // SAFETY: the call above made ifru_flags the active member.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    // SAFETY: SIOCSIFFLAGS reads name and flags from the ifreq, which outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) } < 0 {
        return Err(Error::last("ioctl SIOCSIFFLAGS", "lo"));
    }
    Ok(())
}
