//! Translation at the socket: connect, sendmsg, recvmsg and getpeername, IPv4.
//!
//! A connected socket is translated once. An unconnected UDP socket keeps its backend as long as that lives, per virtual
//! address. What a program sees of its peer is the virtual address again.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use dataplane_abi::{FlowKey, FlowValue, FrontendKey, SocketRecord, counter, flow, protocol};

use crate::maps::{ORLOP_FLOWS, ORLOP_SOCKETS, count};
use crate::select::{self, Choice, Chosen};

const ALLOW: i32 = 1;
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;

/// The address that the caller named or is about to see.
#[derive(Clone, Copy)]
struct Peer {
    addr_be: u32,
    port_be: u16,
}

#[cgroup_sock_addr(connect4)]
pub fn orlop_connect4(ctx: SockAddrContext) -> i32 {
    let peer = peer(&ctx);
    let key = frontend(&ctx, peer);
    match select::select(&key) {
        Choice::NoService => {
            forget(&ctx);
            ALLOW
        }
        Choice::NoBackend => refuse(counter::CONNECT_NO_BACKEND),
        Choice::Backend(chosen) => {
            remember(&ctx, peer, chosen);
            set_peer(&ctx, Peer { addr_be: chosen.backend.addr_be, port_be: chosen.backend.port_be });
            count(counter::CONNECT_TRANSLATED);
            ALLOW
        }
    }
}

#[cgroup_sock_addr(sendmsg4)]
pub fn orlop_sendmsg4(ctx: SockAddrContext) -> i32 {
    let peer = peer(&ctx);
    if let Some(backend) = remembered_backend(&ctx, peer) {
        set_peer(&ctx, backend);
        return ALLOW;
    }
    match select::select(&frontend(&ctx, peer)) {
        Choice::NoService => ALLOW,
        Choice::NoBackend => refuse(counter::SENDMSG_NO_BACKEND),
        Choice::Backend(chosen) => {
            remember_flow(&ctx, peer, chosen);
            set_peer(&ctx, Peer { addr_be: chosen.backend.addr_be, port_be: chosen.backend.port_be });
            count(counter::SENDMSG_TRANSLATED);
            ALLOW
        }
    }
}

#[cgroup_sock_addr(recvmsg4)]
pub fn orlop_recvmsg4(ctx: SockAddrContext) -> i32 {
    show_vip(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
pub fn orlop_getpeername4(ctx: SockAddrContext) -> i32 {
    show_vip(&ctx)
}

#[inline(always)]
fn peer(ctx: &SockAddrContext) -> Peer {
    // SAFETY: the kernel hands every program of this type a valid context.
    let addr: &bpf_sock_addr = unsafe { &*ctx.sock_addr };
    Peer { addr_be: addr.user_ip4, port_be: addr.user_port as u16 }
}

#[inline(always)]
fn set_peer(ctx: &SockAddrContext, peer: Peer) {
    // SAFETY: as above; these two fields are writable in every program of this type.
    unsafe {
        (*ctx.sock_addr).user_ip4 = peer.addr_be;
        (*ctx.sock_addr).user_port = peer.port_be as u32;
    }
}

#[inline(always)]
fn frontend(ctx: &SockAddrContext, peer: Peer) -> FrontendKey {
    // SAFETY: as in `peer`.
    let protocol = unsafe { (*ctx.sock_addr).protocol } as u8;
    FrontendKey { addr_be: peer.addr_be, port_be: peer.port_be, protocol, scope: 0 }
}

/// The caller gets ECONNREFUSED, as from a host where nobody listens.
#[inline(always)]
fn refuse(reason: u32) -> i32 {
    count(reason);
    // SAFETY: the helper only sets what this hook returns to the caller.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
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
fn remember(ctx: &SockAddrContext, vip: Peer, chosen: Chosen) {
    let mut fresh = SocketRecord {
        vip_be: vip.addr_be,
        backend_be: chosen.backend.addr_be,
        vip_port_be: vip.port_be,
        backend_port_be: chosen.backend.port_be,
        backend: chosen.id,
        generation: chosen.backend.generation,
        in_use: 1,
    };
    // SAFETY: as in `record`.
    let record = unsafe { ORLOP_SOCKETS.get_or_insert_ptr_mut(ctx, Some(&mut fresh)) };
    if !record.is_null() {
        // SAFETY: as in `record`. An older record of this socket is replaced as a whole.
        unsafe { *record = fresh };
    }
}

/// A socket that connects elsewhere no longer belongs to the service.
#[inline(always)]
fn forget(ctx: &SockAddrContext) {
    if let Some(record) = record(ctx) {
        record.in_use = 0;
    }
}

#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is valid, and the helper only reads it.
    unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) }
}

/// The backend that this UDP socket used for `vip` before, if it is still there.
#[inline(always)]
fn remembered_backend(ctx: &SockAddrContext, vip: Peer) -> Option<Peer> {
    if let Some(record) = record(ctx) {
        if record.in_use == 0 {
            return None;
        }
        if record.vip_be == vip.addr_be && record.vip_port_be == vip.port_be {
            let alive = select::still_there(record.backend, record.generation);
            return alive.then_some(Peer { addr_be: record.backend_be, port_be: record.backend_port_be });
        }
    } else {
        return None;
    }
    let key = FlowKey {
        cookie: cookie(ctx),
        addr_be: vip.addr_be,
        port_be: vip.port_be,
        direction: flow::TO_BACKEND,
    };
    // SAFETY: the value is copied at once. A recycled element would show another flow's backend once, a lost race that costs one datagram.
    let value = *unsafe { ORLOP_FLOWS.get(&key) }?;
    select::still_there(value.backend, value.generation)
        .then_some(Peer { addr_be: value.addr_be, port_be: value.port_be })
}

/// The first virtual address of a socket stands in the socket's own record, further ones in the flow table.
#[inline(always)]
fn remember_flow(ctx: &SockAddrContext, vip: Peer, chosen: Chosen) {
    let other = match record(ctx) {
        Some(record) if record.in_use != 0 => {
            record.vip_be != vip.addr_be || record.vip_port_be != vip.port_be
        }
        _ => false,
    };
    if !other {
        return remember(ctx, vip, chosen);
    }
    let cookie = cookie(ctx);
    let (backend, generation) = (chosen.id, chosen.backend.generation);
    let (to, from) = (chosen.backend.addr_be, chosen.backend.port_be);
    let forward = FlowKey { cookie, addr_be: vip.addr_be, port_be: vip.port_be, direction: flow::TO_BACKEND };
    let target = FlowValue { addr_be: to, port_be: from, reserved: 0, backend, generation };
    let back = FlowKey { cookie, addr_be: to, port_be: from, direction: flow::TO_VIP };
    let shown = FlowValue { addr_be: vip.addr_be, port_be: vip.port_be, reserved: 0, backend, generation };
    // A full table evicts; the flow then chooses again and shows the backend's own address, which is all that can fail here.
    let _ = ORLOP_FLOWS.insert(&forward, &target, 0);
    let _ = ORLOP_FLOWS.insert(&back, &shown, 0);
}

/// Puts the virtual address in the place of the backend's.
#[inline(always)]
fn show_vip(ctx: &SockAddrContext) -> i32 {
    let peer = peer(ctx);
    let Some(record) = record(ctx) else { return ALLOW };
    if record.in_use == 0 {
        return ALLOW;
    }
    if record.backend_be == peer.addr_be && record.backend_port_be == peer.port_be {
        set_peer(ctx, Peer { addr_be: record.vip_be, port_be: record.vip_port_be });
        return ALLOW;
    }
    // SAFETY: as in `peer`.
    if unsafe { (*ctx.sock_addr).protocol } as u8 != protocol::UDP {
        return ALLOW;
    }
    let key = FlowKey {
        cookie: cookie(ctx),
        addr_be: peer.addr_be,
        port_be: peer.port_be,
        direction: flow::TO_VIP,
    };
    // SAFETY: the value is copied at once.
    if let Some(vip) = unsafe { ORLOP_FLOWS.get(&key) }.copied() {
        set_peer(ctx, Peer { addr_be: vip.addr_be, port_be: vip.port_be });
    }
    ALLOW
}
