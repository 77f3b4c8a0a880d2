//! Translation at the socket: connect, sendmsg, recvmsg and getpeername.
//!
//! A socket of IPv6 reaches IPv4 by mapped addresses (`::ffff:a.b.c.d`), which is how the tables hold IPv4 anyway. The kernel runs
//! the IPv6 hooks for those. Sending is the exception: the kernel turns a mapped address into a plain one and runs sendmsg4, before
//! sendmsg6 would have its turn. It does so for connected sockets too, and so a program may meet the backend's address there.
//!
//! A connected socket is translated once. An unconnected UDP socket keeps its backend, per virtual address, as long as that
//! lives and belongs to the service. What a program sees of its peer is the virtual address again.

use aya_ebpf::bindings::BPF_TCP_ESTABLISHED;
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval, bpf_sk_storage_get,
};
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use dataplane_abi::{
    Address, Connected, Counted, FlowKey, FlowValue, FrontendKey, Origin, Outcome, Scheduler, ShownPeer,
    SocketRecord, counter, flow, protocol, record, service_flag,
};

use crate::maps::{
    ORLOP_BACKENDS, ORLOP_CONFIG, ORLOP_CONNECTED, ORLOP_COUNTED, ORLOP_FLOWS, ORLOP_PEERS, ORLOP_SOCKETS,
    count, fetch_add,
};
use crate::select::{self, Choice, Chosen, Client, Pick};
use crate::tries;

const ALLOW: i32 = 1;
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;

/// The address that the caller named or is about to see.
#[derive(Clone, Copy)]
struct Peer {
    address: Address,
    port_be: u16,
}

/// Which hooks' context a program was given.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

#[cgroup_sock_addr(connect4)]
pub fn orlop_connect4(ctx: SockAddrContext) -> i32 {
    connect(&ctx, Family::V4)
}

#[cgroup_sock_addr(connect6)]
pub fn orlop_connect6(ctx: SockAddrContext) -> i32 {
    connect(&ctx, Family::V6)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn orlop_sendmsg4(ctx: SockAddrContext) -> i32 {
    send(&ctx, Family::V4)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn orlop_sendmsg6(ctx: SockAddrContext) -> i32 {
    send(&ctx, Family::V6)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn orlop_recvmsg4(ctx: SockAddrContext) -> i32 {
    show_vip(&ctx, Family::V4)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn orlop_recvmsg6(ctx: SockAddrContext) -> i32 {
    show_vip(&ctx, Family::V6)
}

#[cgroup_sock_addr(getpeername4)]
pub fn orlop_getpeername4(ctx: SockAddrContext) -> i32 {
    show_vip(&ctx, Family::V4)
}

#[cgroup_sock_addr(getpeername6)]
pub fn orlop_getpeername6(ctx: SockAddrContext) -> i32 {
    show_vip(&ctx, Family::V6)
}

/// A socket is closed: nothing has to be known of it any more. Without this, those that connect for each question would push out
/// what is connected for long.
#[cgroup_sock(sock_release)]
pub fn orlop_release(ctx: SockContext) -> i32 {
    // SAFETY: the kernel hands every program of this type a valid socket, and the helper only reads it.
    let (protocol, cookie) = unsafe { ((*ctx.sock).protocol as u8, bpf_get_socket_cookie(ctx.sock.cast())) };
    uncount_connection(&ctx);
    let _ = match protocol {
        protocol::TCP => ORLOP_PEERS.remove(&cookie),
        protocol::UDP => ORLOP_CONNECTED.remove(&cookie),
        _ => Ok(()),
    };
    ALLOW
}

#[inline(always)]
fn peer(ctx: &SockAddrContext, family: Family) -> Peer {
    // SAFETY: the kernel hands every program of this type a valid context.
    let port_be = unsafe { (*ctx.sock_addr).user_port } as u16;
    let address = match family {
        // SAFETY: as above.
        Family::V4 => Address::from_v4(unsafe { (*ctx.sock_addr).user_ip4 }),
        Family::V6 => {
            let words = address_words(ctx);
            // SAFETY: as above. Volatile: the verifier wants the words read one by one.
            let word = |index| unsafe { words.add(index).read_volatile() };
            Address { words_be: [word(0), word(1), word(2), word(3)] }
        }
    };
    Peer { address, port_be }
}

#[inline(always)]
fn set_peer(ctx: &SockAddrContext, family: Family, address: Address, port_be: u16) {
    let [a, b, c, d] = address.words_be;
    // SAFETY: as in `peer`; these fields are writable in every program of this type.
    unsafe {
        (*ctx.sock_addr).user_port = port_be as u32;
        match family {
            Family::V4 => (*ctx.sock_addr).user_ip4 = d,
            Family::V6 => {
                let words = address_words(ctx);
                words.write_volatile(a);
                words.add(1).write_volatile(b);
                words.add(2).write_volatile(c);
                words.add(3).write_volatile(d);
            }
        }
    }
}

#[inline(always)]
fn address_words(ctx: &SockAddrContext) -> *mut u32 {
    // SAFETY: as in `peer`; only the place is taken.
    unsafe { (&raw mut (*ctx.sock_addr).user_ip6).cast() }
}

/// Leads a socket that connects to a virtual address to one of its backends.
#[inline(always)]
fn connect(ctx: &SockAddrContext, family: Family) -> i32 {
    let peer = peer(ctx, family);
    if is_a_pods_loopback(ctx, peer) {
        forget(ctx);
        return ALLOW;
    }
    match select::select(&frontend(ctx, peer), Origin::Inside, || client(ctx)) {
        Choice::NoService => {
            forget(ctx);
            ALLOW
        }
        Choice::NoBackend(slot) | Choice::LeftToNode(slot) => refuse(slot, counter::CONNECT_NO_BACKEND),
        Choice::Forbidden(slot) => forbid(slot),
        Choice::Backend(chosen, flags) => {
            if Scheduler::of(flags) == Scheduler::LeastConnection {
                count_connection(ctx, chosen.pick);
            }
            if protocol(ctx) == protocol::TCP {
                tries::note(ctx, chosen.pick, service_flag::set_aside_after(flags));
                note_peer(ctx, peer, chosen);
            } else {
                remember(ctx, peer, chosen, record::ALONE);
                note_connected(ctx, chosen);
            }
            set_peer(ctx, family, chosen.address, chosen.port_be);
            count(counter::CONNECT_TRANSLATED);
            select::count(chosen.pick.slot, Outcome::Led);
            ALLOW
        }
    }
}

/// Leads one datagram.
#[inline(always)]
fn send(ctx: &SockAddrContext, family: Family) -> i32 {
    let peer = peer(ctx, family);
    if is_connected_to_backend(ctx, peer) || is_a_pods_loopback(ctx, peer) {
        return ALLOW;
    }
    let key = frontend(ctx, peer);
    if let Some(used) = remembered(ctx, peer)
        && let Some(pick) = select::still_there(&key, Origin::Inside, || client(ctx), used.pick)
    {
        if pick != used.pick {
            remember_flow(ctx, peer, Chosen { pick, ..used });
        }
        note_sent(ctx, peer, used);
        set_peer(ctx, family, used.address, used.port_be);
        return ALLOW;
    }
    match select::select(&key, Origin::Inside, || client(ctx)) {
        Choice::NoService => ALLOW,
        Choice::NoBackend(slot) | Choice::LeftToNode(slot) => refuse(slot, counter::SENDMSG_NO_BACKEND),
        Choice::Forbidden(slot) => forbid(slot),
        Choice::Backend(chosen, _) => {
            remember_flow(ctx, peer, chosen);
            note_sent(ctx, peer, chosen);
            set_peer(ctx, family, chosen.address, chosen.port_be);
            count(counter::SENDMSG_TRANSLATED);
            select::count(chosen.pick.slot, Outcome::Led);
            ALLOW
        }
    }
}

/// Whether `peer` is what this socket's connection was translated to: it is not translated again, even if a service answers
/// at the backend's address.
#[inline(always)]
fn is_connected_to_backend(ctx: &SockAddrContext, peer: Peer) -> bool {
    // SAFETY: the context's socket is valid for the run of the program.
    let state = unsafe { (*(*ctx.sock_addr).__bindgen_anon_1.sk).state };
    state == BPF_TCP_ESTABLISHED && record(ctx).is_some_and(|record| leads_to(record, peer))
}

/// Whether the socket's own record names `peer` as the backend.
#[inline(always)]
fn leads_to(record: &SocketRecord, peer: Peer) -> bool {
    record.state != record::VOID
        && record.backend_address == peer.address
        && record.backend_port_be == peer.port_be
}

#[inline(always)]
fn frontend(ctx: &SockAddrContext, peer: Peer) -> FrontendKey {
    FrontendKey { address: peer.address, port_be: peer.port_be, protocol: protocol(ctx), reserved: 0 }
}

#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> u8 {
    // SAFETY: as in `peer`.
    unsafe { (*ctx.sock_addr).protocol as u8 }
}

/// Node ports answer at the node's loopback too; every other namespace's is its own.
#[inline(always)]
fn is_a_pods_loopback(ctx: &SockAddrContext, peer: Peer) -> bool {
    peer.address.is_loopback()
        && ORLOP_CONFIG.get(0).is_none_or(|config| config.node_netns != netns_cookie(ctx))
}

/// Whoever shares the socket's network namespace, and so its addresses, is one client.
#[inline(always)]
fn client(ctx: &SockAddrContext) -> Client {
    let cookie = netns_cookie(ctx);
    let address = Address { words_be: [0, 0, (cookie >> 32) as u32, cookie as u32] };
    Client { address, port_be: 0, netns: Some(cookie) }
}

#[inline(always)]
fn netns_cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is valid, and the helper only reads it.
    unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) }
}

/// The caller gets ECONNREFUSED, as from a host where nobody listens.
#[inline(always)]
fn refuse(slot: u32, reason: u32) -> i32 {
    count(reason);
    select::count(slot, Outcome::NoBackend);
    // SAFETY: the helper only sets what this hook returns to the caller.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    DENY
}

/// The caller gets EPERM, which is what a hook says that sets nothing else.
#[inline(always)]
fn forbid(slot: u32) -> i32 {
    count(counter::SOURCE_REFUSED);
    select::count(slot, Outcome::Forbidden);
    DENY
}

#[inline(always)]
fn record(ctx: &SockAddrContext) -> Option<&mut SocketRecord> {
    // SAFETY: the context's socket is valid for the run of the program; the storage belongs to that socket.
    let record = unsafe { ORLOP_SOCKETS.get_ptr_mut(ctx) };
    // SAFETY: not null means that the kernel gave a value that lives as long as the socket, which outlives this run.
    if record.is_null() { None } else { Some(unsafe { &mut *record }) }
}

#[inline(always)]
fn remember(ctx: &SockAddrContext, vip: Peer, chosen: Chosen, state: u32) {
    let mut fresh = SocketRecord {
        vip: vip.address,
        backend_address: chosen.address,
        vip_port_be: vip.port_be,
        backend_port_be: chosen.port_be,
        backend: chosen.pick.id,
        generation: chosen.pick.generation,
        slot: chosen.pick.slot,
        selection: chosen.pick.selection,
        state,
        reserved: 0,
    };
    // SAFETY: as in `record`.
    let record = unsafe { ORLOP_SOCKETS.get_or_insert_ptr_mut(ctx, Some(&mut fresh)) };
    if !record.is_null() {
        let (from, to) = ((&raw const fresh).cast::<u64>(), record.cast::<u64>());
        // An older record of this socket is replaced as a whole. Word by word: the compiler would call a function that copies bytes.
        for word in 0..size_of::<SocketRecord>() / size_of::<u64>() {
            // SAFETY: as in `record`; a record is words without padding.
            unsafe { to.add(word).write_volatile(from.add(word).read()) };
        }
    }
}

#[inline(always)]
fn note_peer(ctx: &SockAddrContext, vip: Peer, chosen: Chosen) {
    let shown = ShownPeer {
        vip: vip.address,
        backend_address: chosen.address,
        vip_port_be: vip.port_be,
        backend_port_be: chosen.port_be,
    };
    // Where the kernel has no room for a moment, the socket shows its backend.
    let _ = ORLOP_PEERS.insert(&socket_cookie(ctx), &shown, 0);
}

/// A connected UDP socket would send to its backend for ever: user space ends it when that goes.
#[inline(always)]
fn note_connected(ctx: &SockAddrContext, chosen: Chosen) {
    let connected = Connected {
        netns: netns_cookie(ctx),
        backend_address: chosen.address,
        backend_port_be: chosen.port_be,
        reserved: 0,
        slot: chosen.pick.slot,
        backend: chosen.pick.id,
        generation: chosen.pick.generation,
    };
    // Where the kernel has no room for a moment, this socket is not told.
    let _ = ORLOP_CONNECTED.insert(&socket_cookie(ctx), &connected, 0);
}

/// A socket counts for the backend that such a service led it to last, until it is closed. The kernel tells of no close of its own
/// sockets (network file systems): these count until the backend goes.
#[inline(always)]
fn count_connection(ctx: &SockAddrContext, Pick { id, generation, .. }: Pick) {
    let mut fresh = Counted { backend: id, generation: 0 };
    // SAFETY: as in `record`.
    let counted = unsafe { ORLOP_COUNTED.get_or_insert_ptr_mut(ctx, Some(&mut fresh)) };
    if counted.is_null() {
        // Where the kernel has no room for a moment, this one does not count.
        return;
    }
    // SAFETY: as in `record`; two threads that connect one socket at the same time miscount it by one.
    let before = unsafe { counted.replace(Counted { backend: id, generation }) };
    add_connections(before, -1);
    add_connections(Counted { backend: id, generation }, 1);
}

#[inline(always)]
fn uncount_connection(ctx: &SockContext) {
    let map = (&raw const ORLOP_COUNTED).cast_mut().cast();
    // SAFETY: the kernel hands every program of this type a valid socket; the storage belongs to that socket, and nothing is made.
    let counted =
        unsafe { bpf_sk_storage_get(map, ctx.sock.cast(), core::ptr::null_mut(), 0) }.cast::<Counted>();
    if !counted.is_null() {
        // SAFETY: not null means that the kernel gave a value that lives as long as the socket, which outlives this run.
        add_connections(unsafe { *counted }, -1);
    }
}

/// A backend that has gone, or whose number another one has now, is left alone.
#[inline(always)]
fn add_connections(Counted { backend, generation }: Counted, change: i32) {
    let Some(backend) = ORLOP_BACKENDS.get_ptr_mut(backend) else { return };
    // SAFETY: array elements live as long as the map; only programs change the count of a backend that is in use.
    unsafe {
        if generation != 0 && (*backend).last_generation == generation {
            fetch_add(&raw mut (*backend).connections, change);
        }
    }
}

/// A socket that connects elsewhere no longer belongs to the service.
#[inline(always)]
fn forget(ctx: &SockAddrContext) {
    if protocol(ctx) == protocol::TCP {
        let _ = ORLOP_PEERS.remove(&socket_cookie(ctx));
    } else if let Some(record) = record(ctx) {
        record.state = record::VOID;
        let _ = ORLOP_CONNECTED.remove(&socket_cookie(ctx));
    }
}

/// The key of this socket's flow with `peer`.
#[inline(always)]
fn flow_key(ctx: &SockAddrContext, address: Address, port_be: u16, direction: u16) -> FlowKey {
    FlowKey { cookie: socket_cookie(ctx), address, port_be, direction, reserved: 0 }
}

#[inline(always)]
fn socket_cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is valid, and the helper only reads it.
    unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) }
}

/// The backend that this UDP socket used for `vip` before.
#[inline(always)]
fn remembered(ctx: &SockAddrContext, vip: Peer) -> Option<Chosen> {
    let record = record(ctx)?;
    if record.state == record::VOID {
        return None;
    }
    if record.vip == vip.address && record.vip_port_be == vip.port_be {
        return Some(Chosen {
            address: record.backend_address,
            port_be: record.backend_port_be,
            pick: Pick {
                id: record.backend,
                generation: record.generation,
                slot: record.slot,
                selection: record.selection,
            },
        });
    }
    let key = flow_key(ctx, vip.address, vip.port_be, flow::TO_BACKEND);
    // SAFETY: the value is copied at once. A recycled element would show another flow's backend once, a lost race that costs one datagram.
    let FlowValue { address, port_be, backend, generation, selection, slot, .. } =
        *unsafe { ORLOP_FLOWS.get(&key) }?;
    Some(Chosen { address, port_be, pick: Pick { id: backend, generation, slot, selection } })
}

/// The first virtual address of a socket stands in the socket's own record, further ones in the flow table.
#[inline(always)]
fn remember_flow(ctx: &SockAddrContext, vip: Peer, chosen: Chosen) {
    let mut state = record::ALONE;
    if let Some(record) = record(ctx)
        && record.state != record::VOID
    {
        if record.vip != vip.address || record.vip_port_be != vip.port_be {
            record.state = record::SEVERAL;
            let key = flow_key(ctx, vip.address, vip.port_be, flow::TO_BACKEND);
            let _ = ORLOP_FLOWS.insert(&key, &flow_value(chosen.address, chosen.port_be, chosen.pick), 0);
            return;
        }
        state = record.state;
    }
    remember(ctx, vip, chosen, state);
}

/// Of a socket that talks to several virtual addresses, answers show the one that was sent to last by their backend.
#[inline(always)]
fn note_sent(ctx: &SockAddrContext, vip: Peer, chosen: Chosen) {
    let Some(record) = record(ctx) else { return };
    if record.state != record::SEVERAL {
        return;
    }
    let key = flow_key(ctx, chosen.address, chosen.port_be, flow::TO_VIP);
    // SAFETY: the value is copied at once.
    if let Some(shown) = unsafe { ORLOP_FLOWS.get(&key) }.copied()
        && shown.address == vip.address
        && shown.port_be == vip.port_be
    {
        return;
    }
    // A full table evicts; answers then show the socket's first virtual address or the backend's own.
    let _ = ORLOP_FLOWS.insert(&key, &flow_value(vip.address, vip.port_be, chosen.pick), 0);
}

#[inline(always)]
fn flow_value(address: Address, port_be: u16, pick: Pick) -> FlowValue {
    let Pick { id, generation, slot, selection } = pick;
    FlowValue { address, port_be, reserved: 0, backend: id, generation, slot, selection }
}

/// Puts the virtual address in the place of the backend's.
#[inline(always)]
fn show_vip(ctx: &SockAddrContext, family: Family) -> i32 {
    let peer = peer(ctx, family);
    if protocol(ctx) == protocol::TCP {
        // SAFETY: the value is copied at once; one of a recycled element names another backend.
        let shown = unsafe { ORLOP_PEERS.get(&socket_cookie(ctx)) }.copied();
        if let Some(ShownPeer { vip, backend_address, vip_port_be, backend_port_be }) = shown
            && backend_address == peer.address
            && backend_port_be == peer.port_be
        {
            set_peer(ctx, family, vip, vip_port_be);
        }
        return ALLOW;
    }
    let Some(record) = record(ctx) else { return ALLOW };
    if record.state == record::SEVERAL {
        let key = flow_key(ctx, peer.address, peer.port_be, flow::TO_VIP);
        // SAFETY: the value is copied at once.
        if let Some(vip) = unsafe { ORLOP_FLOWS.get(&key) }.copied() {
            set_peer(ctx, family, vip.address, vip.port_be);
            return ALLOW;
        }
    }
    if leads_to(record, peer) {
        set_peer(ctx, family, record.vip, record.vip_port_be);
    }
    ALLOW
}
