//! The tables of published ports: what is in them for everybody, and a container's rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use linux::nftables::{
    BaseChain, Batch, ChainKind, Error, Family, Hook, ListedRule, Match, Nftables, Rule, Table,
};

use super::config::{Config, Mapping};
use crate::{
    plugin::{Request, Valid},
    ruleset::{
        Kept, Tag, change, delete_rules, ensure_base_chain, ensure_chain, keep_base_chain, keep_chain,
    },
};

const TABLES: [Table<'_>; 2] = [table(Family::Ip), table(Family::Ip6)];
const TABLE_COMMENT: &str = "CNI portmap plugin";
/// The mappings.
const MAPPINGS: &str = "hostports";
/// Older versions of the reference plugin had mappings with an address of the host here.
const OLD_MAPPINGS: &str = "hostip_hostports";
const ALL_MAPPINGS: &str = "hostports_all";
const MASQUERADING: &str = "masquerading";
/// The chains with rules of containers.
const OF_CONTAINERS: [&str; 3] = [MAPPINGS, OLD_MAPPINGS, MASQUERADING];
/// `nft`'s priorities `dstnat` and `srcnat`.
const DESTINATION: i32 = -100;
const SOURCE: i32 = 100;

const fn table(family: Family) -> Table<'static> {
    Table { family, name: "cni_hostport" }
}

/// A container, for the rules that are its.
#[derive(Debug, Clone, Copy)]
pub(super) struct Publisher<'a> {
    container_id: &'a str,
    tag: Tag,
}

impl<'a> Publisher<'a> {
    pub(super) fn of(request: &'a Request) -> Self {
        Self { container_id: &request.container_id, tag: Tag::of(&request.network, &request.ifname) }
    }

    /// Adds the container's rules for each of its addresses.
    pub(super) fn publish(
        &self,
        nftables: &Nftables,
        config: &Config,
        addresses: &[IpAddr],
    ) -> Result<(), Error> {
        change(nftables, |batch| {
            for address in addresses {
                let table = table(if address.is_ipv4() { Family::Ip } else { Family::Ip6 });
                plan_chains(nftables, batch, table, config)?;
                self.plan_rules(batch, table, config, *address);
            }
            Ok(())
        })
    }

    /// Deletes the container's rules; none is success.
    pub(super) fn withdraw(&self, nftables: &Nftables) -> Result<(), Error> {
        change(nftables, |batch| delete_everywhere(nftables, batch, |rule| self.is_of(rule)))
    }

    /// The first chain that has fewer rules of the container than it should.
    pub(super) fn find_missing(
        &self,
        nftables: &Nftables,
        config: &Config,
        addresses: &[IpAddr],
    ) -> Result<Option<&'static str>, Error> {
        for address in addresses {
            let is_ipv4 = address.is_ipv4();
            let table = table(if is_ipv4 { Family::Ip } else { Family::Ip6 });
            let mappings = config.mappings.iter().filter(|mapping| mapping.is_for(is_ipv4)).count();
            let masquerading = senders(config, *address).len();
            for (chain, expected) in [(MAPPINGS, mappings), (MASQUERADING, masquerading)] {
                let rules = nftables.rules(table.chain(chain))?;
                if rules.iter().filter(|rule| self.is_of(rule)).count() < expected {
                    return Ok(Some(chain));
                }
            }
        }
        Ok(None)
    }

    fn plan_rules(&self, batch: &mut Batch, table: Table<'_>, config: &Config, address: IpAddr) {
        let rule = || Rule::new(table.family).comment(self.container_id).tag(self.tag.bytes());
        for mapping in config.mappings.iter().filter(|mapping| mapping.is_for(address.is_ipv4())) {
            batch.add_rule(table.chain(MAPPINGS), &translate(rule(), mapping, address));
        }
        for sender in senders(config, address) {
            let rule = rule().source(Match::Is, sender).destination(Match::Is, address.into()).masquerade();
            batch.add_rule(table.chain(MASQUERADING), &rule);
        }
    }

    /// Rules without a tag are the reference's, which goes by the comment alone.
    fn is_of(&self, rule: &ListedRule) -> bool {
        rule.comment.as_deref() == Some(self.container_id)
            && rule.tag.as_deref().is_none_or(|tag| tag == self.tag.bytes())
    }
}

/// Deletes the rules of a network's attachments that are not valid. Rules of which that cannot be told stay: a
/// comment is a container's id, and the container may be attached to another network only.
pub(super) fn collect(nftables: &Nftables, network: &str, valid: &Valid) -> Result<(), Error> {
    let kept = Kept::new(network, valid);
    change(nftables, |batch| delete_everywhere(nftables, batch, |rule| kept.misses(rule)))
}

fn delete_everywhere(
    nftables: &Nftables,
    batch: &mut Batch,
    unwanted: impl Fn(&ListedRule) -> bool,
) -> Result<(), Error> {
    for table in TABLES {
        for chain in OF_CONTAINERS {
            delete_rules(nftables, batch, table.chain(chain), &unwanted)?;
        }
    }
    Ok(())
}

fn plan_chains(
    nftables: &Nftables,
    batch: &mut Batch,
    table: Table<'_>,
    config: &Config,
) -> Result<(), Error> {
    let conditions = if table.family == Family::Ip { &config.conditions_v4 } else { &config.conditions_v6 };
    let rule = || Rule::new(table.family);
    batch.add_table(table, Some(TABLE_COMMENT));
    for chain in [MAPPINGS, OLD_MAPPINGS] {
        ensure_chain(nftables, batch, table.chain(chain), None)?;
    }
    let all = [OLD_MAPPINGS, MAPPINGS].map(|chain| rule().jump(chain));
    keep_chain(nftables, batch, table.chain(ALL_MAPPINGS), all)?;
    for (name, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
        let base = BaseChain { kind: ChainKind::Nat, hook, priority: DESTINATION };
        let conditional = conditions.iter().fold(rule(), |rule, condition| condition.apply(rule));
        let rules = [conditional.to_local_address().jump(ALL_MAPPINGS)];
        keep_base_chain(nftables, batch, table.chain(name), base, rules)?;
    }
    if config.snat {
        let base = BaseChain { kind: ChainKind::Nat, hook: Hook::Postrouting, priority: SOURCE };
        ensure_base_chain(nftables, batch, table.chain(MASQUERADING), base)?;
    }
    Ok(())
}

fn translate(rule: Rule, mapping: &Mapping, address: IpAddr) -> Rule {
    let rule = match mapping.host_ip {
        Some(ip) if !ip.is_unspecified() => rule.destination(Match::Is, ip.into()),
        _ => rule,
    };
    let rule = rule.destination_port(mapping.transport, Match::Is, mapping.host_port);
    rule.dnat(address, mapping.container_port)
}

/// Whose packets to the container are masqueraded: its own, which it would answer directly, and the host's from addresses
/// that the container takes for its own.
fn senders(config: &Config, address: IpAddr) -> Vec<IpNetwork> {
    let everybody = match address {
        IpAddr::V4(_) => IpNetwork::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        IpAddr::V6(_) => IpNetwork::new(Ipv6Addr::UNSPECIFIED.into(), 0),
    };
    match address {
        _ if !config.snat => Vec::new(),
        _ if config.masquerade_all => everybody.into_iter().collect(),
        IpAddr::V4(_) => vec![address.into(), IpAddr::V4(Ipv4Addr::LOCALHOST).into()],
        IpAddr::V6(_) => vec![address.into()],
    }
}
