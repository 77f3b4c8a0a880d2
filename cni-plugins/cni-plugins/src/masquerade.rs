//! Masquerading of what containers send to networks other than their own: the key `ipMasq` of the plugins that make links.
//!
//! Owns: the table `inet cni_plugins_masquerade`, with the chains, rules and comments of the reference's nftables backend, so
//! that either implementation deletes and collects what the other made. A rule's comment begins with a hash of the
//! network and one of the attachment. It refuses to use iptables.

use std::{collections::HashSet, net::IpAddr};

use cni::{AddResult, ErrorReply, json::JsonError};
use ipnetwork::IpNetwork;
use linux::nftables::{
    BaseChain, Batch, Chain, ChainKind, Error, Family, Hook, Match, Nftables, Rule, Table,
};

use crate::{
    hash,
    plugin::{Request, Valid, decoding},
    ruleset::{self, change, delete_rules, ensure_chain, keep_base_chain},
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

/// The keys `ipMasq` and `ipMasqBackend`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Masquerade {
    wanted: bool,
    backend: Option<String>,
}

impl Masquerade {
    pub(crate) fn read(request: &Request) -> Result<Self, ErrorReply> {
        let root = request.root();
        let read = || -> Result<Self, JsonError> {
            Ok(Self {
                wanted: root.boolean("ipMasq")?.unwrap_or(false),
                backend: root.string("ipMasqBackend")?.map(str::to_owned),
            })
        };
        read().map_err(decoding)
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// Refuses what no ADD could do, before one does anything.
    pub(crate) fn validate(&self) -> Result<(), ErrorReply> {
        match self.backend.as_deref().filter(|_| self.wanted) {
            None | Some("nftables") => Ok(()),
            Some("iptables") => {
                eprintln!("ipMasqBackend \"iptables\": the rules are made with nftables");
                Ok(())
            }
            Some(other) => Err(ErrorReply::internal(format!(
                "unknown ipmasq backend {other:?}: expected \"nftables\" or \"iptables\""
            ))),
        }
    }

    /// Masquerades the addresses that the container got.
    pub(crate) fn set_up(&self, request: &Request, result: &AddResult) -> Result<(), ErrorReply> {
        if !self.wanted {
            return Ok(());
        }
        let addresses: Vec<_> = result.ips.iter().map(|ip| ip.address).collect();
        set_up(&*ruleset::open()?, Owner::of(request), &addresses)
            .map_err(|error| ErrorReply::internal(format!("failed to set up masquerading: {error}")))
    }

    /// Rules are compared only where the configuration says that they are made with nftables: an attachment that the reference
    /// plugin made may have iptables rules, and be sound.
    pub(crate) fn check(&self, request: &Request, expected: &AddResult) -> Result<(), ErrorReply> {
        let comparable = self.wanted && self.backend.as_deref() == Some("nftables");
        let masqueraded = !comparable
            || is_set_up(&*ruleset::open()?, Owner::of(request), expected.ips.len())
                .map_err(ErrorReply::internal)?;
        if masqueraded {
            Ok(())
        } else {
            Err(ErrorReply::internal(format!("rules that masquerade {} not found", request.container_id)))
        }
    }

    /// Deletes the attachment's rules; none is success.
    pub(crate) fn tear_down(&self, request: &Request) -> Result<(), ErrorReply> {
        let ruleset = if self.wanted { ruleset::open_to_remove()? } else { None };
        ruleset.map_or(Ok(()), |ruleset| self.tear_down_by(&ruleset, request).map_err(ErrorReply::internal))
    }

    /// As [`Masquerade::tear_down`], through a socket that others use too.
    pub(crate) fn tear_down_by(&self, nftables: &Nftables, request: &Request) -> Result<(), Error> {
        if self.wanted { tear_down(nftables, Owner::of(request)) } else { Ok(()) }
    }
}

/// GC: deletes the rules of the network's attachments that are not valid, whatever the configuration says now.
pub(crate) fn collect_of(request: &Request) -> Result<(), ErrorReply> {
    let valid = request.valid_attachments()?;
    let Some(nftables) = ruleset::open_to_remove()? else { return Ok(()) };
    collect(&nftables, &request.network, &valid).map_err(ErrorReply::internal)
}

/// Whose rules.
#[derive(Debug, Clone, Copy)]
struct Owner<'a> {
    network: &'a str,
    container_id: &'a str,
    ifname: &'a str,
}

impl<'a> Owner<'a> {
    fn of(request: &'a Request) -> Self {
        Self { network: &request.network, container_id: &request.container_id, ifname: &request.ifname }
    }

    /// What the comments of its rules begin with.
    fn hash(&self) -> String {
        format!("{}-{}", digits(self.network), digits(&format!("{}:{}", self.ifname, self.container_id)))
    }

    fn comment(&self) -> String {
        let Self { network, container_id, ifname } = self;
        let text = format!("{}, net: {network}, if: {ifname}, id: {container_id}", self.hash());
        // A link's name may have quotes, and characters of several bytes, which are not cut.
        let mut text = text.replace('"', "");
        text.truncate(text.floor_char_boundary(COMMENT_LIMIT));
        text
    }
}

/// Makes the rules of an attachment, and takes away what an earlier attempt left.
fn set_up(nftables: &Nftables, owner: Owner<'_>, addresses: &[IpNetwork]) -> Result<(), Error> {
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
fn tear_down(nftables: &Nftables, owner: Owner<'_>) -> Result<(), Error> {
    let hash = owner.hash();
    change(nftables, |batch| {
        delete_rules(nftables, batch, CHECKS, |rule| begins_with(rule.comment.as_ref(), &hash))
    })
}

/// Whether an attachment has a rule for each of its addresses.
fn is_set_up(nftables: &Nftables, owner: Owner<'_>, addresses: usize) -> Result<bool, Error> {
    let hash = owner.hash();
    let rules = nftables.rules(CHECKS)?;
    Ok(rules.iter().filter(|rule| begins_with(rule.comment.as_ref(), &hash)).count() >= addresses)
}

/// Deletes the rules of a network's attachments that are not to be kept.
fn collect(nftables: &Nftables, network: &str, keep: &Valid) -> Result<(), Error> {
    let comments =
        keep.iter().map(|(container_id, ifname)| Owner { network, container_id, ifname }.comment());
    let comments: HashSet<String> = comments.collect();
    let network = digits(network);
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

/// The first digits of a text's hash.
fn digits(text: &str) -> String {
    hash::name(HASH_DIGITS, "", text)
}

#[cfg(test)]
mod tests;
