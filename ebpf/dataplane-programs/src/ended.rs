//! Flows that are over make room for those that go on.
//!
//! The maps of flows are full of ended connections before long, and what the kernel evicts then is what was silent for longest, alive or not. So whoever sees a
//! connection end notes it, in a queue that all processors share, and takes out the first ones there that have been silent since: their last packets, also
//! those that are sent again, have found them until then. What goes on after its end, or has no room in the queue, is left to the kernel, and so is what is silent without an end.
//!
//! Of some it is not sure that they are over: a reset may be somebody's who guessed addresses and ports, and whom its receiver does not believe; and what a backend
//! says to its client past this node, nobody here hears. These wait in a queue of their own, for minutes, and one that says a word meanwhile has its turn again. Where a queue is
//! full its first ones make room, if they have been silent for a moment: so what is over never fills the maps.

use aya_ebpf::btf_maps::Queue;
use dataplane_abi::{Address, Ended, NatKey, NatValue, counter, nat};

use crate::maps::{Flows, ORLOP_DOUBTED, ORLOP_ENDED, ORLOP_ENDING, ORLOP_INBOUND, ORLOP_NAT, count};
use crate::uplink;

/// For how many ticks the packets of an end may go on.
const LINGERS: u32 = 2;
/// The same where a queue is full: so many have ended since that the first one's last packets are long gone.
const HURRIES: u32 = 0;
/// How many are taken out of each queue for each that ends.
const TAKEN_OUT: u32 = 2;

/// Where a flow stands.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Held {
    Inbound = 1,
    Nat = 2,
}

/// Notes that the flow ended, or may have, whose state stands under `key`. It is worked on at the end of the program, where there is room for that on the stack.
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
        orlop_ended();
        orlop_doubted();
    }
}

/// Queues what was noted, if it is over for sure, and takes out those whose time has come. Apart, and global, as the functions of `uplink` are.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn orlop_ended() -> i32 {
    let Some(ending) = ORLOP_ENDING.get_ptr_mut(0) else { return 0 };
    // SAFETY: as in `note`.
    let ended = unsafe { *ending };
    let is_full = last(&ended) == Some(Last::Sure) && ORLOP_ENDED.push(ended, 0).is_err();
    let limit = if is_full { HURRIES } else { LINGERS };
    // More than come in, so that they get fewer.
    for _ in 0..TAKEN_OUT {
        let Some(oldest) = first(&ORLOP_ENDED, limit) else { break };
        // Who speaks after a reset did not believe it, and a connection may have begun anew: they go on.
        if let Some((flows, value)) = find(&oldest)
            && nat::is_over(oldest.key.protocol, value.state)
            && is_long_ago(value.used, limit)
        {
            take_out(flows, &oldest.key, &value);
        }
    }
    if is_full {
        count(counter::ENDED_HURRIED);
        // Where there is still no room, the kernel evicts it one day.
        let _ = ORLOP_ENDED.push(ended, 0);
    }
    0
}

/// The same for what may go on.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn orlop_doubted() -> i32 {
    let Some(ending) = ORLOP_ENDING.get_ptr_mut(0) else { return 0 };
    // SAFETY: as in `note`.
    let ended = unsafe {
        let ended = *ending;
        (&raw mut (*ending).held).write_volatile(0);
        ended
    };
    let is_doubted = last(&ended) == Some(Last::Doubted);
    let is_full = is_doubted && ORLOP_DOUBTED.push(ended, 0).is_err();
    let limit = if is_full { HURRIES } else { nat::DOUBTED_LIMIT };
    for _ in 0..TAKEN_OUT {
        let Some(mut oldest) = first(&ORLOP_DOUBTED, limit) else { break };
        let Some((flows, value)) = find(&oldest) else { continue };
        // Who is half-closed may think for longer.
        let more = if nat::was_reset(value.state) { 0 } else { nat::HALF_CLOSED_LIMIT - nat::DOUBTED_LIMIT };
        let may_stay = if is_full { limit } else { limit + more };
        if last_word(oldest.key.protocol, &value).is_some() {
            if is_long_ago(value.used, may_stay) {
                take_out(flows, &oldest.key, &value);
                continue;
            }
            oldest.at = value.used.wrapping_add(more);
            if !is_full && ORLOP_DOUBTED.push(oldest, 0).is_ok() {
                continue;
            }
        }
        if let Some(element) = flows.get_ptr_mut(&oldest.key) {
            // SAFETY: a plain integer of an element that the kernel gave to this run of the program.
            unsafe {
                let state = &raw mut (*element).state;
                state.write_volatile(state.read_volatile() & !nat::DOUBTED);
            }
        }
    }
    if is_full {
        count(counter::ENDED_HURRIED);
        // As above.
        let _ = ORLOP_DOUBTED.push(ended, 0);
    }
    0
}

/// Takes the first one out of a queue, if it came in long ago.
#[inline(always)]
fn first<const ROOM: usize>(queue: &Queue<Ended, ROOM>, limit: u32) -> Option<Ended> {
    match queue.peek() {
        // Another processor may have taken that one.
        Ok(Some(oldest)) if is_long_ago(oldest.at, limit) => queue.pop().ok().flatten(),
        _ => None,
    }
}

#[inline(always)]
fn is_long_ago(at: u32, limit: u32) -> bool {
    uplink::now().wrapping_sub(at).cast_signed() > limit.cast_signed()
}

/// Whether a connection is over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Sure,
    Doubted,
}

#[inline(always)]
fn last(ended: &Ended) -> Option<Last> {
    find(ended).and_then(|(_, value)| last_word(ended.key.protocol, &value))
}

/// What its entry says; `None`: it goes on.
#[inline(always)]
fn last_word(protocol: u8, value: &NatValue) -> Option<Last> {
    if nat::is_over(protocol, value.state) {
        return Some(Last::Sure);
    }
    nat::may_be_over(protocol, value.kind, value.state).then_some(Last::Doubted)
}

/// What stands where a flow ended, and in which map.
#[inline(always)]
fn find(ended: &Ended) -> Option<(&'static Flows, NatValue)> {
    let flows: &Flows = if ended.held == Held::Nat as u32 { &ORLOP_NAT } else { &ORLOP_INBOUND };
    // SAFETY: the value is copied at once; one of a recycled element is another flow's, of which only what leads back to this key is taken.
    Some((flows, unsafe { flows.get(&ended.key) }.copied()?))
}

#[inline(always)]
fn take_out(flows: &Flows, key: &NatKey, value: &NatValue) {
    let _ = flows.remove(key);
    let (other, address, port_be) = other_half(key, value);
    // SAFETY: as in `find`. One that leads elsewhere is another flow's by now.
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
