//! XDP, before the kernel makes anything of a packet: what belongs to a node port's flow that is known, and goes on to a backend on another node or
//! comes back from one, leaves at once by the link that it came in by.
//!
//! An accelerator, and nothing else: it does what the programs of `uplink`, and the kernel's routing between them, would do with the very packet, notes it in
//! the same entries, and begins, moves and ends no flow. Whatever is not plain is passed on as it came, to be led as always:
//!
//! - connections that begin or end, datagrams of which another node is to be told (`direct_return`), and those whose service has changed since their flow's last one;
//! - flows of which an entry is missing or says something else, and those whose client has another port at its backend (`collision`);
//! - fragments, IPv4's options, IPv6's extension headers, other protocols than TCP and UDP;
//! - what has no hop left, no route, no neighbour that is known, or no room, or does not leave by the link that it came in by: so nothing goes past the
//!   programs of another link, be it a pod's, a tunnel's or a VLAN's;
//! - frames that are not addressed to the link.
//!
//! All is found out before the first byte is written.

use aya_ebpf::bindings::{BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup, xdp_action};
use aya_ebpf::helpers::generated;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use dataplane_abi::{Address, NatValue, Origin, counter, nat, protocol};

use crate::maps::{ORLOP_INBOUND, ORLOP_NAT, count};
use crate::packet::{
    ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ends, Packet, TCP_CHECKSUM_OFFSET, UDP_CHECKSUM_OFFSET,
    V4_FRAGMENT,
};
use crate::select::{self, Client};
use crate::uplink;

/// Headers in words of 16 bits, as they stand in the frame: larger ones are not aligned there.
type Ethernet = [u16; 7];
type V4 = [u16; 10];
type V6 = [u16; 20];
type Tcp = [u16; 10];
type Udp = [u16; 4];

const BEHIND_V4: usize = ETHERNET_LENGTH + size_of::<V4>();
const BEHIND_V6: usize = ETHERNET_LENGTH + size_of::<V6>();
/// IPv4's version, and the length of a header without options.
const PLAIN_V4: u16 = 0x45;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

// A jumbo frame comes in several buffers; the headers are in the first.
#[xdp(frags)]
pub fn orlop_xdp(ctx: XdpContext) -> u32 {
    match forward(&ctx) {
        Some(()) => {
            count(counter::ACCELERATED);
            xdp_action::XDP_TX
        }
        None => xdp_action::XDP_PASS,
    }
}

/// What was read of a frame.
struct Frame {
    packet: Packet,
    /// Of the packet, with its header.
    length: u16,
    /// As in [`Route`].
    class_be: u32,
}

/// A known flow's packet: where it goes, and what it shows there.
struct Flow {
    /// As it is routed: it has its destination already, and its source still.
    routed: Packet,
    source: Address,
    source_port_be: u16,
    /// The element that notes a packet on its way in, and, where there is one, on its way out.
    entered: *mut NatValue,
    left: *mut NatValue,
}

/// What the kernel's lookup of a route takes and gives: its `bpf_fib_lookup`, without unions.
#[repr(C)]
struct Route {
    family: u8,
    protocol: u8,
    source_port_be: u16,
    destination_port_be: u16,
    length: u16,
    /// By which the packet came in, and then by which it leaves.
    link: u32,
    /// IPv4's type of service, or IPv6's first word without the version.
    class_be: u32,
    /// An IPv4 address in the first word.
    source: Address,
    destination: Address,
    table: u32,
    /// Addresses for the frame.
    from: [u16; 3],
    to: [u16; 3],
}

const _: () = assert!(size_of::<Route>() == size_of::<bpf_fib_lookup>());

/// Sends the packet on, or leaves it as it is.
#[inline(always)]
fn forward(ctx: &XdpContext) -> Option<()> {
    let frame = read(ctx)?;
    let flow = find(&frame.packet)?;
    let route = route(ctx, &frame, &flow)?;
    write(ctx, &frame.packet, &flow, &route)?;
    // SAFETY: the kernel gave the elements to this run of the program.
    unsafe {
        uplink::touch_known(flow.entered, &frame.packet, nat::IN);
        if !flow.left.is_null() {
            uplink::touch_known(flow.left, &frame.packet, nat::OUT);
        }
    }
    Some(())
}

/// A part of the frame, if that reaches so far.
#[inline(always)]
fn part<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    let begins = ctx.data() + offset;
    if begins + size_of::<T>() > ctx.data_end() { None } else { Some(begins as *mut T) }
}

#[inline(always)]
fn read(ctx: &XdpContext) -> Option<Frame> {
    // SAFETY: it is in the frame, which is this run's alone; so in what follows.
    let [.., kind] = unsafe { *part::<Ethernet>(ctx, 0)? };
    match u16::from_be(kind) {
        ETHERTYPE_IPV4 => read_v4(ctx),
        ETHERTYPE_IPV6 => read_v6(ctx),
        _ => None,
    }
}

#[inline(always)]
fn read_v4(ctx: &XdpContext) -> Option<Frame> {
    // SAFETY: as in `read`.
    let [first, length, _, place, carries, _, a, b, c, d] = unsafe { *part::<V4>(ctx, ETHERNET_LENGTH)? };
    let (first, carries) = (u16::from_be(first), u16::from_be(carries));
    let ends = Ends { source: Address::from_v4(word(a, b)), destination: Address::from_v4(word(c, d)) };
    let has_hops = carries >> 8 > 1;
    if first >> 8 != PLAIN_V4 || u16::from_be(place) & V4_FRAGMENT != 0 || !has_hops {
        return None;
    }
    let packet = with_ports(ctx, ends, carries as u8, BEHIND_V4)?;
    Some(Frame { packet, length: u16::from_be(length), class_be: (first & 0xff) as u32 })
}

#[inline(always)]
fn read_v6(ctx: &XdpContext) -> Option<Frame> {
    // SAFETY: as in `read`.
    let [first, label, length, carries, rest @ ..] = unsafe { *part::<V6>(ctx, ETHERNET_LENGTH)? };
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = rest;
    let ends = Ends {
        source: Address { words_be: [word(a, b), word(c, d), word(e, f), word(g, h)] },
        destination: Address { words_be: [word(i, j), word(k, l), word(m, n), word(o, p)] },
    };
    let (version, carries) = (u16::from_be(first) >> 12, u16::from_be(carries));
    let has_hops = carries & 0xff > 1;
    // On the wire these are no addresses: they would be taken for those of IPv4.
    if version != 6 || ends.source.is_v4() || ends.destination.is_v4() || !has_hops {
        return None;
    }
    let packet = with_ports(ctx, ends, (carries >> 8) as u8, BEHIND_V6)?;
    let length = u16::from_be(length).checked_add(size_of::<V6>() as u16)?;
    Some(Frame { packet, length, class_be: word(first & 0x0fff_u16.to_be(), label) })
}

#[inline(always)]
fn with_ports(ctx: &XdpContext, ends: Ends, carries: u8, transport: usize) -> Option<Packet> {
    let (ports_be, flags) = match carries {
        protocol::TCP => {
            // SAFETY: as in `read`.
            let [from, to, _, _, _, _, flags, ..] = unsafe { *part::<Tcp>(ctx, transport)? };
            ([from, to], u16::from_be(flags) as u8)
        }
        protocol::UDP => {
            // SAFETY: as in `read`.
            let [from, to, ..] = unsafe { *part::<Udp>(ctx, transport)? };
            ([from, to], 0)
        }
        _ => return None,
    };
    Some(Packet::whole(ends, ports_be, carries, flags, (ETHERNET_LENGTH, transport)))
}

/// The flow of a packet, if all of it is known. The order is that of the programs behind.
#[inline(always)]
fn find(packet: &Packet) -> Option<Flow> {
    let (begins, ends) = (packet.may_begin_flow, packet.fin || packet.reset);
    if protocol::has_connections(packet.protocol) && (begins || ends) {
        return None;
    }
    let key = uplink::nat_key(packet, nat::IN);
    match ORLOP_NAT.get_ptr_mut(&key) {
        Some(answered) => find_answer(packet, answered),
        None => find_question(packet, ORLOP_INBOUND.get_ptr_mut(&key)?),
    }
}

/// From a client towards a backend.
#[inline(always)]
fn find_question(packet: &Packet, element: *mut NatValue) -> Option<Flow> {
    // SAFETY: the kernel gave the element to this run of the program, and the value is copied at once; one of an element that is recycled meanwhile
    // misdirects one packet, which its receiver refuses. So in what follows.
    let entry = unsafe { *element };
    if entry.client_port_be != 0 || !leads_to_service(&entry) {
        return None;
    }
    // What a datagram may change in the flow, it changes on the usual way.
    let client = || Client { address: packet.source, port_be: packet.source_port_be, netns: None };
    if packet.may_begin_flow
        && !select::is_unchanged(&packet.frontend(), Origin::Outside, client, uplink::pick_of(&entry))
    {
        return None;
    }
    let entered = ORLOP_INBOUND.get_ptr_mut(&uplink::out_key(packet, &entry))?;
    // SAFETY: as above.
    if !unsafe { shows(entered, &packet.destination, packet.destination_port_be) } {
        return None;
    }
    let routed = packet.led_to(entry.address, entry.port_be);
    let key = uplink::nat_key(&routed, nat::OUT);
    let Some(shown) = ORLOP_NAT.get_ptr_mut(&key) else {
        // It goes on under the client's address, and no program would have anything to do with it.
        let is_direct = entry.kind == nat::DIRECT_RETURN && !packet.may_begin_flow;
        if !is_direct
            || ORLOP_INBOUND.get_ptr_mut(&key).is_some()
            || uplink::leaves_under_another_address(&routed.source, &routed.destination)
        {
            return None;
        }
        let left = core::ptr::null_mut();
        return Some(Flow {
            routed,
            source: packet.source,
            source_port_be: packet.source_port_be,
            entered,
            left,
        });
    };
    // SAFETY: as above.
    let (source, source_port_be) = unsafe { ((*shown).address, (*shown).port_be) };
    let left = ORLOP_NAT.get_ptr_mut(&uplink::back_in(&routed, &source, source_port_be))?;
    // SAFETY: as above.
    let holds_port = unsafe { shows(left, &routed.source, routed.source_port_be) };
    holds_port.then_some(Flow { routed, source, source_port_be, entered, left })
}

/// From a backend towards a client: under the address that was asked.
#[inline(always)]
fn find_answer(packet: &Packet, element: *mut NatValue) -> Option<Flow> {
    // SAFETY: as in `find_question`.
    let entry = unsafe { *element };
    let routed = packet.led_to(entry.address, entry.port_be);
    let key = uplink::nat_key(&routed, nat::OUT);
    let left = ORLOP_INBOUND.get_ptr_mut(&key)?;
    // SAFETY: as in `find_question`.
    let shown = unsafe { *left };
    if shown.client_port_be != 0 || !leads_to_service(&shown) {
        return None;
    }
    // The other halves, without which the programs behind have something to mend, and what these would look at before.
    ORLOP_NAT.get_ptr_mut(&uplink::out_key(packet, &entry))?;
    let back = ORLOP_INBOUND.get_ptr_mut(&uplink::back_in(&routed, &shown.address, shown.port_be))?;
    // SAFETY: as in `find_question`. One that leads elsewhere: this is a late answer.
    if !unsafe { shows(back, &routed.source, routed.source_port_be) } {
        return None;
    }
    if ORLOP_NAT.get_ptr_mut(&key).is_some() {
        return None;
    }
    Some(Flow { routed, source: shown.address, source_port_be: shown.port_be, entered: element, left })
}

#[inline(always)]
fn leads_to_service(entry: &NatValue) -> bool {
    matches!(entry.kind, nat::NODE_PORT | nat::DIRECT_RETURN)
}

/// Whether an entry has this address and port, and its client the port that it has.
///
/// # Safety
/// The kernel gave the element to this run of the program.
#[inline(always)]
unsafe fn shows(element: *mut NatValue, address: &Address, port_be: u16) -> bool {
    // SAFETY: the caller's promise.
    let held = unsafe { *element };
    held.address.is(address) && held.port_be == port_be && held.client_port_be == 0
}

/// Where the packet leaves: `None`, unless that is the link that it came in by, and the frame was for this host.
#[inline(always)]
fn route(ctx: &XdpContext, frame: &Frame, flow: &Flow) -> Option<Route> {
    let routed = &flow.routed;
    // An IPv4 address comes first, and nobody reads the rest.
    let first = |address: Address| match address.to_v4() {
        Some(address_be) => Address { words_be: [address_be; 4] },
        None => address,
    };
    let link = ctx.ingress_ifindex() as u32;
    // SAFETY: as in `read`.
    let [a, b, c, d, e, f, _] = unsafe { *part::<Ethernet>(ctx, 0)? };
    let mut route = Route {
        family: if routed.destination.is_v4() { AF_INET } else { AF_INET6 },
        protocol: routed.protocol,
        source_port_be: routed.source_port_be,
        destination_port_be: routed.destination_port_be,
        length: frame.length,
        link,
        class_be: frame.class_be,
        source: first(routed.source),
        destination: first(routed.destination),
        table: 0,
        // As they are now; a row of equal bytes would be written by a function, one after the other.
        from: [d, e, f],
        to: [a, b, c],
    };
    // SAFETY: the kernel gave this context to this run of the program; the helper reads and writes what has its structure's layout.
    let found = unsafe {
        generated::bpf_fib_lookup(ctx.ctx.cast(), (&raw mut route).cast(), size_of::<Route>() as i32, 0)
    };
    let ([g, h, i], [j, k, l]) = (route.from, route.to);
    let is_for_us = (a ^ g) | (b ^ h) | (c ^ i) == 0;
    // Older kernels take a neighbour for known that is being asked for.
    let is_known = j | k | l != 0;
    (found == BPF_FIB_LKUP_RET_SUCCESS as i64 && route.link == link && is_for_us && is_known).then_some(route)
}

/// Rewrites the frame; `None` before anything has changed.
#[inline(always)]
fn write(ctx: &XdpContext, packet: &Packet, flow: &Flow, route: &Route) -> Option<()> {
    let Flow { routed, source, source_port_be, .. } = flow;
    let ethernet = part::<Ethernet>(ctx, 0)?;
    let addresses = change(&packet.source, source) + change(&packet.destination, &routed.destination);
    let ports = change_of_word(packet.source_port_be, *source_port_be)
        + change_of_word(packet.destination_port_be, routed.destination_port_be);
    if packet.destination.is_v4() {
        let header = part::<V4>(ctx, ETHERNET_LENGTH)?;
        write_transport::<BEHIND_V4>(
            ctx,
            packet.protocol,
            [*source_port_be, routed.destination_port_be],
            addresses + ports,
        )?;
        let ([.., from], [.., to]) = (source.words_be, routed.destination.words_be);
        let ([a, b], [c, d]) = (halves(from), halves(to));
        // SAFETY: as in `read`.
        unsafe {
            let [_, _, _, _, carries, sum, ..] = *header;
            let carries_after = fewer(carries, 0x100);
            let sum_after = mend(sum, addresses + change_of_word(carries, carries_after));
            let [.., e, f, g, h, i, j] = &mut *header;
            (*e, *f, *g, *h, *i, *j) = (carries_after, sum_after, a, b, c, d);
        }
    } else {
        let header = part::<V6>(ctx, ETHERNET_LENGTH)?;
        write_transport::<BEHIND_V6>(
            ctx,
            packet.protocol,
            [*source_port_be, routed.destination_port_be],
            addresses + ports,
        )?;
        // SAFETY: as in `read`.
        let [_, _, _, carries, rest @ ..] = unsafe { &mut *header };
        *carries = fewer(*carries, 1);
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = rest;
        for ([first, second], word) in [[a, b], [c, d], [e, f], [g, h]].into_iter().zip(source.words_be) {
            [*first, *second] = halves(word);
        }
        let to = routed.destination.words_be;
        for ([first, second], word) in [[i, j], [k, l], [m, n], [o, p]].into_iter().zip(to) {
            [*first, *second] = halves(word);
        }
    }
    let ([a, b, c], [d, e, f]) = (route.to, route.from);
    // SAFETY: as in `read`.
    let [g, h, i, j, k, l, _] = unsafe { &mut *ethernet };
    (*g, *h, *i, *j, *k, *l) = (a, b, c, d, e, f);
    Some(())
}

#[inline(always)]
fn write_transport<const OFFSET: usize>(
    ctx: &XdpContext,
    carries: u8,
    ports_be: [u16; 2],
    change: u64,
) -> Option<()> {
    let ports = part::<[u16; 2]>(ctx, OFFSET)?;
    let sum = match carries {
        protocol::TCP => part::<u16>(ctx, OFFSET + TCP_CHECKSUM_OFFSET)?,
        _ => part::<u16>(ctx, OFFSET + UDP_CHECKSUM_OFFSET)?,
    };
    // SAFETY: as in `read`.
    unsafe {
        *ports = ports_be;
        // A datagram need not have one, and one that is 0 is written otherwise (RFC 768).
        if carries == protocol::TCP {
            *sum = mend(*sum, change);
        } else if *sum != 0 {
            let mended = mend(*sum, change);
            *sum = if mended == 0 { u16::MAX } else { mended };
        }
    }
    Some(())
}

/// A checksum for what has changed (RFC 1624).
#[inline(always)]
fn mend(sum: u16, change: u64) -> u16 {
    let mut after = (!sum) as u64 + change;
    after = (after & 0xffff) + (after >> 16);
    after = (after & 0xffff) + (after >> 16);
    after = (after & 0xffff) + (after >> 16);
    !(after as u16)
}

/// What another address changes in a sum; the words that IPv4's are all alike in change nothing.
#[inline(always)]
fn change(old: &Address, new: &Address) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (old.words_be, new.words_be);
    let each = |old: u32, new: u32| (!old) as u64 + new as u64;
    each(a, e) + each(b, f) + each(c, g) + each(d, h)
}

#[inline(always)]
fn change_of_word(old: u16, new: u16) -> u64 {
    (!old) as u64 + new as u64
}

/// A word of a header of which one byte counts down.
#[inline(always)]
fn fewer(word_be: u16, one: u16) -> u16 {
    (u16::from_be(word_be) - one).to_be()
}

/// Two words of a frame as one, whose bytes stand as before.
#[inline(always)]
fn word(first: u16, second: u16) -> u32 {
    let ([a, b], [c, d]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

#[inline(always)]
fn halves(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_ne_bytes();
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
}
