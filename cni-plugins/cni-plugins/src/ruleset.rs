//! What the plugins that keep nftables rules share: opening the socket, and changes that depend on what is there.
//!
//! A rule's comment says whose it is, so that a plugin may be killed at any point. Rules are deleted by the handle that a
//! listing gave. When another plugin deletes one in between, the transaction fails whole, and is planned again. The runtime waits for
//! the plugin's end, so that the kernel's freeing of what was deleted is left to another process.

use std::{collections::HashSet, ops::Deref};

use cni::{ErrorReply, code};
use linux::nftables::{BaseChain, Batch, Chain, Error, ListedRule, Nftables, Rule};
use sha2::{Digest, Sha512};

use crate::plugin::Valid;

/// How often a change is planned again because something that it was to delete had gone.
const TRIES: usize = 32;

/// Which attachment of a container a rule is for, where its comment tells only the container. The format is kept on running
/// nodes: the first bytes of the SHA-512 of the network's name and of the link's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Tag([u8; 2 * TAG_HALF]);

const TAG_HALF: usize = 8;

impl Tag {
    pub(crate) fn of(network: &str, ifname: &str) -> Self {
        let mut bytes = [0; 2 * TAG_HALF];
        for (half, name) in bytes.chunks_mut(TAG_HALF).zip([network, ifname]) {
            half.copy_from_slice(&Sha512::digest(name)[..TAG_HALF]);
        }
        Self(bytes)
    }

    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether both are of one network.
    fn is_of(&self, other: &Self) -> bool {
        self.0[..TAG_HALF] == other.0[..TAG_HALF]
    }
}

/// A socket in the host's namespace.
#[derive(Debug)]
pub(crate) struct Ruleset(Nftables);

impl Deref for Ruleset {
    type Target = Nftables;

    fn deref(&self) -> &Nftables {
        &self.0
    }
}

impl Drop for Ruleset {
    fn drop(&mut self) {
        self.0.free_in_background();
    }
}

pub(crate) fn open() -> Result<Ruleset, ErrorReply> {
    Nftables::open().map(Ruleset).map_err(ErrorReply::internal)
}

/// As [`open`], for a removal; none where the kernel has no packet filter, and so no rules.
pub(crate) fn open_to_remove() -> Result<Option<Ruleset>, ErrorReply> {
    Ok(Nftables::open_if_supported().map_err(ErrorReply::internal)?.map(Ruleset))
}

/// Code 50 unless the kernel has a packet filter that this process may ask.
pub(crate) fn status() -> Result<(), ErrorReply> {
    let unavailable = |error: String| ErrorReply::new(code::PLUGIN_NOT_AVAILABLE, error);
    match Nftables::open_if_supported() {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(unavailable("the kernel has no nftables".to_owned())),
        Err(error) => Err(unavailable(error.to_string())),
    }
}

/// Plans a transaction and commits it.
pub(crate) fn change(
    nftables: &Nftables,
    plan: impl Fn(&mut Batch) -> Result<(), Error>,
) -> Result<(), Error> {
    let attempt = || {
        let mut batch = Batch::new();
        plan(&mut batch)?;
        nftables.commit(&batch)
    };
    for _ in 1..TRIES {
        match attempt() {
            Err(error) if error.is_gone() => {}
            changed => return changed,
        }
    }
    attempt()
}

/// A network's valid attachments, for GC.
pub(crate) struct Kept<'a> {
    network: Tag,
    valid: HashSet<(&'a str, Tag)>,
}

impl<'a> Kept<'a> {
    pub(crate) fn new(network: &str, valid: &'a Valid) -> Self {
        let of =
            |(container_id, ifname): &'a (String, String)| (container_id.as_str(), Tag::of(network, ifname));
        Self { network: Tag::of(network, ""), valid: valid.iter().map(of).collect() }
    }

    /// Whether a rule with a container's id for a comment is of one of the network's attachments that are not valid. Rules
    /// without a tag are never: the container may be attached to another network only.
    pub(crate) fn misses(&self, rule: &ListedRule) -> bool {
        let tag = rule.tag.as_deref().and_then(Tag::read).filter(|tag| tag.is_of(&self.network));
        let (Some(tag), Some(container_id)) = (tag, &rule.comment) else { return false };
        !self.valid.contains(&(container_id, tag))
    }
}

/// Plans a chain that the kernel calls, with these rules and no others. One that has them already is left alone: what a
/// transaction replaces has to be freed, for which somebody waits.
pub(crate) fn keep_base_chain(
    nftables: &Nftables,
    batch: &mut Batch,
    chain: Chain<'_>,
    base: BaseChain,
    rules: impl IntoIterator<Item = Rule>,
) -> Result<(), Error> {
    plan_rules(nftables, batch, chain, rules, |batch| batch.add_base_chain(chain, base))
}

/// As [`keep_base_chain`], for a chain that other chains call.
pub(crate) fn keep_chain(
    nftables: &Nftables,
    batch: &mut Batch,
    chain: Chain<'_>,
    rules: impl IntoIterator<Item = Rule>,
) -> Result<(), Error> {
    plan_rules(nftables, batch, chain, rules, |batch| batch.add_chain(chain, None))
}

fn plan_rules(
    nftables: &Nftables,
    batch: &mut Batch,
    chain: Chain<'_>,
    rules: impl IntoIterator<Item = Rule>,
    add: impl FnOnce(&mut Batch),
) -> Result<(), Error> {
    let rules = rules.into_iter().map(|rule| {
        let fingerprint = Sha512::digest(rule.to_bytes());
        (fingerprint[..TAG_HALF].to_vec(), rule)
    });
    let rules: Vec<(Vec<u8>, Rule)> = rules.collect();
    let present = nftables.rules(chain)?;
    let is_same = |(present, (fingerprint, _)): (&ListedRule, &(Vec<u8>, Rule))| {
        present.tag.as_ref() == Some(fingerprint)
    };
    if present.len() == rules.len() && present.iter().zip(&rules).all(is_same) {
        return Ok(());
    }
    add(batch);
    batch.flush_chain(chain);
    for (fingerprint, rule) in rules {
        batch.add_rule(chain, &rule.tag(&fingerprint));
    }
    Ok(())
}

/// Plans a chain that other chains call, unless it is there.
pub(crate) fn ensure_chain(
    nftables: &Nftables,
    batch: &mut Batch,
    chain: Chain<'_>,
    comment: Option<&str>,
) -> Result<(), Error> {
    if nftables.find_chain(chain)?.is_none() {
        batch.add_chain(chain, comment);
    }
    Ok(())
}

/// Plans a chain that the kernel calls, unless it is there. Of one that is called in another way, the kernel says so.
pub(crate) fn ensure_base_chain(
    nftables: &Nftables,
    batch: &mut Batch,
    chain: Chain<'_>,
    base: BaseChain,
) -> Result<(), Error> {
    if nftables.find_chain(chain)?.and_then(|chain| chain.base) != Some(base) {
        batch.add_base_chain(chain, base);
    }
    Ok(())
}

/// Plans the deletion of the rules of `chain` that `unwanted` says.
pub(crate) fn delete_rules(
    nftables: &Nftables,
    batch: &mut Batch,
    chain: Chain<'_>,
    unwanted: impl Fn(&ListedRule) -> bool,
) -> Result<(), Error> {
    for rule in nftables.rules(chain)?.iter().filter(|rule| unwanted(rule)) {
        batch.delete_rule(chain, rule.handle);
    }
    Ok(())
}
