//! Lookup tables for the choice by hash: which endpoint each place leads to. Pure.
//!
//! The algorithm is Maglev's (Eisenbud et al., NSDI 2016, section 3.4): each endpoint prefers the places in an order of its own, and all take
//! turns at the next free one that they like best. So shares are even, and when an endpoint goes, few places of the others
//! change. Preferences and turns come from the endpoints' identities alone: all nodes have the same table, and one that comes back under its name
//! with another address has the places that it had.
//!
//! Each preference is drawn by a hash. The paper's, which go on in steps, chase each other where two endpoints have steps or beginnings that are
//! near multiples: of 4000 endpoints that went one moved 15 % of the others' places, where this moves 1 %.

use std::net::SocketAddr;

use dataplane_abi::LOOKUP_SIZES;

use crate::identity::{Identity, mix};

/// Places for each endpoint, at least, where there is a size that has them. So shares differ by less than 1 %, and when one of up to 40 endpoints
/// goes, at most 1.3 % of the others' places move between them; of 102 that is 1.4 % on average, and at most 1.7 % (measured).
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

/// An endpoint, under what it is known by in a table.
pub type Turn = (Identity, SocketAddr);

/// The endpoints in the order in which they take turns. Where several have one identity, ports tell them apart if those differ; else they are
/// shares of it in the order of addresses, so that each has its part whoever else is there.
pub fn turns(endpoints: impl Iterator<Item = Turn>) -> Vec<Turn> {
    let mut turns: Vec<Turn> = endpoints.collect();
    turns.sort_unstable();
    for same in turns.chunk_by_mut(|(one, _), (another, _)| one == another) {
        let first = same[0].1.port();
        if same.iter().any(|(_, address)| address.port() != first) {
            same.iter_mut().for_each(|(identity, address)| *identity = identity.at_port(address.port()));
        }
    }
    turns.sort_unstable();
    turns
}

/// The endpoint's place in `turns`, which are in their order, for each place of a table of `size`, which is larger than their number. One that is
/// there several times has as many shares.
pub fn table(turns: &[Turn], size: u32) -> Vec<u32> {
    #[cfg(test)]
    MADE.with(|made| made.set(made.get() + 1));
    let mut taken = vec![FREE; size as usize];
    let mut preferences = preferences(turns);
    let mut left = if turns.is_empty() { 0 } else { size };
    while left > 0 {
        for (endpoint, preference) in (0..).zip(&mut preferences) {
            let mut place = preference.draw(size);
            while taken[place] != FREE {
                place = preference.draw(size);
            }
            taken[place] = endpoint;
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    taken
}

#[cfg(test)]
thread_local! {
    /// How many tables this thread has made.
    pub static MADE: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// What one share of an endpoint likes best, and then next. A place may come again: then it is taken.
struct Preference {
    share: u64,
    draws: u64,
}

impl Preference {
    fn draw(&mut self, size: u32) -> usize {
        let drawn = mix(self.share.wrapping_add(self.draws));
        self.draws += 1;
        (((drawn >> 32) * u64::from(size)) >> 32) as usize
    }
}

fn preferences(turns: &[Turn]) -> Vec<Preference> {
    let mut share = 0_u64;
    let each = turns.iter().enumerate().map(|(place, (identity, _))| {
        let repeated = place > 0 && turns[place - 1].0 == *identity;
        share = if repeated { share + 1 } else { 0 };
        Preference { share: identity.share(share), draws: 0 }
    });
    each.collect()
}

/// What tells whether two tables lead each place to the same backend.
pub fn digest(places: &[u32]) -> u32 {
    places.iter().fold(0, |digest, id| mix(digest ^ u64::from(*id))) as u32
}

#[cfg(test)]
mod tests;
