//! Direct server return: what a node port's flow asks of a backend on another node goes there under the client's own address, and the answers leave from
//! there, past this node.
//!
//! The backend's node has to know which address the client asked. The packet that begins a flow, and every datagram that has room for it, tells: it
//! travels in Geneve (RFC 8926), addressed to the backend itself, with that address in an option. The node takes the packet out, and keeps what it was told
//! as the flow's entry (`nat::TOLD`), as if the flow had been translated there. What follows goes as it is.
//!
//! A path to a node may be narrower than the link to there: what a router says of that is heard here, since the kernel has no socket that it could tell.
//!
//! Who may tell is written down by user space: a packet from anybody else is not looked into.

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{
    BPF_EXIST, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
    BPF_NOEXIST,
};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::bpf_check_mtu;
use aya_ebpf::programs::TcContext;
use dataplane_abi::{Address, NatKey, NatValue, NetworkKey, PathMtu, counter, geneve, nat, policy, protocol};

use crate::ended::Held;
use crate::maps::{ORLOP_CONFIG, ORLOP_INBOUND, ORLOP_PATHS, ORLOP_RULES, count};
use crate::packet::{self, ETHERNET_LENGTH, IcmpError, Layer, Packet, Parsed};
use crate::uplink::{self, BEGINS, DROP, NEXT};

/// What is put before a packet, for the devices.
const ENCAP_V4: u64 = (BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP) as u64;
const ENCAP_V6: u64 = (BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP) as u64;

const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;
const HOP_LIMIT: u32 = 64;

/// Whether a packet may be one that another node wrapped. Asked of what belongs to no flow.
#[inline(always)]
pub fn may_be_wrapped(packet: &Packet) -> bool {
    is_for_nodes(packet) && is_peer(&packet.source)
}

/// Whether a packet goes where nodes tell each other of flows.
#[inline(always)]
pub fn is_for_nodes(packet: &Packet) -> bool {
    packet.protocol == protocol::UDP && packet.destination_port_be == geneve::PORT.to_be()
}

/// Whether it is an address of another node.
#[inline(always)]
pub fn is_peer(address: &Address) -> bool {
    let [a, b, c, d] = address.words_be;
    let list = ORLOP_RULES.get(&Key::new(NetworkKey::WHOLE, [policy::PEERS, a, b, c, d]));
    list.is_some_and(|list| *list == policy::ALL_PORTS)
}

/// Sends the first packet of a flow, or a datagram, on to its backend's node. One that has no room for what is to be told is left to the usual way, unless
/// that node knows already.
#[inline(always)]
pub fn leaves(ctx: &TcContext, layer: Layer) -> i32 {
    let (packet, is_part) = match packet::parse(ctx, layer) {
        Parsed::Packet(packet) => (packet, false),
        _ => match packet::parse_fragment(ctx, layer) {
            Ok(packet) => (packet, true),
            Err(_) => return NEXT,
        },
    };
    let Some(element) = ORLOP_INBOUND.get_ptr_mut(&uplink::answer_key(&packet, nat::OUT)) else {
        // Evicted this moment.
        return BEGINS;
    };
    // SAFETY: the value is copied at once; an element that is recycled meanwhile misleads one packet, which its receiver refuses.
    let entry = unsafe { *element };
    let path = narrow_path(&packet.destination);
    if is_part || !has_room(ctx, &packet, path) {
        // What was told by a narrow path may not have come there.
        let is_told_of = entry.state & nat::TOLD_OF != 0 && path.is_none();
        return if is_told_of { NEXT } else { BEGINS };
    }
    if wrap(ctx, &packet, &entry).is_err() {
        count(counter::REWRITE_FAILED);
        return DROP;
    }
    // SAFETY: the kernel gave the element to this run of the program, and this is a plain integer inside it.
    unsafe { (&raw mut (*element).state).write_volatile(entry.state | nat::TOLD_OF) };
    count(counter::DIRECT_RETURN);
    NEXT
}

/// Takes out what another node wrapped.
#[inline(always)]
pub fn enters(ctx: &TcContext, layer: Layer) -> i32 {
    let Parsed::Packet(outer) = packet::parse(ctx, layer) else { return NEXT };
    let Some(told) = read(ctx, &outer) else { return uplink::note_direct_flow(&outer) };
    let length = told.begins - outer.network;
    if ctx.adjust_room(-(length as i32), BPF_ADJ_ROOM_MAC, 0).is_err() {
        count(counter::REWRITE_FAILED);
        return DROP;
    }
    match packet::parse(ctx, layer) {
        Parsed::Packet(packet) if packet.destination.is(&outer.destination) => note(&packet, &told),
        _ => {
            count(counter::REWRITE_FAILED);
            DROP
        }
    }
}

/// What a packet tells of the one in it.
struct Told {
    service: Address,
    service_port_be: u16,
    client_port_be: u16,
    /// Where that begins.
    begins: usize,
}

/// From here on the answers show the address that the client asked.
#[inline(always)]
fn note(packet: &Packet, told: &Told) -> i32 {
    let key: NatKey = uplink::answer_key(packet, nat::OUT);
    let held = ORLOP_INBOUND.get_ptr_mut(&key);
    if let Some(element) = held {
        // SAFETY: as in `leaves`.
        let held = unsafe { *element };
        if held.kind == nat::TOLD
            && held.address.is(&told.service)
            && held.port_be == told.service_port_be
            && held.client_port_be == told.client_port_be
        {
            // SAFETY: the kernel gave the element to this run of the program.
            unsafe { uplink::touch(Some(element), (&key, Held::Inbound), packet, nat::IN) };
            return NEXT;
        }
        // The same client port, by another node's or straight: the answers could not be told apart, unless there are none any more.
        // A connection that was reset does so when it has been silent for seconds.
        let is_scarce = nat::was_reset(held.state);
        if !nat::is_over(packet.protocol, held.state)
            && !uplink::may_take_over(packet.protocol, &held, is_scarce)
        {
            count(counter::NODE_PORT_COLLISION);
            return DROP;
        }
    }
    let entry = NatValue {
        address: told.service,
        port_be: told.service_port_be,
        kind: nat::TOLD,
        state: nat::ANSWERED,
        backend: 0,
        generation: 0,
        selection: 0,
        slot: 0,
        client_port_be: told.client_port_be,
        used: uplink::now(),
        link: 0,
    };
    if uplink::written(ORLOP_INBOUND.insert(&key, &entry, 0)) { NEXT } else { DROP }
}

/// An error that came in by an uplink. If it is about what this node told of an endpoint, its packet was too long for the path: the next ones of such a length go
/// on under this node's address. The kernel, which has no socket for those, takes no notice. Whoever knows the addresses may say so, as to any host: of endpoints
/// that were told something, and nothing that the link itself would not say.
#[inline(always)]
pub fn hear(ctx: &TcContext, error: &IcmpError) {
    let IcmpError { destination, quoted, .. } = error;
    if !is_for_nodes(quoted) || !destination.is(&quoted.source) || !uplink::is_shown(destination) {
        return;
    }
    if let Some(mtu) = packet::path_mtu(ctx, error)
        && mtu < link_mtu(ctx)
    {
        let least = if destination.is_v4() { geneve::LEAST_MTU_V4 } else { geneve::LEAST_MTU_V6 };
        let path = PathMtu { mtu: mtu.max(least), since: uplink::now() };
        if ORLOP_PATHS.insert(&quoted.destination, &path, BPF_EXIST as u64).is_ok() {
            count(counter::PATH_NARROW);
        }
    }
}

/// How long a packet to an endpoint may be, where that is known to be less than the link takes.
#[inline(always)]
fn narrow_path(endpoint: &Address) -> Option<u32> {
    // SAFETY: the value is copied at once; one of a recycled element misjudges one packet.
    match unsafe { ORLOP_PATHS.get(endpoint) }.copied() {
        Some(PathMtu { mtu, since }) if mtu != PathMtu::WHOLE => {
            (uplink::now().wrapping_sub(since) < geneve::PATH_TICKS).then_some(mtu)
        }
        Some(_) => None,
        None => {
            // From now on errors are heard. Where the kernel has no room for a moment, the next packet notes it.
            let path = PathMtu { mtu: PathMtu::WHOLE, since: 0 };
            let _ = ORLOP_PATHS.insert(endpoint, &path, BPF_NOEXIST as u64);
            None
        }
    }
}

/// What the packet's link takes.
#[inline(always)]
fn link_mtu(ctx: &TcContext) -> u32 {
    let mut mtu = 0_u32;
    // SAFETY: the kernel gave this context to this run of the program; the helper writes one number.
    unsafe { bpf_check_mtu(ctx.skb.skb.cast(), 0, &raw mut mtu, 0, 0) };
    mtu
}

/// Whether the link and the path take the packet with what is put before it.
#[inline(always)]
fn has_room(ctx: &TcContext, packet: &Packet, path: Option<u32>) -> bool {
    let mut mtu = 0_u32;
    let more = if packet.destination.is_v4() { geneve::ROOM_V4 } else { geneve::ROOM_V6 };
    if path.is_some_and(|path| ctx.len() - ETHERNET_LENGTH as u32 + more as u32 > path) {
        return false;
    }
    // SAFETY: the kernel gave this context to this run of the program; the helper writes one number.
    unsafe {
        (*ctx.skb.skb).gso_size == 0
            && bpf_check_mtu(ctx.skb.skb.cast(), 0, &raw mut mtu, more as i32, 0) == 0
    }
}

#[inline(always)]
fn wrap(ctx: &TcContext, packet: &Packet, entry: &NatValue) -> Result<(), i64> {
    let source = uplink::shown_at(ctx, ORLOP_CONFIG.get(0).ok_or(-1)?, &packet.source);
    let length = ctx.len() - ETHERNET_LENGTH as u32;
    let ports = |port: u16| (u16::from_be(packet.source_port_be) as u32) << 16 | port as u32;
    let told = (u16::from_be(entry.port_be) as u32) << 16 | u16::from_be(entry.client_port_be) as u32;
    if let (Some(from_be), Some(to_be), Some(service_be)) =
        (source.to_v4(), packet.destination.to_v4(), entry.address.to_v4())
    {
        const ROOM: u32 = geneve::ROOM_V4 as u32;
        ctx.adjust_room(ROOM as i32, BPF_ADJ_ROOM_MAC, ENCAP_V4)?;
        let first = [0x4500_0000 | (length + ROOM), 0x4000, HOP_LIMIT << 24 | (protocol::UDP as u32) << 16];
        let (from, to) = (u32::from_be(from_be), u32::from_be(to_be));
        let sum = sum(first[0]) + sum(first[1]) + sum(first[2]) + sum(from) + sum(to);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = !((sum & 0xffff) + (sum >> 16)) & 0xffff;
        let words = [
            first[0].to_be(),
            first[1].to_be(),
            (first[2] | sum).to_be(),
            from_be,
            to_be,
            ports(geneve::PORT).to_be(),
            ((length + ROOM - V4_HEADER as u32) << 16).to_be(),
            geneve::HEADER_V4.to_be(),
            0,
            geneve::OPTION_V4.to_be(),
            service_be,
            told.to_be(),
        ];
        return ctx.store(ETHERNET_LENGTH, &words, 0);
    }
    const ROOM: u32 = geneve::ROOM_V6 as u32;
    ctx.adjust_room(ROOM as i32, BPF_ADJ_ROOM_MAC, ENCAP_V6)?;
    let behind = length + ROOM - V6_HEADER as u32;
    let first = [0x6000_0000_u32.to_be(), (behind << 16 | (protocol::UDP as u32) << 8 | HOP_LIMIT).to_be()];
    ctx.store(ETHERNET_LENGTH, &first, 0)?;
    ctx.store(ETHERNET_LENGTH + 8, &source, 0)?;
    ctx.store(ETHERNET_LENGTH + 24, &packet.destination, 0)?;
    let second = [
        ports(geneve::PORT).to_be(),
        (behind << 16).to_be(),
        geneve::HEADER_V6.to_be(),
        0,
        geneve::OPTION_V6.to_be(),
    ];
    ctx.store(ETHERNET_LENGTH + V6_HEADER, &second, 0)?;
    ctx.store(ETHERNET_LENGTH + V6_HEADER + 20, &entry.address, 0)?;
    ctx.store(ETHERNET_LENGTH + V6_HEADER + 36, &told.to_be(), 0)
}

/// Of the two halves of a word.
#[inline(always)]
fn sum(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

/// `None` for a packet that no node of ours made.
#[inline(always)]
fn read(ctx: &TcContext, outer: &Packet) -> Option<Told> {
    let header = outer.transport + UDP_HEADER;
    let [first, network, option]: [u32; 3] = ctx.load(header).ok()?;
    let is_v4 = outer.destination.is_v4();
    let wanted = if is_v4 {
        [geneve::HEADER_V4.to_be(), 0, geneve::OPTION_V4.to_be()]
    } else {
        [geneve::HEADER_V6.to_be(), 0, geneve::OPTION_V6.to_be()]
    };
    if (first ^ wanted[0]) | (network ^ wanted[1]) | (option ^ wanted[2]) != 0 {
        return None;
    }
    let told = header + geneve::BEFORE_DATA;
    let (service, behind) = if is_v4 {
        (Address::from_v4(ctx.load(told).ok()?), told + 4)
    } else {
        (ctx.load(told).ok()?, told + 16)
    };
    let [service_port_be, client_port_be]: [u16; 2] = ctx.load(behind).ok()?;
    Some(Told { service, service_port_be, client_port_be, begins: behind + 4 })
}
