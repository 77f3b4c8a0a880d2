//! UDP over IPv4 by hand, for a link without an address. Pure.
//!
//! Checksums of received packets are not looked at: between links of one machine they are often not filled in, and the
//! message's transaction number says whose it is.

use std::net::{Ipv4Addr, SocketAddrV4};

const IP_LEN: usize = 20;
const UDP_LEN: usize = 8;
const PROTOCOL_UDP: u8 = 17;
const TTL: u8 = 64;

/// The packet that carries `payload`; none when it is longer than a packet can be.
pub(super) fn wrap(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Option<Vec<u8>> {
    let udp_len = u16::try_from(UDP_LEN + payload.len()).ok()?;
    let total = u16::try_from(IP_LEN + UDP_LEN + payload.len()).ok()?;
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, TTL, PROTOCOL_UDP, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    let checksum = checksum(&packet);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend(udp_len.to_be_bytes());
    // No checksum, which IPv4 allows: the link has one, and the server compares the whole message.
    packet.extend([0, 0]);
    packet.extend(payload);
    Some(packet)
}

/// Sender and payload of a UDP packet; none for anything else.
pub(super) fn unwrap(packet: &[u8]) -> Option<(Ipv4Addr, &[u8])> {
    let first = *packet.first()?;
    let header = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header < IP_LEN || *packet.get(9)? != PROTOCOL_UDP {
        return None;
    }
    let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
    let udp = packet.get(header..)?;
    let length = usize::from(u16::from_be_bytes(udp.get(4..6)?.try_into().ok()?));
    Some((source.into(), udp.get(UDP_LEN..length)?))
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let sum = bytes.chunks(2).fold(0_u32, |sum, pair| {
        sum + (u32::from(pair[0]) << 8) + pair.get(1).map_or(0, |low| u32::from(*low))
    });
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests;
