//! Whether the connections to backends come about, for services that set aside a backend that fails.
//!
//! A TCP socket that connects through such a service remembers the backend in its storage. How that ends the kernel tells `orlop_tried`,
//! which is attached while there are such services: refused, unreachable, timed out, or given up by the socket's owner is one failure more,
//! established is none any more. As many failures in a row as the service says set the backend aside for [`ASIDE_TICKS`]; what
//! `select` prefers others for that long. Afterwards it gets its share again, and the next failure sets it aside at once.

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE,
    BPF_TCP_ESTABLISHED, BPF_TCP_SYN_SENT,
};
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::{SockAddrContext, SockOpsContext};
use dataplane_abi::{Address, Tried, counter};

use crate::maps::{ORLOP_BACKENDS, ORLOP_TRIED, count, fetch_add};
use crate::select::Pick;
use crate::uplink::now;

/// About half a minute.
const ASIDE_TICKS: u32 = 28;
/// What the kernel does with the result is nothing, for these calls.
const DONE: u32 = 1;

/// Remembers the backend, if the service wants to know.
#[inline(always)]
pub fn note(ctx: &SockAddrContext, Pick { id, generation, .. }: Pick, set_aside_after: u32) {
    if set_aside_after == 0 {
        return;
    }
    let mut tried = Tried { backend: id, generation, set_aside_after };
    // SAFETY: the context's socket is valid for the run of the program; the storage belongs to that socket.
    let stored = unsafe { ORLOP_TRIED.get_or_insert_ptr_mut(ctx, Some(&mut tried)) };
    if !stored.is_null() {
        // SAFETY: not null means that the kernel gave a value that lives as long as the socket, which outlives this run. Field by field: the
        // compiler would call a function that copies bytes.
        unsafe {
            (&raw mut (*stored).backend).write_volatile(id);
            (&raw mut (*stored).generation).write_volatile(generation);
            (&raw mut (*stored).set_aside_after).write_volatile(set_aside_after);
        }
    }
}

#[sock_ops]
pub fn orlop_tried(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB if tried(&ctx).is_some() => {
            let _ = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
        }
        BPF_SOCK_OPS_STATE_CB if ctx.arg(0) == BPF_TCP_SYN_SENT => {
            if let Some(tried) = tried(&ctx) {
                ended(&ctx, tried, ctx.arg(1));
            }
        }
        _ => {}
    }
    DONE
}

/// What the socket tries, if it tries anything for such a service.
#[inline(always)]
fn tried(ctx: &SockOpsContext) -> Option<Tried> {
    // SAFETY: the kernel hands every program of this type a valid context.
    let socket = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if socket.is_null() {
        return None;
    }
    let map = (&raw const ORLOP_TRIED).cast_mut().cast();
    // SAFETY: the socket is valid for the run of the program, and nothing is made.
    let stored = unsafe { bpf_sk_storage_get(map, socket.cast(), core::ptr::null_mut(), 0) }.cast::<Tried>();
    // SAFETY: not null means that the kernel gave a value that lives as long as the socket, which outlives this run.
    if stored.is_null() { None } else { Some(unsafe { *stored }) }
}

/// Whether the socket connects there, and not elsewhere meanwhile.
#[inline(always)]
fn leads_to(ctx: &SockOpsContext, address: Address, port_be: u16) -> bool {
    // The kernel gives the port as the upper half of a word.
    if ctx.remote_port() != (port_be as u32) << u16::BITS {
        return false;
    }
    match address.to_v4() {
        Some(address_be) => ctx.remote_ip4() == address_be,
        None => {
            // SAFETY: the kernel hands every program of this type a valid context. Volatile: the verifier wants the words read one by one.
            let word = |index| unsafe {
                (&raw const (*ctx.ops).remote_ip6).cast::<u32>().add(index).read_volatile()
            };
            Address { words_be: [word(0), word(1), word(2), word(3)] } == address
        }
    }
}

/// A backend that has gone, or whose number another one has now, is left alone.
#[inline(always)]
fn ended(ctx: &SockOpsContext, Tried { backend, generation, set_aside_after }: Tried, state: u32) {
    let Some(backend) = ORLOP_BACKENDS.get_ptr_mut(backend) else { return };
    // SAFETY: array elements live as long as the map; only programs write these fields of a backend that is in use.
    unsafe {
        if (*backend).generation != generation || !leads_to(ctx, (*backend).address, (*backend).port_be) {
            return;
        }
        let failures = &raw mut (*backend).failures;
        match state {
            BPF_TCP_ESTABLISHED if failures.read_volatile() != 0 => failures.write_volatile(0),
            BPF_TCP_CLOSE => {
                // One that was aside before, and fails again, had as many already.
                if fetch_add(failures, 1) + 1 >= set_aside_after {
                    let until = &raw mut (*backend).aside_until;
                    let was_aside = until.read_volatile().wrapping_sub(now()) as i32 > 0;
                    // 0 says that it never was.
                    until.write_volatile((now() + ASIDE_TICKS).max(1));
                    if !was_aside {
                        count(counter::BACKEND_SET_ASIDE);
                    }
                }
            }
            _ => {}
        }
    }
}
