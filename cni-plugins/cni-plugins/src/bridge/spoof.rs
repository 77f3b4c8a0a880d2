//! Protection against foreign sender addresses: the key `macspoofchk`.
//!
//! Owns: the attachment's two chains of the table `bridge nat`, and its rule of the chain `PREROUTING`, named and commented as
//! the reference does, so that either implementation replaces and deletes what the other made. The table and the chain
//! `PREROUTING` are shared with others and stay.

use std::collections::HashSet;

use linux::{
    netlink::MacAddress,
    nftables::{
        BaseChain, Batch, Chain, ChainKind, Error, Family, Hook, ListedRule, Match, Nftables, Rule, Table,
    },
};

use crate::{
    plugin::{Request, Valid},
    ruleset::{change, delete_rules, ensure_base_chain},
};

const TABLE: Table<'_> = Table { family: Family::Bridge, name: "nat" };
const PREROUTING: Chain<'_> = TABLE.chain("PREROUTING");
const HOOK: BaseChain = BaseChain { kind: ChainKind::Filter, hook: Hook::Prerouting, priority: -300 };
const CHAIN_PREFIX: &str = "cni-br-iface-";
const COMMENT_PREFIX: &str = "macspoofchk-";

/// An attachment's names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Guard {
    link_chain: String,
    address_chain: String,
    comment: String,
}

impl Guard {
    pub(super) fn of(request: &Request) -> Self {
        Self::named(&id(&request.container_id, &request.ifname))
    }

    fn named(id: &str) -> Self {
        let link_chain = format!("{CHAIN_PREFIX}{id}");
        let address_chain = format!("{link_chain}-mac");
        Self { link_chain, address_chain, comment: format!("{COMMENT_PREFIX}{id}") }
    }

    /// Whose chains a rule of `PREROUTING` calls.
    fn calling(rule: &ListedRule) -> Option<Self> {
        rule.comment.as_deref()?.strip_prefix(COMMENT_PREFIX).map(Self::named)
    }

    /// Lets frames from the bridge's port `port` pass only when they come from `address`. What an earlier attempt left,
    /// and what a port of this name had before, is taken away.
    pub(super) fn set_up(&self, nftables: &Nftables, port: &str, address: MacAddress) -> Result<(), Error> {
        let (links, addresses) = (TABLE.chain(&self.link_chain), TABLE.chain(&self.address_chain));
        let rule = || Rule::new(TABLE.family).comment(&*self.comment);
        change(nftables, |batch| {
            batch.add_table(TABLE, None);
            ensure_base_chain(nftables, batch, PREROUTING, HOOK)?;
            for chain in [links, addresses] {
                match nftables.find_chain(chain)? {
                    Some(_) => batch.flush_chain(chain),
                    None => batch.add_chain(chain, None),
                }
            }
            delete_rules(nftables, batch, PREROUTING, |old| self.is_of(old) || is_for(old, port))?;
            batch.add_rule(PREROUTING, &rule().input_link(Match::Is, port).jump(links.name));
            batch.add_rule(links, &rule().jump(addresses.name));
            batch.add_rule(addresses, &rule().ethernet_source(Match::Is, address).back());
            batch.add_rule(addresses, &rule().drop());
            Ok(())
        })
    }

    /// Deletes what the attachment has; nothing is success.
    pub(super) fn tear_down(&self, nftables: &Nftables) -> Result<(), Error> {
        change(nftables, |batch| {
            delete_rules(nftables, batch, PREROUTING, |rule| self.is_of(rule))?;
            self.plan_chains_away(nftables, batch)
        })
    }

    /// Whether frames of `port` are looked at.
    pub(super) fn is_set_up(&self, nftables: &Nftables, port: &str) -> Result<bool, Error> {
        let is_called = nftables.rules(PREROUTING)?.iter().any(|rule| self.is_of(rule) && is_for(rule, port));
        let links = nftables.rules(TABLE.chain(&self.link_chain))?;
        let addresses = nftables.rules(TABLE.chain(&self.address_chain))?;
        Ok(is_called && links.iter().any(|rule| self.is_of(rule)) && addresses.len() >= 2)
    }

    fn plan_chains_away(&self, nftables: &Nftables, batch: &mut Batch) -> Result<(), Error> {
        // The first calls the second, and goes before it.
        for name in [&self.link_chain, &self.address_chain] {
            if nftables.find_chain(TABLE.chain(name))?.is_some() {
                batch.delete_chain(TABLE.chain(name));
            }
        }
        Ok(())
    }

    fn is_of(&self, rule: &ListedRule) -> bool {
        rule.comment.as_ref() == Some(&self.comment)
    }
}

/// Deletes what guards a port that is no longer there, unless its attachment is valid. Names say nothing of the network, so
/// a port that exists is another network's business.
pub(super) fn collect(nftables: &Nftables, keep: &Valid, ports: &[String]) -> Result<(), Error> {
    let kept: Vec<Guard> =
        keep.iter().map(|(container_id, ifname)| Guard::named(&id(container_id, ifname))).collect();
    change(nftables, |batch| {
        let rules = nftables.rules(PREROUTING)?;
        let guards = rules.iter().filter_map(|rule| Some((Guard::calling(rule)?, rule.input_link()?)));
        let (present, gone): (Vec<_>, Vec<_>) = guards.partition(|(_, port)| ports.contains(port));
        let in_use = |guard: &Guard| kept.contains(guard) || present.iter().any(|(other, _)| other == guard);
        let unused: HashSet<Guard> =
            gone.into_iter().map(|(guard, _)| guard).filter(|guard| !in_use(guard)).collect();
        for guard in unused {
            for rule in rules.iter().filter(|rule| guard.is_of(rule)) {
                batch.delete_rule(PREROUTING, rule.handle);
            }
            guard.plan_chains_away(nftables, batch)?;
        }
        Ok(())
    })
}

fn is_for(rule: &ListedRule, port: &str) -> bool {
    Guard::calling(rule).is_some() && rule.input_link().as_deref() == Some(port)
}

fn id(container_id: &str, ifname: &str) -> String {
    format!("{container_id}-{ifname}")
}
