//! Lookup tables for the choice by hash: which endpoint each place leads to. Pure.
//!
//! The algorithm is Maglev's (Eisenbud et al., NSDI 2016, section 3.4): each endpoint prefers the places in an order of its own, and all take
//! turns at the next free one that they like best. So shares are even, and when an endpoint goes, few places of the others
//! change. The order comes from the endpoint's address alone: all nodes have the same table.

use std::net::{IpAddr, SocketAddr};

use dataplane_abi::LOOKUP_SIZES;

/// Places for each endpoint, at least, where there is a size that has them. So shares differ by less than 1 %, and when one of the endpoints
/// goes, at most 1.3 % of all places move between those that stay (measured; with a hundred places each, 1.6 %).
const PLACES_EACH: usize = 160;
const FREE: u32 = u32::MAX;

/// Which of [`LOOKUP_SIZES`] a table for so many endpoints has, from 1; 0 for none.
pub fn size_class(endpoints: usize) -> u8 {
    if endpoints == 0 {
        return 0;
    }
    let enough = |size: &u32| *size as usize >= endpoints * PLACES_EACH;
    let place = LOOKUP_SIZES.iter().position(enough).unwrap_or(LOOKUP_SIZES.len() - 1);
    place as u8 + 1
}

/// The endpoint's place in `endpoints` for each place of a table of `size`, a prime that is larger than their number. They stand in
/// ascending order; one that is there several times has as many shares.
pub fn table(endpoints: &[SocketAddr], size: u32) -> Vec<u32> {
    let mut taken = vec![FREE; size as usize];
    let mut preferences = preferences(endpoints, size);
    let mut left = if endpoints.is_empty() { 0 } else { size };
    while left > 0 {
        for (endpoint, preference) in (0..).zip(&mut preferences) {
            while taken[preference.next as usize] != FREE {
                preference.advance(size);
            }
            taken[preference.next as usize] = endpoint;
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    taken
}

/// An order of all places: from the first one on in steps, which meet each of a prime number of places once.
struct Preference {
    next: u32,
    step: u32,
}

impl Preference {
    fn advance(&mut self, size: u32) {
        // Both are below the size, which has 17 bits.
        self.next = (self.next + self.step) % size;
    }
}

fn preferences(endpoints: &[SocketAddr], size: u32) -> Vec<Preference> {
    let mut share = 0_u64;
    let each = endpoints.iter().enumerate().map(|(place, endpoint)| {
        let repeated = place > 0 && endpoints[place - 1] == *endpoint;
        share = if repeated { share + 1 } else { 0 };
        let hash = hash(*endpoint, share);
        let (first, step) = ((hash >> 32) as u32, hash as u32);
        Preference { next: first % size, step: step % (size - 1) + 1 }
    });
    each.collect()
}

/// The same in every build and on every node.
fn hash(endpoint: SocketAddr, share: u64) -> u64 {
    let address = match endpoint.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let address = u128::from(address);
    let port = u64::from(endpoint.port());
    [(address >> 64) as u64, address as u64, port, share].into_iter().fold(0, |hash, word| mix(hash ^ word))
}

/// The output function of SplitMix64.
fn mix(state: u64) -> u64 {
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests;
