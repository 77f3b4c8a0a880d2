//! Traffic that crosses an uplink: node ports on the way in, masquerading on the way out.
//!
//! Each flow has two entries, one for each direction, written together: in ORLOP_NAT for what pods begin (masqueraded), in
//! ORLOP_INBOUND for what hosts outside begin (node ports; packets straight to a pod). Every packet touches both, and makes
//! the other one again if the kernel evicted it, so that half a pair never lasts. A node port's flow whose backend is on another
//! node has a pair in both: it goes on under the node's own address, so that the answers come back here. Over the overlay, that
//! is the overlay's address: another one would come out of a tunnel that it does not belong to.
//!
//! What should be masqueraded and cannot be (fragments, protocols without ports, ICMP errors, connections whose entry is
//! gone) is dropped and counted: it never leaves under the pod's address. Only ports are translated towards a pod, not the
//! client's: one client address and port that uses two node ports of one pod at the same time has the later flow dropped
//! and counted. ICMP errors for masqueraded flows are not translated back.
//!
//! The kernel may have no room for an entry for a moment. What then could not be answered is dropped and counted; its sender
//! tries again.
//!
//! Nothing here ends the chain of programs or filters of the link, except by dropping.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use dataplane_abi::{Config, FrontendKey, NatKey, NatValue, Network, Origin, counter, nat, protocol};

use crate::maps::{ORLOP_CONFIG, ORLOP_INBOUND, ORLOP_NAT, count};
use crate::packet::{self, End, Ends, Layer, Packet, Parsed};
use crate::select::{self, Choice, Pick};

/// TCX_NEXT, and TC_ACT_UNSPEC for older hooks: the next program decides.
const NEXT: i32 = -1;
/// TCX_DROP and TC_ACT_SHOT.
const DROP: i32 = 2;
/// What the helpers return for an entry that is there already.
const EEXIST: i32 = -17;

#[classifier]
pub fn orlop_ingress(ctx: TcContext) -> i32 {
    enters(&ctx, Layer::Ethernet)
}

#[classifier]
pub fn orlop_egress(ctx: TcContext) -> i32 {
    leaves(&ctx, Layer::Ethernet)
}

#[classifier]
pub fn orlop_ingress_l3(ctx: TcContext) -> i32 {
    enters(&ctx, Layer::Ip)
}

#[classifier]
pub fn orlop_egress_l3(ctx: TcContext) -> i32 {
    leaves(&ctx, Layer::Ip)
}

#[inline(always)]
fn enters(ctx: &TcContext, layer: Layer) -> i32 {
    match packet::parse(ctx, layer) {
        Parsed::Packet(packet) => ingress(ctx, &packet),
        // Untranslated; the counter tells why a flow does not work.
        Parsed::Fragment(_) => {
            count(counter::FRAGMENT);
            NEXT
        }
        Parsed::Portless(_) | Parsed::Other => NEXT,
    }
}

#[inline(always)]
fn leaves(ctx: &TcContext, layer: Layer) -> i32 {
    match packet::parse(ctx, layer) {
        Parsed::Packet(packet) => egress(ctx, &packet),
        Parsed::Fragment(ends) => {
            count(counter::FRAGMENT);
            untranslatable(ends)
        }
        Parsed::Portless(ends) => untranslatable(ends),
        Parsed::Other => NEXT,
    }
}

/// A packet without ports on its way out.
#[inline(always)]
fn untranslatable(Ends { source_be, destination_be }: Ends) -> i32 {
    if !leaves_under_another_address(source_be, destination_be) {
        return NEXT;
    }
    count(counter::MASQUERADE_IMPOSSIBLE);
    DROP
}

#[inline(always)]
fn ingress(ctx: &TcContext, packet: &Packet) -> i32 {
    let key = nat_key(packet, nat::IN);
    // SAFETY: the value is copied at once; an element that is recycled meanwhile misdirects one packet, which its receiver refuses.
    if let Some(entry) = unsafe { ORLOP_NAT.get(&key) }.copied() {
        return answer_in(ctx, packet, &key, &entry);
    }
    let frontend = FrontendKey {
        addr_be: packet.destination_be,
        port_be: packet.destination_port_be,
        protocol: packet.protocol,
        reserved: 0,
    };
    let client = || packet.source_be as u64;
    // SAFETY: as above.
    if let Some(entry) = unsafe { ORLOP_INBOUND.get(&key) }.copied() {
        if !packet.may_begin_flow {
            return translate_in(ctx, packet, &entry);
        }
        // A flow that may begin anew does not stay with a backend that is no longer the service's.
        let before = pick_of(&entry);
        if let Some(pick) = select::still_there(&frontend, Origin::Outside, client, before) {
            if pick != before {
                // Unrenewed, the entry only costs a longer look at each packet.
                let renewed = NatValue { selection: pick.selection, slot: pick.slot, ..entry };
                written(ORLOP_INBOUND.insert(&key, &renewed, 0));
            }
            return translate_in(ctx, packet, &entry);
        }
    }
    if is_loopback(packet.destination_be) {
        return NEXT;
    }
    if !packet.may_begin_flow {
        // The middle of a connection that is not known: the node answers with a reset.
        if select::is_service(&frontend) {
            count(counter::NODE_PORT_NO_FLOW);
        } else {
            note_direct_flow(packet);
        }
        return NEXT;
    }
    match select::select(&frontend, Origin::Outside, client) {
        Choice::NoService => {
            note_direct_flow(packet);
            NEXT
        }
        Choice::NoBackend => {
            count(counter::NODE_PORT_NO_BACKEND);
            DROP
        }
        Choice::LeftToNode => {
            count(counter::NODE_PORT_NO_BACKEND);
            NEXT
        }
        Choice::Forbidden => {
            count(counter::SOURCE_REFUSED);
            DROP
        }
        Choice::Backend(chosen) => {
            let entry = NatValue {
                addr_be: chosen.addr_be,
                port_be: chosen.port_be,
                kind: nat::NODE_PORT,
                state: 0,
                backend: chosen.pick.id,
                generation: chosen.pick.generation,
                selection: chosen.pick.selection,
                slot: chosen.pick.slot,
                used: 0,
            };
            if !written(ORLOP_INBOUND.insert(&key, &entry, 0)) {
                return DROP;
            }
            count(counter::NODE_PORT_TRANSLATED);
            translate_in(ctx, packet, &entry)
        }
    }
}

/// The kernel drops what comes from elsewhere to its loopback; the node's own sockets find services there.
#[inline(always)]
fn is_loopback(addr_be: u32) -> bool {
    u32::from_be(addr_be) >> 24 == 127
}

/// The answer to a masqueraded packet goes back to its pod.
#[inline(always)]
fn answer_in(ctx: &TcContext, packet: &Packet, key: &NatKey, entry: &NatValue) -> i32 {
    // SAFETY: the element is ours to count in; if it was recycled, another flow lives a little longer.
    unsafe { touch(ORLOP_NAT.get_ptr_mut(key), packet, nat::IN) };
    let back = out_key(packet, entry);
    // SAFETY: only whether it is there matters; looking also keeps it from being evicted.
    if unsafe { ORLOP_NAT.get(&back) }.is_none() {
        let shown =
            NatValue { addr_be: packet.destination_be, port_be: packet.destination_port_be, ..*entry };
        written(ORLOP_NAT.insert(&back, &shown, BPF_NOEXIST as u64));
    }
    finish(packet::rewrite(ctx, packet, End::Destination, entry.addr_be, entry.port_be))
}

/// Towards a node port's backend: rewrites the destination and makes sure that the answers find their way back.
#[inline(always)]
fn translate_in(ctx: &TcContext, packet: &Packet, entry: &NatValue) -> i32 {
    let back = out_key(packet, entry);
    // SAFETY: the value is copied at once.
    let held = unsafe { ORLOP_INBOUND.get(&back) }.copied();
    match held {
        Some(held) if held.addr_be == packet.destination_be && held.port_be == packet.destination_port_be => {
            // SAFETY: as in `answer_in`.
            unsafe { touch(ORLOP_INBOUND.get_ptr_mut(&back), packet, nat::IN) };
        }
        // The pod already talks to this very client port by another way, and could not tell the two apart.
        Some(held) if !may_take_over(packet.protocol, &held, true) => {
            count(counter::NODE_PORT_COLLISION);
            return DROP;
        }
        _ => {
            let shown = NatValue {
                addr_be: packet.destination_be,
                port_be: packet.destination_port_be,
                state: 0,
                used: now(),
                ..*entry
            };
            // Without it the answer would not come back as the node's.
            if !written(ORLOP_INBOUND.insert(&back, &shown, 0)) {
                return DROP;
            }
        }
    }
    finish(packet::rewrite(ctx, packet, End::Destination, entry.addr_be, entry.port_be))
}

#[inline(always)]
fn egress(ctx: &TcContext, packet: &Packet) -> i32 {
    let key = nat_key(packet, nat::OUT);
    // SAFETY: the value is copied at once.
    if let Some(entry) = unsafe { ORLOP_NAT.get(&key) }.copied() {
        if still_holds_port(packet, &entry) {
            return finish(packet::rewrite(ctx, packet, End::Source, entry.addr_be, entry.port_be));
        }
        // Another flow took the port over while this one was silent.
        let _ = ORLOP_NAT.remove(&key);
    }
    // SAFETY: as above.
    if let Some(entry) = unsafe { ORLOP_INBOUND.get(&key) }.copied() {
        return answer_out(ctx, packet, &key, &entry);
    }
    if !leaves_under_another_address(packet.source_be, packet.destination_be) && !goes_on_to_a_backend(packet)
    {
        return NEXT;
    }
    if !packet.may_begin_flow {
        count(counter::MASQUERADE_NO_FLOW);
        return DROP;
    }
    masquerade(ctx, packet, &key)
}

/// Whether a node port's flow leaves again, towards a backend on another node: its answers have to come back here, since only
/// here it is known what the client asked for.
#[inline(always)]
fn goes_on_to_a_backend(packet: &Packet) -> bool {
    if ORLOP_CONFIG.get(0).is_none_or(|config| config.masquerade_be == 0) {
        return false;
    }
    let back = answer_key(packet);
    // SAFETY: the value is copied at once.
    unsafe { ORLOP_INBOUND.get(&back) }.is_some_and(|entry| entry.kind == nat::NODE_PORT)
}

/// A pod's answer to what began outside.
#[inline(always)]
fn answer_out(ctx: &TcContext, packet: &Packet, key: &NatKey, entry: &NatValue) -> i32 {
    // SAFETY: as in `answer_in`.
    unsafe { touch(ORLOP_INBOUND.get_ptr_mut(key), packet, nat::OUT) };
    if entry.kind == nat::DIRECT {
        return NEXT;
    }
    let back = back_in(packet, entry.addr_be, entry.port_be);
    // SAFETY: only whether it is there matters. One that leads elsewhere stays: the flow has moved on, and this is a late answer.
    if unsafe { ORLOP_INBOUND.get(&back) }.is_none() {
        written(ORLOP_INBOUND.insert(&back, &inside(packet, entry), BPF_NOEXIST as u64));
    }
    finish(packet::rewrite(ctx, packet, End::Source, entry.addr_be, entry.port_be))
}

/// Whether the outside port of a masqueraded flow still leads back to it. One that was evicted is made again.
#[inline(always)]
fn still_holds_port(packet: &Packet, entry: &NatValue) -> bool {
    let back = back_in(packet, entry.addr_be, entry.port_be);
    // SAFETY: the value is copied at once.
    match unsafe { ORLOP_NAT.get(&back) }.copied() {
        Some(held) if held.addr_be == packet.source_be && held.port_be == packet.source_port_be => {
            // SAFETY: as in `answer_in`.
            unsafe { touch(ORLOP_NAT.get_ptr_mut(&back), packet, nat::OUT) };
            true
        }
        Some(_) => false,
        None => {
            let value = NatValue { used: now(), ..inside(packet, entry) };
            let made = ORLOP_NAT.insert(&back, &value, BPF_NOEXIST as u64);
            written(made);
            made.is_ok()
        }
    }
}

/// Finds a port that no other flow to the same peer uses, or that one has done with.
#[inline(always)]
fn masquerade(ctx: &TcContext, packet: &Packet, key: &NatKey) -> i32 {
    let Some(config) = ORLOP_CONFIG.get(0) else { return NEXT };
    // SAFETY: the kernel gave this context to this run of the program.
    let addr_be = match unsafe { (*ctx.skb.skb).ifindex } {
        link if link == config.overlay_link => config.overlay_be,
        _ => config.masquerade_be,
    };
    let entry = NatValue {
        addr_be,
        port_be: 0,
        kind: nat::MASQUERADE,
        state: 0,
        backend: 0,
        generation: 0,
        selection: 0,
        slot: 0,
        used: now(),
    };
    let value = inside(packet, &entry);
    for attempt in 0..nat::PORT_TRIES {
        let port_be = random_port().to_be();
        let back = back_in(packet, addr_be, port_be);
        let mut taken = ORLOP_NAT.insert(&back, &value, BPF_NOEXIST as u64);
        if !written(taken) {
            return DROP;
        }
        if taken.is_err() && vacate(packet, &back, attempt >= nat::PORT_TRIES / 2) {
            taken = ORLOP_NAT.insert(&back, &value, BPF_NOEXIST as u64);
        }
        if taken.is_ok() {
            // The next packet would be taken for another flow's; the port comes back when it has been idle.
            if !written(ORLOP_NAT.insert(key, &NatValue { port_be, ..entry }, 0)) {
                return DROP;
            }
            count(counter::MASQUERADED);
            return finish(packet::rewrite(ctx, packet, End::Source, addr_be, port_be));
        }
    }
    count(counter::MASQUERADE_NO_PORT);
    DROP
}

/// Removes the flow that holds `back` if it is over. Of several processors that try, one succeeds.
#[inline(always)]
fn vacate(packet: &Packet, back: &NatKey, scarce: bool) -> bool {
    // SAFETY: the value is copied at once.
    let Some(old) = (unsafe { ORLOP_NAT.get(back) }).copied() else { return true };
    if !may_take_over(packet.protocol, &old, scarce) || ORLOP_NAT.remove(back).is_err() {
        return false;
    }
    let forward = NatKey {
        source_be: old.addr_be,
        destination_be: packet.destination_be,
        source_port_be: old.port_be,
        destination_port_be: packet.destination_port_be,
        protocol: packet.protocol,
        direction: nat::OUT,
        reserved: 0,
    };
    // SAFETY: the value is copied at once. The old flow may have got another port since, and keeps that.
    if let Some(entry) = unsafe { ORLOP_NAT.get(&forward) }.copied()
        && entry.port_be == back.destination_port_be
    {
        let _ = ORLOP_NAT.remove(&forward);
    }
    true
}

#[inline(always)]
fn may_take_over(protocol: u8, held: &NatValue, scarce: bool) -> bool {
    let limit = if scarce {
        nat::scarce_idle_limit(protocol, held.state)
    } else {
        nat::idle_limit(protocol, held.state)
    };
    now().wrapping_sub(held.used) > limit
}

/// Notes a packet of the flow: when, and what it says about the connection. A new connection begins with a clean state.
///
/// # Safety
/// `entry` is an element that the kernel gave to this run of the program.
#[inline(always)]
unsafe fn touch(entry: Option<*mut NatValue>, packet: &Packet, direction: u8) {
    let Some(entry) = entry else { return };
    // SAFETY: the caller vouches for the element. Two processors may race for it: the later one of two equal times stays.
    let (used, state) = unsafe { (&raw mut (*entry).used, &raw mut (*entry).state) };
    // SAFETY: as above; these are plain integers inside the element.
    let before = unsafe { state.read_volatile() };
    let mut after = if packet.protocol == protocol::TCP && packet.may_begin_flow { 0 } else { before };
    after |= match (direction, packet.fin) {
        (nat::IN, true) => nat::FIN_IN | nat::ANSWERED,
        (nat::IN, false) => nat::ANSWERED,
        (_, true) => nat::FIN_OUT,
        (_, false) => 0,
    };
    if packet.reset {
        after |= nat::RESET;
    }
    let time = now();
    // SAFETY: as above. Written only when it changes, so that busy flows do not pass a cache line around.
    unsafe {
        if used.read_volatile() != time {
            used.write_volatile(time);
        }
        if before != after {
            state.write_volatile(after);
        }
    }
}

/// The time in ticks.
#[inline(always)]
fn now() -> u32 {
    // SAFETY: the helper takes nothing and has no effect but its result.
    (unsafe { bpf_ktime_get_coarse_ns() } >> nat::TICK_SHIFT) as u32
}

#[inline(always)]
fn random_port() -> u16 {
    let width = (nat::LAST_PORT - nat::FIRST_PORT) as u32 + 1;
    // SAFETY: the helper takes nothing and has no effect but its result.
    let random = unsafe { bpf_get_prandom_u32() } & 0xffff;
    nat::FIRST_PORT + ((random * width) >> 16) as u16
}

/// The key under which the answer to a packet that leaves as `addr`:`port` comes back.
#[inline(always)]
fn back_in(packet: &Packet, addr_be: u32, port_be: u16) -> NatKey {
    NatKey {
        source_be: packet.destination_be,
        destination_be: addr_be,
        source_port_be: packet.destination_port_be,
        destination_port_be: port_be,
        protocol: packet.protocol,
        direction: nat::IN,
        reserved: 0,
    }
}

/// The key under which `entry`'s inside answers a packet that came in.
#[inline(always)]
fn out_key(packet: &Packet, entry: &NatValue) -> NatKey {
    NatKey {
        source_be: entry.addr_be,
        destination_be: packet.source_be,
        source_port_be: entry.port_be,
        // An ICMP answer has no port on this side, and neither has the question.
        destination_port_be: packet.source_port_be,
        protocol: packet.protocol,
        direction: nat::OUT,
        reserved: 0,
    }
}

/// What stands inside for `entry`'s outside: the packet's own source.
#[inline(always)]
fn inside(packet: &Packet, entry: &NatValue) -> NatValue {
    NatValue { addr_be: packet.source_be, port_be: packet.source_port_be, ..*entry }
}

#[inline(always)]
fn nat_key(packet: &Packet, direction: u8) -> NatKey {
    NatKey {
        source_be: packet.source_be,
        destination_be: packet.destination_be,
        source_port_be: packet.source_port_be,
        destination_port_be: packet.destination_port_be,
        protocol: packet.protocol,
        direction,
        reserved: 0,
    }
}

/// The key of a packet that answers this one.
#[inline(always)]
fn answer_key(packet: &Packet) -> NatKey {
    NatKey {
        source_be: packet.destination_be,
        destination_be: packet.source_be,
        source_port_be: packet.destination_port_be,
        destination_port_be: packet.source_port_be,
        protocol: packet.protocol,
        direction: nat::OUT,
        reserved: 0,
    }
}

#[inline(always)]
fn pick_of(entry: &NatValue) -> Pick {
    Pick { id: entry.backend, generation: entry.generation, slot: entry.slot, selection: entry.selection }
}

/// A packet that reaches a pod under the pod's own address: the answer is not a new flow and keeps its source.
#[inline(always)]
fn note_direct_flow(packet: &Packet) {
    if !leaves_under_another_address(packet.destination_be, packet.source_be) {
        return;
    }
    let back = answer_key(packet);
    let direct = NatValue {
        addr_be: 0,
        port_be: 0,
        kind: nat::DIRECT,
        state: 0,
        backend: 0,
        generation: 0,
        selection: 0,
        slot: 0,
        used: now(),
    };
    // SAFETY: the value is copied at once.
    match unsafe { ORLOP_INBOUND.get(&back) }.copied() {
        // SAFETY: as in `answer_in`.
        Some(held) if held.kind == nat::DIRECT => unsafe {
            touch(ORLOP_INBOUND.get_ptr_mut(&back), packet, nat::IN);
        },
        // A node port's flow with the same ends goes first while it lives.
        Some(held) if !may_take_over(packet.protocol, &held, true) => {}
        _ => {
            written(ORLOP_INBOUND.insert(&back, &direct, 0));
        }
    }
}

/// Whether a packet with these ends is to be masqueraded.
#[inline(always)]
fn leaves_under_another_address(source_be: u32, destination_be: u32) -> bool {
    let Some(config) = ORLOP_CONFIG.get(0) else { return false };
    let config: &Config = config;
    if config.pods.mask_be == 0 || !contains(&config.pods, source_be) {
        return false;
    }
    for (index, network) in config.unmasqueraded.iter().enumerate() {
        if (index as u32) < config.unmasqueraded_count && contains(network, destination_be) {
            return false;
        }
    }
    true
}

#[inline(always)]
fn contains(network: &Network, addr_be: u32) -> bool {
    network.mask_be != 0 && addr_be & network.mask_be == network.network_be
}

/// Whether an entry stands now, from whoever: `false`, and counted, when the kernel had no room for it.
#[inline(always)]
fn written(inserted: Result<(), i32>) -> bool {
    match inserted {
        Ok(()) | Err(EEXIST) => true,
        Err(_) => {
            count(counter::NAT_INSERT_FAILED);
            false
        }
    }
}

/// A packet whose rewrite failed half-way is dropped.
#[inline(always)]
fn finish(rewritten: Result<(), i64>) -> i32 {
    if rewritten.is_ok() {
        return NEXT;
    }
    count(counter::REWRITE_FAILED);
    DROP
}
