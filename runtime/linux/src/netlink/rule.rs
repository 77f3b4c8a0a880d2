//! Policy rules (`ip rule`): list, add, delete.
//!
//! Owns the translation between rule messages and [`Rule`], which says what a lookup by source address needs.

use std::net::IpAddr;

use futures::TryStreamExt;
use ipnetwork::IpNetwork;
use rtnetlink::{
    IpVersion,
    packet_route::{
        AddressFamily,
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};

use super::{Error, Netlink, answer};

/// A rule that leads to a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    pub family: RuleFamily,
    /// Packets from there; none for all.
    pub source: Option<IpNetwork>,
    pub table: u32,
    /// Lower is looked at first. None lets the kernel put a new rule before all others but the one of table `local`.
    pub priority: Option<u32>,
}

/// IPv4 and IPv6 have lists of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleFamily {
    V4,
    V6,
}

impl Rule {
    /// Sends what comes from `source` to a table.
    pub fn from_source(source: IpNetwork, table: u32) -> Self {
        let family = if source.is_ipv4() { RuleFamily::V4 } else { RuleFamily::V6 };
        Self { family, source: Some(source), table, priority: None }
    }
}

impl Netlink {
    /// The rules of both families that lead to a table.
    ///
    /// # Errors
    /// When a dump fails.
    pub async fn rules(&self) -> Result<Vec<Rule>, Error> {
        let mut all = Vec::new();
        for family in [IpVersion::V4, IpVersion::V6] {
            let request = self.handle.rule().get(family);
            let found = request.execute().try_filter_map(|message| async move { Ok(parse(&message)) });
            let rules: Vec<Rule> = answer("list", "rules", found.try_collect()).await?;
            all.extend(rules);
        }
        Ok(all)
    }

    /// Adds a rule.
    ///
    /// # Errors
    /// `EEXIST` when there is the same one with the same priority.
    pub async fn add_rule(&self, rule: &Rule) -> Result<(), Error> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = message(rule);
        answer("add rule", describe(rule), request.execute()).await
    }

    /// Deletes the first rule that is like this one; without a priority, of any.
    ///
    /// # Errors
    /// `ENOENT` when there is none: see [`Error::is_gone`].
    pub async fn del_rule(&self, rule: &Rule) -> Result<(), Error> {
        let request = self.handle.rule().del(message(rule));
        answer("delete rule", describe(rule), request.execute()).await
    }
}

fn describe(rule: &Rule) -> String {
    let source = rule.source.map_or_else(|| "all".to_owned(), |source| source.to_string());
    format!("from {source} lookup {}", rule.table)
}

fn message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = match rule.family {
        RuleFamily::V4 => AddressFamily::Inet,
        RuleFamily::V6 => AddressFamily::Inet6,
    };
    message.header.action = RuleAction::ToTable;
    match u8::try_from(rule.table) {
        Ok(table) => message.header.table = table,
        Err(_) => message.attributes.push(RuleAttribute::Table(rule.table)),
    }
    if let Some(source) = rule.source {
        message.header.src_len = source.prefix();
        message.attributes.push(RuleAttribute::Source(source.network()));
    }
    message.attributes.extend(rule.priority.map(RuleAttribute::Priority));
    message
}

/// None for a rule that leads to no table.
pub(super) fn parse(message: &RuleMessage) -> Option<Rule> {
    if message.header.action != RuleAction::ToTable {
        return None;
    }
    let family = match message.header.family {
        AddressFamily::Inet => RuleFamily::V4,
        AddressFamily::Inet6 => RuleFamily::V6,
        _ => return None,
    };
    let mut rule = Rule { family, source: None, table: u32::from(message.header.table), priority: Some(0) };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Source(ip) => rule.source = source(*ip, message.header.src_len),
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::Priority(priority) => rule.priority = Some(*priority),
            _ => {}
        }
    }
    Some(rule)
}

fn source(ip: IpAddr, length: u8) -> Option<IpNetwork> {
    IpNetwork::new(ip, length).ok()
}
