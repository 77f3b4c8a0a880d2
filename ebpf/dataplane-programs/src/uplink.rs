//! Traffic that crosses an uplink: node ports on the way in, masquerading on the way out.
//!
//! Each flow has two entries in the ORLOP_NAT map, one for each direction, written together. Every packet touches both, and
//! makes the other one again if the kernel evicted it, so that half a pair never lasts.

use aya_ebpf::bindings::{BPF_NOEXIST, TC_ACT_OK, TC_ACT_SHOT};
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use dataplane_abi::{Config, FrontendKey, NatKey, NatValue, Network, counter, nat, protocol};

use crate::maps::{ORLOP_CONFIG, ORLOP_NAT, count};
use crate::packet::{self, End, Packet, Parsed};
use crate::select::{self, Choice};

#[classifier]
pub fn orlop_ingress(ctx: TcContext) -> i32 {
    match packet::parse(&ctx) {
        Parsed::Packet(packet) => ingress(&ctx, &packet),
        Parsed::Fragment => fragment(),
        Parsed::Other => TC_ACT_OK,
    }
}

#[classifier]
pub fn orlop_egress(ctx: TcContext) -> i32 {
    match packet::parse(&ctx) {
        Parsed::Packet(packet) => egress(&ctx, &packet),
        Parsed::Fragment => fragment(),
        Parsed::Other => TC_ACT_OK,
    }
}

/// Fragments go on untranslated; the counter tells why a flow does not work.
#[inline(always)]
fn fragment() -> i32 {
    count(counter::FRAGMENT);
    TC_ACT_OK
}

#[inline(always)]
fn ingress(ctx: &TcContext, packet: &Packet) -> i32 {
    let key = nat_key(packet, nat::IN);
    if let Some(entry) = known(&key) {
        // A node port's flow that may begin anew does not stay with a backend that is gone.
        let stale = entry.kind == nat::NODE_PORT
            && packet.may_begin_flow
            && !select::still_there(entry.backend, entry.generation);
        if !stale {
            return translate_in(ctx, packet, &entry);
        }
    }
    let frontend = FrontendKey {
        addr_be: packet.destination_be,
        port_be: packet.destination_port_be,
        protocol: packet.protocol,
        scope: 0,
    };
    match select::select(&frontend) {
        Choice::NoService => {
            note_direct_flow(packet);
            TC_ACT_OK
        }
        Choice::NoBackend => {
            count(counter::NODE_PORT_NO_BACKEND);
            TC_ACT_SHOT
        }
        Choice::Backend(chosen) => {
            let entry = NatValue {
                addr_be: chosen.backend.addr_be,
                port_be: chosen.backend.port_be,
                kind: nat::NODE_PORT,
                backend: chosen.id,
                generation: chosen.backend.generation,
            };
            let _ = ORLOP_NAT.insert(&key, &entry, 0);
            count(counter::NODE_PORT_TRANSLATED);
            translate_in(ctx, packet, &entry)
        }
    }
}

/// Rewrites the destination and makes sure that the answers find their way back.
#[inline(always)]
fn translate_in(ctx: &TcContext, packet: &Packet, entry: &NatValue) -> i32 {
    let back = NatKey {
        source_be: entry.addr_be,
        destination_be: packet.source_be,
        source_port_be: entry.port_be,
        // An ICMP answer has no port on this side, and neither has the question.
        destination_port_be: packet.source_port_be,
        protocol: packet.protocol,
        direction: nat::OUT,
        reserved: 0,
    };
    keep(&back, &NatValue { addr_be: packet.destination_be, port_be: packet.destination_port_be, ..*entry });
    finish(packet::rewrite(ctx, packet, End::Destination, entry.addr_be, entry.port_be))
}

#[inline(always)]
fn egress(ctx: &TcContext, packet: &Packet) -> i32 {
    let key = nat_key(packet, nat::OUT);
    if let Some(entry) = known(&key) {
        if entry.kind == nat::DIRECT {
            return TC_ACT_OK;
        }
        keep(&back_in(packet, entry.addr_be, entry.port_be), &inside(packet, &entry));
        return finish(packet::rewrite(ctx, packet, End::Source, entry.addr_be, entry.port_be));
    }
    let Some(config) = ORLOP_CONFIG.get(0) else { return TC_ACT_OK };
    if !packet.may_begin_flow || !leaves_under_another_address(config, packet) {
        return TC_ACT_OK;
    }
    masquerade(ctx, packet, &key, config.masquerade_be)
}

/// Finds a port that no other flow to the same peer uses.
#[inline(always)]
fn masquerade(ctx: &TcContext, packet: &Packet, key: &NatKey, addr_be: u32) -> i32 {
    let entry = NatValue { addr_be, port_be: 0, kind: nat::MASQUERADE, backend: 0, generation: 0 };
    let value = inside(packet, &entry);
    for _ in 0..nat::PORT_TRIES {
        let port_be = random_port().to_be();
        if ORLOP_NAT.insert(&back_in(packet, addr_be, port_be), &value, BPF_NOEXIST as u64).is_ok() {
            let _ = ORLOP_NAT.insert(key, &NatValue { port_be, ..entry }, 0);
            count(counter::MASQUERADED);
            return finish(packet::rewrite(ctx, packet, End::Source, addr_be, port_be));
        }
    }
    count(counter::MASQUERADE_NO_PORT);
    TC_ACT_SHOT
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

#[inline(always)]
fn known(key: &NatKey) -> Option<NatValue> {
    // SAFETY: the value is copied at once; an element that is recycled meanwhile misdirects one packet, which its receiver refuses.
    unsafe { ORLOP_NAT.get(key) }.copied()
}

/// Makes the entry unless it is there; looking it up also keeps it from being evicted.
#[inline(always)]
fn keep(key: &NatKey, value: &NatValue) {
    // An entry of an older flow of the same addresses must not survive.
    if known(key) != Some(*value) {
        let _ = ORLOP_NAT.insert(key, value, 0);
    }
}

/// A datagram that reaches a pod under the pod's own address: the answer is not a new flow and keeps its source.
#[inline(always)]
fn note_direct_flow(packet: &Packet) {
    let Some(config) = ORLOP_CONFIG.get(0) else { return };
    if packet.protocol == protocol::TCP || !contains(&config.pods, packet.destination_be) {
        return;
    }
    let back = NatKey {
        source_be: packet.destination_be,
        destination_be: packet.source_be,
        source_port_be: packet.destination_port_be,
        destination_port_be: packet.source_port_be,
        protocol: packet.protocol,
        direction: nat::OUT,
        reserved: 0,
    };
    keep(&back, &NatValue { addr_be: 0, port_be: 0, kind: nat::DIRECT, backend: 0, generation: 0 });
}

#[inline(always)]
fn leaves_under_another_address(config: &Config, packet: &Packet) -> bool {
    if config.pods.mask_be == 0 || !contains(&config.pods, packet.source_be) {
        return false;
    }
    for (index, network) in config.unmasqueraded.iter().enumerate() {
        if (index as u32) < config.unmasqueraded_count && contains(network, packet.destination_be) {
            return false;
        }
    }
    true
}

#[inline(always)]
fn contains(network: &Network, addr_be: u32) -> bool {
    network.mask_be != 0 && addr_be & network.mask_be == network.network_be
}

/// A packet whose rewrite failed half-way is dropped.
#[inline(always)]
fn finish(rewritten: Result<(), i64>) -> i32 {
    if rewritten.is_ok() {
        return TC_ACT_OK;
    }
    count(counter::REWRITE_FAILED);
    TC_ACT_SHOT
}
