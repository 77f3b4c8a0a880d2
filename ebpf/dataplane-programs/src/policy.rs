//! NetworkPolicy, at the node's end of a pod's link: what may come in to the pod, and what may leave it.
//!
//! A flow is judged by its first packet, by the rules of the direction in which it begins; then it stands in ORLOP_ALLOWED, and its answers
//! pass with it. After a change of the rules every flow is judged again, by the direction in which it began, with whichever packet comes
//! next. So what is not allowed any more ends, and nothing else.
//!
//! A connection that is not known, because no policy selected the pod when it began or because its entry made room for others, is judged
//! as what the pod's own sockets say that it is: only one that is established there counts, and the peer began it if the pod listens at
//! the port (sockets that are bound to a device are not found). A packet that merely looks like the middle of a connection begins none.
//!
//! The node itself may always talk to its pods, and they to it. Neighbours have to find each other: ARP and ICMPv6's neighbour discovery
//! pass, as far as a link goes. Source addresses are believed.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_EXIST, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::{bpf_sk_release, bpf_skc_lookup_tcp};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use dataplane_abi::{
    Address, Allowed, AllowedKey, NetworkKey, PodPolicy, PortKey, counter, policy, protocol,
};

use crate::maps::{ORLOP_ALLOWED, ORLOP_CONFIG, ORLOP_PODS, ORLOP_PORTS, ORLOP_RULES, count};
use crate::packet::{self, Ends, Layer, Message, Packet, Parsed};
use crate::uplink::{DROP, FRAGMENT, ICMP, NEXT, link_of, now};

/// States of the kernel's TCP sockets.
const SYN_SENT: u32 = 2;
const SYN_RECEIVED: u32 = 3;
const LISTEN: u32 = 10;
const NEW_SYN_RECEIVED: u32 = 12;

#[classifier]
pub fn orlop_to_pod(ctx: TcContext) -> i32 {
    filter(&ctx, policy::INGRESS)
}

#[classifier]
pub fn orlop_from_pod(ctx: TcContext) -> i32 {
    filter(&ctx, policy::EGRESS)
}

#[inline(always)]
fn filter(ctx: &TcContext, direction: u32) -> i32 {
    match packet(ctx, direction) {
        ICMP => message(ctx, direction),
        FRAGMENT => fragment(ctx, direction),
        verdict => verdict,
    }
}

/// The rules of a pod, as they were when the packet came.
#[derive(Clone, Copy)]
struct Rules {
    pod: PodPolicy,
    /// Read before the rules: what is judged while they change is judged again.
    generation: u32,
    link: u32,
}

impl Rules {
    #[inline(always)]
    fn of(ctx: &TcContext) -> Option<Self> {
        let link = link_of(ctx);
        let generation = ORLOP_CONFIG.get(0)?.policy_generation;
        // SAFETY: the value is copied at once; the kernel frees an element after the programs that may read it.
        let pod = unsafe { ORLOP_PODS.get(&link) }.copied()?;
        Some(Self { pod, generation, link })
    }

    #[inline(always)]
    fn ruleset(&self, direction: u32) -> u32 {
        if direction == policy::INGRESS { self.pod.ingress } else { self.pod.egress }
    }

    /// Whether a flow may begin in a direction.
    #[inline(always)]
    fn allow(&self, flow: &AllowedKey, direction: u32) -> bool {
        let is_ingress = direction == policy::INGRESS;
        let port_be = if is_ingress { flow.pod_port_be } else { flow.peer_port_be };
        is_allowed(self.ruleset(direction), &flow.peer, flow.protocol, port_be)
            || (!is_ingress && is_node(&flow.peer))
    }

    /// Whether what has no ports may pass.
    #[inline(always)]
    fn allow_portless(&self, direction: u32, ends: &Ends) -> bool {
        let is_ingress = direction == policy::INGRESS;
        let peer = if is_ingress { &ends.source } else { &ends.destination };
        is_allowed(self.ruleset(direction), peer, 0, 0) || (!is_ingress && is_node(peer))
    }
}

// Functions of their own, because the stack has room for either alone.

#[inline(never)]
fn packet(ctx: &TcContext, direction: u32) -> i32 {
    let Some(rules) = Rules::of(ctx) else { return NEXT };
    match packet::parse(ctx, Layer::Ethernet) {
        Parsed::Packet(packet) => flow(ctx, &rules, &packet, direction),
        Parsed::Icmp => ICMP,
        Parsed::Fragment => FRAGMENT,
        Parsed::Portless(ends) => portless(ctx, &rules, direction, &ends),
        Parsed::Other if packet::is_arp(ctx) || rules.ruleset(direction) == policy::OPEN => NEXT,
        Parsed::Other => refuse(direction),
    }
}

/// An ICMP message that is no echo.
#[inline(never)]
fn message(ctx: &TcContext, direction: u32) -> i32 {
    let Some(rules) = Rules::of(ctx) else { return NEXT };
    match packet::parse_message(ctx, Layer::Ethernet) {
        Message::Neighbourhood(ends) if is_near(&ends.destination) => NEXT,
        Message::Neighbourhood(ends) => portless(ctx, &rules, direction, &ends),
        Message::Error(error) => {
            // About a packet that went the other way, and told to whom that came from.
            if error.destination == error.quoted.source
                && is_standing(&rules, &flow_of(&rules, &error.quoted, other(direction)))
            {
                return NEXT;
            }
            portless(ctx, &rules, direction, &Ends { source: error.source, destination: error.destination })
        }
        Message::Other(ends) => portless(ctx, &rules, direction, &ends),
        Message::None => refuse(direction),
    }
}

/// A part of a packet, with the ports that its first part had.
#[inline(never)]
fn fragment(ctx: &TcContext, direction: u32) -> i32 {
    let Some(rules) = Rules::of(ctx) else { return NEXT };
    match packet::parse_fragment(ctx, Layer::Ethernet) {
        Ok(packet) => flow(ctx, &rules, &packet, direction),
        Err(Some(ends)) => portless(ctx, &rules, direction, &ends),
        Err(None) => refuse(direction),
    }
}

#[inline(always)]
fn portless(ctx: &TcContext, rules: &Rules, direction: u32, ends: &Ends) -> i32 {
    if is_nodes_own(ctx, direction) || rules.allow_portless(direction, ends) {
        NEXT
    } else {
        refuse(direction)
    }
}

#[inline(always)]
fn flow(ctx: &TcContext, rules: &Rules, packet: &Packet, direction: u32) -> i32 {
    let is_tcp = packet.protocol == protocol::TCP;
    let key = flow_of(rules, packet, direction);
    // What begins a connection begins it anew, whatever went between the same ends before.
    if !(is_tcp && packet.may_begin_flow)
        && let Some(stands) = standing(rules, &key)
    {
        return if stands { NEXT } else { refuse(direction) };
    }
    if is_nodes_own(ctx, direction) {
        note(&key, policy::ALWAYS, direction);
        return NEXT;
    }
    let mut began = direction;
    // Of an association that is not known nobody can be asked: whichever end sends begins it.
    if !packet.may_begin_flow && packet.protocol != protocol::SCTP {
        let beginner = if is_tcp { who_began(ctx, rules, &key) } else { None };
        let Some(beginner) = beginner else {
            return stray(rules, packet, &key, direction);
        };
        began = beginner;
    }
    if rules.allow(&key, began) {
        note(&key, rules.generation, began);
        return NEXT;
    }
    // The answer to the node, which had begun the connection before anybody looked.
    if direction == policy::EGRESS && began == policy::INGRESS && is_node(&key.peer) {
        note(&key, policy::ALWAYS, began);
        return NEXT;
    }
    refuse(direction)
}

/// Nothing that anybody here knows of: it passes where it could have begun something, and begins nothing. So does a reset that answers what
/// could have.
#[inline(always)]
fn stray(rules: &Rules, packet: &Packet, key: &AllowedKey, direction: u32) -> i32 {
    if rules.allow(key, direction) || (packet.reset && rules.allow(key, other(direction))) {
        NEXT
    } else {
        refuse(direction)
    }
}

/// The flow of a packet that goes in a direction.
#[inline(always)]
fn flow_of(rules: &Rules, packet: &Packet, direction: u32) -> AllowedKey {
    let (pod, peer, pod_port_be, peer_port_be) = if direction == policy::INGRESS {
        (packet.destination, packet.source, packet.destination_port_be, packet.source_port_be)
    } else {
        (packet.source, packet.destination, packet.source_port_be, packet.destination_port_be)
    };
    AllowedKey {
        pod,
        peer,
        pod_port_be,
        peer_port_be,
        protocol: packet.protocol,
        reserved: 0,
        reserved2: 0,
        link: rules.link,
    }
}

/// Whether a known flow goes on; `None` if it is not known.
#[inline(never)]
fn standing(rules: &Rules, key: &AllowedKey) -> Option<bool> {
    let element = ORLOP_ALLOWED.get_ptr_mut(key)?;
    // SAFETY: the kernel gave the element to this run. One that is recycled under us shows another flow's time or generation for a moment:
    // this packet is then judged by the rules, or passes as one that was sent a moment earlier.
    let Allowed { generation, used, began } = unsafe { element.read_volatile() };
    let time = now();
    if is_over(key, time, used) {
        return None;
    }
    // It stays known as what it is: its answers are no new flow of the other direction.
    let is_judged = generation == policy::ALWAYS || generation == rules.generation;
    if !is_judged && !rules.allow(key, began) {
        return Some(false);
    }
    if time != used {
        // SAFETY: as above; another flow lives a little longer.
        unsafe { (&raw mut (*element).used).write_volatile(time) };
    }
    if is_judged {
        return Some(true);
    }
    // Not through the element, which may be another flow's by now.
    let judged = Allowed { generation: rules.generation, used: time, began };
    let _ = ORLOP_ALLOWED.insert(key, &judged, BPF_EXIST as u64);
    Some(true)
}

/// Whether a known flow goes on, of which this is no packet.
#[inline(never)]
fn is_standing(rules: &Rules, key: &AllowedKey) -> bool {
    // SAFETY: the value is copied at once; one of a recycled element lets an error pass.
    let Some(Allowed { generation, used, began }) = (unsafe { ORLOP_ALLOWED.get(key) }).copied() else {
        return false;
    };
    if is_over(key, now(), used) {
        return false;
    }
    generation == policy::ALWAYS || generation == rules.generation || rules.allow(key, began)
}

/// Whether a flow without connection was silent for too long.
#[inline(always)]
fn is_over(key: &AllowedKey, time: u32, used: u32) -> bool {
    // Another processor's clock may be a tick ahead.
    let idle = time.wrapping_sub(used) as i32;
    key.protocol != protocol::TCP && idle > policy::IDLE_LIMIT
}

/// Where the kernel has no room for a moment, the next packet is judged anew.
#[inline(always)]
fn note(key: &AllowedKey, generation: u32, began: u32) {
    let _ = ORLOP_ALLOWED.insert(key, &Allowed { generation, used: now(), began }, 0);
}

/// Whether a ruleset lets a peer use a port. Protocol 0: something without ports.
#[inline(never)]
fn is_allowed(ruleset: u32, peer: &Address, protocol: u8, port_be: u16) -> bool {
    if ruleset == policy::OPEN {
        return true;
    }
    let [a, b, c, d] = peer.words_be;
    let Some(list) = ORLOP_RULES.get(&Key::new(NetworkKey::WHOLE, [ruleset, a, b, c, d])) else {
        return false;
    };
    let list = *list;
    list == policy::ALL_PORTS
        || ORLOP_PORTS.get(&Key::new(PortKey::WHOLE, PortKey::words(list, protocol, port_be))).is_some()
}

/// Whether an address is one of the node's own.
#[inline(always)]
fn is_node(address: &Address) -> bool {
    is_allowed(policy::NODE, address, 0, 0)
}

/// Whether an address is on a pod's own link: a group there, one that means nothing elsewhere, or one of the node's pods.
#[inline(always)]
fn is_near(address: &Address) -> bool {
    let [first, ..] = address.words_be;
    let bits = u32::from_be(first) >> 16;
    let is_local = bits & 0xffc0 == 0xfe80 || bits & 0xff0f == 0xff02;
    is_local
        || ORLOP_CONFIG
            .get(0)
            .is_some_and(|config| config.v6.pods.mask == Address::NONE || config.v6.pods.contains(address))
}

/// Which side began a connection that the pod's sockets know; `None` if they do not, or it is not established.
#[inline(never)]
fn who_began(ctx: &TcContext, rules: &Rules, key: &AllowedKey) -> Option<u32> {
    let state = socket_state(ctx, rules, key, key.peer_port_be)?;
    if matches!(state, SYN_SENT | SYN_RECEIVED | LISTEN | NEW_SYN_RECEIVED) {
        return None;
    }
    // Nobody has this port, so that only a listener can be found.
    let listens = socket_state(ctx, rules, key, 0) == Some(LISTEN);
    Some(if listens { policy::INGRESS } else { policy::EGRESS })
}

/// The state of the pod's TCP socket for packets of this flow with another port of the peer.
#[inline(always)]
fn socket_state(ctx: &TcContext, rules: &Rules, key: &AllowedKey, peer_port_be: u16) -> Option<u32> {
    let (tuple, length) = match (key.peer.to_v4(), key.pod.to_v4()) {
        (Some(saddr), Some(daddr)) => (
            bpf_sock_tuple__bindgen_ty_1 {
                ipv4: bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
                    saddr,
                    daddr,
                    sport: peer_port_be,
                    dport: key.pod_port_be,
                },
            },
            size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>(),
        ),
        _ => (
            bpf_sock_tuple__bindgen_ty_1 {
                ipv6: bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
                    saddr: key.peer.words_be,
                    daddr: key.pod.words_be,
                    sport: peer_port_be,
                    dport: key.pod_port_be,
                },
            },
            size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2>(),
        ),
    };
    let mut tuple = bpf_sock_tuple { __bindgen_anon_1: tuple };
    let netns = rules.pod.netns as u32 as u64;
    // SAFETY: the tuple is as long as its family's; the socket is released before anything else is done.
    unsafe {
        let socket = bpf_skc_lookup_tcp(ctx.as_ptr(), &raw mut tuple, length as u32, netns, 0);
        if socket.is_null() {
            return None;
        }
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        Some(state)
    }
}

/// Whether the node itself sends a packet to the pod: it came in by no link.
#[inline(always)]
fn is_nodes_own(ctx: &TcContext, direction: u32) -> bool {
    // SAFETY: the kernel gave this context to this run of the program.
    direction == policy::INGRESS && unsafe { (*ctx.skb.skb).ingress_ifindex } == 0
}

#[inline(always)]
fn other(direction: u32) -> u32 {
    if direction == policy::INGRESS { policy::EGRESS } else { policy::INGRESS }
}

#[inline(always)]
fn refuse(direction: u32) -> i32 {
    count(if direction == policy::INGRESS {
        counter::POLICY_INGRESS_DENIED
    } else {
        counter::POLICY_EGRESS_DENIED
    });
    DROP
}
