//! Who an endpoint is in lookup tables: its pod where that is known, else its address and port. Pure.
//!
//! A pod that is replaced under its name, as StatefulSets do it, has another address: by its name it takes the places that it had, and nobody
//! else's flows move. Whoever leads packets has to come to the same tables, so what stands here is the same in every build and on every node.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU64;

/// A digest of who an endpoint is. Two endpoints may have one, by name or by chance: then they share what it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(NonZeroU64);

impl Identity {
    pub fn of_pod(namespace: &str, name: &str) -> Self {
        Self::of([namespace, name].into_iter().flat_map(words))
    }

    pub(crate) fn of_address(endpoint: SocketAddr) -> Self {
        let address = match endpoint.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let address = u128::from(address);
        Self::of([(address >> 64) as u64, address as u64, u64::from(endpoint.port())])
    }

    /// One of several ports of it.
    pub(crate) fn at_port(self, port: u16) -> Self {
        Self::of([self.0.get(), u64::from(port)])
    }

    /// What one of its shares prefers is decided by this.
    pub(crate) fn share(self, number: u64) -> u64 {
        mix(self.0.get() ^ number)
    }

    fn of(words: impl IntoIterator<Item = u64>) -> Self {
        let digest = words.into_iter().fold(0, |digest, word| mix(digest ^ word));
        Self(NonZeroU64::new(digest).unwrap_or(NonZeroU64::MIN))
    }
}

/// Its length, then its bytes.
fn words(text: &str) -> impl Iterator<Item = u64> {
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    std::iter::once(text.len() as u64).chain(text.as_bytes().chunks(size_of::<u64>()).map(word))
}

/// The output function of SplitMix64.
pub(crate) fn mix(state: u64) -> u64 {
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// The endpoints that are known by something else than their addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// By address, each once.
    by_address: Box<[(SocketAddr, Identity)]>,
}

impl Names {
    /// `None` without any. An address has one name, the last in the order of identities.
    pub fn new(names: impl IntoIterator<Item = (SocketAddr, Identity)>) -> Option<Self> {
        let mut names: Vec<_> = names.into_iter().collect();
        names.sort_unstable_by(|one, another| another.cmp(one));
        names.dedup_by_key(|(address, _)| *address);
        names.reverse();
        (!names.is_empty()).then(|| Self { by_address: names.into() })
    }

    pub(crate) fn of(&self, endpoint: SocketAddr) -> Option<Identity> {
        let place = self.by_address.binary_search_by_key(&endpoint, |(address, _)| *address).ok()?;
        Some(self.by_address[place].1)
    }
}

#[cfg(test)]
mod tests;
