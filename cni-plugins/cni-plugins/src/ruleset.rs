//! What the plugins that keep nftables rules share: opening the socket, and changes that depend on what is there.
//!
//! A rule's comment says whose it is, so that a plugin may be killed at any point. Rules are deleted by the handle that a
//! listing gave. When another plugin deletes one in between, the transaction fails whole, and is planned again.

use std::collections::HashSet;

use cni::ErrorReply;
use linux::nftables::{Batch, Chain, Error, Family, ListedRule, Nftables, Table};
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

/// Opens a socket in the host's namespace.
pub(crate) fn open() -> Result<Nftables, ErrorReply> {
    Nftables::open().map_err(ErrorReply::internal)
}

/// As [`open`], for a removal; none where the kernel has no packet filter, and so no rules.
pub(crate) fn open_to_remove() -> Result<Option<Nftables>, ErrorReply> {
    match Nftables::open() {
        Err(error) if error.is_unsupported() => Ok(None),
        opened => opened.map(Some).map_err(ErrorReply::internal),
    }
}

/// Whether the kernel has a packet filter that this process may ask.
pub(crate) fn status() -> Result<(), Error> {
    let anything = Table { family: Family::Inet, name: "cni" };
    Nftables::open()?.has_chain(anything.chain("cni")).map(drop)
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
