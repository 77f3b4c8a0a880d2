//! Ranges of addresses to hand out from, and the order in which they are tried.
//!
//! Owns: the checks and defaults of a range (`subnet`, `rangeStart`, `rangeEnd`, `gateway`), and [`Candidates`], the
//! round-robin order after the last address handed out. Pure.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use cni::json::{JsonError, Object};
use ipnetwork::IpNetwork;

/// Addresses from `start` to `end`, both included, without the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    pub subnet: IpNetwork,
    pub start: IpAddr,
    pub end: IpAddr,
    pub gateway: IpAddr,
}

/// Ranges of one family that one address is taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet {
    pub ranges: Vec<Range>,
}

/// A range or a set that cannot be handed out from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RangeError {
    #[error("network {subnet} too small to allocate from")]
    TooSmall { subnet: IpNetwork },
    #[error(
        "network {subnet} has host bits set: for a mask of {length} bits the network address is {network}"
    )]
    HostBits { subnet: IpNetwork, length: u8, network: IpAddr },
    #[error("network {subnet} is IPv4 in the form of IPv6: write the IPv4 network")]
    Mapped { subnet: IpNetwork },
    #[error("{key} {address} not in network {subnet}")]
    Outside { key: &'static str, address: IpAddr, subnet: IpNetwork },
    #[error("rangeStart {start} is after rangeEnd {end}")]
    Backwards { start: IpAddr, end: IpAddr },
    #[error("empty range set")]
    EmptySet,
    #[error("mixed address families")]
    MixedFamilies,
    #[error("ranges {first} and {second} overlap")]
    Overlap { first: String, second: String },
}

/// A range as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawRange {
    pub subnet: IpNetwork,
    pub start: Option<IpAddr>,
    pub end: Option<IpAddr>,
    pub gateway: Option<IpAddr>,
}

impl RawRange {
    /// Reads a range's keys; none when there is no `subnet`.
    ///
    /// # Errors
    /// When a key is no address.
    pub fn read(object: &Object<'_>) -> Result<Option<Self>, JsonError> {
        let Some(subnet) = object.cidr("subnet")? else { return Ok(None) };
        let (start, end) = (object.ip("rangeStart")?, object.ip("rangeEnd")?);
        Ok(Some(Self { subnet, start, end, gateway: object.ip("gateway")? }))
    }
}

impl TryFrom<RawRange> for Range {
    type Error = RangeError;

    /// Fills in the defaults: the gateway is the first address, the range is everything but the network address and,
    /// with IPv4, the broadcast address.
    fn try_from(raw: RawRange) -> Result<Self, RangeError> {
        let subnet = raw.subnet;
        let (width, length) = (if subnet.is_ipv4() { 32 } else { 128 }, subnet.prefix());
        if length > width - 2 {
            return Err(RangeError::TooSmall { subnet });
        }
        if subnet.ip() != subnet.network() {
            return Err(RangeError::HostBits { subnet, length, network: subnet.network() });
        }
        if matches!(subnet.ip(), IpAddr::V6(address) if address.to_ipv4_mapped().is_some()) {
            return Err(RangeError::Mapped { subnet });
        }
        let first = offset(subnet.network(), 1);
        let last = if subnet.is_ipv4() { offset(subnet.broadcast(), -1) } else { subnet.broadcast() };
        let inside = |key, given: Option<IpAddr>, default| match given {
            Some(address) if !subnet.contains(address) => Err(RangeError::Outside { key, address, subnet }),
            given => Ok(given.unwrap_or(default)),
        };
        let start = inside("rangeStart", raw.start, first)?;
        let end = inside("rangeEnd", raw.end, last)?;
        if bits(start) > bits(end) {
            return Err(RangeError::Backwards { start, end });
        }
        Ok(Self { subnet, start, end, gateway: raw.gateway.unwrap_or(first) })
    }
}

impl Range {
    /// True when the address lies between both ends.
    pub fn contains(&self, address: IpAddr) -> bool {
        let same_family = address.is_ipv4() == self.start.is_ipv4();
        same_family && (bits(self.start)..=bits(self.end)).contains(&bits(address))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.start.is_ipv4() == other.start.is_ipv4()
            && bits(self.start) <= bits(other.end)
            && bits(other.start) <= bits(self.end)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

impl RangeSet {
    /// Checks that the ranges are of one family and apart from each other.
    ///
    /// # Errors
    /// What is wrong.
    pub fn new(raw: &[RawRange]) -> Result<Self, RangeError> {
        let ranges = raw.iter().map(|range| Range::try_from(*range)).collect::<Result<Vec<_>, _>>()?;
        let first = ranges.first().ok_or(RangeError::EmptySet)?;
        if ranges.iter().any(|range| range.start.is_ipv4() != first.start.is_ipv4()) {
            return Err(RangeError::MixedFamilies);
        }
        let set = Self { ranges };
        for (index, range) in set.ranges.iter().enumerate() {
            if let Some(other) = set.ranges[..index].iter().find(|other| other.overlaps(range)) {
                let (first, second) = (other.to_string(), range.to_string());
                return Err(RangeError::Overlap { first, second });
            }
        }
        Ok(set)
    }

    pub fn is_ipv4(&self) -> bool {
        self.ranges.first().is_some_and(|range| range.start.is_ipv4())
    }

    /// The range that an address lies in.
    pub fn range_of(&self, address: IpAddr) -> Option<&Range> {
        self.ranges.iter().find(|range| range.contains(address))
    }

    pub fn overlaps(&self, other: &Self) -> bool {
        self.ranges.iter().any(|range| other.ranges.iter().any(|theirs| theirs.overlaps(range)))
    }

    /// Every address once: from the one after `last`, round to `last` itself; from the beginning when `last` is not
    /// in the set (the ranges were changed, or nothing was handed out yet).
    pub fn candidates(&self, last: Option<IpAddr>) -> Candidates<'_> {
        let position = last.and_then(|last| {
            let range = self.ranges.iter().position(|range| range.contains(last))?;
            Some(Position { range, address: bits(last) })
        });
        Candidates { set: self, position, first: None }
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.ranges.iter().enumerate() {
            let divider = if index == 0 { "" } else { "," };
            write!(f, "{divider}{range}")?;
        }
        Ok(())
    }
}

/// Addresses to try, in order, gateways left out. See [`RangeSet::candidates`].
#[derive(Debug, Clone)]
pub struct Candidates<'a> {
    set: &'a RangeSet,
    /// The address that was last given out of this iterator, or that it starts after.
    position: Option<Position>,
    /// Where the round ends.
    first: Option<Position>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    range: usize,
    address: u128,
}

impl Candidates<'_> {
    fn advance(&self) -> Option<Position> {
        let ranges = &self.set.ranges;
        let start_of = |range: usize| ranges.get(range).map(|r| Position { range, address: bits(r.start) });
        match self.position {
            None => start_of(0),
            Some(at) if at.address == bits(ranges.get(at.range)?.end) => {
                start_of((at.range + 1) % ranges.len())
            }
            Some(at) => Some(Position { address: at.address + 1, ..at }),
        }
    }
}

impl<'a> Iterator for Candidates<'a> {
    type Item = (IpAddr, &'a Range);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let next = self.advance()?;
            if self.first == Some(next) {
                return None;
            }
            self.first.get_or_insert(next);
            self.position = Some(next);
            let range = self.set.ranges.get(next.range)?;
            let address = from_bits(next.address, range.start.is_ipv4());
            if address != range.gateway {
                return Some((address, range));
            }
        }
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn from_bits(bits: u128, is_ipv4: bool) -> IpAddr {
    match u32::try_from(bits) {
        Ok(bits) if is_ipv4 => IpAddr::V4(Ipv4Addr::from(bits)),
        _ => IpAddr::V6(Ipv6Addr::from(bits)),
    }
}

fn offset(address: IpAddr, by: i8) -> IpAddr {
    from_bits(bits(address).wrapping_add_signed(i128::from(by)), address.is_ipv4())
}

#[cfg(test)]
mod tests;
