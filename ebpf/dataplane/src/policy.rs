//! What NetworkPolicies come to on one node: rulesets, and which links of pods they hold for.
//!
//! A ruleset says for one direction with whom a pod may talk, by the most specific network that holds the peer's address, and at which
//! ports. It is written whole before the first pod uses it; a pod goes from one to another in one write.

pub mod model;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use dataplane_abi::{Config, PodPolicy, capacity, policy};
use ipnetwork::IpNetwork;

use crate::attach::PodPrograms;
use crate::kernel::Kernel;
use crate::model::{Full, Resource};
use crate::{MapError, OpenError};
use model::{Capacity, Model};

/// Numbers a ruleset. A number is not used again, by no later process either as long as anything of it is in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RulesetId(pub NonZeroU32);

/// Holds the node's own addresses.
const NODE: RulesetId = RulesetId(NonZeroU32::MAX);
/// Holds other nodes' addresses.
const PEERS: RulesetId = RulesetId(NonZeroU32::new(policy::PEERS).expect("not 0"));
/// Those that are nobody's policy.
const RESERVED: [RulesetId; 2] = [NODE, PEERS];

/// The protocols that a rule can name ports of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// Ports of one protocol, `last` included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    pub protocol: Protocol,
    pub first: u16,
    pub last: u16,
}

/// At which ports of the server a flow may begin.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// All protocols, also those without ports.
    All,
    /// In order, and neither overlapping nor adjacent; none: nothing may begin.
    Ranges(Arc<[PortRange]>),
}

impl Ports {
    /// Ranges in any order, which may overlap.
    pub fn new(ranges: impl IntoIterator<Item = PortRange>) -> Self {
        let mut sorted: Vec<PortRange> =
            ranges.into_iter().filter(|range| range.first <= range.last).collect();
        sorted.sort_unstable();
        let mut merged: Vec<PortRange> = Vec::with_capacity(sorted.len());
        for range in sorted {
            match merged.last_mut() {
                Some(last)
                    if last.protocol == range.protocol && range.first <= last.last.saturating_add(1) =>
                {
                    last.last = last.last.max(range.last);
                }
                _ => merged.push(range),
            }
        }
        Self::Ranges(merged.into())
    }

    pub fn none() -> Self {
        Self::Ranges([].into())
    }

    /// What either allows.
    pub fn union(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Ranges(own), Self::Ranges(others)) => Self::new(own.iter().chain(&**others).copied()),
            _ => Self::All,
        }
    }
}

/// What holds for a pod. A direction without a ruleset is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Isolation {
    /// With whom a flow towards the pod may begin.
    pub ingress: Option<RulesetId>,
    /// With whom the pod may begin a flow.
    pub egress: Option<RulesetId>,
}

/// The node's end of a pod's link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodLink {
    pub index: u32,
    pub name: String,
    /// The pod's network namespace as the node's numbers it; none: the sockets in it cannot be asked who began a connection.
    pub netns: Option<i32>,
}

/// A change of what rulesets hold. Changes are done in order; each leaves every pod with what it had or with what it gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Peers in `network` may use `ports`, unless a smaller network of the ruleset holds them.
    Allow { ruleset: RulesetId, network: IpNetwork, ports: Ports },
    /// The ruleset says nothing of this very network any more.
    Forget { ruleset: RulesetId, network: IpNetwork },
    /// The ruleset says this and nothing else.
    Replace { ruleset: RulesetId, entries: BTreeMap<IpNetwork, Ports> },
    /// The ruleset goes as soon as no pod has it.
    Drop { ruleset: RulesetId },
}

impl Change {
    fn ruleset(&self) -> RulesetId {
        match *self {
            Self::Allow { ruleset, .. }
            | Self::Forget { ruleset, .. }
            | Self::Replace { ruleset, .. }
            | Self::Drop { ruleset } => ruleset,
        }
    }
}

/// What a change of policies can fail with.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("write the rules of NetworkPolicies")]
    Full(#[source] Full),
    #[error("write the rules of NetworkPolicies")]
    Map(#[source] MapError),
    #[error("filter the packets of the pod behind link {link}")]
    Attach { link: String, source: Box<OpenError> },
    #[error("remove the filters of links that no NetworkPolicy concerns")]
    Retain(#[source] Box<OpenError>),
    #[error("remove what another version left")]
    OtherLayout(#[source] Box<OpenError>),
}

/// The rulesets and the pods that they hold for, in the kernel.
pub struct Policies {
    model: Model,
    programs: PodPrograms,
    /// What holds for each pod that is selected, by the index of its link.
    pods: BTreeMap<u32, (PodLink, Isolation)>,
    /// Dropped, and still some pod's.
    doomed: BTreeSet<RulesetId>,
    /// What the kernel refused: it comes first the next time.
    unwritten: VecDeque<model::Write>,
    /// Flows are to be judged again.
    changed: bool,
    /// No earlier process used it or a higher one.
    first: RulesetId,
}

impl Policies {
    pub fn adopt(programs: PodPrograms, kernel: &mut Kernel) -> Result<Self, MapError> {
        // Half of the maps is for what an earlier process left, until the first sync.
        let capacity = Capacity { rules: capacity::RULES / 2, ports: capacity::PORTS / 2 };
        let found = kernel.read_policies()?;
        // One that allows nothing has no element but its pods'.
        let of_rules = found.rules.iter().map(|key| key.set).filter(|set| *set < policy::PEERS);
        let of_pods = kernel.policed()?.into_iter().flat_map(|(_, pod)| [pod.ingress, pod.egress]);
        let last = of_rules.chain(of_pods).max().unwrap_or(0);
        let mut policies = Self {
            model: Model::adopt(found, capacity),
            programs,
            pods: BTreeMap::new(),
            doomed: BTreeSet::new(),
            unwritten: VecDeque::new(),
            changed: true,
            first: RulesetId(NonZeroU32::MIN.saturating_add(last)),
        };
        // So that what is judged before the first change is not judged for ever.
        policies.judge_again(kernel)?;
        Ok(policies)
    }

    pub fn first_ruleset(&self) -> RulesetId {
        self.first
    }

    /// The rulesets of this process, but for those of nodes.
    pub fn rulesets(&self) -> impl Iterator<Item = RulesetId> {
        self.model.rulesets().filter(|ruleset| !RESERVED.contains(ruleset))
    }

    pub fn change(&mut self, kernel: &mut Kernel, changes: &[Change]) -> Result<(), PolicyError> {
        // Flows that were judged since the first try were so by the earlier rules.
        self.changed |= !self.unwritten.is_empty();
        let changed = self
            .write_rest(kernel)
            .and_then(|()| changes.iter().try_for_each(|change| self.change_one(kernel, change)));
        // Last: what is judged from here on is judged by the rules as they are now.
        changed.and(self.judge_again(kernel).map_err(PolicyError::Map))
    }

    fn change_one(&mut self, kernel: &mut Kernel, change: &Change) -> Result<(), PolicyError> {
        let mut writes = Vec::new();
        let planned = match change {
            Change::Allow { ruleset, network, ports } => {
                self.model.allow(*ruleset, *network, ports, &mut writes)
            }
            Change::Forget { ruleset, network } => self.model.forget(*ruleset, *network, &mut writes),
            Change::Replace { ruleset, entries } => self.model.replace(*ruleset, entries, &mut writes),
            Change::Drop { ruleset } => {
                self.doomed.insert(*ruleset);
                self.drop_doomed();
                return Ok(());
            }
        };
        // No policy asks who other nodes are.
        self.changed |= !writes.is_empty() && change.ruleset() != PEERS;
        self.write(kernel, writes)?;
        planned.map_err(PolicyError::Full)
    }

    fn drop_doomed(&mut self) {
        let used: BTreeSet<RulesetId> =
            self.pods.values().flat_map(|(_, pod)| [pod.ingress, pod.egress]).flatten().collect();
        for ruleset in std::mem::take(&mut self.doomed) {
            if used.contains(&ruleset) {
                self.doomed.insert(ruleset);
            } else {
                self.model.drop_ruleset(ruleset);
            }
        }
    }

    /// What the pod behind a link may do; open in both directions, the link has no program of ours.
    pub fn isolate(
        &mut self,
        kernel: &mut Kernel,
        link: &PodLink,
        isolation: Isolation,
    ) -> Result<(), PolicyError> {
        let attach = |source| PolicyError::Attach { link: link.name.clone(), source: Box::new(source) };
        self.changed = true;
        if isolation == Isolation::default() {
            self.programs.detach(link).map_err(attach)?;
            kernel.remove_pod(link.index).map_err(PolicyError::Map)?;
            self.pods.remove(&link.index);
            self.drop_doomed();
            return Ok(());
        }
        let before = self.pods.get(&link.index);
        let is_new = before.is_none_or(|(before, _)| before != link);
        let limit = capacity::PODS;
        if before.is_none() && self.pods.len() >= limit {
            return Err(PolicyError::Full(Full { resource: Resource::PolicyPods, limit }));
        }
        let number = |ruleset: Option<RulesetId>| ruleset.map_or(policy::OPEN, |RulesetId(id)| id.get());
        let pod = PodPolicy {
            ingress: number(isolation.ingress),
            egress: number(isolation.egress),
            // The node's own namespace: it has no sockets of the pod.
            netns: link.netns.unwrap_or(-1),
            reserved: 0,
        };
        kernel.set_pod(link.index, pod).map_err(PolicyError::Map)?;
        self.pods.insert(link.index, (link.clone(), isolation));
        if is_new && let Err(source) = self.programs.attach(link) {
            // The next try attaches; a link that has gone leaves nothing.
            self.pods.remove(&link.index);
            return Err(attach(source));
        }
        self.drop_doomed();
        self.judge_again(kernel).map_err(PolicyError::Map)
    }

    /// Every flow that goes on is judged by the rules as they are from here on.
    fn judge_again(&mut self, kernel: &mut Kernel) -> Result<(), MapError> {
        if !self.changed {
            return Ok(());
        }
        let config = kernel.read_config()?;
        let next = config.policy_generation.wrapping_add(1);
        let policy_generation = if next == policy::ALWAYS { next + 1 } else { next };
        kernel.write_config(&Config { policy_generation, ..config })?;
        self.changed = false;
        Ok(())
    }

    /// The node's own addresses, which its pods may always reach.
    pub fn set_node(&mut self, kernel: &mut Kernel, addresses: &[IpAddr]) -> Result<(), PolicyError> {
        self.change(kernel, &[of_addresses(NODE, addresses)])
    }

    /// Other nodes' addresses: what those say of flows is believed.
    pub fn set_peers(&mut self, kernel: &mut Kernel, addresses: &[IpAddr]) -> Result<(), PolicyError> {
        self.change(kernel, &[of_addresses(PEERS, addresses)])
    }

    pub fn retain(&mut self, kernel: &mut Kernel) -> Result<(), PolicyError> {
        let names: Vec<&str> = self.pods.values().map(|(link, _)| link.name.as_str()).collect();
        let retained = self.programs.retain(|name| names.contains(&name));
        retained.map_err(|source| PolicyError::Retain(Box::new(source)))?;
        for (link, _) in kernel.policed().map_err(PolicyError::Map)? {
            if !self.pods.contains_key(&link) {
                kernel.remove_pod(link).map_err(PolicyError::Map)?;
            }
        }
        self.model.drop_found();
        Ok(())
    }

    pub fn has_retired(&self) -> bool {
        self.model.has_retired()
    }

    /// Nobody reads any more what goes: no flow is judged otherwise.
    pub fn release(&mut self, kernel: &mut Kernel) -> Result<(), PolicyError> {
        let writes = self.model.release_retired();
        self.write(kernel, writes)
    }

    fn write(&mut self, kernel: &mut Kernel, writes: Vec<model::Write>) -> Result<(), PolicyError> {
        self.unwritten.extend(writes);
        self.write_rest(kernel)
    }

    fn write_rest(&mut self, kernel: &mut Kernel) -> Result<(), PolicyError> {
        while let Some(write) = self.unwritten.front() {
            kernel.apply_policy(write).map_err(PolicyError::Map)?;
            self.unwritten.pop_front();
        }
        Ok(())
    }
}

fn of_addresses(ruleset: RulesetId, addresses: &[IpAddr]) -> Change {
    let entries = addresses.iter().map(|address| ((*address).into(), Ports::All)).collect();
    Change::Replace { ruleset, entries }
}
