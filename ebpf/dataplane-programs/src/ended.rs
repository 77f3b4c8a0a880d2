//! Flows that are over make room for those that go on.
//!
//! The maps of flows are full of ended connections before long, and what the kernel evicts then is what was silent for longest, alive or not. So whoever sees a
//! connection end notes it, in a queue that all processors share, and takes out the first ones there that have been silent since: their last packets, also
//! those that are sent again, have found them until then. What goes on after its end, or has no room in the queue, is left to the kernel, and so is what is silent without an end.

use dataplane_abi::{Address, Ended, NatKey, NatValue, nat};

use crate::maps::{Flows, ORLOP_ENDED, ORLOP_ENDING, ORLOP_INBOUND, ORLOP_NAT};
use crate::uplink;

/// For how many ticks the packets of an end may go on.
const LINGERS: u32 = 2;
/// How many are taken out for each that ends.
const TAKEN_OUT: u32 = 2;

/// Where a flow stands.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Held {
    Inbound = 1,
    Nat = 2,
}

/// Notes that the flow ended whose state stands under `key`. It is worked on at the end of the program, where there is room for that on the stack.
#[inline(always)]
pub fn note(key: &NatKey, held: Held, at: u32) {
    let Some(ending) = ORLOP_ENDING.get_ptr_mut(0) else { return };
    // SAFETY: the element is this processor's own, and no other program of ours runs on it before this one's end.
    unsafe {
        (&raw mut (*ending).key).write_volatile(*key);
        (&raw mut (*ending).held).write_volatile(held as u32);
        (&raw mut (*ending).at).write_volatile(at);
    }
}

/// At the end of a program that may have noted one.
#[inline(always)]
pub fn settle() {
    if let Some(ending) = ORLOP_ENDING.get_ptr_mut(0)
        // SAFETY: as in `note`.
        && unsafe { (&raw const (*ending).held).read_volatile() } != 0
    {
        orlop_ended(0);
    }
}

/// Queues what was noted, and takes out those whose time has come. Apart, and global, as the functions of `uplink` are.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn orlop_ended(_: u32) -> i32 {
    let Some(ending) = ORLOP_ENDING.get_ptr_mut(0) else { return 0 };
    // SAFETY: as in `note`.
    let ended = unsafe {
        let ended = *ending;
        (&raw mut (*ending).held).write_volatile(0);
        ended
    };
    // Where there is no room, the kernel evicts it one day.
    let _ = ORLOP_ENDED.push(ended, 0);
    // More than come in, so that they get fewer.
    for _ in 0..TAKEN_OUT {
        match ORLOP_ENDED.peek() {
            Ok(Some(oldest)) if is_long_ago(oldest.at) => {}
            _ => break,
        }
        // Another processor may have taken that one.
        if let Ok(Some(oldest)) = ORLOP_ENDED.pop() {
            take_out(&oldest);
        }
    }
    0
}

#[inline(always)]
fn is_long_ago(at: u32) -> bool {
    uplink::now().wrapping_sub(at) > LINGERS
}

#[inline(always)]
fn take_out(Ended { key, held, .. }: &Ended) {
    let flows: &Flows = if *held == Held::Nat as u32 { &ORLOP_NAT } else { &ORLOP_INBOUND };
    // SAFETY: the value is copied at once; one of a recycled element is another flow's, of which only what leads back to this key is taken.
    let Some(value) = unsafe { flows.get(key) }.copied() else { return };
    // A reset that neither side sent ends nothing: they go on, and are not over any more.
    if !nat::is_over(key.protocol, value.state) || !is_long_ago(value.used) {
        return;
    }
    let _ = flows.remove(key);
    let (other, address, port_be) = other_half(key, &value);
    // SAFETY: as above. One that leads elsewhere is another flow's by now.
    if let Some(back) = unsafe { flows.get(&other) }.copied()
        && back.port_be == port_be
        && back.address.is(address)
    {
        let _ = flows.remove(&other);
    }
}

/// The key of a flow's other entry, and the address and port that this has in it.
#[inline(always)]
fn other_half<'a>(key: &'a NatKey, value: &NatValue) -> (NatKey, &'a Address, u16) {
    let to_client = if value.client_port_be == 0 { key.destination_port_be } else { value.client_port_be };
    if key.direction == nat::OUT {
        let asks = NatKey {
            source: key.destination,
            destination: value.address,
            source_port_be: to_client,
            destination_port_be: value.port_be,
            protocol: key.protocol,
            direction: nat::IN,
            reserved: 0,
        };
        return (asks, &key.source, key.source_port_be);
    }
    let leaves = NatKey {
        source: value.address,
        destination: key.source,
        source_port_be: value.port_be,
        destination_port_be: key.source_port_be,
        protocol: key.protocol,
        direction: nat::OUT,
        reserved: 0,
    };
    (leaves, &key.destination, key.destination_port_be)
}
