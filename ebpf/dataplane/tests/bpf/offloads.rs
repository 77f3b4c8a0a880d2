//! What a link does for its packets, as `ethtool -K` would switch it.
#![expect(unsafe_code, reason = "no library offers these calls")]

use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// `struct ethtool_value`, and a command, of `linux/ethtool.h`.
#[repr(C)]
struct Value {
    command: u32,
    value: u32,
}

const ETHTOOL_STXCSUM: u32 = 0x17;

/// Makes the kernel write the checksums of what leaves by a link of this thread's network namespace.
pub fn make_whole_checksums(link: &str) {
    harness::private_host::require();
    let mut value = Value { command: ETHTOOL_STXCSUM, value: 0 };
    // SAFETY: all zeros is an `ifreq`: integers, and a union of integers and pointers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(link.bytes()) {
        *place = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    let any = UdpSocket::bind("127.0.0.1:0").unwrap();
    // SAFETY: the call reads the `ifreq` and the value that it names; both outlive it.
    let switched = unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    assert_eq!(switched, 0, "{link}: {}", std::io::Error::last_os_error());
}
