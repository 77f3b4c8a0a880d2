//! Reading and rewriting the addresses of an IPv4 or IPv6 packet.

use core::arch::asm;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_csum_update};
use aya_ebpf::programs::TcContext;
use dataplane_abi::{Address, FragmentKey, FragmentPorts, FrontendKey, crc32c, protocol};

use crate::maps::ORLOP_FRAGMENTS;

pub const ETHERNET_LENGTH: usize = 14;
const ETHERTYPE_OFFSET: usize = 12;
pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_ARP: u16 = 0x0806;

const V4_LENGTH_OFFSET: usize = 2;
const V4_FRAGMENT_OFFSET: usize = 6;
/// More fragments, or not the first one.
pub const V4_FRAGMENT: u16 = 0x3fff;
const V4_OFFSET: u16 = 0x1fff;
const V4_ID_OFFSET: usize = 4;
const V4_PROTOCOL_OFFSET: usize = 9;
const V4_CHECKSUM_OFFSET: usize = 10;
const V4_SOURCE_OFFSET: usize = 12;
const V4_DESTINATION_OFFSET: usize = 16;

const V6_LENGTH: usize = 40;
const V6_PAYLOAD_LENGTH_OFFSET: usize = 4;
const V6_NEXT_HEADER_OFFSET: usize = 6;
const V6_HOP_LIMIT_OFFSET: usize = 7;
const V6_SOURCE_OFFSET: usize = 8;
const V6_DESTINATION_OFFSET: usize = 24;
const V6_HOP_BY_HOP: u8 = 0;
const V6_ROUTING: u8 = 43;
const V6_FRAGMENT_HEADER: u8 = 44;
const V6_DESTINATION_OPTIONS: u8 = 60;
/// Headers between that of IPv6 and that of the transport which are looked through: one of each kind, and the destination
/// options that may stand twice (RFC 8200, 4.1).
const V6_EXTENSIONS: u32 = 5;
/// Offset and "more fragments"; between them are reserved bits.
const V6_FRAGMENT: u16 = 0xfff9;
const V6_OFFSET: u16 = 0xfff8;
const V6_ID_OFFSET: usize = 4;

const TCP_FLAGS_OFFSET: usize = 13;
const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;
pub const TCP_CHECKSUM_OFFSET: usize = 16;
pub const UDP_CHECKSUM_OFFSET: usize = 6;
const SCTP_CHECKSUM_OFFSET: usize = 8;
/// The kind of the packet's first chunk.
const SCTP_CHUNK_OFFSET: usize = 12;
const SCTP_INIT: u8 = 1;
const SCTP_ABORT: u8 = 6;
const SCTP_SHUTDOWN: u8 = 7;
const SCTP_SHUTDOWN_ACK: u8 = 8;
const SCTP_SHUTDOWN_COMPLETE: u8 = 14;
const ICMP_CHECKSUM_OFFSET: usize = 2;
const ICMP_ID_OFFSET: usize = 4;
const ICMP_LENGTH: usize = 8;
const ICMP_ECHO_REPLY: u8 = 0;
const ICMP_ECHO: u8 = 8;
const ICMP_UNREACHABLE: u8 = 3;
/// As code of [`ICMP_UNREACHABLE`]: fragmentation needed.
const ICMP_TOO_LONG: u8 = 4;
const ICMPV6_TOO_LONG: u8 = 2;
const ICMP_TIME_EXCEEDED: u8 = 11;
const ICMP_PARAMETER_PROBLEM: u8 = 12;
/// Unreachable, packet too big, time exceeded and parameter problem.
const ICMPV6_ERRORS: core::ops::RangeInclusive<u8> = 1..=4;
/// Who listens to which group (RFC 2710, and 3810 for version 2), and neighbour discovery (RFC 4861).
const ICMPV6_LISTENERS: core::ops::RangeInclusive<u8> = 130..=132;
const ICMPV6_NEIGHBOURS: core::ops::RangeInclusive<u8> = 133..=137;
const ICMPV6_LISTENERS_2: u8 = 143;
const LISTENER_HOPS: u8 = 1;
const NEIGHBOUR_HOPS: u8 = 255;
const ICMPV6_ECHO: u8 = 128;
const ICMPV6_ECHO_REPLY: u8 = 129;

const BPF_F_PSEUDO_HDR: u64 = 1 << 4;
const BPF_F_MARK_MANGLED_0: u64 = 1 << 5;

/// What a link's packets begin with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    Ethernet,
    /// The IP header itself, as on a WireGuard link.
    Ip,
}

/// A packet with ports. An ICMP echo's identifier stands in for the port of the side that asked.
#[derive(Clone, Copy)]
pub struct Packet {
    pub source: Address,
    pub destination: Address,
    pub source_port_be: u16,
    pub destination_port_be: u16,
    pub protocol: u8,
    /// The first packet of a TCP connection or an SCTP association, an echo request, and every datagram.
    pub may_begin_flow: bool,
    /// A later part of it: there is nothing of the transport that could be rewritten.
    is_rest: bool,
    /// TCP and SCTP alone: the connection is being closed.
    pub fin: bool,
    pub reset: bool,
    /// Where the headers begin.
    pub network: usize,
    pub transport: usize,
}

/// The two ends of a packet whose ports are unknown.
#[derive(Clone, Copy)]
pub struct Ends {
    pub source: Address,
    pub destination: Address,
}

/// An ICMP message about a packet, of which it quotes the beginning.
#[derive(Clone, Copy)]
pub struct IcmpError {
    pub source: Address,
    pub destination: Address,
    pub quoted: Packet,
    network: usize,
    checksum: usize,
}

pub enum Parsed {
    Packet(Packet),
    /// An ICMP message that is no echo: [`parse_message`] says more.
    Icmp,
    /// A fragment, of which [`parse_fragment`] says more: later ones have no ports.
    Fragment,
    /// Another protocol, or a packet that ends before its ports.
    Portless(Ends),
    /// No IP.
    Other,
}

/// An ICMP message that is no echo.
pub enum Message {
    /// About a packet with ports, which it quotes.
    Error(IcmpError),
    /// By which hosts on a link find each other; where from and to.
    Neighbourhood(Ends),
    Other(Ends),
    /// No IP.
    None,
}

impl Packet {
    /// One that is no fragment, of TCP with its flags or of UDP; where its headers begin.
    #[inline(always)]
    pub fn whole(
        Ends { source, destination }: Ends,
        [source_port_be, destination_port_be]: [u16; 2],
        protocol: u8,
        tcp_flags: u8,
        (network, transport): (usize, usize),
    ) -> Self {
        let mut packet = Self {
            source,
            destination,
            source_port_be,
            destination_port_be,
            protocol,
            may_begin_flow: true,
            is_rest: false,
            fin: false,
            reset: false,
            network,
            transport,
        };
        if protocol == protocol::TCP {
            packet.note_flags(tcp_flags);
        }
        packet
    }

    #[inline(always)]
    fn note_flags(&mut self, tcp_flags: u8) {
        self.may_begin_flow = tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
        self.fin = tcp_flags & TCP_FIN != 0;
        self.reset = tcp_flags & TCP_RST != 0;
    }

    /// As it goes on to another destination.
    #[inline(always)]
    pub fn led_to(&self, destination: Address, destination_port_be: u16) -> Self {
        Self { destination, destination_port_be, ..*self }
    }

    #[inline(always)]
    pub fn ends(&self) -> Ends {
        Ends { source: self.source, destination: self.destination }
    }

    /// The virtual address that it asks for, if that is one.
    #[inline(always)]
    pub fn frontend(&self) -> FrontendKey {
        FrontendKey {
            address: self.destination,
            port_be: self.destination_port_be,
            protocol: self.protocol,
            reserved: 0,
        }
    }
}

/// Which end of a packet is rewritten.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
}

impl End {
    #[inline(always)]
    fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }
}

/// A part of a packet. The first one has the packet's ports.
struct Fragment {
    header: Header,
    id_be: u32,
    is_first: bool,
}

/// An IP header, looked through to what it carries.
struct Header {
    ends: Ends,
    protocol: u8,
    network: usize,
    transport: usize,
}

enum Headed {
    Whole(Header),
    Fragment(Fragment),
    /// What it carries cannot be found, or is nobody's business.
    Closed(Ends),
}

#[inline(always)]
pub fn parse(ctx: &TcContext, layer: Layer) -> Parsed {
    try_parse(ctx, layer).unwrap_or(Parsed::Other)
}

#[inline(always)]
pub fn parse_message(ctx: &TcContext, layer: Layer) -> Message {
    match first_header(ctx, layer) {
        Some(Headed::Whole(outer)) if is_neighbourhood(ctx, &outer) => Message::Neighbourhood(outer.ends),
        Some(Headed::Whole(outer)) => {
            icmp_error(ctx, &outer).map_or(Message::Other(outer.ends), Message::Error)
        }
        Some(Headed::Fragment(Fragment { header: Header { ends, .. }, .. }) | Headed::Closed(ends)) => {
            Message::Other(ends)
        }
        None => Message::None,
    }
}

/// A fragment as the packet that it is a part of; its ends alone if the first fragment was not seen, or had no ports.
#[inline(always)]
pub fn parse_fragment(ctx: &TcContext, layer: Layer) -> Result<Packet, Option<Ends>> {
    let Some(Headed::Fragment(Fragment { header, id_be, is_first })) = first_header(ctx, layer) else {
        return Err(None);
    };
    let Header { ends, protocol, network, transport } = header;
    let key = FragmentKey {
        source: ends.source,
        destination: ends.destination,
        id_be,
        protocol,
        reserved: 0,
        reserved2: 0,
    };
    if is_first {
        let packet = with_ports(ctx, &header, false).ok_or(Some(ends))?;
        let ports = FragmentPorts {
            source_port_be: packet.source_port_be,
            destination_port_be: packet.destination_port_be,
        };
        // Where the kernel has no room for a moment, the others are lost, and the packet with them.
        let _ = ORLOP_FRAGMENTS.insert(&key, &ports, 0);
        return Ok(packet);
    }
    // SAFETY: the value is copied at once; one of a recycled element misjudges a packet that lacks its first fragment.
    let FragmentPorts { source_port_be, destination_port_be } =
        unsafe { ORLOP_FRAGMENTS.get(&key) }.copied().ok_or(Some(ends))?;
    Ok(Packet {
        source: ends.source,
        destination: ends.destination,
        source_port_be,
        destination_port_be,
        protocol,
        // What the first fragment began goes on.
        may_begin_flow: protocol == protocol::UDP,
        is_rest: true,
        fin: false,
        reset: false,
        network,
        transport,
    })
}

/// A packet with ports, or a fragment of one. Of SCTP no fragments: their checksum is one of the whole.
#[inline(always)]
pub fn parse_whole_or_part(ctx: &TcContext, layer: Layer) -> Option<Packet> {
    match parse(ctx, layer) {
        Parsed::Packet(packet) => Some(packet),
        Parsed::Fragment => {
            parse_fragment(ctx, layer).ok().filter(|packet| packet.protocol != protocol::SCTP)
        }
        _ => None,
    }
}

#[inline(always)]
pub fn is_arp(ctx: &TcContext) -> bool {
    ctx.load(ETHERTYPE_OFFSET).is_ok_and(|kind| u16::from_be(kind) == ETHERTYPE_ARP)
}

/// Whether a frame is of SCTP, or an ICMP error about one that is. A look at few bytes, for links where nearly all is of something else: behind
/// extension headers of IPv6, which the kernel's SCTP does not send, it is not noticed.
#[inline(always)]
pub fn is_about_sctp(ctx: &TcContext) -> bool {
    quoted_or_own_protocol(ctx) == Some(protocol::SCTP)
}

#[inline(always)]
fn quoted_or_own_protocol(ctx: &TcContext) -> Option<u8> {
    let byte = |offset: usize| ctx.load::<u8>(ETHERNET_LENGTH + offset).ok();
    match u16::from_be(ctx.load(ETHERTYPE_OFFSET).ok()?) {
        ETHERTYPE_IPV4 => match byte(V4_PROTOCOL_OFFSET)? {
            protocol::ICMP => {
                let length = usize::from(byte(0)? & 0xf) * 4;
                byte(length + ICMP_LENGTH + V4_PROTOCOL_OFFSET)
            }
            own => Some(own),
        },
        ETHERTYPE_IPV6 => match byte(V6_NEXT_HEADER_OFFSET)? {
            protocol::ICMPV6 => byte(V6_LENGTH + ICMP_LENGTH + V6_NEXT_HEADER_OFFSET),
            own => Some(own),
        },
        _ => None,
    }
}

/// As it never comes through a router: that leaves fewer hops.
#[inline(always)]
fn is_neighbourhood(ctx: &TcContext, header: &Header) -> bool {
    if header.ends.source.is_v4() || header.protocol != protocol::ICMPV6 {
        return false;
    }
    let (Ok(hops), Ok(kind)) =
        (ctx.load::<u8>(header.network + V6_HOP_LIMIT_OFFSET), ctx.load::<u8>(header.transport))
    else {
        return false;
    };
    match kind {
        ICMPV6_LISTENERS_2 => hops == LISTENER_HOPS,
        kind if ICMPV6_LISTENERS.contains(&kind) => hops == LISTENER_HOPS,
        kind => ICMPV6_NEIGHBOURS.contains(&kind) && hops == NEIGHBOUR_HOPS,
    }
}

#[inline(always)]
fn try_parse(ctx: &TcContext, layer: Layer) -> Option<Parsed> {
    let header = match first_header(ctx, layer)? {
        Headed::Whole(header) => header,
        Headed::Fragment(_) => return Some(Parsed::Fragment),
        Headed::Closed(ends) => return Some(Parsed::Portless(ends)),
    };
    Some(match (with_ports(ctx, &header, false), header.protocol) {
        (Some(packet), _) => Parsed::Packet(packet),
        (None, protocol::ICMP | protocol::ICMPV6) => Parsed::Icmp,
        (None, _) => Parsed::Portless(header.ends),
    })
}

#[inline(always)]
fn first_header(ctx: &TcContext, layer: Layer) -> Option<Headed> {
    let (network, version) = match layer {
        Layer::Ethernet => match u16::from_be(ctx.load(ETHERTYPE_OFFSET).ok()?) {
            ETHERTYPE_IPV4 => (ETHERNET_LENGTH, 4),
            ETHERTYPE_IPV6 => (ETHERNET_LENGTH, 6),
            _ => return None,
        },
        Layer::Ip => (0, ctx.load::<u8>(0).ok()? >> 4),
    };
    header(ctx, network, version)
}

#[inline(always)]
fn header(ctx: &TcContext, network: usize, version: u8) -> Option<Headed> {
    match version {
        4 => header_v4(ctx, network),
        6 => header_v6(ctx, network),
        _ => None,
    }
}

#[inline(always)]
fn header_v4(ctx: &TcContext, network: usize) -> Option<Headed> {
    let ends = Ends {
        source: Address::from_v4(ctx.load(network + V4_SOURCE_OFFSET).ok()?),
        destination: Address::from_v4(ctx.load(network + V4_DESTINATION_OFFSET).ok()?),
    };
    let place = u16::from_be(ctx.load(network + V4_FRAGMENT_OFFSET).ok()?);
    let version: u8 = ctx.load(network).ok()?;
    let protocol: u8 = ctx.load(network + V4_PROTOCOL_OFFSET).ok()?;
    let transport = unknown(ctx, network + ((version & 0x0f) as usize) * 4);
    let header = Header { ends, protocol, network, transport };
    if place & V4_FRAGMENT == 0 {
        return Some(Headed::Whole(header));
    }
    let id_be: u16 = ctx.load(network + V4_ID_OFFSET).ok()?;
    Some(Headed::Fragment(Fragment { header, id_be: id_be as u32, is_first: place & V4_OFFSET == 0 }))
}

#[inline(always)]
fn header_v6(ctx: &TcContext, network: usize) -> Option<Headed> {
    let ends = Ends {
        source: ctx.load(network + V6_SOURCE_OFFSET).ok()?,
        destination: ctx.load(network + V6_DESTINATION_OFFSET).ok()?,
    };
    // On the wire these are no addresses: they would be taken for those of IPv4.
    if ends.source.is_v4() || ends.destination.is_v4() {
        return Some(Headed::Closed(ends));
    }
    let mut protocol: u8 = ctx.load(network + V6_NEXT_HEADER_OFFSET).ok()?;
    let mut transport = network + V6_LENGTH;
    for _ in 0..V6_EXTENSIONS {
        let length = match protocol {
            V6_HOP_BY_HOP | V6_ROUTING | V6_DESTINATION_OPTIONS => match ctx.load::<u8>(transport + 1) {
                Ok(length) => (length as usize + 1) * 8,
                Err(_) => return Some(Headed::Closed(ends)),
            },
            V6_FRAGMENT_HEADER => match ctx.load(transport + 2).map(u16::from_be) {
                // One that is a packet's only fragment is a packet.
                Ok(place) if place & V6_FRAGMENT == 0 => 8,
                Ok(place) => {
                    let protocol = ctx.load(transport).ok()?;
                    let id_be = ctx.load(transport + V6_ID_OFFSET).ok()?;
                    let header = Header { ends, protocol, network, transport: unknown(ctx, transport + 8) };
                    return Some(Headed::Fragment(Fragment {
                        header,
                        id_be,
                        is_first: place & V6_OFFSET == 0,
                    }));
                }
                Err(_) => return Some(Headed::Closed(ends)),
            },
            _ => break,
        };
        let Ok(next) = ctx.load(transport) else { return Some(Headed::Closed(ends)) };
        protocol = next;
        transport += length;
    }
    Some(Headed::Whole(Header { ends, protocol, network, transport: unknown(ctx, transport) }))
}

/// The same number, of which the verifier knows nothing any more: it would follow what comes next for each place that the transport
/// can be at.
#[inline(always)]
fn unknown(ctx: &TcContext, mut number: usize) -> usize {
    // SAFETY: the kernel gave this context to this run of the program; the instructions give the number back as it was.
    unsafe {
        asm!("{0} ^= {1}", "{0} ^= {1}", inout(reg) number, in(reg) (*ctx.skb.skb).len as usize, options(pure, nomem, nostack));
    }
    number
}

/// `is_quoted`: eight bytes of the transport are all that is sure to be there.
#[inline(always)]
fn with_ports(ctx: &TcContext, header: &Header, is_quoted: bool) -> Option<Packet> {
    let Header { ends: Ends { source, destination }, protocol, network, transport } = *header;
    let mut packet = Packet {
        source,
        destination,
        source_port_be: 0,
        destination_port_be: 0,
        protocol,
        may_begin_flow: true,
        is_rest: false,
        fin: false,
        reset: false,
        network,
        transport,
    };
    match protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            packet.source_port_be = ctx.load(transport).ok()?;
            packet.destination_port_be = ctx.load(transport + 2).ok()?;
            if protocol == protocol::TCP && !is_quoted {
                packet.note_flags(ctx.load(transport + TCP_FLAGS_OFFSET).ok()?);
            }
            if protocol == protocol::SCTP && !is_quoted {
                let chunk: u8 = ctx.load(transport + SCTP_CHUNK_OFFSET).ok()?;
                packet.may_begin_flow = chunk == SCTP_INIT;
                packet.fin = matches!(chunk, SCTP_SHUTDOWN | SCTP_SHUTDOWN_ACK | SCTP_SHUTDOWN_COMPLETE);
                packet.reset = chunk == SCTP_ABORT;
            }
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let kind: u8 = ctx.load(transport).ok()?;
            let id: u16 = ctx.load(transport + ICMP_ID_OFFSET).ok()?;
            match (protocol, kind) {
                (protocol::ICMP, ICMP_ECHO) | (protocol::ICMPV6, ICMPV6_ECHO) => packet.source_port_be = id,
                (protocol::ICMP, ICMP_ECHO_REPLY) | (protocol::ICMPV6, ICMPV6_ECHO_REPLY) => {
                    packet.destination_port_be = id;
                    packet.may_begin_flow = false;
                }
                _ => return None,
            }
        }
        _ => return None,
    }
    Some(packet)
}

#[inline(always)]
fn icmp_error(ctx: &TcContext, outer: &Header) -> Option<IcmpError> {
    let kind: u8 = ctx.load(outer.transport).ok()?;
    let version = match (outer.protocol, kind) {
        (protocol::ICMP, ICMP_UNREACHABLE | ICMP_TIME_EXCEEDED | ICMP_PARAMETER_PROBLEM) => 4,
        (protocol::ICMPV6, kind) if ICMPV6_ERRORS.contains(&kind) => 6,
        _ => return None,
    };
    let network = outer.transport + ICMP_LENGTH;
    if ctx.load::<u8>(network).ok()? >> 4 != version {
        return None;
    }
    let Headed::Whole(inner) = header(ctx, network, version)? else { return None };
    Some(IcmpError {
        source: outer.ends.source,
        destination: outer.ends.destination,
        quoted: with_ports(ctx, &inner, true)?,
        network: outer.network,
        checksum: outer.transport + ICMP_CHECKSUM_OFFSET,
    })
}

/// How long the quoted packet might have been, if the error says that it was too long.
#[inline(always)]
pub fn path_mtu(ctx: &TcContext, error: &IcmpError) -> Option<u32> {
    let message = error.checksum - ICMP_CHECKSUM_OFFSET;
    let [kind, code]: [u8; 2] = ctx.load(message).ok()?;
    match (error.destination.is_v4(), kind, code) {
        (true, ICMP_UNREACHABLE, ICMP_TOO_LONG) => Some(u16::from_be(ctx.load(message + 6).ok()?) as u32),
        (false, ICMPV6_TOO_LONG, _) => Some(u32::from_be(ctx.load(message + 4).ok()?)),
        _ => None,
    }
}

/// Writes another address, of the same family, and port to one end and mends the checksums. `Err` leaves a packet that must be
/// dropped.
#[inline(always)]
pub fn rewrite(
    ctx: &TcContext,
    packet: &Packet,
    end: End,
    address: &Address,
    port_be: u16,
) -> Result<(), i64> {
    let old = match end {
        End::Source => &packet.source,
        End::Destination => &packet.destination,
    };
    if packet.protocol == protocol::SCTP && !packet.is_rest {
        write_sctp_port(ctx, packet, end, port_be)?;
    }
    if packet.is_rest || packet.protocol == protocol::SCTP {
        return match (old.to_v4(), address.to_v4()) {
            (Some(old), Some(new)) => rewrite_v4(ctx, packet.network, end, old, new),
            _ => {
                // No checksum makes up for the address; a device's sum of the whole follows it.
                // SAFETY: the kernel gave this context to this run of the program.
                unsafe { bpf_csum_update(ctx.skb.skb, difference(old, address) as u32) };
                ctx.store(packet.network + place_v6(end), address, 0)
            }
        };
    }
    let sum @ (checksum, flags) = checksum_of(packet);
    write_port(ctx, packet, end, port_be, sum)?;
    match (old.to_v4(), address.to_v4()) {
        (Some(old), Some(new)) => {
            if packet.protocol != protocol::ICMP {
                ctx.l4_csum_replace(checksum, old as u64, new as u64, 4 | BPF_F_PSEUDO_HDR | flags)?;
            }
            rewrite_v4(ctx, packet.network, end, old, new)
        }
        _ => rewrite_v6(ctx, packet.network, end, old, address, checksum, flags),
    }
}

/// Writes another port to one end and mends the checksum. `Err` leaves a packet that must be dropped.
#[inline(always)]
pub fn rewrite_port(ctx: &TcContext, packet: &Packet, end: End, port_be: u16) -> Result<(), i64> {
    if packet.is_rest {
        return Ok(());
    }
    if packet.protocol == protocol::SCTP {
        return write_sctp_port(ctx, packet, end, port_be);
    }
    write_port(ctx, packet, end, port_be, checksum_of(packet))
}

/// Leaves the checksum, which is a CRC of the whole packet, to [`orlop_sctp_sum`]: what has changed stands in the packet's scratch words meanwhile.
#[inline(always)]
fn write_sctp_port(ctx: &TcContext, packet: &Packet, end: End, port_be: u16) -> Result<(), i64> {
    let (old_be, offset) = place_of_port(packet, end);
    // As the first four bytes stand in a little-endian number.
    let difference = ((old_be ^ port_be) as u32) << (offset * 8);
    // SAFETY: the kernel gave this context to this run of the program, and these words are free for it.
    unsafe {
        let [changed, place, ..] = &mut (*ctx.skb.skb).cb;
        (&raw mut *changed).write_volatile(*changed ^ difference);
        (&raw mut *place).write_volatile((packet.transport as u32) << 16 | packet.network as u32);
    }
    ctx.store(packet.transport + offset, &port_be, 0)
}

/// Before a packet is looked at: nothing has changed.
#[inline(always)]
pub fn begin(ctx: &TcContext) {
    // SAFETY: as in `write_sctp_port`.
    unsafe { (&raw mut (*ctx.skb.skb).cb[0]).write_volatile(0) };
}

/// Behind it: a changed SCTP packet gets its checksum. `verdict` is what to do with the packet, unless that fails.
#[inline(always)]
pub fn end(ctx: &TcContext, verdict: i32, failed: i32) -> i32 {
    // SAFETY: as in `write_sctp_port`.
    let difference = unsafe { (&raw const (*ctx.skb.skb).cb[0]).read_volatile() };
    if difference == 0 || orlop_sctp_sum(ctx.skb.skb) == 0 { verdict } else { failed }
}

/// Mends the checksum of an SCTP packet whose ports were changed; not 0, if that failed. Apart, and global, as the functions of `uplink` are.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn orlop_sctp_sum(skb: *mut __sk_buff) -> i32 {
    if sum_sctp(&TcContext::new(skb)).is_ok() { 0 } else { -1 }
}

#[inline(always)]
fn sum_sctp(ctx: &TcContext) -> Result<(), i64> {
    // SAFETY: as in `write_sctp_port`.
    let [difference, place] = unsafe { [(*ctx.skb.skb).cb[0], (*ctx.skb.skb).cb[1]] };
    let (network, transport) = ((place & 0xffff) as usize, (place >> 16) as usize);
    let checksum: u32 = ctx.load(transport + SCTP_CHECKSUM_OFFSET)?;
    // None yet: the device, or the kernel in its place, makes it at the end. One that is 0 by chance costs that packet.
    if checksum == 0 {
        return Ok(());
    }
    let version: u8 = ctx.load(network)?;
    let end = match version >> 4 {
        4 => network + u16::from_be(ctx.load(network + V4_LENGTH_OFFSET)?) as usize,
        _ => network + V6_LENGTH + u16::from_be(ctx.load(network + V6_PAYLOAD_LENGTH_OFFSET)?) as usize,
    };
    let checksum = checksum ^ crc32c::change(difference, end.wrapping_sub(transport) as u16);
    ctx.store(transport + SCTP_CHECKSUM_OFFSET, &checksum, 0)
}

#[inline(always)]
fn write_port(
    ctx: &TcContext,
    packet: &Packet,
    end: End,
    port_be: u16,
    (checksum, flags): (usize, u64),
) -> Result<(), i64> {
    let (old_be, offset) = place_of_port(packet, end);
    if old_be == port_be {
        return Ok(());
    }
    ctx.l4_csum_replace(checksum, old_be as u64, port_be as u64, 2 | flags)?;
    ctx.store(packet.transport + offset, &port_be, 0)
}

/// Where the transport's checksum stands, and the kernel's flags for changing it.
#[inline(always)]
fn checksum_of(packet: &Packet) -> (usize, u64) {
    let (offset, flags) = match packet.protocol {
        protocol::TCP => (TCP_CHECKSUM_OFFSET, 0),
        protocol::UDP => (UDP_CHECKSUM_OFFSET, BPF_F_MARK_MANGLED_0),
        _ => (ICMP_CHECKSUM_OFFSET, 0),
    };
    (packet.transport + offset, flags)
}

/// Writes another address and port to one end of what an ICMP error quotes, and mends the error's checksums; with `is_told`, whoever
/// it is sent to (or by) is that address too. The other end keeps its address. The quoted transport's own checksum stays: nobody can check it.
#[inline(always)]
pub fn rewrite_error(
    ctx: &TcContext,
    error: &IcmpError,
    end: End,
    is_told: bool,
    address: &Address,
    port_be: u16,
    other_port_be: u16,
) -> Result<(), i64> {
    let IcmpError { quoted, network, checksum, .. } = error;
    let old = match end {
        End::Source => &quoted.source,
        End::Destination => &quoted.destination,
    };
    let told = match end {
        End::Source => &error.destination,
        End::Destination => &error.source,
    };
    // An echo has one place for both ends' ports: what is meant is written last.
    write_quoted_port(ctx, error, end.other(), other_port_be)?;
    write_quoted_port(ctx, error, end, port_be)?;
    if let (Some(old), Some(told), Some(new)) = (old.to_v4(), told.to_v4(), address.to_v4()) {
        // The quoted header's checksum makes up for its address: the sum of the whole stays.
        rewrite_v4(ctx, quoted.network, end, old, new)?;
        return if is_told { rewrite_v4(ctx, *network, end.other(), told, new) } else { Ok(()) };
    }
    ctx.l4_csum_replace(*checksum, 0, difference(old, address), 0)?;
    ctx.store(quoted.network + place_v6(end), address, 0)?;
    if is_told { rewrite_v6(ctx, *network, end.other(), told, address, *checksum, 0) } else { Ok(()) }
}

/// Writes another port to one end of what an ICMP error quotes, and mends the error's checksum. Also where it is the same: each way less is
/// much less for the verifier of kernel 6.1 to follow.
#[inline(always)]
fn write_quoted_port(ctx: &TcContext, error: &IcmpError, end: End, port_be: u16) -> Result<(), i64> {
    let (old_be, offset) = place_of_port(&error.quoted, end);
    ctx.l4_csum_replace(error.checksum, old_be as u64, port_be as u64, 2)?;
    ctx.store(error.quoted.transport + offset, &port_be, 0)
}

#[inline(always)]
fn rewrite_v4(ctx: &TcContext, network: usize, end: End, old_be: u32, new_be: u32) -> Result<(), i64> {
    ctx.l3_csum_replace(network + V4_CHECKSUM_OFFSET, old_be as u64, new_be as u64, 4)?;
    let place = match end {
        End::Source => V4_SOURCE_OFFSET,
        End::Destination => V4_DESTINATION_OFFSET,
    };
    ctx.store(network + place, &new_be, 0)
}

#[inline(always)]
fn rewrite_v6(
    ctx: &TcContext,
    network: usize,
    end: End,
    old: &Address,
    new: &Address,
    checksum: usize,
    flags: u64,
) -> Result<(), i64> {
    let difference = difference(old, new);
    ctx.l4_csum_replace(checksum, 0, difference, BPF_F_PSEUDO_HDR | flags)?;
    // The kernel takes it that a header's own checksum makes up for the addresses, as in IPv4, and changes the sum that a device
    // made of the whole packet. Here the transport's makes up for them, so that this goes back. No device made one: no effect.
    // SAFETY: the kernel gave this context to this run of the program.
    unsafe { bpf_csum_update(ctx.skb.skb, difference as u32) };
    ctx.store(network + place_v6(end), new, 0)
}

/// What another address changes in a checksum.
#[inline(always)]
fn difference(old: &Address, new: &Address) -> u64 {
    const LENGTH: u32 = size_of::<Address>() as u32;
    let words = |address: &Address| address.words_be.as_ptr().cast_mut();
    // SAFETY: the helper reads two addresses, and writes nothing.
    unsafe { bpf_csum_diff(words(old), LENGTH, words(new), LENGTH, 0) as u64 }
}

#[inline(always)]
fn place_v6(end: End) -> usize {
    match end {
        End::Source => V6_SOURCE_OFFSET,
        End::Destination => V6_DESTINATION_OFFSET,
    }
}

/// The port of one end, and where it stands in the transport. An ICMP echo has one place for both.
#[inline(always)]
fn place_of_port(packet: &Packet, end: End) -> (u16, usize) {
    let has_ports = matches!(packet.protocol, protocol::TCP | protocol::UDP | protocol::SCTP);
    match end {
        End::Source => (packet.source_port_be, if has_ports { 0 } else { ICMP_ID_OFFSET }),
        End::Destination => (packet.destination_port_be, if has_ports { 2 } else { ICMP_ID_OFFSET }),
    }
}
