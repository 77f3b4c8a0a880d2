//! The keys `conditionsV4` and `conditionsV6`: which packets the mappings are for. Pure.
//!
//! The reference plugin hands their text to `nft` or `iptables`; here it is read. Known of nftables' language are addresses
//! (`ip saddr`, `ip6 daddr`, ...), ports (`tcp dport`, ...), the names of links (`iifname`, `oifname`) and the mark
//! (`meta mark`), each with an optional `==` or `!=`; of iptables' options `-s`, `-d` and `-i` with their long forms, each
//! with an optional `!` before it. Sets, ranges, patterns and everything else are refused.

use ipnetwork::IpNetwork;
use linux::nftables::{Match, Rule, Transport};

/// One thing that must be so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Condition {
    Source(Match, IpNetwork),
    Destination(Match, IpNetwork),
    SourcePort(Transport, Match, u16),
    DestinationPort(Transport, Match, u16),
    InputLink(Match, String),
    OutputLink(Match, String),
    Mark(Match, u32),
}

/// Whose language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Language {
    Nftables,
    Iptables,
}

impl Language {
    /// As the reference plugin tells them apart; none where there is no condition.
    pub(super) fn of(words: &[String]) -> Option<Self> {
        let first = words.first()?.chars().next()?;
        Some(if matches!(first, '-' | '!') { Self::Iptables } else { Self::Nftables })
    }
}

impl Condition {
    /// Adds the match to a rule.
    pub(super) fn apply(&self, rule: Rule) -> Rule {
        match self {
            Self::Source(is, network) => rule.source(*is, *network),
            Self::Destination(is, network) => rule.destination(*is, *network),
            Self::SourcePort(transport, is, port) => rule.source_port(*transport, *is, *port),
            Self::DestinationPort(transport, is, port) => rule.destination_port(*transport, *is, *port),
            Self::InputLink(is, name) => rule.input_link(*is, name),
            Self::OutputLink(is, name) => rule.output_link(*is, name),
            Self::Mark(is, mark) => rule.mark(*is, u32::MAX, *mark),
        }
    }
}

/// Reads the words of one key, which is for packets of one family.
///
/// # Errors
/// A sentence saying what was not understood.
pub(super) fn parse(words: &[String], is_ipv4: bool) -> Result<Vec<Condition>, String> {
    let Some(language) = Language::of(words) else { return Ok(Vec::new()) };
    let mut words = Words { rest: words.iter().flat_map(|text| text.split_whitespace()).collect(), is_ipv4 };
    let mut conditions = Vec::new();
    while !words.rest.is_empty() {
        conditions.push(match language {
            Language::Nftables => words.expression()?,
            Language::Iptables => words.option()?,
        });
    }
    Ok(conditions)
}

struct Words<'a> {
    rest: std::collections::VecDeque<&'a str>,
    is_ipv4: bool,
}

impl<'a> Words<'a> {
    fn expression(&mut self) -> Result<Condition, String> {
        let first = self.next("a condition")?;
        match first {
            "ip" | "ip6" => {
                if (first == "ip") != self.is_ipv4 {
                    return Err(format!("{first:?} is of the other family"));
                }
                let field = self.next("\"saddr\" or \"daddr\"")?;
                let (is, network) = (self.operator(), self.network()?);
                match field {
                    "saddr" => Ok(Condition::Source(is, network)),
                    "daddr" => Ok(Condition::Destination(is, network)),
                    other => Err(unknown(&format!("{first} {other}"))),
                }
            }
            "tcp" | "udp" | "sctp" => {
                let transport = match first {
                    "tcp" => Transport::Tcp,
                    "udp" => Transport::Udp,
                    _ => Transport::Sctp,
                };
                let field = self.next("\"sport\" or \"dport\"")?;
                let (is, text) = (self.operator(), self.next("a port")?);
                let port = text.parse().map_err(|_| format!("{text:?}: expected a port"))?;
                match field {
                    "sport" => Ok(Condition::SourcePort(transport, is, port)),
                    "dport" => Ok(Condition::DestinationPort(transport, is, port)),
                    other => Err(unknown(&format!("{first} {other}"))),
                }
            }
            "meta" => {
                let field = self.next("what is known of the packet")?;
                self.meta(field)
            }
            other => self.meta(other),
        }
    }

    fn meta(&mut self, field: &str) -> Result<Condition, String> {
        match field {
            "iifname" => Ok(Condition::InputLink(self.operator(), self.link()?)),
            "oifname" => Ok(Condition::OutputLink(self.operator(), self.link()?)),
            "mark" => Ok(Condition::Mark(self.operator(), self.mark()?)),
            other => Err(unknown(other)),
        }
    }

    fn option(&mut self) -> Result<Condition, String> {
        let first = self.next("an option")?;
        let (is, option) =
            if first == "!" { (Match::IsNot, self.next("an option")?) } else { (Match::Is, first) };
        match option {
            "-s" | "--source" | "--src" => Ok(Condition::Source(is, self.network()?)),
            "-d" | "--destination" | "--dst" => Ok(Condition::Destination(is, self.network()?)),
            "-i" | "--in-interface" => Ok(Condition::InputLink(is, self.link()?)),
            other => Err(unknown(other)),
        }
    }

    fn next(&mut self, expected: &str) -> Result<&'a str, String> {
        self.rest.pop_front().ok_or_else(|| format!("expected {expected} at the end"))
    }

    fn operator(&mut self) -> Match {
        let is = match self.rest.front() {
            Some(&("==" | "eq")) => Match::Is,
            Some(&("!=" | "ne")) => Match::IsNot,
            _ => return Match::Is,
        };
        self.rest.pop_front();
        is
    }

    fn network(&mut self) -> Result<IpNetwork, String> {
        let text = self.next("an address")?;
        let network = text.parse::<IpNetwork>().ok();
        network
            .filter(|network| network.is_ipv4() == self.is_ipv4)
            .ok_or_else(|| format!("{text:?}: expected an {} address or network", self.family()))
    }

    fn link(&mut self) -> Result<String, String> {
        let text = self.next("the name of a link")?;
        let name = text.trim_matches('"');
        if name.contains(['*', '+', '{', '}', ',', '$', '@']) || cni::interface_name(name).is_err() {
            return Err(format!("{text:?}: expected the name of one link"));
        }
        Ok(name.to_owned())
    }

    fn mark(&mut self) -> Result<u32, String> {
        let text = self.next("a mark")?;
        let mark = match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => text.parse(),
        };
        mark.map_err(|_| format!("{text:?}: expected a number"))
    }

    fn family(&self) -> &'static str {
        if self.is_ipv4 { "IPv4" } else { "IPv6" }
    }
}

fn unknown(text: &str) -> String {
    format!("{text:?} is not supported")
}

#[cfg(test)]
mod tests;
