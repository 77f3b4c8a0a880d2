//! How a Service wants its endpoints chosen: its annotations, read, and what weights make of a list of endpoints. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU8;
use std::sync::Arc;

use dataplane::Scheduler;

#[cfg(test)]
mod tests;

/// The annotation that names a scheduler.
const SCHEDULER: &str = "orlop.dev/scheduler";
/// The annotation that gives endpoints other weights than 1: `node-a=4,10.0.7.9=0`.
const WEIGHTS: &str = "orlop.dev/weights";
/// The annotation that says after how many failed connections in a row an endpoint gets no new ones for a while.
const SET_ASIDE_AFTER: &str = "orlop.dev/set-aside-after";
/// The largest weight.
pub const MAX_WEIGHT: u16 = 256;
/// Shares of one list, where no endpoint has to have more than one.
const MAX_SHARES: usize = 16_384;

/// What the scheduler annotation may say, with IPVS' names where it has them.
const NAMES: [(&str, Scheduler); 6] = [
    ("random", Scheduler::Random),
    ("rr", Scheduler::RoundRobin),
    (WEIGHTED_ROUND_ROBIN, Scheduler::RoundRobin),
    ("lc", Scheduler::LeastConnection),
    ("sh", Scheduler::SourceHash),
    ("mh", Scheduler::Maglev),
];
/// The name of a scheduler, as the annotation has it; `wrr` is `rr` with shares.
pub fn scheduler_name(scheduler: Scheduler) -> &'static str {
    NAMES.iter().find(|(_, known)| *known == scheduler).map_or("", |(name, _)| name)
}

/// In turn, but as often as the weights say: for the dataplane that is a list in which endpoints stand several times.
const WEIGHTED_ROUND_ROBIN: &str = "wrr";

/// What a Service's annotations ask for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scheduling {
    pub scheduler: Scheduler,
    pub set_aside_after: Option<NonZeroU8>,
    weights: Option<Arc<Weights>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Weights {
    /// Those of addresses come before those of nodes.
    addresses: BTreeMap<IpAddr, u16>,
    nodes: BTreeMap<Box<str>, u16>,
}

impl Scheduling {
    /// What cannot be used is left out and said in words.
    pub fn read(annotations: Option<&BTreeMap<String, String>>, problems: &mut Vec<String>) -> Self {
        let annotation = |name: &str| annotations.and_then(|all| all.get(name)).map(|text| text.trim());
        let name = annotation(SCHEDULER).unwrap_or_default();
        let scheduler = match NAMES.iter().find(|(known, _)| *known == name) {
            Some((_, scheduler)) => *scheduler,
            None if name.is_empty() => Scheduler::default(),
            None => {
                let known = NAMES.map(|(name, _)| name).join(", ");
                problems.push(format!("{SCHEDULER}: \"{name}\" is none of {known}; random is used"));
                Scheduler::default()
            }
        };
        let weights = annotation(WEIGHTS).map(|text| weights(text, problems));
        // As in IPVS, these two know a weight of 0 alone.
        let equal = ["rr", "lc"].contains(&name);
        let weights = weights.map(|weights| Arc::new(if equal { weights.at_most_one() } else { weights }));
        let set_aside_after = annotation(SET_ASIDE_AFTER).and_then(|text| {
            let number = text.parse().ok();
            if number.is_none() {
                problems.push(format!("{SET_ASIDE_AFTER}: \"{text}\" is not a number from 1 to {}", u8::MAX));
            }
            number
        });
        Self { scheduler, set_aside_after, weights }
    }

    /// How many shares an endpoint has of what is new; 0: none.
    pub fn weight(&self, address: IpAddr, node: Option<&str>) -> u16 {
        let Some(weights) = &self.weights else { return 1 };
        let of_node = || weights.nodes.get(node?);
        weights.addresses.get(&address).or_else(of_node).copied().unwrap_or(1)
    }
}

impl Weights {
    fn at_most_one(mut self) -> Self {
        let all = self.addresses.values_mut().chain(self.nodes.values_mut());
        all.for_each(|weight| *weight = (*weight).min(1));
        self
    }
}

fn weights(text: &str, problems: &mut Vec<String>) -> Weights {
    let mut weights = Weights::default();
    for term in text.split(',').map(str::trim).filter(|term| !term.is_empty()) {
        let parts = term.split_once('=').map(|(of, weight)| (of.trim(), weight.trim()));
        let usable = parts.and_then(|(of, weight)| Some((of, weight.parse().ok()?)));
        match usable.filter(|(of, weight)| !of.is_empty() && *weight <= MAX_WEIGHT) {
            Some((of, weight)) => match of.parse::<IpAddr>() {
                Ok(address) => drop(weights.addresses.insert(address.to_canonical(), weight)),
                Err(_) => drop(weights.nodes.insert(of.into(), weight)),
            },
            None => problems.push(format!(
                "{WEIGHTS}: \"{term}\" is not a node's name or an endpoint's address, \"=\" and a number up to {MAX_WEIGHT}"
            )),
        }
    }
    weights
}

/// Each endpoint as often as its share of the weights, in the smallest numbers that say so; none of weight 0. Where those are too many,
/// in smaller ones that come near, at least one each.
pub fn by_weight(endpoints: impl Iterator<Item = (SocketAddr, u16)> + Clone) -> Arc<[SocketAddr]> {
    let weights = || endpoints.clone().map(|(_, weight)| weight);
    let common = weights().fold(0, greatest_common_divisor).max(1);
    let sum: usize = weights().map(|weight| usize::from(weight / common)).sum();
    let shares = |weight: u16| match usize::from(weight / common) {
        0 => 0,
        shares if sum <= MAX_SHARES => shares,
        shares => (shares * MAX_SHARES / sum).max(1),
    };
    endpoints.clone().flat_map(|(address, weight)| std::iter::repeat_n(address, shares(weight))).collect()
}

fn greatest_common_divisor(mut a: u16, mut b: u16) -> u16 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
