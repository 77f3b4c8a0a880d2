//! nftables: tables, chains and rules, changed in transactions and listed.
//!
//! Owns: one socket per [`Nftables`], bound for good to the network namespace that it was opened in; [`Batch`], what one
//! transaction does; [`Rule`], which compiles matches as the tool `nft` does, so that `nft list ruleset` shows what was
//! meant, and rules made by either compare equal. Errors name the operation of a transaction that failed and its object
//! (`add rule to ip cni_hostport hostports: Operation not supported (os error 95)`); then nothing of the transaction was
//! done. It refuses to decide what should exist, and knows no sets, maps or objects.
//!
//! Calls block, for as long as another transaction takes. Formats are from `linux/netfilter/nf_tables.h`, and from
//! libnftnl for comments.

mod batch;
mod comment;
mod expression;
mod freeing;
mod rule;

use std::{
    fmt, io,
    sync::atomic::{AtomicBool, Ordering},
};

use netlink_bindings::nftables as wire;

pub use self::{
    batch::{BaseChain, Batch, ChainKind, Hook},
    comment::COMMENT_LIMIT,
    rule::{ConnectionState, Match, Rule, Transport},
};
pub use crate::netlink::Error;
use crate::{
    blocking::{Message, Request, Socket, frame},
    netns::Netns,
};

/// How often a transaction that the kernel gave up for another's sake is sent again.
const COMMIT_TRIES: usize = 8;
/// How often a listing is begun because the rules may have changed under the one before.
const LIST_TRIES: usize = 64;
/// `NFT_NAME_MAXLEN`, without the terminating zero.
const NAME_LIMIT: usize = 255;
/// Attribute number of a rule's expressions (`NFTA_RULE_EXPRESSIONS`).
const RULE_EXPRESSIONS: u16 = 4;

/// Which packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    Ip,
    Ip6,
    /// IPv4 and IPv6.
    Inet,
    Bridge,
}

impl Family {
    pub(crate) fn number(self) -> u8 {
        let number = match self {
            Self::Ip => libc::NFPROTO_IPV4,
            Self::Ip6 => libc::NFPROTO_IPV6,
            Self::Inet => libc::NFPROTO_INET,
            Self::Bridge => libc::NFPROTO_BRIDGE,
        };
        number as u8
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
            Self::Bridge => "bridge",
        })
    }
}

/// A table, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Table<'a> {
    pub family: Family,
    pub name: &'a str,
}

impl<'a> Table<'a> {
    /// A chain of this table.
    pub const fn chain(self, name: &'a str) -> Chain<'a> {
        Chain { table: self, name }
    }
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

/// A chain, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Chain<'a> {
    pub table: Table<'a>,
    pub name: &'a str,
}

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.table, self.name)
    }
}

/// A chain as the kernel lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedChain {
    /// None for a chain that only other chains call, and for one that is called in a way not known here.
    pub base: Option<BaseChain>,
}

/// A rule as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedRule {
    /// Unique within its table, and never used again.
    pub handle: u64,
    pub comment: Option<String>,
    /// See [`Rule::tag`].
    pub tag: Option<Vec<u8>>,
    /// The expressions' attributes, equal for rules that do the same and were compiled the same way.
    pub expressions: Vec<u8>,
}

impl ListedRule {
    /// The link that a packet must have come in by, where that is the first thing that the rule asks.
    pub fn input_link(&self) -> Option<String> {
        expression::input_link(&self.expressions)
    }
}

/// A socket in one network namespace.
#[derive(Debug)]
pub struct Nftables {
    socket: Socket,
    /// A transaction deleted something: see [`Nftables::free_in_background`].
    deleted: AtomicBool,
}

impl Nftables {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open()?, deleted: AtomicBool::new(false) })
    }

    /// As [`Nftables::open`]; none where the kernel has no nftables, and so no rules.
    ///
    /// # Errors
    /// When the kernel refuses the socket, or to say whether it has.
    pub fn open_if_supported() -> Result<Option<Self>, Error> {
        let anything = Table { family: Family::Inet, name: "probe" }.chain("probe");
        match Self::open().and_then(|nftables| nftables.find_chain(anything).map(|_| nftables)) {
            // To a part of the packet filter that it does not have, the kernel answers EINVAL.
            Err(error) if error.is_unsupported() || error.errno() == Some(libc::EINVAL) => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// Opens a socket in `netns`. Blocks for the life of one short thread.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the kernel refuses the socket.
    pub fn open_in(netns: &Netns) -> Result<Self, Error> {
        Ok(Self { socket: Socket::open_in(netns)?, deleted: AtomicBool::new(false) })
    }

    /// Does everything in `batch`, or nothing.
    ///
    /// # Errors
    /// Of the first operation that the kernel refused; `ENOENT` for what does not exist, see [`Error::is_gone`].
    pub fn commit(&self, batch: &Batch) -> Result<(), Error> {
        self.deleted.fetch_or(batch.deletes(), Ordering::Relaxed);
        for _ in 1..COMMIT_TRIES {
            match self.commit_once(batch) {
                Err(error) if is_interrupted(&error) => {}
                committed => return committed,
            }
        }
        self.commit_once(batch)
    }

    /// The kernel answers refused members in their order, and the last member in any case, since it alone asks for that:
    /// an answer for each could overflow the receive buffer. A refusal of the whole comes under the opening's number.
    fn commit_once(&self, batch: &Batch) -> Result<(), Error> {
        let members = batch.members();
        let Some(last) = members.last() else { return Ok(()) };
        let count = u32::try_from(members.len()).unwrap_or(u32::MAX);
        let first = self.socket.take_sequence(count.saturating_add(2));
        let (begin, end) = (Batch::edge(libc::NFNL_MSG_BATCH_BEGIN), Batch::edge(libc::NFNL_MSG_BATCH_END));
        let mut bytes = Vec::new();
        frame(&mut bytes, &begin, libc::NLM_F_REQUEST as u16, first);
        for (sequence, member) in (first.wrapping_add(1)..).zip(members) {
            let ack = if sequence == first.wrapping_add(count) { libc::NLM_F_ACK } else { 0 };
            frame(&mut bytes, member, (libc::NLM_F_REQUEST | ack) as u16, sequence);
        }
        frame(&mut bytes, &end, libc::NLM_F_REQUEST as u16, first.wrapping_add(count).wrapping_add(1));
        self.socket.send(&bytes).map_err(|error| begin.refused(error))?;
        self.socket.receive(last, |message| {
            let position = message.sequence.wrapping_sub(first);
            let code = message.verdict()?;
            match position.checked_sub(1).map(|index| members.get(index as usize)) {
                Some(None) => None,
                Some(Some(_)) if code == 0 => (position == count).then_some(Ok(())),
                Some(Some(member)) => Some(Err(member.refused(io::Error::from_raw_os_error(code)))),
                None => Some(Err(begin.refused(io::Error::from_raw_os_error(code)))),
            }
        })
    }

    /// The rules of a chain, in their order; none for a chain that does not exist.
    ///
    /// A transaction first counts the number of the rule set up, then takes deleted rules off the list, and a listing goes
    /// on by position: the kernel marks it where the number changed, but lets one that began in between end early. So this
    /// waits for the transaction under way, and lies between two equal numbers.
    ///
    /// # Errors
    /// When the listing fails, and when the rules changed under every try: a rule could be missing.
    pub fn rules(&self, chain: Chain<'_>) -> Result<Vec<ListedRule>, Error> {
        let list = || {
            self.wait_for_transaction()?;
            self.list_rules(chain)
        };
        let listed = list_unchanged(|| self.generation(), list)?;
        listed.ok_or_else(|| Error::Protocol {
            operation: "list rules of",
            object: chain.to_string(),
            detail: format!("the rules changed under each of {LIST_TRIES} listings; try again"),
        })
    }

    /// An empty transaction: it waits for its turn, changes nothing, and is not counted.
    fn wait_for_transaction(&self) -> Result<(), Error> {
        let first = self.socket.take_sequence(2);
        let (begin, end) = (Batch::edge(libc::NFNL_MSG_BATCH_BEGIN), Batch::edge(libc::NFNL_MSG_BATCH_END));
        let mut bytes = Vec::new();
        frame(&mut bytes, &begin, libc::NLM_F_REQUEST as u16, first);
        frame(&mut bytes, &end, libc::NLM_F_REQUEST as u16, first.wrapping_add(1));
        self.socket.send(&bytes).map_err(|error| begin.refused(error))
    }

    fn list_rules(&self, chain: Chain<'_>) -> Result<Vec<ListedRule>, Error> {
        let mut body = Vec::new();
        wire::OpGetruleDump::encode_request(&mut body, &header(chain.table.family))
            .push_table_bytes(name(chain.table.name))
            .push_chain_bytes(name(chain.name));
        let request = request("list rules of", chain, libc::NFT_MSG_GETRULE, body);
        let listed = self.socket.list(&request, |message| {
            let (_, rule) = wire::OpNewruleDo::decode_request(message.body);
            read_rule(message, &rule).map(Some)
        });
        none_if_gone(listed)
    }

    /// The number of the rule set, which every transaction counts up.
    fn generation(&self) -> Result<u32, Error> {
        let mut body = Vec::new();
        drop(wire::OpGetgenDo::encode_request(&mut body, &wire::Nfgenmsg::default()));
        let request = request("read number of", "the rule set", libc::NFT_MSG_GETGEN, body);
        self.socket.ask(&request, |message| {
            let (_, generation) = wire::OpGetgenDo::decode_request(message.body);
            generation.get_id().map_err(|error| error.to_string())
        })
    }

    /// How the kernel calls a chain; none for one that does not exist.
    ///
    /// # Errors
    /// When the kernel cannot say.
    pub fn find_chain(&self, chain: Chain<'_>) -> Result<Option<ListedChain>, Error> {
        let mut body = Vec::new();
        wire::OpGetchainDo::encode_request(&mut body, &header(chain.table.family))
            .push_table_bytes(name(chain.table.name))
            .push_name_bytes(name(chain.name));
        let request = request("find chain", chain, libc::NFT_MSG_GETCHAIN, body);
        let read = |message: &Message<'_>| {
            Ok(ListedChain { base: batch::read_base(&wire::OpNewchainDo::decode_request(message.body).1) })
        };
        match self.socket.ask(&request, read) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A listing between two equal numbers of the rule set; none where every try saw two.
fn list_unchanged<T>(
    mut generation: impl FnMut() -> Result<u32, Error>,
    mut list: impl FnMut() -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    for _ in 0..LIST_TRIES {
        let before = generation()?;
        let listed = list()?;
        if generation()? == before {
            return Ok(Some(listed));
        }
    }
    Ok(None)
}

fn read_rule(message: &Message<'_>, rule: &wire::IterableRuleAttrs<'_>) -> Result<ListedRule, String> {
    let attributes = message.body.get(wire::Nfgenmsg::len()..).unwrap_or_default();
    let data = rule.get_userdata().ok();
    let expressions = netlink_bindings::utils::find_attr(attributes, RULE_EXPRESSIONS);
    Ok(ListedRule {
        handle: rule.get_handle().map_err(|error| error.to_string())?,
        comment: data.and_then(comment::read),
        tag: data.and_then(comment::read_tag),
        expressions: expressions.unwrap_or_default().to_vec(),
    })
}

/// A table that vanishes during a listing has nothing (any more).
fn none_if_gone<T>(listed: Result<Vec<T>, Error>) -> Result<Vec<T>, Error> {
    match listed {
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(Vec::new()),
        listed => listed,
    }
}

/// The kernel took nothing of the transaction, and may take all of it the next time.
fn is_interrupted(error: &Error) -> bool {
    matches!(error.errno(), Some(libc::EAGAIN | libc::EINTR | libc::ENOBUFS))
}

/// A longer name than the kernel's limit stays longer, and is refused there.
fn name(text: &str) -> &[u8] {
    &text.as_bytes()[..text.len().min(NAME_LIMIT + 1)]
}

fn header(family: Family) -> wire::Nfgenmsg {
    wire::Nfgenmsg { nfgen_family: family.number(), ..wire::Nfgenmsg::default() }
}

fn request(operation: &'static str, object: impl fmt::Display, message: i32, body: Vec<u8>) -> Request {
    let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | message) as u16;
    Request { operation, object: object.to_string(), kind, flags: 0, body }
}

#[cfg(test)]
mod tests;
