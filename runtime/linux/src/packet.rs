//! IPv4 packets on one link, below the kernel's own IP: for a protocol that speaks before the link has an address.
//!
//! Owns one packet socket, bound to a link and filtered to UDP for one port, so that nothing else fills its buffer. It gives and
//! takes whole IP packets, and hides how they are framed on the link.

use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use tokio::io::unix::AsyncFd;

use crate::{Error, fds, netlink::MacAddress, netns::Netns};

const ETHERNET_BROADCAST: MacAddress = MacAddress([0xff; 6]);
const ETHERNET_LEN: u8 = 6;

/// See the module.
#[derive(Debug)]
pub struct PacketSocket {
    socket: AsyncFd<OwnedFd>,
    link: u32,
}

impl PacketSocket {
    /// Opens a socket for UDP to `port` on a link of another namespace. Blocks for the life of one short thread; needs a tokio
    /// runtime.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the kernel refuses the socket.
    pub fn open_in(netns: &Netns, link: u32, port: u16) -> io::Result<Self> {
        let opened = netns.run(|| open(link, port)).map_err(io::Error::other)?;
        Ok(Self { socket: fds::watch(opened.map_err(io::Error::other)?)?, link })
    }

    /// Sends an IP packet to everybody on the link.
    ///
    /// # Errors
    /// The kernel's; `ENETDOWN` while the link is down.
    pub async fn broadcast(&self, packet: &[u8]) -> io::Result<()> {
        let address = link_address(self.link, ETHERNET_BROADCAST);
        loop {
            let mut ready = self.socket.writable().await?;
            let sent = ready.try_io(|socket| {
                // SAFETY: packet and address are valid for their lengths for the time of the call.
                let sent = unsafe {
                    libc::sendto(
                        socket.as_raw_fd(),
                        packet.as_ptr().cast(),
                        packet.len(),
                        0,
                        (&raw const address).cast(),
                        length_of(&address),
                    )
                };
                if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
            });
            if let Ok(sent) = sent {
                return sent;
            }
        }
    }

    /// The next packet; what does not fit the buffer is cut off.
    ///
    /// Cancel-safe: a packet is taken only when it is returned.
    ///
    /// # Errors
    /// The kernel's; `ENETDOWN` when the link went down.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.socket.readable().await?;
            let read = ready.try_io(|socket| Ok(rustix::io::read(socket.get_ref(), &mut *buffer)?));
            if let Ok(read) = read {
                return read;
            }
        }
    }
}

fn open(link: u32, port: u16) -> Result<OwnedFd, Error> {
    let object = || format!("of link index {link}");
    // Without a protocol it receives nothing until it is bound, when the filter is there.
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket takes no pointers.
    let raw = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if raw < 0 {
        return Err(Error::last("socket AF_PACKET", object()));
    }
    // SAFETY: the kernel just made this descriptor, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    let mut filter = udp_to(port);
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and the instructions that it points to live until the call returns; the kernel copies them.
    let attached = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            length_of(&program),
        )
    };
    if attached < 0 {
        return Err(Error::last("setsockopt SO_ATTACH_FILTER", object()));
    }
    let address = link_address(link, MacAddress([0; 6]));
    // SAFETY: the address is valid for its length for the time of the call.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length_of(&address)) };
    if bound < 0 { Err(Error::last("bind AF_PACKET", object())) } else { Ok(socket) }
}

fn link_address(link: u32, mac: MacAddress) -> libc::sockaddr_ll {
    let mut octets = [0; 8];
    octets[..6].copy_from_slice(&mac.0);
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_IP as u16).to_be(),
        sll_ifindex: link.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: ETHERNET_LEN,
        sll_addr: octets,
    }
}

fn length_of<T>(value: &T) -> libc::socklen_t {
    mem::size_of_val(value) as libc::socklen_t
}

/// A filter in the classic instructions (`linux/filter.h`) over an IP packet: the first fragment of UDP to the port.
fn udp_to(port: u16) -> [libc::sock_filter; 9] {
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let (load_byte, load_half) =
        (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, libc::BPF_LD | libc::BPF_H | libc::BPF_ABS);
    [
        step(load_byte, 0, 0, 9),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 6, libc::IPPROTO_UDP as u32),
        step(load_half, 0, 0, 6),
        step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 4, 0, 0x1fff),
        step(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0, 0, 0),
        step(libc::BPF_LD | libc::BPF_H | libc::BPF_IND, 0, 0, 2),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, u32::from(port)),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::from(u16::MAX)),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ]
}
