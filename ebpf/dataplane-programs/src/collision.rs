//! Flows of one client address and port to one backend by several ways: through two services, or through one and straight to it. The backend
//! could not tell them apart, nor could its answers be told apart here.
//!
//! The later flow gets another port for its client, at random among those that no flow between the two holds; both entries of
//! the flow name it (`NatValue::client_port_be`), each as its own direction needs it. All of its packets come here, whichever way they go: `uplink` leaves them
//! to these functions, which stand apart since the stack has no room for both.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::programs::TcContext;
use dataplane_abi::{NatKey, NatValue, Origin, counter, nat};

use crate::maps::{Flows, count};
use crate::packet::{self, End, Layer, Packet};
use crate::select;
use crate::uplink::{self, DROP, NEXT};

/// A client's packet. Its flow has an entry, unless it begins and asks for no service.
#[inline(always)]
pub fn asks(ctx: &TcContext, layer: Layer, origin: Origin) -> i32 {
    let Some(packet) = packet::parse_whole_or_part(ctx, layer) else { return NEXT };
    let flows = uplink::flows(origin);
    let key = uplink::nat_key(&packet, nat::IN);
    let link = uplink::owner(ctx, origin);
    // SAFETY: the kernel gave the element to this run of the program.
    let known = flows.get_ptr_mut(&key).filter(|element| unsafe { (**element).link } == link);
    let Some(element) = known.or_else(|| begin_straight(flows, &packet, &key, link)) else {
        count(counter::CLIENT_PORT_NO_FLOW);
        return DROP;
    };
    // SAFETY: the value is copied at once; an element that is recycled meanwhile misdirects one packet, which its receiver refuses.
    let entry = unsafe { *element };
    let port_be = match is_held(origin, &packet, &entry) {
        true => entry.client_port_be,
        false => {
            let Some(port_be) = allot(flows, &packet, &entry) else {
                let begins = packet.may_begin_flow;
                count(if begins { counter::NODE_PORT_COLLISION } else { counter::CLIENT_PORT_NO_FLOW });
                return DROP;
            };
            // SAFETY: as above; this is a plain integer inside the element.
            unsafe { (&raw mut (*element).client_port_be).write_volatile(port_be) };
            port_be
        }
    };
    let rewritten = packet::rewrite_port(ctx, &packet, End::Source, port_be)
        .and_then(|()| packet::rewrite(ctx, &packet, End::Destination, &entry.address, entry.port_be));
    uplink::finish(rewritten)
}

/// A backend's answer to such a packet.
#[inline(always)]
pub fn is_answered(ctx: &TcContext, layer: Layer, origin: Origin) -> i32 {
    let Some(packet) = packet::parse_whole_or_part(ctx, layer) else { return NEXT };
    let flows = uplink::flows(origin);
    let key = uplink::nat_key(&packet, nat::OUT);
    let Some(element) = flows.get_ptr_mut(&key) else {
        count(counter::CLIENT_PORT_NO_FLOW);
        return DROP;
    };
    // SAFETY: as in `asks`.
    let entry = unsafe {
        uplink::touch(Some(element), (&key, uplink::held_by(origin)), &packet, nat::OUT);
        *element
    };
    // Another flow's, since this moment.
    if entry.client_port_be == 0 {
        count(counter::CLIENT_PORT_NO_FLOW);
        return DROP;
    }
    let question = NatKey {
        source: packet.destination,
        destination: entry.address,
        source_port_be: entry.client_port_be,
        destination_port_be: entry.port_be,
        protocol: packet.protocol,
        direction: nat::IN,
        reserved: 0,
    };
    // SAFETY: only whether it is there matters.
    if entry.kind != nat::TOLD && unsafe { flows.get(&question) }.is_none() {
        let led = NatValue {
            address: packet.source,
            port_be: packet.source_port_be,
            client_port_be: packet.destination_port_be,
            ..entry
        };
        uplink::written(flows.insert(&question, &led, BPF_NOEXIST as u64));
    }
    let rewritten = packet::rewrite_port(ctx, &packet, End::Destination, entry.client_port_be)
        .and_then(|()| packet::rewrite(ctx, &packet, End::Source, &entry.address, entry.port_be));
    uplink::finish(rewritten)
}

/// The entry of a flow straight to a backend: like one to a service of the backend's own address.
#[inline(always)]
fn begin_straight(flows: &Flows, packet: &Packet, key: &NatKey, link: u32) -> Option<*mut NatValue> {
    let entry = NatValue {
        address: packet.destination,
        port_be: packet.destination_port_be,
        kind: nat::STRAIGHT,
        state: 0,
        backend: 0,
        generation: 0,
        selection: 0,
        slot: 0,
        client_port_be: 0,
        used: uplink::now(),
        link,
    };
    // One of a service was evicted this moment, and the client tries again.
    if !packet.may_begin_flow || select::is_service(&packet.frontend()) {
        return None;
    }
    // In the place of what another link has there.
    uplink::written(flows.insert(key, &entry, 0));
    flows.get_ptr_mut(key)
}

/// Whether the answers to the flow's port at the backend are its own. An entry that was evicted is made again.
#[inline(always)]
fn is_held(origin: Origin, packet: &Packet, entry: &NatValue) -> bool {
    let flows = uplink::flows(origin);
    if entry.client_port_be == 0 {
        return false;
    }
    let back = back(packet, entry, entry.client_port_be);
    let Some(element) = flows.get_ptr_mut(&back) else {
        return flows.insert(&back, &shown(packet, entry), BPF_NOEXIST as u64).is_ok();
    };
    // SAFETY: as in `asks`.
    let held = unsafe { *element };
    if held.link != entry.link {
        return flows.insert(&back, &shown(packet, entry), 0).is_ok();
    }
    let is_ours = held.address.is(&packet.destination)
        && held.port_be == packet.destination_port_be
        && held.client_port_be == packet.source_port_be;
    if is_ours {
        // SAFETY: as in `asks`.
        unsafe { uplink::touch(Some(element), (&back, uplink::held_by(origin)), packet, nat::IN) };
    }
    is_ours
}

/// A port for the client that no other flow to this backend holds, or that one has done with. Only a flow that begins gets another one.
#[inline(always)]
fn allot(flows: &Flows, packet: &Packet, entry: &NatValue) -> Option<u16> {
    if !packet.may_begin_flow {
        return None;
    }
    let shown = shown(packet, entry);
    for attempt in 0..nat::CLIENT_PORT_TRIES {
        let is_scarce = attempt >= nat::CLIENT_PORT_TRIES / 2;
        let port_be = uplink::random_port().to_be();
        let back = back(packet, entry, port_be);
        if flows.insert(&back, &shown, BPF_NOEXIST as u64).is_ok() {
            return Some(port_be);
        }
        // SAFETY: the value is copied at once.
        let held = unsafe { flows.get(&back) }.copied();
        if held.is_some_and(|held| {
            held.link != entry.link || uplink::may_take_over(packet.protocol, &held, is_scarce)
        }) && flows.insert(&back, &shown, 0).is_ok()
        {
            return Some(port_be);
        }
    }
    None
}

/// The key under which the backend answers to this port of the client.
#[inline(always)]
fn back(packet: &Packet, entry: &NatValue, client_port_be: u16) -> NatKey {
    NatKey {
        source: entry.address,
        destination: packet.source,
        source_port_be: entry.port_be,
        destination_port_be: client_port_be,
        protocol: packet.protocol,
        direction: nat::OUT,
        reserved: 0,
    }
}

/// What the answers show: the service, and the client's own port.
#[inline(always)]
fn shown(packet: &Packet, entry: &NatValue) -> NatValue {
    NatValue {
        address: packet.destination,
        port_be: packet.destination_port_be,
        client_port_be: packet.source_port_be,
        state: 0,
        used: uplink::now(),
        ..*entry
    }
}
