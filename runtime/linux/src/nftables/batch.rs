//! What one transaction does, operation by operation, as messages.

use netlink_bindings::{nftables as wire, utils::push_header};

use super::{Chain, Rule, Table, comment, header, name, request};
use crate::blocking::Request;

/// `NFTA_CHAIN_USERDATA`; the kernel's YAML specification numbers a chain's last attributes one too low.
const CHAIN_USER_DATA: u16 = 12;

/// What a base chain may do with packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    Filter,
    /// Sees the first packet of each connection.
    Nat,
}

/// Where in a packet's way a base chain is called. The numbers are the same in every family here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// How the kernel calls a chain. Packets that reach its end are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseChain {
    pub kind: ChainKind,
    pub hook: Hook,
    /// Lower is earlier.
    pub priority: i32,
}

/// How a listed chain is called.
pub(super) fn read_base(chain: &wire::IterableChainAttrs<'_>) -> Option<BaseChain> {
    let hook = chain.get_hook().ok()?;
    let kind = match chain.get_type().ok()?.to_bytes() {
        b"filter" => ChainKind::Filter,
        b"nat" => ChainKind::Nat,
        _ => return None,
    };
    let hooks = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];
    let number = hook.get_num().ok()?;
    let called = hooks.into_iter().find(|hook| *hook as u32 == number)?;
    Some(BaseChain { kind, hook: called, priority: hook.get_priority().ok()? })
}

/// A transaction to be. Operations are done in their order; adding what exists changes nothing.
#[derive(Default)]
pub struct Batch {
    members: Vec<Request>,
}

impl Batch {
    pub fn new() -> Self {
        Self::default()
    }

    /// True when there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub fn add_table(&mut self, table: Table<'_>, comment: Option<&str>) {
        let mut body = Vec::new();
        let attributes = wire::OpNewtableDo::encode_request(&mut body, &header(table.family))
            .push_name_bytes(name(table.name))
            .push_flags(0);
        drop(match comment {
            Some(text) => attributes.push_userdata(&comment::write(text)),
            None => attributes,
        });
        self.add("add table", table, libc::NFT_MSG_NEWTABLE, body);
    }

    /// Adds a chain that only other chains call.
    pub fn add_chain(&mut self, chain: Chain<'_>, comment: Option<&str>) {
        let mut body = Vec::new();
        wire::OpNewchainDo::encode_request(&mut body, &header(chain.table.family))
            .push_table_bytes(name(chain.table.name))
            .push_name_bytes(name(chain.name));
        if let Some(text) = comment {
            let data = comment::write(text);
            push_header(&mut body, CHAIN_USER_DATA, data.len() as u16);
            body.extend(data);
        }
        self.add("add chain", chain, libc::NFT_MSG_NEWCHAIN, body);
    }

    /// Adds a chain that the kernel calls. One that exists must be called in the same way.
    pub fn add_base_chain(&mut self, chain: Chain<'_>, base: BaseChain) {
        let kind = match base.kind {
            ChainKind::Filter => c"filter",
            ChainKind::Nat => c"nat",
        };
        let mut body = Vec::new();
        wire::OpNewchainDo::encode_request(&mut body, &header(chain.table.family))
            .push_table_bytes(name(chain.table.name))
            .push_name_bytes(name(chain.name))
            .nested_hook()
            .push_num(base.hook as u32)
            .push_priority(base.priority)
            .end_nested()
            .push_type(kind);
        self.add("add chain", chain, libc::NFT_MSG_NEWCHAIN, body);
    }

    /// Deletes the rules of a chain, which must exist.
    pub fn flush_chain(&mut self, chain: Chain<'_>) {
        let mut body = Vec::new();
        wire::OpDelruleDo::encode_request(&mut body, &header(chain.table.family))
            .push_table_bytes(name(chain.table.name))
            .push_chain_bytes(name(chain.name));
        self.push(request("flush chain", chain, libc::NFT_MSG_DELRULE, body));
    }

    /// Adds a rule at the end of a chain.
    pub fn add_rule(&mut self, chain: Chain<'_>, rule: &Rule) {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
        self.push(Request { flags: flags as u16, ..new_rule("add rule to", chain, rule) });
    }

    /// Adds a rule at the beginning of a chain.
    pub fn insert_rule(&mut self, chain: Chain<'_>, rule: &Rule) {
        self.push(Request { flags: libc::NLM_F_CREATE as u16, ..new_rule("insert rule into", chain, rule) });
    }

    pub fn delete_rule(&mut self, chain: Chain<'_>, handle: u64) {
        let mut body = Vec::new();
        wire::OpDelruleDo::encode_request(&mut body, &header(chain.table.family))
            .push_table_bytes(name(chain.table.name))
            .push_chain_bytes(name(chain.name))
            .push_handle(handle);
        self.push(request("delete rule of", chain, libc::NFT_MSG_DELRULE, body));
    }

    /// Deletes a chain with its rules; no other rule may name it (any more).
    pub fn delete_chain(&mut self, chain: Chain<'_>) {
        let mut body = Vec::new();
        wire::OpDelchainDo::encode_request(&mut body, &header(chain.table.family))
            .push_table_bytes(name(chain.table.name))
            .push_name_bytes(name(chain.name));
        self.push(request("delete chain", chain, libc::NFT_MSG_DELCHAIN, body));
    }

    /// Deletes a table with everything in it.
    pub fn delete_table(&mut self, table: Table<'_>) {
        let mut body = Vec::new();
        wire::OpDeltableDo::encode_request(&mut body, &header(table.family))
            .push_name_bytes(name(table.name));
        self.push(request("delete table", table, libc::NFT_MSG_DELTABLE, body));
    }

    /// True when it deletes something that may be there.
    pub(super) fn deletes(&self) -> bool {
        let deletions = [libc::NFT_MSG_DELTABLE, libc::NFT_MSG_DELCHAIN, libc::NFT_MSG_DELRULE];
        self.members.iter().any(|member| deletions.contains(&i32::from(member.kind & 0xff)))
    }

    pub(super) fn members(&self) -> &[Request] {
        &self.members
    }

    /// The message that opens or closes a transaction.
    pub(super) fn edge(message: i32) -> Request {
        let mut header = wire::Nfgenmsg::default();
        header.set_res_id(libc::NFNL_SUBSYS_NFTABLES as u16);
        let mut body = Vec::new();
        drop(wire::OpBatchBeginDo::encode_request(&mut body, &header));
        let object = "of packet filter rules".to_owned();
        Request { operation: "commit transaction", object, kind: message as u16, flags: 0, body }
    }

    fn add(&mut self, operation: &'static str, object: impl std::fmt::Display, message: i32, body: Vec<u8>) {
        let flags = libc::NLM_F_CREATE as u16;
        self.push(Request { flags, ..request(operation, object, message, body) });
    }

    fn push(&mut self, member: Request) {
        self.members.push(member);
    }
}

fn new_rule(operation: &'static str, chain: Chain<'_>, rule: &Rule) -> Request {
    let mut body = Vec::new();
    let mut list = wire::OpNewruleDo::encode_request(&mut body, &header(chain.table.family))
        .push_table_bytes(name(chain.table.name))
        .push_chain_bytes(name(chain.name))
        .nested_expressions();
    for expression in &rule.expressions {
        list = expression.write(list);
    }
    let attributes = list.end_nested();
    let comment = rule.comment.as_deref().map(comment::write).unwrap_or_default();
    let tag = rule.tag.as_deref().map(comment::write_tag).unwrap_or_default();
    let data = [comment, tag].concat();
    drop(if data.is_empty() { attributes } else { attributes.push_userdata(&data) });
    request(operation, chain, libc::NFT_MSG_NEWRULE, body)
}
