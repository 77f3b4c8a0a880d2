//! Reading and rewriting the addresses of an IPv4 packet.

use aya_ebpf::programs::TcContext;
use dataplane_abi::protocol;

const ETHERNET_LENGTH: usize = 14;
const ETHERTYPE_OFFSET: usize = 12;
const ETHERTYPE_IPV4: u16 = 0x0800;

const FRAGMENT_OFFSET: usize = 6;
const PROTOCOL_OFFSET: usize = 9;
const IP_CHECKSUM_OFFSET: usize = 10;
const SOURCE_OFFSET: usize = 12;
const DESTINATION_OFFSET: usize = 16;

const TCP_FLAGS_OFFSET: usize = 13;
const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;
const TCP_CHECKSUM_OFFSET: usize = 16;
const UDP_CHECKSUM_OFFSET: usize = 6;
const ICMP_CHECKSUM_OFFSET: usize = 2;
const ICMP_ID_OFFSET: usize = 4;
const ICMP_ECHO_REPLY: u8 = 0;
const ICMP_ECHO: u8 = 8;

const BPF_F_PSEUDO_HDR: u64 = 1 << 4;
const BPF_F_MARK_MANGLED_0: u64 = 1 << 5;

/// What a link's packets begin with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    Ethernet,
    /// The IP header itself, as on a WireGuard link.
    Ip,
}

/// A packet that can be translated. An ICMP echo's identifier stands in for the port of the side that asked.
#[derive(Clone, Copy)]
pub struct Packet {
    pub source_be: u32,
    pub destination_be: u32,
    pub source_port_be: u16,
    pub destination_port_be: u16,
    pub protocol: u8,
    /// The first packet of a TCP connection, an echo request, and every datagram.
    pub may_begin_flow: bool,
    /// TCP alone: the connection is being closed.
    pub fin: bool,
    pub reset: bool,
    /// Where the headers begin.
    network: usize,
    transport: usize,
}

/// The two ends of a packet whose ports are unknown.
#[derive(Clone, Copy)]
pub struct Ends {
    pub source_be: u32,
    pub destination_be: u32,
}

pub enum Parsed {
    Packet(Packet),
    /// A fragment: later ones have no ports.
    Fragment(Ends),
    /// Another protocol, an ICMP message that is no echo, or a packet that ends before its ports.
    Portless(Ends),
    /// No IPv4.
    Other,
}

/// Which end of a packet is rewritten.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
}

#[inline(always)]
pub fn parse(ctx: &TcContext, layer: Layer) -> Parsed {
    try_parse(ctx, layer).unwrap_or(Parsed::Other)
}

#[inline(always)]
fn try_parse(ctx: &TcContext, layer: Layer) -> Option<Parsed> {
    let network = match layer {
        Layer::Ethernet if u16::from_be(ctx.load(ETHERTYPE_OFFSET).ok()?) == ETHERTYPE_IPV4 => {
            ETHERNET_LENGTH
        }
        Layer::Ip if ctx.load::<u8>(0).ok()? >> 4 == 4 => 0,
        _ => return None,
    };
    let ends = Ends {
        source_be: ctx.load(network + SOURCE_OFFSET).ok()?,
        destination_be: ctx.load(network + DESTINATION_OFFSET).ok()?,
    };
    // More fragments, or not the first.
    if u16::from_be(ctx.load(network + FRAGMENT_OFFSET).ok()?) & 0x3fff != 0 {
        return Some(Parsed::Fragment(ends));
    }
    Some(match with_ports(ctx, network, ends) {
        Some(packet) => Parsed::Packet(packet),
        None => Parsed::Portless(ends),
    })
}

#[inline(always)]
fn with_ports(ctx: &TcContext, network: usize, Ends { source_be, destination_be }: Ends) -> Option<Packet> {
    let version: u8 = ctx.load(network).ok()?;
    let transport = network + ((version & 0x0f) as usize) * 4;
    let protocol: u8 = ctx.load(network + PROTOCOL_OFFSET).ok()?;
    let mut packet = Packet {
        source_be,
        destination_be,
        source_port_be: 0,
        destination_port_be: 0,
        protocol,
        may_begin_flow: true,
        fin: false,
        reset: false,
        network,
        transport,
    };
    match protocol {
        protocol::TCP | protocol::UDP => {
            packet.source_port_be = ctx.load(transport).ok()?;
            packet.destination_port_be = ctx.load(transport + 2).ok()?;
            if protocol == protocol::TCP {
                let flags: u8 = ctx.load(transport + TCP_FLAGS_OFFSET).ok()?;
                packet.may_begin_flow = flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
                packet.fin = flags & TCP_FIN != 0;
                packet.reset = flags & TCP_RST != 0;
            }
        }
        protocol::ICMP => {
            let kind: u8 = ctx.load(transport).ok()?;
            let id: u16 = ctx.load(transport + ICMP_ID_OFFSET).ok()?;
            match kind {
                ICMP_ECHO => packet.source_port_be = id,
                ICMP_ECHO_REPLY => packet.destination_port_be = id,
                _ => return None,
            }
            packet.may_begin_flow = kind == ICMP_ECHO;
        }
        _ => return None,
    }
    Some(packet)
}

/// Writes another address and port to one end and mends the checksums. `Err` leaves a packet that must be dropped.
#[inline(always)]
pub fn rewrite(ctx: &TcContext, packet: &Packet, end: End, addr_be: u32, port_be: u16) -> Result<(), i64> {
    let (old_addr, old_port, addr_offset) = match end {
        End::Source => (packet.source_be, packet.source_port_be, SOURCE_OFFSET),
        End::Destination => (packet.destination_be, packet.destination_port_be, DESTINATION_OFFSET),
    };
    let (checksum, port_offset, flags) = match packet.protocol {
        protocol::TCP => (TCP_CHECKSUM_OFFSET, port_of(end), 0),
        protocol::UDP => (UDP_CHECKSUM_OFFSET, port_of(end), BPF_F_MARK_MANGLED_0),
        _ => (ICMP_CHECKSUM_OFFSET, ICMP_ID_OFFSET, 0),
    };
    let checksum = packet.transport + checksum;
    if packet.protocol != protocol::ICMP {
        ctx.l4_csum_replace(checksum, old_addr as u64, addr_be as u64, 4 | BPF_F_PSEUDO_HDR | flags)?;
    }
    if old_port != port_be {
        ctx.l4_csum_replace(checksum, old_port as u64, port_be as u64, 2 | flags)?;
        ctx.store(packet.transport + port_offset, &port_be, 0)?;
    }
    ctx.l3_csum_replace(packet.network + IP_CHECKSUM_OFFSET, old_addr as u64, addr_be as u64, 4)?;
    ctx.store(packet.network + addr_offset, &addr_be, 0)
}

#[inline(always)]
fn port_of(end: End) -> usize {
    match end {
        End::Source => 0,
        End::Destination => 2,
    }
}
