//! A link whose packets begin with the IP header, as WireGuard's do; this test is its other side.
#![expect(unsafe_code, reason = "no library makes a TUN link")]

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use crate::node::{LIMIT, at, ip};

/// `_IOW('T', 202, int)` of `linux/if_tun.h`.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const UDP: u8 = 17;

/// Gone when it is closed.
pub struct Tun(File);

impl Tun {
    pub fn make(name: &str) -> Self {
        harness::private_host::require();
        let mut options = OpenOptions::new();
        let file =
            options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun").unwrap();
        // SAFETY: all zeros is an `ifreq`: integers, and a union of integers and pointers that the kernel does not follow.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *place = byte as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: the call reads and writes the `ifreq`, which outlives it.
        let made = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
        assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
        ip(&format!("link set {name} up"));
        Self(file)
    }

    /// Sends the next datagram back to where it came from, and tells its ends. Swapped ends have the same checksums.
    pub fn turn_round(&mut self) -> (SocketAddr, SocketAddr) {
        let mut packet = harness::wait::until("a datagram on the link", LIMIT, || {
            let mut buffer = [0; 2048];
            let length = self.0.read(&mut buffer).map_err(|error| error.to_string())?;
            let packet = buffer[..length].to_vec();
            let is_datagram = packet.len() >= 28 && packet[0] == 0x45 && packet[9] == UDP;
            is_datagram.then_some(packet).ok_or_else(|| "another packet".to_owned())
        });
        let end = |address: usize, port: usize| {
            let octets: [u8; 4] = packet[address..address + 4].try_into().unwrap();
            at(Ipv4Addr::from(octets), u16::from_be_bytes([packet[port], packet[port + 1]]))
        };
        let ends = (end(12, 20), end(16, 22));
        let (source, destination) = packet[12..20].split_at_mut(4);
        source.swap_with_slice(destination);
        let (source, destination) = packet[20..24].split_at_mut(2);
        source.swap_with_slice(destination);
        assert_eq!(self.0.write(&packet).unwrap(), packet.len());
        ends
    }
}
