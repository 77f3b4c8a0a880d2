//! Which map elements the rulesets come to. Pure.
//!
//! Rules lead from a network to a list of ports; equal lists are one. An element that goes while a program may be on its way to it (a list
//! that a rule led to, the rules of a ruleset that a pod had) is retired: it leaves the kernel after a grace period.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use dataplane_abi::{NetworkKey, PortKey, policy, protocol};
use ipnetwork::{IpNetwork, Ipv4Network};

use super::{PortRange, Ports, Protocol, RESERVED, RulesetId};
use crate::model::{Full, Resource, from_network_key, mapped_prefix, to_address};

#[cfg(test)]
mod tests;

/// A change of one map element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    Rule { key: NetworkKey, list: u32 },
    RuleRemove { key: NetworkKey },
    Port { key: PortKey },
    PortRemove { key: PortKey },
}

/// How many elements the maps have.
#[derive(Debug, Clone, Copy)]
pub struct Capacity {
    pub rules: usize,
    pub ports: usize,
}

/// The maps as they were found: what an earlier process left.
#[derive(Debug, Default)]
pub struct Found {
    pub rules: Vec<NetworkKey>,
    pub ports: Vec<PortKey>,
}

struct List {
    number: u32,
    /// Rules that lead to it.
    rules: usize,
}

/// All rulesets of the node.
pub struct Model {
    capacity: Capacity,
    rulesets: HashMap<RulesetId, BTreeMap<IpNetwork, Ports>>,
    lists: HashMap<Arc<[PortRange]>, List>,
    next_list: u32,
    /// Elements of this process that are in the kernel, retired ones with them.
    rules: usize,
    ports: usize,
    /// Left by an earlier process, and in use until the first sync. They have room of their own.
    found: Found,
    /// To be removed like what is retired, and counted apart.
    dropped: Found,
    retired: BTreeSet<Retired>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Retired {
    Rule(NetworkKey),
    Port(PortKey),
}

impl Model {
    /// The nodes' addresses keep their numbers: they are this process's from the beginning.
    pub fn adopt(mut found: Found, capacity: Capacity) -> Self {
        let ports = |network| if network == every_v4() { Ports::none() } else { Ports::All };
        let mut rulesets: HashMap<RulesetId, BTreeMap<IpNetwork, Ports>> = HashMap::new();
        for ruleset in RESERVED {
            let own = found.rules.extract_if(.., |key| key.set == ruleset.0.get());
            let own: BTreeMap<IpNetwork, Ports> =
                own.filter_map(from_network_key).map(|network| (network, ports(network))).collect();
            if !own.is_empty() {
                rulesets.insert(ruleset, own);
            }
        }
        let last_list = found.ports.iter().map(|key| key.list).max().unwrap_or(policy::ALL_PORTS);
        Self {
            capacity,
            rules: rulesets.values().map(BTreeMap::len).sum(),
            rulesets,
            lists: HashMap::new(),
            next_list: last_list + 1,
            ports: 0,
            found,
            dropped: Found::default(),
            retired: BTreeSet::new(),
        }
    }

    pub fn rulesets(&self) -> impl Iterator<Item = RulesetId> {
        self.rulesets.keys().copied()
    }

    /// Makes `ports` hold for `network`: `writes` gets what is to be written, also before something that there is no room for, in an
    /// order that every reader may see the middle of.
    pub fn allow(
        &mut self,
        ruleset: RulesetId,
        network: IpNetwork,
        ports: &Ports,
        writes: &mut Vec<Write>,
    ) -> Result<(), Full> {
        if !self.rulesets.contains_key(&ruleset) {
            // An IPv4 address is mapped into IPv6, whose networks would hold it otherwise.
            self.put(ruleset, every_v4(), Ports::none(), writes)?;
        }
        self.put(ruleset, network, ports.clone(), writes)
    }

    /// Makes the ruleset hold these entries and no others.
    pub fn replace(
        &mut self,
        ruleset: RulesetId,
        entries: &BTreeMap<IpNetwork, Ports>,
        writes: &mut Vec<Write>,
    ) -> Result<(), Full> {
        let before = self.rulesets.get(&ruleset);
        let gone = before.into_iter().flatten().map(|(network, _)| *network);
        let gone: Vec<IpNetwork> = gone.filter(|network| !entries.contains_key(network)).collect();
        gone.into_iter().try_for_each(|network| self.forget(ruleset, network, writes))?;
        entries.iter().try_for_each(|(network, ports)| self.allow(ruleset, *network, ports, writes))
    }

    /// Makes the ruleset say nothing of the very network.
    pub fn forget(
        &mut self,
        ruleset: RulesetId,
        network: IpNetwork,
        writes: &mut Vec<Write>,
    ) -> Result<(), Full> {
        if network == every_v4() && self.rulesets.contains_key(&ruleset) {
            return self.put(ruleset, network, Ports::none(), writes);
        }
        let removed = self.rulesets.get_mut(&ruleset).and_then(|rules| rules.remove(&network));
        if let Some(ports) = removed {
            writes.push(Write::RuleRemove { key: rule_key(ruleset, network) });
            self.rules -= 1;
            self.release(&ports);
        }
        Ok(())
    }

    /// Retires a ruleset that no pod uses any more.
    pub fn drop_ruleset(&mut self, ruleset: RulesetId) {
        for (network, ports) in self.rulesets.remove(&ruleset).unwrap_or_default() {
            self.retired.insert(Retired::Rule(rule_key(ruleset, network)));
            self.release(&ports);
        }
    }

    /// Retires what an earlier process left.
    pub fn drop_found(&mut self) {
        let Found { rules, ports } = std::mem::take(&mut self.found);
        self.dropped.rules.extend(rules);
        self.dropped.ports.extend(ports);
    }

    pub fn has_retired(&self) -> bool {
        !self.retired.is_empty() || !self.dropped.rules.is_empty() || !self.dropped.ports.is_empty()
    }

    /// Removes what was retired before a grace period that has passed. Rules go before the lists that they lead to.
    pub fn release_retired(&mut self) -> Vec<Write> {
        let retired = std::mem::take(&mut self.retired);
        let writes = retired.into_iter().map(|retired| match retired {
            Retired::Rule(key) => Write::RuleRemove { key },
            Retired::Port(key) => Write::PortRemove { key },
        });
        let mut writes: Vec<Write> = writes.collect();
        let rules = writes.iter().filter(|write| matches!(write, Write::RuleRemove { .. })).count();
        self.rules -= rules;
        self.ports -= writes.len() - rules;
        let Found { rules, ports } = std::mem::take(&mut self.dropped);
        writes.extend(rules.into_iter().map(|key| Write::RuleRemove { key }));
        writes.extend(ports.into_iter().map(|key| Write::PortRemove { key }));
        writes
    }

    fn put(
        &mut self,
        ruleset: RulesetId,
        network: IpNetwork,
        ports: Ports,
        writes: &mut Vec<Write>,
    ) -> Result<(), Full> {
        let before = self.rulesets.get(&ruleset).and_then(|rules| rules.get(&network));
        if before == Some(&ports) {
            return Ok(());
        }
        let limit = self.capacity.rules;
        if before.is_none() && self.rules >= limit {
            return Err(Full { resource: Resource::PolicyRules, limit });
        }
        let list = self.hold(&ports, writes)?;
        writes.push(Write::Rule { key: rule_key(ruleset, network), list });
        match self.rulesets.entry(ruleset).or_default().insert(network, ports) {
            Some(before) => self.release(&before),
            None => self.rules += 1,
        }
        Ok(())
    }

    /// The number of a list, which one more rule leads to.
    fn hold(&mut self, ports: &Ports, writes: &mut Vec<Write>) -> Result<u32, Full> {
        let Ports::Ranges(ranges) = ports else { return Ok(policy::ALL_PORTS) };
        if ranges.is_empty() {
            return Ok(policy::NO_PORTS);
        }
        if let Some(list) = self.lists.get_mut(ranges) {
            list.rules += 1;
            return Ok(list.number);
        }
        let keys = port_keys(self.next_list, ranges);
        let limit = self.capacity.ports;
        if self.ports + keys.len() > limit || self.next_list == policy::NO_PORTS {
            return Err(Full { resource: Resource::PolicyPorts, limit });
        }
        self.ports += keys.len();
        writes.extend(keys.into_iter().map(|key| Write::Port { key }));
        let number = self.next_list;
        self.next_list += 1;
        self.lists.insert(ranges.clone(), List { number, rules: 1 });
        Ok(number)
    }

    /// One rule less leads to a list.
    fn release(&mut self, ports: &Ports) {
        let Ports::Ranges(ranges) = ports else { return };
        let Some(list) = self.lists.get_mut(ranges) else { return };
        list.rules -= 1;
        if list.rules == 0 {
            let number = list.number;
            self.lists.remove(ranges);
            self.retired.extend(port_keys(number, ranges).into_iter().map(Retired::Port));
        }
    }
}

fn every_v4() -> IpNetwork {
    // A prefix of no bits is a valid one.
    Ipv4Network::new(Ipv4Addr::UNSPECIFIED, 0).map(IpNetwork::V4).unwrap_or_else(|_| unreachable!())
}

fn rule_key(RulesetId(set): RulesetId, network: IpNetwork) -> NetworkKey {
    let prefix = NetworkKey::SET_BITS + mapped_prefix(network);
    NetworkKey { prefix, set: set.get(), address: to_address(network.network()) }
}

/// The keys that hold exactly these ports.
fn port_keys(list: u32, ranges: &[PortRange]) -> Vec<PortKey> {
    ranges.iter().flat_map(|range| range_keys(list, *range)).collect()
}

/// A range as the aligned parts that it consists of.
fn range_keys(list: u32, PortRange { protocol, first, last }: PortRange) -> Vec<PortKey> {
    let protocol = match protocol {
        Protocol::Tcp => protocol::TCP,
        Protocol::Udp => protocol::UDP,
        Protocol::Sctp => protocol::SCTP,
    };
    let (mut first, end) = (u32::from(first), u32::from(last) + 1);
    let mut keys = Vec::new();
    while first < end {
        let aligned = first.trailing_zeros().min(u16::BITS);
        let fitting = (end - first).ilog2();
        let bits = aligned.min(fitting);
        let port_be = u16::try_from(first).unwrap_or(u16::MAX).to_be();
        keys.push(PortKey { prefix: PortKey::WHOLE - bits, list, protocol, reserved: 0, port_be });
        first += 1 << bits;
    }
    keys
}
