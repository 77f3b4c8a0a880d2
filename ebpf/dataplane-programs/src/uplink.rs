//! Traffic that crosses an uplink: node ports on the way in, masquerading on the way out.
//!
//! Each flow has two entries, one for each direction, written together: in ORLOP_NAT for what pods begin (masqueraded), in
//! ORLOP_INBOUND for what hosts outside begin (node ports; packets straight to a pod). Every packet touches both, and makes
//! the other one again if the kernel evicted it, so that half a pair never lasts. A node port's flow whose backend is on another
//! node has a pair in both: it goes on under the node's own address, so that the answers come back here. Over the overlay, that
//! is the overlay's address: another one would come out of a tunnel that it does not belong to.
//!
//! A packet's later fragments have no ports: they go with the first one. What should be masqueraded and cannot be (fragments that overtake it, protocols without ports, ICMP errors of unknown flows, connections whose entry is
//! gone) is dropped and counted: it never leaves under the pod's address. Towards a pod the client's port stays as it is, unless that already talks to
//! the pod by another way (`collision`). ICMP errors are translated as the packets that they quote, both ways, so that path MTUs and refusals reach whom they concern.
//!
//! The kernel may have no room for an entry for a moment. What then could not be answered is dropped and counted; its sender
//! tries again.
//!
//! Nothing here ends the chain of programs or filters of the link, except by dropping.

use aya_ebpf::bindings::{__sk_buff, BPF_NOEXIST};
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use dataplane_abi::{
    Address, Config, Masquerade, NatKey, NatValue, Origin, Outcome, counter, nat, protocol, service_flag,
};

use crate::collision;
use crate::direct_return;
use crate::ended::{self, Held};
use crate::maps::{Flows, ORLOP_CONFIG, ORLOP_HOLD, ORLOP_INBOUND, ORLOP_NAT, count};
use crate::packet::{self, End, Ends, IcmpError, Layer, Message, Packet, Parsed};
use crate::select::{self, Choice, Client, Pick};

/// TCX_NEXT, and TC_ACT_UNSPEC for older hooks: the next program decides.
pub const NEXT: i32 = -1;
/// TCX_DROP and TC_ACT_SHOT.
pub const DROP: i32 = 2;
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

/// In the place of a verdict: an ICMP message, which may be about a packet.
pub const ICMP: i32 = -2;
/// In the place of a verdict: a part of a packet.
pub const FRAGMENT: i32 = -3;
/// In the place of a verdict: the first one of its flow. `begin` or `masquerade` goes on.
pub const BEGINS: i32 = -5;
/// In the place of a verdict: of a flow whose client's port is another one at the backend, or has to be. `collision` goes on.
pub const COLLISION: i32 = -4;

/// In the place of a verdict: of a flow whose answers go past this node, or past another one. `direct_return` goes on.
pub const RETURNS: i32 = -6;

/// Functions of a packet that stand apart: each has the stack for itself, and, being global, is verified once whatever leads to it. The verifier takes
/// nothing for their argument but the context of the program that calls them.
macro_rules! apart {
    ($($name:ident = $body:path: $layer:ident;)+) => { $(
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $name(skb: *mut __sk_buff) -> i32 {
            $body(&TcContext::new(skb), Layer::$layer)
        }
    )+ };
}
pub(crate) use apart;

apart! {
    orlop_error_in = error_from_outside: Ethernet;
    orlop_error_out = error_out: Ethernet;
    orlop_part_in = fragment_in: Ethernet;
    orlop_part_out = fragment_out: Ethernet;
    orlop_return_in = direct_return::enters: Ethernet;
    orlop_return_out = direct_return::leaves: Ethernet;
    orlop_flow_in = flow_in: Ethernet;
    orlop_flow_out = flow_out: Ethernet;
    orlop_port_in = collision_in: Ethernet;
    orlop_port_out = collision_out: Ethernet;
    orlop_error_in3 = error_from_outside: Ip;
    orlop_error_out3 = error_out: Ip;
    orlop_part_in3 = fragment_in: Ip;
    orlop_part_out3 = fragment_out: Ip;
    orlop_return_in3 = direct_return::enters: Ip;
    orlop_flow_in3 = flow_in: Ip;
    orlop_flow_out3 = flow_out: Ip;
    orlop_port_in3 = collision_in: Ip;
    orlop_port_out3 = collision_out: Ip;
}

/// Where a packet goes on, by what stands in the place of a verdict.
#[derive(Clone, Copy)]
pub struct Apart {
    pub error: Function,
    pub part: Function,
    /// None: there are none here.
    pub returns: Option<Function>,
    /// None: what goes out begins no flow here.
    pub flow: Option<Function>,
    pub port: Function,
}

type Function = extern "C" fn(*mut __sk_buff) -> i32;

impl Apart {
    /// Looks at a packet with `main`, and follows what that says to the verdict.
    #[inline(always)]
    pub fn run(self, ctx: &TcContext, main: impl FnOnce() -> i32) -> i32 {
        packet::begin(ctx);
        let skb = ctx.skb.skb;
        let verdict = match main() {
            ICMP => (self.error)(skb),
            FRAGMENT => (self.part)(skb),
            verdict => verdict,
        };
        let verdict = match (verdict, self.returns) {
            (RETURNS, Some(returns)) => returns(skb),
            (verdict, _) => verdict,
        };
        let verdict = match (verdict, self.flow) {
            (BEGINS, Some(flow)) => flow(skb),
            (verdict, _) => verdict,
        };
        let verdict = if verdict == COLLISION { (self.port)(skb) } else { verdict };
        ended::settle();
        packet::end(ctx, verdict, DROP)
    }
}

#[inline(always)]
fn enters(ctx: &TcContext, layer: Layer) -> i32 {
    let apart = match layer {
        Layer::Ethernet => Apart {
            error: orlop_error_in,
            part: orlop_part_in,
            returns: Some(orlop_return_in),
            flow: Some(orlop_flow_in),
            port: orlop_port_in,
        },
        Layer::Ip => Apart {
            error: orlop_error_in3,
            part: orlop_part_in3,
            returns: Some(orlop_return_in3),
            flow: Some(orlop_flow_in3),
            port: orlop_port_in3,
        },
    };
    apart.run(ctx, || packet_in(ctx, layer))
}

#[inline(always)]
fn leaves(ctx: &TcContext, layer: Layer) -> i32 {
    let apart = match layer {
        Layer::Ethernet => Apart {
            error: orlop_error_out,
            part: orlop_part_out,
            returns: Some(orlop_return_out),
            flow: Some(orlop_flow_out),
            port: orlop_port_out,
        },
        // Such links are tunnels that let a packet out under addresses of its sender alone.
        Layer::Ip => Apart {
            error: orlop_error_out3,
            part: orlop_part_out3,
            returns: Some(orlop_flow_out3),
            flow: Some(orlop_flow_out3),
            port: orlop_port_out3,
        },
    };
    apart.run(ctx, || packet_out(ctx, layer))
}

// Functions of their own, because the stack has room for either alone.

#[inline(never)]
fn packet_in(ctx: &TcContext, layer: Layer) -> i32 {
    match packet::parse(ctx, layer) {
        Parsed::Packet(packet) => ingress(ctx, &packet),
        Parsed::Icmp => ICMP,
        Parsed::Fragment => FRAGMENT,
        Parsed::Portless(_) | Parsed::Other => NEXT,
    }
}

#[inline(never)]
fn packet_out(ctx: &TcContext, layer: Layer) -> i32 {
    match packet::parse(ctx, layer) {
        Parsed::Packet(packet) => egress(ctx, &packet),
        Parsed::Icmp => ICMP,
        Parsed::Fragment => FRAGMENT,
        Parsed::Portless(ends) => untranslatable(ends),
        Parsed::Other => NEXT,
    }
}

#[inline(always)]
fn fragment_in(ctx: &TcContext, layer: Layer) -> i32 {
    if let Ok(packet) = packet::parse_fragment(ctx, layer)
        && packet.protocol != protocol::SCTP
    {
        return ingress(ctx, &packet);
    }
    // Untranslated; the counter tells why a flow does not work.
    count(counter::FRAGMENT);
    NEXT
}

#[inline(always)]
fn fragment_out(ctx: &TcContext, layer: Layer) -> i32 {
    let ends = match packet::parse_fragment(ctx, layer) {
        Ok(packet) if packet.protocol != protocol::SCTP => return egress(ctx, &packet),
        Ok(packet) => packet.ends(),
        Err(Some(ends)) => ends,
        Err(None) => return NEXT,
    };
    count(counter::FRAGMENT);
    untranslatable(ends)
}

#[inline(always)]
fn flow_in(ctx: &TcContext, layer: Layer) -> i32 {
    packet::parse_whole_or_part(ctx, layer).map_or(NEXT, |packet| begin(ctx, &packet, Origin::Outside))
}

#[inline(always)]
fn flow_out(ctx: &TcContext, layer: Layer) -> i32 {
    let Some(packet) = packet::parse_whole_or_part(ctx, layer) else { return NEXT };
    // Under this node's address it would be believed: nobody but the node itself tells another one of flows.
    if direct_return::is_for_nodes(&packet) && direct_return::is_peer(&packet.destination) {
        count(counter::MASQUERADE_IMPOSSIBLE);
        return DROP;
    }
    masquerade(ctx, &packet)
}

#[inline(always)]
fn collision_in(ctx: &TcContext, layer: Layer) -> i32 {
    collision::asks(ctx, layer, Origin::Outside)
}

#[inline(always)]
fn collision_out(ctx: &TcContext, layer: Layer) -> i32 {
    collision::is_answered(ctx, layer, Origin::Outside)
}

/// An error that came in by an uplink.
#[inline(always)]
fn error_from_outside(ctx: &TcContext, layer: Layer) -> i32 {
    let Message::Error(error) = packet::parse_message(ctx, layer) else { return NEXT };
    direct_return::hear(ctx, &error);
    return_error(ctx, &error)
}

/// An error that a pod sent.
#[inline(always)]
pub fn error_in(ctx: &TcContext, layer: Layer) -> i32 {
    let Message::Error(error) = packet::parse_message(ctx, layer) else { return NEXT };
    return_error(ctx, &error)
}

/// An error about a packet that left here reaches whoever sent that.
#[inline(always)]
fn return_error(ctx: &TcContext, error: &IcmpError) -> i32 {
    let key = answer_key(&error.quoted, nat::IN);
    // SAFETY: the value is copied at once; one of a recycled element tells another flow's owner, who knows no such packet.
    let entry = unsafe { ORLOP_NAT.get(&key).or_else(|| ORLOP_INBOUND.get(&key)) }.copied();
    match entry {
        Some(NatValue { address, port_be, client_port_be, .. })
            if error.destination == error.quoted.source =>
        {
            count(counter::ICMP_ERROR_TRANSLATED);
            let client_port_be = client_port_or(client_port_be, error.quoted.destination_port_be);
            finish(packet::rewrite_error(ctx, error, End::Source, true, &address, port_be, client_port_be))
        }
        _ => NEXT,
    }
}

/// An error about a packet that came in here tells the world of the address that the packet was sent to.
#[inline(always)]
pub fn error_out(ctx: &TcContext, layer: Layer) -> i32 {
    let error = match packet::parse_message(ctx, layer) {
        Message::Error(error) => error,
        Message::Other(ends) | Message::Neighbourhood(ends) => return untranslatable(ends),
        Message::None => return NEXT,
    };
    let key = answer_key(&error.quoted, nat::OUT);
    // SAFETY: as in `error_in`.
    let entry = unsafe { ORLOP_NAT.get(&key).or_else(|| ORLOP_INBOUND.get(&key)) }.copied();
    let Some(NatValue { address, port_be, client_port_be, kind, .. }) = entry else {
        return untranslatable(Ends { source: error.source, destination: error.destination });
    };
    if kind == nat::DIRECT {
        return NEXT;
    }
    // A router on the way keeps its own address, unless it is one that nobody outside knows, or one that does not belong to the tunnel.
    let is_told = error.source == error.quoted.destination
        || leaves_under_another_address(&error.source, &error.destination)
        || ORLOP_CONFIG.get(0).is_some_and(|config| link_of(ctx) == config.overlay_link);
    count(counter::ICMP_ERROR_TRANSLATED);
    let client_port_be = client_port_or(client_port_be, error.quoted.source_port_be);
    finish(packet::rewrite_error(ctx, &error, End::Destination, is_told, &address, port_be, client_port_be))
}

/// Where the client's port is another one at the backend, the quoted packet had that, or is to show it.
#[inline(always)]
fn client_port_or(client_port_be: u16, own_be: u16) -> u16 {
    if client_port_be == 0 { own_be } else { client_port_be }
}

/// A packet without ports on its way out.
#[inline(always)]
fn untranslatable(Ends { source, destination }: Ends) -> i32 {
    if !leaves_under_another_address(&source, &destination) {
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
    to_backend(ctx, packet, &key, Origin::Outside)
}

/// Leads a packet of a known flow to its backend; one that asks for no service goes on as it is.
#[inline(always)]
pub fn to_backend(ctx: &TcContext, packet: &Packet, key: &NatKey, origin: Origin) -> i32 {
    let frontend = packet.frontend();
    let client = || Client { address: packet.source, port_be: packet.source_port_be, netns: None };
    let link = owner(ctx, origin);
    // SAFETY: as in `ingress`.
    if let Some(element) = flows(origin).get_ptr_mut(key)
        && (origin == Origin::Outside || unsafe { (*element).link } == link)
    {
        // SAFETY: as above.
        let entry = unsafe { *element };
        if entry.kind == nat::STRAIGHT {
            // A new connection has its own answer to whether its port is free.
            if protocol::has_connections(packet.protocol) && packet.may_begin_flow {
                let _ = flows(origin).remove(key);
                return direct(packet, origin, link);
            }
            return COLLISION;
        }
        if !packet.may_begin_flow {
            return translate_in(ctx, packet, &entry, origin);
        }
        // A flow that may begin anew does not stay with a backend that is no longer the service's.
        let before = pick_of(&entry);
        if let Some(pick) = select::still_there(&frontend, origin, client, before) {
            if pick != before {
                // SAFETY: as above. Of two processors each writes what is true; half of it only costs a longer look.
                unsafe {
                    (&raw mut (*element).selection).write_volatile(pick.selection);
                    (&raw mut (*element).slot).write_volatile(pick.slot as u16);
                }
            }
            return translate_in(ctx, packet, &entry, origin);
        }
    }
    // The kernel drops what comes from elsewhere to its loopback; the node's own sockets find services there.
    if packet.destination.is_loopback() {
        return NEXT;
    }
    let is_service = select::is_service(&frontend);
    if is_held() && (is_service || origin == Origin::Outside && belongs_to_flow(packet)) {
        count(counter::HELD);
        return DROP;
    }
    match (is_service, packet.may_begin_flow) {
        (false, _) => direct(packet, origin, link),
        (true, false) => of_no_flow(origin),
        (true, true) => BEGINS,
    }
}

/// Whether the layout changes: a flow that is not known may be known to the programs of the older one, and one that began now would not be.
#[inline(always)]
fn is_held() -> bool {
    // SAFETY: the helper takes nothing and has no effect but its result.
    ORLOP_HOLD.get(0).is_some_and(|until| *until != 0 && unsafe { bpf_ktime_get_coarse_ns() } < *until)
}

/// Whether a packet from outside that asks for no service has a flow, or gets one: an answer to a pod that is masqueraded, what another node tells, and what
/// reaches such a pod under its own address. All else is the node's own.
#[inline(always)]
fn belongs_to_flow(packet: &Packet) -> bool {
    is_shown(&packet.destination) && u16::from_be(packet.destination_port_be) >= nat::FIRST_PORT
        || direct_return::may_be_wrapped(packet)
        || leaves_under_another_address(&packet.destination, &packet.source)
}

/// Leads the first packet of a flow to one of its service's backends.
#[inline(always)]
pub fn begin(ctx: &TcContext, packet: &Packet, origin: Origin) -> i32 {
    let key = nat_key(packet, nat::IN);
    let client = || Client { address: packet.source, port_be: packet.source_port_be, netns: None };
    match select::select(&packet.frontend(), origin, client) {
        // It went this moment.
        Choice::NoService => NEXT,
        Choice::NoBackend(slot) => {
            count(no_backend(origin));
            select::count(slot, Outcome::NoBackend);
            DROP
        }
        Choice::LeftToNode(slot) => {
            count(counter::NODE_PORT_NO_BACKEND);
            select::count(slot, Outcome::NoBackend);
            NEXT
        }
        Choice::Forbidden(slot) => {
            count(counter::SOURCE_REFUSED);
            select::count(slot, Outcome::Forbidden);
            DROP
        }
        // Its own address would come back to it as its peer's. From outside a flow goes on under the node's address.
        Choice::Backend(chosen, _) if origin == Origin::Inside && chosen.address.is(&packet.source) => {
            count(counter::PACKET_HAIRPIN);
            DROP
        }
        Choice::Backend(chosen, flags) => {
            let is_direct = origin == Origin::Outside && flags & service_flag::DIRECT_RETURN != 0;
            let entry = NatValue {
                address: chosen.address,
                port_be: chosen.port_be,
                kind: if is_direct { nat::DIRECT_RETURN } else { nat::NODE_PORT },
                state: 0,
                backend: chosen.pick.id,
                generation: chosen.pick.generation,
                selection: chosen.pick.selection,
                slot: chosen.pick.slot as u16,
                client_port_be: 0,
                used: 0,
                link: owner(ctx, origin),
            };
            if !written(flows(origin).insert(&key, &entry, 0)) {
                return DROP;
            }
            count(translated(origin));
            select::count(chosen.pick.slot, Outcome::Led);
            translate_in(ctx, packet, &entry, origin)
        }
    }
}

/// The link that a packet's flow belongs to; those from outside are nobody's.
#[inline(always)]
pub fn owner(ctx: &TcContext, origin: Origin) -> u32 {
    match origin {
        Origin::Inside => link_of(ctx),
        Origin::Outside => 0,
    }
}

/// Whether two entries are of flows that began at one link; those from outside are nobody's.
#[inline(always)]
fn is_of_link(one: &NatValue, other: &NatValue, origin: Origin) -> bool {
    origin == Origin::Outside || one.link == other.link
}

/// Where the flows of such clients stand.
#[inline(always)]
pub fn flows(origin: Origin) -> &'static Flows {
    match origin {
        Origin::Inside => &ORLOP_NAT,
        Origin::Outside => &ORLOP_INBOUND,
    }
}

#[inline(always)]
pub fn held_by(origin: Origin) -> Held {
    match origin {
        Origin::Inside => Held::Nat,
        Origin::Outside => Held::Inbound,
    }
}

#[inline(always)]
fn translated(origin: Origin) -> u32 {
    match origin {
        Origin::Inside => counter::PACKET_TRANSLATED,
        Origin::Outside => counter::NODE_PORT_TRANSLATED,
    }
}

#[inline(always)]
fn no_backend(origin: Origin) -> u32 {
    match origin {
        Origin::Inside => counter::PACKET_NO_BACKEND,
        Origin::Outside => counter::NODE_PORT_NO_BACKEND,
    }
}

/// The middle of a connection to a service that is not known. From outside the node answers with a reset; a cluster IP it does not have.
#[inline(always)]
fn of_no_flow(origin: Origin) -> i32 {
    match origin {
        Origin::Inside => {
            count(counter::PACKET_NO_FLOW);
            DROP
        }
        Origin::Outside => {
            count(counter::NODE_PORT_NO_FLOW);
            NEXT
        }
    }
}

/// A packet that asks for no service. A pod's own is looked at only for what its link translates with the same ends.
#[inline(always)]
fn direct(packet: &Packet, origin: Origin, link: u32) -> i32 {
    if origin == Origin::Outside {
        return if direct_return::may_be_wrapped(packet) { RETURNS } else { note_direct_flow(packet) };
    }
    // SAFETY: the value is copied at once.
    match unsafe { ORLOP_NAT.get(&answer_key(packet, nat::OUT)) }.copied() {
        Some(held) if held.link == link => beside(packet, &held),
        _ => NEXT,
    }
}

/// A packet straight to a backend, whose answers would be taken for those of a service's flow.
#[inline(always)]
fn beside(packet: &Packet, held: &NatValue) -> i32 {
    if packet.may_begin_flow && !may_take_over(packet.protocol, held, false) { COLLISION } else { NEXT }
}

/// The answer to a masqueraded packet goes back to its pod.
#[inline(always)]
fn answer_in(ctx: &TcContext, packet: &Packet, key: &NatKey, entry: &NatValue) -> i32 {
    // SAFETY: the element is ours to count in; if it was recycled, another flow lives a little longer.
    unsafe { touch(ORLOP_NAT.get_ptr_mut(key), (key, Held::Nat), packet, nat::IN) };
    let back = out_key(packet, entry);
    // SAFETY: only whether it is there matters; looking also keeps it from being evicted.
    if unsafe { ORLOP_NAT.get(&back) }.is_none() {
        let shown = NatValue { address: packet.destination, port_be: packet.destination_port_be, ..*entry };
        written(ORLOP_NAT.insert(&back, &shown, BPF_NOEXIST as u64));
    }
    finish(packet::rewrite(ctx, packet, End::Destination, &entry.address, entry.port_be))
}

/// Towards a service's backend: rewrites the destination and makes sure that the answers find their way back.
#[inline(always)]
fn translate_in(ctx: &TcContext, packet: &Packet, entry: &NatValue, origin: Origin) -> i32 {
    if entry.client_port_be != 0 {
        return COLLISION;
    }
    let back = out_key(packet, entry);
    let flows = flows(origin);
    // SAFETY: the value is copied at once.
    let held = unsafe { flows.get(&back) }.copied();
    match held {
        Some(held)
            if held.address == packet.destination
                && held.port_be == packet.destination_port_be
                && held.client_port_be == 0
                && is_of_link(&held, entry, origin) =>
        {
            // SAFETY: as in `answer_in`.
            unsafe { touch(flows.get_ptr_mut(&back), (&back, held_by(origin)), packet, nat::IN) };
        }
        // The backend already talks to this very client port by another way, and could not tell the two apart.
        Some(held) if is_of_link(&held, entry, origin) && !may_take_over(packet.protocol, &held, false) => {
            return COLLISION;
        }
        _ => {
            let shown = NatValue {
                address: packet.destination,
                port_be: packet.destination_port_be,
                state: 0,
                used: now(),
                ..*entry
            };
            // Without it the answer would not come back as the node's.
            if !written(flows.insert(&back, &shown, 0)) {
                return DROP;
            }
        }
    }
    finish(packet::rewrite(ctx, packet, End::Destination, &entry.address, entry.port_be))
}

#[inline(always)]
fn egress(ctx: &TcContext, packet: &Packet) -> i32 {
    let key = nat_key(packet, nat::OUT);
    // SAFETY: the value is copied at once.
    if let Some(entry) = unsafe { ORLOP_NAT.get(&key) }.copied() {
        if still_holds_port(packet, &entry) {
            return finish(packet::rewrite(ctx, packet, End::Source, &entry.address, entry.port_be));
        }
        // Another flow took the port over while this one was silent.
        let _ = ORLOP_NAT.remove(&key);
    }
    // SAFETY: as above.
    if let Some(entry) = unsafe { ORLOP_INBOUND.get(&key) }.copied() {
        return answer_out(ctx, packet, &key, &entry, Origin::Outside);
    }
    let onward = match leaves_under_another_address(&packet.source, &packet.destination) {
        true => nat::MASQUERADE,
        false => onward(packet),
    };
    match (onward, packet.may_begin_flow) {
        (nat::MASQUERADE | nat::NODE_PORT, true) => BEGINS,
        (nat::DIRECT_RETURN, true) => RETURNS,
        (nat::MASQUERADE | nat::NODE_PORT, false) => {
            count(counter::MASQUERADE_NO_FLOW);
            DROP
        }
        _ => NEXT,
    }
}

/// Of which kind a node port's flow is that leaves again, towards a backend on another node; 0: none is. Its answers have to come back here, since only
/// here it is known what the client asked for, unless that is told there.
#[inline(always)]
fn onward(packet: &Packet) -> u8 {
    if ORLOP_CONFIG.get(0).is_none_or(|config| masquerade_of(config, &packet.source).shown == Address::NONE) {
        return 0;
    }
    let back = answer_key(packet, nat::OUT);
    // SAFETY: the value is copied at once.
    unsafe { ORLOP_INBOUND.get(&back) }.map_or(0, |entry| entry.kind)
}

/// What shows instead of a pod or client where the packet leaves.
#[inline(always)]
pub fn shown_at(ctx: &TcContext, config: &Config, source: &Address) -> Address {
    let masquerade = masquerade_of(config, source);
    if link_of(ctx) == config.overlay_link { masquerade.overlay } else { masquerade.shown }
}

/// A backend's answer to what a client asked a service for.
#[inline(always)]
pub fn answer_out(ctx: &TcContext, packet: &Packet, key: &NatKey, entry: &NatValue, origin: Origin) -> i32 {
    if entry.client_port_be != 0 {
        return COLLISION;
    }
    let flows = flows(origin);
    // SAFETY: as in `answer_in`.
    unsafe { touch(flows.get_ptr_mut(key), (key, held_by(origin)), packet, nat::OUT) };
    if entry.kind == nat::DIRECT {
        return NEXT;
    }
    let back = back_in(packet, &entry.address, entry.port_be);
    // SAFETY: an element that is recycled meanwhile costs one packet, which is sent again. One that leads elsewhere stays.
    let has_moved_on = match unsafe { flows.get(&back) } {
        // What another node told has no other half here.
        _ if entry.kind == nat::TOLD => false,
        Some(held) => {
            let leads_here = held.address.is(&packet.source) && held.port_be == packet.source_port_be;
            is_of_link(held, entry, origin) && !leads_here
        }
        None => {
            written(flows.insert(&back, &inside(packet, entry), BPF_NOEXIST as u64));
            false
        }
    };
    // A datagram is a late answer. Of a connection it would be taken for its new backend's, to which the client's next packets then make no sense.
    if has_moved_on && protocol::has_connections(packet.protocol) {
        count(counter::MASQUERADE_NO_FLOW);
        return DROP;
    }
    finish(packet::rewrite(ctx, packet, End::Source, &entry.address, entry.port_be))
}

/// Whether the outside port of a masqueraded flow still leads back to it. One that was evicted is made again.
#[inline(always)]
fn still_holds_port(packet: &Packet, entry: &NatValue) -> bool {
    let back = back_in(packet, &entry.address, entry.port_be);
    // SAFETY: the value is copied at once.
    match unsafe { ORLOP_NAT.get(&back) }.copied() {
        Some(held) if held.address == packet.source && held.port_be == packet.source_port_be => {
            // SAFETY: as in `answer_in`.
            unsafe { touch(ORLOP_NAT.get_ptr_mut(&back), (&back, Held::Nat), packet, nat::OUT) };
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
fn masquerade(ctx: &TcContext, packet: &Packet) -> i32 {
    let key = nat_key(packet, nat::OUT);
    let Some(config) = ORLOP_CONFIG.get(0) else { return NEXT };
    let address = shown_at(ctx, config, &packet.source);
    let entry = NatValue {
        address,
        port_be: 0,
        kind: nat::MASQUERADE,
        state: 0,
        backend: 0,
        generation: 0,
        selection: 0,
        slot: 0,
        client_port_be: 0,
        used: now(),
        link: 0,
    };
    let value = inside(packet, &entry);
    for attempt in 0..nat::PORT_TRIES {
        let port_be = random_port().to_be();
        let back = back_in(packet, &address, port_be);
        let mut taken = ORLOP_NAT.insert(&back, &value, BPF_NOEXIST as u64);
        if !written(taken) {
            return DROP;
        }
        if taken.is_err() && vacate(packet, &back, attempt >= nat::PORT_TRIES / 2) {
            taken = ORLOP_NAT.insert(&back, &value, BPF_NOEXIST as u64);
        }
        if taken.is_ok() {
            // The next packet would be taken for another flow's; the port comes back when it has been idle.
            if !written(ORLOP_NAT.insert(&key, &NatValue { port_be, ..entry }, 0)) {
                return DROP;
            }
            count(counter::MASQUERADED);
            return finish(packet::rewrite(ctx, packet, End::Source, &address, port_be));
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
        source: old.address,
        destination: packet.destination,
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
pub fn may_take_over(protocol: u8, held: &NatValue, scarce: bool) -> bool {
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
/// `entry` is an element that the kernel gave to this run of the program, for `key`.
#[inline(always)]
pub unsafe fn touch(
    entry: Option<*mut NatValue>,
    (key, held): (&NatKey, Held),
    packet: &Packet,
    direction: u8,
) {
    let Some(entry) = entry else { return };
    // SAFETY: the caller vouches for the element.
    let [before, after] = unsafe { touch_known(entry, packet, direction) };
    // SAFETY: as above; this is a plain integer inside it.
    let kind = unsafe { (*entry).kind };
    let ends = nat::is_over(packet.protocol, after) && !nat::is_over(packet.protocol, before);
    // Once in the queue, whatever is said meanwhile: one flow does not fill it.
    let is_doubted = !ends && after & nat::DOUBTED == 0 && nat::may_be_over(packet.protocol, kind, after);
    if is_doubted {
        // SAFETY: as above.
        unsafe { (&raw mut (*entry).state).write_volatile(after | nat::DOUBTED) };
    }
    if ends || is_doubted {
        ended::note(key, held, now());
    }
}

/// As [`touch`], without a look at what it means; what was seen of the flow before, and with this packet.
///
/// # Safety
/// As there.
#[inline(always)]
pub unsafe fn touch_known(entry: *mut NatValue, packet: &Packet, direction: u8) -> [u8; 2] {
    // SAFETY: the caller vouches for the element. Two processors may race for it: the later one of two equal times stays.
    let (used, state) = unsafe { (&raw mut (*entry).used, &raw mut (*entry).state) };
    // SAFETY: as above; this is a plain integer inside the element.
    let before = unsafe { state.read_volatile() };
    let begins = protocol::has_connections(packet.protocol) && packet.may_begin_flow;
    let [answered, fin, reset] = match direction {
        nat::IN => [nat::ANSWERED, nat::FIN_IN, nat::RESET | nat::RESET_IN],
        _ => [0, nat::FIN_OUT, nat::RESET | nat::RESET_OUT],
    };
    // Who speaks after a reset did not believe it.
    let disbelieved = (nat::RESET | nat::RESET_IN | nat::RESET_OUT) & !all_if(packet.reset);
    let after = (before & !disbelieved & (nat::DOUBTED | !all_if(begins)))
        | answered
        | (fin & all_if(packet.fin))
        | (reset & all_if(packet.reset));
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
    [before, after]
}

/// All bits, or none. The verifier would follow each branch through all that comes later.
#[inline(always)]
fn all_if(condition: bool) -> u8 {
    (condition as u8).wrapping_neg()
}

/// The time in ticks.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: the helper takes nothing and has no effect but its result.
    (unsafe { bpf_ktime_get_coarse_ns() } >> nat::TICK_SHIFT) as u32
}

#[inline(always)]
pub fn random_port() -> u16 {
    let width = (nat::LAST_PORT - nat::FIRST_PORT) as u32 + 1;
    // SAFETY: the helper takes nothing and has no effect but its result.
    let random = unsafe { bpf_get_prandom_u32() } & 0xffff;
    nat::FIRST_PORT + ((random * width) >> 16) as u16
}

/// The key under which the answer to a packet that leaves as `address`:`port` comes back.
#[inline(always)]
pub fn back_in(packet: &Packet, address: &Address, port_be: u16) -> NatKey {
    NatKey {
        source: packet.destination,
        destination: *address,
        source_port_be: packet.destination_port_be,
        destination_port_be: port_be,
        protocol: packet.protocol,
        direction: nat::IN,
        reserved: 0,
    }
}

/// The key under which `entry`'s inside answers a packet that came in.
#[inline(always)]
pub fn out_key(packet: &Packet, entry: &NatValue) -> NatKey {
    NatKey {
        source: entry.address,
        destination: packet.source,
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
    NatValue { address: packet.source, port_be: packet.source_port_be, ..*entry }
}

#[inline(always)]
pub fn nat_key(packet: &Packet, direction: u8) -> NatKey {
    NatKey {
        source: packet.source,
        destination: packet.destination,
        source_port_be: packet.source_port_be,
        destination_port_be: packet.destination_port_be,
        protocol: packet.protocol,
        direction,
        reserved: 0,
    }
}

/// The key of a packet that answers this one.
#[inline(always)]
pub fn answer_key(packet: &Packet, direction: u8) -> NatKey {
    NatKey {
        source: packet.destination,
        destination: packet.source,
        source_port_be: packet.destination_port_be,
        destination_port_be: packet.source_port_be,
        protocol: packet.protocol,
        direction,
        reserved: 0,
    }
}

#[inline(always)]
pub fn pick_of(entry: &NatValue) -> Pick {
    Pick {
        id: entry.backend,
        generation: entry.generation,
        slot: entry.slot as u32,
        selection: entry.selection,
    }
}

/// A packet that reaches a pod under the pod's own address: the answer is not a new flow and keeps its source.
#[inline(always)]
pub fn note_direct_flow(packet: &Packet) -> i32 {
    let back = answer_key(packet, nat::OUT);
    if !leaves_under_another_address(&packet.destination, &packet.source) {
        // Its answers need no entry: only whether a service's have one is looked at.
        return match packet.may_begin_flow && is_pod(&packet.destination) {
            // SAFETY: the value is copied at once.
            true => match unsafe { ORLOP_INBOUND.get(&back) }.copied() {
                Some(held) if !goes_on_told(packet, &held) => beside(packet, &held),
                _ => NEXT,
            },
            false => note_end(packet, &back),
        };
    }
    let direct = NatValue {
        address: packet.destination,
        port_be: packet.destination_port_be,
        kind: nat::DIRECT,
        state: 0,
        backend: 0,
        generation: 0,
        selection: 0,
        slot: 0,
        client_port_be: 0,
        used: now(),
        link: 0,
    };
    // SAFETY: the value is copied at once.
    match unsafe { ORLOP_INBOUND.get(&back) }.copied() {
        // SAFETY: as in `answer_in`.
        Some(held) if held.kind == nat::DIRECT || goes_on_told(packet, &held) => unsafe {
            touch(ORLOP_INBOUND.get_ptr_mut(&back), (&back, Held::Inbound), packet, nat::IN);
        },
        // A service's flow has the same ends.
        Some(held) if !may_take_over(packet.protocol, &held, false) => return beside(packet, &held),
        _ => {
            written(ORLOP_INBOUND.insert(&back, &direct, 0));
        }
    }
    NEXT
}

/// Of a flow that another node told of, its end has to be known here, too: its client may come by a third one from the same port.
#[inline(always)]
fn note_end(packet: &Packet, back: &NatKey) -> i32 {
    if packet.fin || packet.reset {
        let told = ORLOP_INBOUND.get_ptr_mut(back);
        // SAFETY: as in `answer_in`.
        unsafe {
            let told = told.filter(|element| (**element).kind == nat::TOLD);
            touch(told, (back, Held::Inbound), packet, nat::IN);
        }
    }
    NEXT
}

/// Whether it belongs to a flow that another node told of: all but what begins one, which is told of each time.
#[inline(always)]
fn goes_on_told(packet: &Packet, held: &NatValue) -> bool {
    held.kind == nat::TOLD && !(packet.may_begin_flow && protocol::has_connections(packet.protocol))
}

/// Whether it is the address of a pod of this node, where pods are masqueraded.
#[inline(always)]
fn is_pod(address: &Address) -> bool {
    ORLOP_CONFIG.get(0).is_some_and(|config| masquerade_of(config, address).pods.contains(address))
}

/// Whether it is an address of this node under which its clients and pods are shown.
#[inline(always)]
pub fn is_shown(address: &Address) -> bool {
    ORLOP_CONFIG.get(0).is_some_and(|config| {
        let masquerade = masquerade_of(config, address);
        masquerade.shown == *address || masquerade.overlay == *address
    })
}

/// Whether a packet with these ends is to be masqueraded.
#[inline(always)]
pub fn leaves_under_another_address(source: &Address, destination: &Address) -> bool {
    let Some(config) = ORLOP_CONFIG.get(0) else { return false };
    let masquerade = masquerade_of(config, source);
    masquerade.pods.contains(source)
        && !masquerade.unmasqueraded.iter().any(|network| network.contains(destination))
}

/// Index of the link that the packet crosses.
#[inline(always)]
pub fn link_of(ctx: &TcContext) -> u32 {
    // SAFETY: the kernel gave this context to this run of the program.
    unsafe { (*ctx.skb.skb).ifindex }
}

/// The settings of the address's family.
#[inline(always)]
fn masquerade_of<'a>(config: &'a Config, address: &Address) -> &'a Masquerade {
    if address.is_v4() { &config.v4 } else { &config.v6 }
}

/// Whether an entry stands now, from whoever: `false`, and counted, when the kernel had no room for it.
#[inline(always)]
pub fn written(inserted: Result<(), i32>) -> bool {
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
pub fn finish(rewritten: Result<(), i64>) -> i32 {
    if rewritten.is_ok() {
        return NEXT;
    }
    count(counter::REWRITE_FAILED);
    DROP
}
