//! The tables of the firewall: what is in them for everybody, a bridge's rules, and a container's.
//!
//! A container's rules have its id for a comment and its attachment for a tag. A rule that is shared has its meaning for a
//! tag, by which it is found again.

use cni::AddResult;
use ipnetwork::IpNetwork;
use linux::nftables::{
    BaseChain, Batch, Chain, ChainKind, ConnectionState, Error, Family, Hook, ListedRule, Match, Nftables,
    Rule, Table,
};

use super::config::{Config, IsolatedBridge};
use crate::{
    plugin::{Request, Valid},
    ruleset::{Kept, Tag, change, delete_rules, ensure_base_chain, ensure_chain, keep_base_chain},
};

const TABLE: Table<'_> = Table { family: Family::Inet, name: "cni_firewall" };
/// For frames between the ports of a bridge, where they do not pass the other table.
const BRIDGES: Table<'_> = Table { family: Family::Bridge, name: "cni_firewall" };
const TABLE_COMMENT: &str = "CNI firewall plugin";
const FORWARD: Chain<'_> = TABLE.chain("forward");
const BRIDGES_FORWARD: Chain<'_> = BRIDGES.chain("forward");
const CONTAINERS: Chain<'_> = TABLE.chain("CNI-FORWARD");
/// What comes from an isolated bridge.
const FROM_BRIDGES: Chain<'_> = TABLE.chain("CNI-ISOLATION-STAGE-1");
/// What goes to another one.
const BETWEEN_BRIDGES: Chain<'_> = TABLE.chain("CNI-ISOLATION-STAGE-2");
/// Which no administrator's chain may be.
pub(super) const OWN_CHAINS: [&str; 4] =
    [FORWARD.name, CONTAINERS.name, FROM_BRIDGES.name, BETWEEN_BRIDGES.name];
const HOOK: BaseChain = BaseChain { kind: ChainKind::Filter, hook: Hook::Forward, priority: 0 };
const CONTAINERS_COMMENT: &str = "CNI firewall plugin rules";
const ADMIN_COMMENT: &str = "CNI firewall plugin admin overrides";

/// A container, for the rules that are its.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner<'a> {
    container_id: &'a str,
    tag: Tag,
}

/// A rule that more than one attachment needs.
struct Shared {
    chain: Chain<'static>,
    meaning: String,
    comment: String,
    rule: Rule,
}

impl<'a> Owner<'a> {
    pub(super) fn of(request: &'a Request) -> Self {
        Self { container_id: &request.container_id, tag: Tag::of(&request.network, &request.ifname) }
    }

    /// Makes the container's rules, in place of those of an earlier attempt, and the shared ones that are missing.
    pub(super) fn set_up(
        &self,
        nftables: &Nftables,
        config: &Config,
        bridge: Option<&IsolatedBridge>,
        result: &AddResult,
    ) -> Result<(), Error> {
        change(nftables, |batch| {
            plan_chains(nftables, batch, config, bridge)?;
            for shared in shared(config, bridge) {
                shared.plan(nftables, batch)?;
            }
            delete_rules(nftables, batch, CONTAINERS, |rule| self.is_of(rule))?;
            for address in addresses(result) {
                for rule in accept(address) {
                    batch.add_rule(CONTAINERS, &rule.comment(self.container_id).tag(self.tag.bytes()));
                }
            }
            Ok(())
        })
    }

    /// Deletes the container's rules; none is success.
    pub(super) fn tear_down(&self, nftables: &Nftables) -> Result<(), Error> {
        change(nftables, |batch| delete_rules(nftables, batch, CONTAINERS, |rule| self.may_be_of(rule)))
    }

    /// What the first rule that is missing was for.
    pub(super) fn find_missing(
        &self,
        nftables: &Nftables,
        config: &Config,
        bridge: Option<&IsolatedBridge>,
        result: &AddResult,
    ) -> Result<Option<String>, Error> {
        if nftables.rules(FORWARD)?.len() < dispatch().len() {
            return Ok(Some(CONTAINERS_COMMENT.to_owned()));
        }
        for shared in shared(config, bridge) {
            if !shared.may_be_present(nftables)? {
                return Ok(Some(shared.meaning));
            }
        }
        let expected = addresses(result).flat_map(accept).count();
        let found = nftables.rules(CONTAINERS)?.iter().filter(|rule| self.may_be_of(rule)).count();
        Ok((found < expected).then(|| format!("of container {}", self.container_id)))
    }

    fn is_of(&self, rule: &ListedRule) -> bool {
        rule.comment.as_deref() == Some(self.container_id) && rule.tag.as_deref() == Some(self.tag.bytes())
    }

    /// Rules that were saved and restored as text have no tag any more: they may be of the container's other networks, which are then
    /// detached with this one.
    fn may_be_of(&self, rule: &ListedRule) -> bool {
        rule.comment.as_deref() == Some(self.container_id)
            && rule.tag.as_deref().is_none_or(|tag| tag == self.tag.bytes())
    }
}

impl Shared {
    /// Two attachments at once may both have found it missing, and then it is there twice, which does no harm: the next takes
    /// the second away.
    fn plan(&self, nftables: &Nftables, batch: &mut Batch) -> Result<(), Error> {
        let present = self.present(nftables)?;
        if present.is_empty() {
            let rule = self.rule.clone().comment(&*self.comment).tag(self.meaning.as_bytes());
            batch.insert_rule(self.chain, &rule);
        }
        for handle in present.into_iter().skip(1) {
            batch.delete_rule(self.chain, handle);
        }
        Ok(())
    }

    fn present(&self, nftables: &Nftables) -> Result<Vec<u64>, Error> {
        let rules = nftables.rules(self.chain)?;
        let same = rules.iter().filter(|rule| rule.tag.as_deref() == Some(self.meaning.as_bytes()));
        Ok(same.map(|rule| rule.handle).collect())
    }

    /// As [`Owner::may_be_of`].
    fn may_be_present(&self, nftables: &Nftables) -> Result<bool, Error> {
        let may_be = |rule: &ListedRule| match &rule.tag {
            Some(tag) => tag == self.meaning.as_bytes(),
            None => rule.comment.as_ref() == Some(&self.comment),
        };
        Ok(nftables.rules(self.chain)?.iter().any(may_be))
    }
}

/// Deletes the rules of a network's attachments that are not valid.
pub(super) fn collect(nftables: &Nftables, network: &str, valid: &Valid) -> Result<(), Error> {
    let kept = Kept::new(network, valid);
    change(nftables, |batch| delete_rules(nftables, batch, CONTAINERS, |rule| kept.misses(rule)))
}

fn plan_chains(
    nftables: &Nftables,
    batch: &mut Batch,
    config: &Config,
    bridge: Option<&IsolatedBridge>,
) -> Result<(), Error> {
    batch.add_table(TABLE, Some(TABLE_COMMENT));
    for chain in [CONTAINERS, FROM_BRIDGES, BETWEEN_BRIDGES, TABLE.chain(&config.admin_chain)] {
        ensure_chain(nftables, batch, chain, None)?;
    }
    if bridge.is_some_and(IsolatedBridge::drops_frames) {
        batch.add_table(BRIDGES, Some(TABLE_COMMENT));
        ensure_base_chain(nftables, batch, BRIDGES_FORWARD, HOOK)?;
    }
    keep_base_chain(nftables, batch, FORWARD, HOOK, dispatch())
}

/// The way of every forwarded packet.
fn dispatch() -> [Rule; 2] {
    let isolation = "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)";
    [
        Rule::new(TABLE.family).jump(FROM_BRIDGES.name).comment(isolation),
        Rule::new(TABLE.family).jump(CONTAINERS.name).comment(CONTAINERS_COMMENT),
    ]
}

/// The administrator's chain comes before every container's rules.
fn shared(config: &Config, bridge: Option<&IsolatedBridge>) -> Vec<Shared> {
    let rule = Rule::new(TABLE.family).jump(&config.admin_chain);
    let (meaning, comment) = (format!("admin {}", config.admin_chain), ADMIN_COMMENT.to_owned());
    let mut all = vec![Shared { chain: CONTAINERS, meaning, comment, rule }];
    all.extend(bridge.into_iter().flat_map(isolate));
    all
}

fn isolate(bridge: &IsolatedBridge) -> Vec<Shared> {
    let IsolatedBridge { name, within, .. } = bridge;
    let policy = if *within { "isolated" } else { "same-bridge" };
    let comment = format!("CNI firewall plugin rules (ingressPolicy: {policy})");
    let from = || Rule::new(TABLE.family).input_link(Match::Is, name);
    let to = Rule::new(TABLE.family).output_link(Match::Is, name);
    let shared = |chain, meaning: &str, rule| {
        let meaning = format!("{meaning} {name}");
        Shared { chain, meaning, comment: comment.clone(), rule }
    };
    let mut all = vec![
        shared(FROM_BRIDGES, "from", from().output_link(Match::IsNot, name).jump(BETWEEN_BRIDGES.name)),
        shared(BETWEEN_BRIDGES, "to", to.drop()),
    ];
    if *within {
        all.push(shared(FROM_BRIDGES, "within", from().output_link(Match::Is, name).drop()));
    }
    if bridge.drops_frames() {
        for family in [Family::Ip, Family::Ip6] {
            let frame = Rule::new(BRIDGES.family).input_bridge(Match::Is, name).carries(family);
            let meaning = format!("within {family}");
            all.push(shared(BRIDGES_FORWARD, &meaning, frame.drop()));
        }
    }
    all
}

fn addresses(result: &AddResult) -> impl Iterator<Item = IpNetwork> {
    result.ips.iter().map(|ip| ip.address.ip().into())
}

fn accept(address: IpNetwork) -> [Rule; 2] {
    let answers = [ConnectionState::Established, ConnectionState::Related];
    let to = Rule::new(TABLE.family).destination(Match::Is, address);
    [to.connection_state(&answers).accept(), Rule::new(TABLE.family).source(Match::Is, address).accept()]
}
