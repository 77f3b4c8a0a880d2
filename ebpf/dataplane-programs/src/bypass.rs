//! Services for pods whose packets no socket of this node makes: network stacks of their own, virtual machines.
//!
//! At the node's end of the pod's link. What the pod asks of a service is led to a backend before policies and routes see it, and the
//! answers get the service's address when policies have seen them. Flows stand in ORLOP_NAT, as what pods begin does. A packet whose flow is
//! not known (any more), or that has no backend, is dropped and counted: nobody here has the service's address and could refuse. Fragments whose first one is not known, and those of SCTP, go on as they are, counted. A flow is its
//! link's: what another pod sends under this one's address changes nothing here.
//!
//! Of other pods SCTP alone is led here, while there is a service of it: the kernel tells of no socket of SCTP. What is of another protocol passes
//! those programs after a look at it.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use dataplane_abi::{Origin, counter, nat, protocol};

use crate::collision;
use crate::maps::{ORLOP_NAT, count};
use crate::packet::{self, Layer, Packet, Parsed};
use crate::uplink::{self, Apart, FRAGMENT, ICMP, NEXT, apart};

/// From the pod.
#[classifier]
pub fn orlop_vip_in(ctx: TcContext) -> i32 {
    from_pod(&ctx)
}

/// Towards the pod.
#[classifier]
pub fn orlop_vip_out(ctx: TcContext) -> i32 {
    to_pod(&ctx)
}

/// SCTP from the pod.
#[classifier]
pub fn orlop_sctp_in(ctx: TcContext) -> i32 {
    if packet::is_about_sctp(&ctx) { from_pod(&ctx) } else { NEXT }
}

/// SCTP towards the pod.
#[classifier]
pub fn orlop_sctp_out(ctx: TcContext) -> i32 {
    if packet::is_about_sctp(&ctx) { to_pod(&ctx) } else { NEXT }
}

#[inline(always)]
fn from_pod(ctx: &TcContext) -> i32 {
    let apart = Apart {
        error: orlop_vip_error_in,
        part: orlop_vip_part_in,
        returns: None,
        flow: Some(orlop_vip_flow_in),
        port: orlop_vip_port_in,
    };
    apart.run(ctx, || packet_in(ctx))
}

#[inline(always)]
fn to_pod(ctx: &TcContext) -> i32 {
    let apart = Apart {
        error: uplink::orlop_error_out,
        part: orlop_vip_part_out,
        returns: None,
        flow: None,
        port: orlop_vip_port_out,
    };
    apart.run(ctx, || packet_out(ctx))
}

apart! {
    orlop_vip_error_in = uplink::error_in: Ethernet;
    orlop_vip_part_in = fragment_in: Ethernet;
    orlop_vip_part_out = fragment_out: Ethernet;
    orlop_vip_flow_in = flow_in: Ethernet;
    orlop_vip_port_in = collision_in: Ethernet;
    orlop_vip_port_out = collision_out: Ethernet;
}

#[inline(never)]
fn packet_in(ctx: &TcContext) -> i32 {
    either(ctx, asks)
}

#[inline(never)]
fn packet_out(ctx: &TcContext) -> i32 {
    either(ctx, answers)
}

#[inline(always)]
fn either(ctx: &TcContext, translate: impl Fn(&TcContext, &Packet) -> i32) -> i32 {
    match packet::parse(ctx, Layer::Ethernet) {
        Parsed::Packet(packet) => translate(ctx, &packet),
        Parsed::Icmp => ICMP,
        Parsed::Fragment => FRAGMENT,
        _ => NEXT,
    }
}

#[inline(always)]
fn fragment_in(ctx: &TcContext, layer: Layer) -> i32 {
    match packet::parse_fragment(ctx, layer) {
        Ok(packet) if packet.protocol != protocol::SCTP => asks(ctx, &packet),
        _ => {
            count(counter::FRAGMENT);
            NEXT
        }
    }
}

#[inline(always)]
fn fragment_out(ctx: &TcContext, layer: Layer) -> i32 {
    match packet::parse_fragment(ctx, layer) {
        Ok(packet) if packet.protocol != protocol::SCTP => answers(ctx, &packet),
        _ => {
            count(counter::FRAGMENT);
            NEXT
        }
    }
}

#[inline(always)]
fn flow_in(ctx: &TcContext, layer: Layer) -> i32 {
    packet::parse_whole_or_part(ctx, layer).map_or(NEXT, |packet| uplink::begin(ctx, &packet, Origin::Inside))
}

#[inline(always)]
fn collision_in(ctx: &TcContext, layer: Layer) -> i32 {
    collision::asks(ctx, layer, Origin::Inside)
}

#[inline(always)]
fn collision_out(ctx: &TcContext, layer: Layer) -> i32 {
    collision::is_answered(ctx, layer, Origin::Inside)
}

#[inline(always)]
fn asks(ctx: &TcContext, packet: &Packet) -> i32 {
    uplink::to_backend(ctx, packet, &uplink::nat_key(packet, nat::IN), Origin::Inside)
}

#[inline(always)]
fn answers(ctx: &TcContext, packet: &Packet) -> i32 {
    let key = uplink::nat_key(packet, nat::OUT);
    // SAFETY: the value is copied at once; one of a recycled element misdirects one packet, which its receiver refuses.
    match unsafe { ORLOP_NAT.get(&key) }.copied() {
        Some(entry)
            if matches!(entry.kind, nat::NODE_PORT | nat::STRAIGHT) && entry.link == uplink::link_of(ctx) =>
        {
            uplink::answer_out(ctx, packet, &key, &entry, Origin::Inside)
        }
        _ => NEXT,
    }
}
