//! What a link and its driver do for packets: as `ethtool -K` would switch it, and by somebody's program.
#![expect(unsafe_code, reason = "no library offers these calls")]

use std::ffi::CString;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

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

/// Makes a driver run a program that passes everything, and pins its link. It was loaded without saying what for, as kernels allow: one that says so cannot
/// take its place.
pub fn pin_other_xdp(interface: u32, pin: &Path) {
    const PROG_LOAD: libc::c_long = 5;
    const OBJ_PIN: libc::c_long = 6;
    const LINK_CREATE: libc::c_long = 28;
    const XDP: u32 = 6;
    const ATTACH_XDP: u32 = 37;
    const IN_DRIVER: u32 = 1 << 2;
    // `r0 = XDP_PASS; exit`.
    let code: [u64; 2] = [0x2_0000_00b7, 0x95];
    let (license, path) = (c"GPL", CString::new(pin.as_os_str().as_encoded_bytes()).unwrap());
    let call = |command: libc::c_long, attributes: &[u64]| {
        // SAFETY: the attributes are as long as is said, and what they point to outlives the call.
        let done =
            unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
        assert!(done >= 0, "{command}: {}", std::io::Error::last_os_error());
        done as u64
    };
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let count = code.len() as u32;
    let program = call(PROG_LOAD, &[pair(XDP, count), code.as_ptr() as u64, license.as_ptr() as u64]);
    let link = call(LINK_CREATE, &[pair(program as u32, interface), pair(ATTACH_XDP, IN_DRIVER)]);
    call(OBJ_PIN, &[path.as_ptr() as u64, link]);
    for descriptor in [program, link] {
        // SAFETY: the kernel made it for this function alone.
        drop(unsafe { OwnedFd::from_raw_fd(descriptor as RawFd) });
    }
}
