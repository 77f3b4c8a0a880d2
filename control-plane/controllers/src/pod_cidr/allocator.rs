//! Equal parts of one range, given out and taken back.
//!
//! Input: a range and the prefix length of its parts. Output: free parts, in order, the one after the last first, so that
//! a range that was freed is not used again at once. Pure state, no I/O.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use thiserror::Error;

/// Parts that a range may be cut into, as a power of two.
pub const MAX_PARTS_BITS: u8 = 16;

/// Why a range cannot be cut.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Error {
    #[error(
        "cut {range} into node ranges: the node prefix length {length} is shorter than the range's or too long"
    )]
    Length { range: IpNetwork, length: u8 },
    #[error(
        "cut {range} into node ranges: prefix length {length} gives more than 65536 parts; choose a shorter one"
    )]
    TooMany { range: IpNetwork, length: u8 },
}

/// A part of each of several ranges, such as one of IPv4 and one of IPv6.
#[derive(Debug)]
pub struct Allocators(Vec<Allocator>);

impl Allocators {
    /// Ranges with the prefix lengths of their parts.
    pub fn new(ranges: impl IntoIterator<Item = (IpNetwork, u8)>) -> Result<Self, Error> {
        ranges
            .into_iter()
            .map(|(range, length)| Allocator::new(range, length))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Takes a part of each range; absent, and nothing taken, where one has none left.
    pub fn allocate(&mut self) -> Option<Vec<IpNetwork>> {
        if self.0.iter().any(|allocator| allocator.free() == 0) {
            return None;
        }
        self.0.iter_mut().map(Allocator::allocate).collect()
    }

    /// Counts ranges that nodes have as taken; what lies outside is ignored.
    pub fn occupy_all(&mut self, ranges: &[IpNetwork]) {
        self.0.iter_mut().for_each(|allocator| allocator.occupy_all(ranges));
    }

    pub fn release_all(&mut self, ranges: &[IpNetwork]) {
        self.0.iter_mut().for_each(|allocator| allocator.release_all(ranges));
    }
}

/// The parts of a range and which of them are taken.
#[derive(Debug)]
pub struct Allocator {
    range: IpNetwork,
    length: u8,
    parts: u32,
    taken: BTreeSet<u32>,
    next: u32,
}

impl Allocator {
    pub fn new(range: IpNetwork, length: u8) -> Result<Self, Error> {
        let bits = width(&range);
        if length < range.prefix() || length > bits {
            return Err(Error::Length { range, length });
        }
        let cut = length - range.prefix();
        if cut > MAX_PARTS_BITS {
            return Err(Error::TooMany { range, length });
        }
        Ok(Self { range, length, parts: 1 << cut, taken: BTreeSet::new(), next: 0 })
    }

    /// Takes a free part; absent where none is left.
    pub fn allocate(&mut self) -> Option<IpNetwork> {
        let mut candidates = (self.next..self.parts).chain(0..self.next);
        let free = candidates.find(|part| !self.taken.contains(part))?;
        self.taken.insert(free);
        self.next = (free + 1) % self.parts;
        self.part(free)
    }

    /// Counts ranges that nodes have as taken; what lies outside is ignored.
    pub fn occupy_all(&mut self, ranges: &[IpNetwork]) {
        for range in ranges {
            self.taken.extend(self.covered(range));
        }
    }

    pub fn release_all(&mut self, ranges: &[IpNetwork]) {
        for range in ranges {
            self.release(range);
        }
    }

    pub fn release(&mut self, range: &IpNetwork) {
        for part in self.covered(range) {
            self.taken.remove(&part);
        }
    }

    /// How many parts are free.
    pub fn free(&self) -> usize {
        self.parts as usize - self.taken.len()
    }

    /// The parts that a range meets.
    fn covered(&self, range: &IpNetwork) -> std::ops::Range<u32> {
        let bits = width(&self.range);
        if width(range) != bits {
            return 0..0;
        }
        let size = bits - self.length;
        let base = number(self.range.network());
        let first = number(range.network());
        let last = first | low_bits(bits - range.prefix());
        let end = base | low_bits(bits - self.range.prefix());
        if last < base || first > end {
            return 0..0;
        }
        let place = |address: u128| ((address.clamp(base, end) - base) >> size) as u32;
        place(first)..place(last) + 1
    }

    fn part(&self, place: u32) -> Option<IpNetwork> {
        let size = width(&self.range) - self.length;
        let address = number(self.range.network()) + (u128::from(place) << size);
        IpNetwork::new(address_of(address, &self.range), self.length).ok()
    }
}

fn width(range: &IpNetwork) -> u8 {
    if range.is_ipv4() { 32 } else { 128 }
}

fn low_bits(count: u8) -> u128 {
    if count >= 128 { u128::MAX } else { (1 << count) - 1 }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn address_of(number: u128, like: &IpNetwork) -> IpAddr {
    if like.is_ipv4() {
        IpAddr::V4(Ipv4Addr::from(number as u32))
    } else {
        IpAddr::V6(Ipv6Addr::from(number))
    }
}
