//! Masquerading of what containers send to networks other than their own: the key `ipMasq` of the plugins that make links.
//!
//! Owns: the table `inet cni_plugins_masquerade`, with the chains, rules and comments of the reference's nftables backend, so
//! that either implementation deletes and collects what the other made. A rule's comment begins with a hash of the
//! network and one of the attachment. It refuses to use iptables.

use std::{collections::HashSet, net::IpAddr};

use ipnetwork::IpNetwork;
use linux::nftables::{
    BaseChain, Batch, Chain, ChainKind, Error, Family, Hook, Match, Nftables, Rule, Table,
};
use sha2::{Digest, Sha512};

use crate::{
    plugin::{Request, Valid},
    ruleset::{change, delete_rules, ensure_chain, keep_base_chain},
};

const TABLE: Table<'_> = Table { family: Family::Inet, name: "cni_plugins_masquerade" };
const TABLE_COMMENT: &str = "Masquerading for plugins from github.com/containernetworking/plugins";
const CHECKS: Chain<'_> = TABLE.chain("masq_checks");
const CHECKS_COMMENT: &str =
    "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet";
const POSTROUTING: Chain<'_> = TABLE.chain("postrouting");
/// After other plugins' source translation, as `nft`'s `srcnat`.
const HOOK: BaseChain = BaseChain { kind: ChainKind::Nat, hook: Hook::Postrouting, priority: 100 };
/// Bytes that the tool `nft` takes for a comment.
const COMMENT_LIMIT: usize = 128;
const HASH_DIGITS: usize = 16;

/// Whose rules.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner<'a> {
    network: &'a str,
    container_id: &'a str,
    ifname: &'a str,
}

impl<'a> Owner<'a> {
    pub(crate) fn of(request: &'a Request) -> Self {
        Self { network: &request.network, container_id: &request.container_id, ifname: &request.ifname }
    }

    /// What the comments of its rules begin with.
    fn hash(&self) -> String {
        format!("{}-{}", hash(self.network), hash(&format!("{}:{}", self.ifname, self.container_id)))
    }

    fn comment(&self) -> String {
        let Self { network, container_id, ifname } = self;
        let text = format!("{}, net: {network}, if: {ifname}, id: {container_id}", self.hash());
        // Names of networks, links and containers are ASCII, and have no quotes (but a link's may).
        text.replace('"', "").chars().take(COMMENT_LIMIT).collect()
    }
}

/// Makes the rules of an attachment, and takes away what an earlier attempt left.
pub(crate) fn set_up(nftables: &Nftables, owner: Owner<'_>, addresses: &[IpNetwork]) -> Result<(), Error> {
    let (hash, comment) = (owner.hash(), owner.comment());
    change(nftables, |batch| {
        plan_chains(nftables, batch)?;
        delete_rules(nftables, batch, CHECKS, |rule| begins_with(rule.comment.as_ref(), &hash))?;
        for address in addresses {
            batch.add_rule(CHECKS, &masquerade(*address).comment(&*comment));
        }
        Ok(())
    })
}

/// Deletes the rules of an attachment; none is success.
pub(crate) fn tear_down(nftables: &Nftables, owner: Owner<'_>) -> Result<(), Error> {
    let hash = owner.hash();
    change(nftables, |batch| {
        delete_rules(nftables, batch, CHECKS, |rule| begins_with(rule.comment.as_ref(), &hash))
    })
}

/// Whether an attachment has a rule for each of its addresses.
pub(crate) fn is_set_up(nftables: &Nftables, owner: Owner<'_>, addresses: usize) -> Result<bool, Error> {
    let hash = owner.hash();
    let rules = nftables.rules(CHECKS)?;
    Ok(rules.iter().filter(|rule| begins_with(rule.comment.as_ref(), &hash)).count() >= addresses)
}

/// Deletes the rules of a network's attachments that are not to be kept.
pub(crate) fn collect(nftables: &Nftables, network: &str, keep: &Valid) -> Result<(), Error> {
    let comments =
        keep.iter().map(|(container_id, ifname)| Owner { network, container_id, ifname }.comment());
    let comments: HashSet<String> = comments.collect();
    let network = hash(network);
    change(nftables, |batch| {
        delete_rules(nftables, batch, CHECKS, |rule| {
            begins_with(rule.comment.as_ref(), &network)
                && !rule.comment.as_ref().is_some_and(|comment| comments.contains(comment))
        })
    })
}

fn plan_chains(nftables: &Nftables, batch: &mut Batch) -> Result<(), Error> {
    batch.add_table(TABLE, Some(TABLE_COMMENT));
    ensure_chain(nftables, batch, CHECKS, Some(CHECKS_COMMENT))?;
    let (of_ipv4, of_ipv6) = (IpAddr::from([224, 0, 0, 0]), IpAddr::from([0xff00, 0, 0, 0, 0, 0, 0, 0]));
    let multicast = [IpNetwork::new(of_ipv4, 4), IpNetwork::new(of_ipv6, 8)].into_iter().flatten();
    let rule = || Rule::new(TABLE.family);
    let to_multicast = multicast.map(|multicast| rule().destination(Match::Is, multicast).back());
    let rules = to_multicast.chain([rule().go_to(CHECKS.name)]);
    keep_base_chain(nftables, batch, POSTROUTING, HOOK, rules)
}

fn masquerade(address: IpNetwork) -> Rule {
    let rule = Rule::new(TABLE.family).source(Match::Is, address.ip().into());
    rule.destination(Match::IsNot, address).masquerade()
}

fn begins_with(comment: Option<&String>, start: &str) -> bool {
    comment.is_some_and(|comment| comment.starts_with(start))
}

/// The first digits of the SHA-512 of a text.
fn hash(text: &str) -> String {
    let digits: String = Sha512::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
    digits[..HASH_DIGITS].to_owned()
}

#[cfg(test)]
mod tests;
