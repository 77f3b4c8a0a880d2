//! Rules, put together from matches and actions. Pure.
//!
//! A match that looks into a header first makes sure that the packet has that header, once in a rule and where the family
//! does not say so already, as `nft` does.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_bindings::nftables::PushExprListAttrs;

use super::{
    Family,
    expression::{Connection, Expression, Header, Meta, Verdict},
};
use crate::netlink::MacAddress;

const ETHERTYPE_IP: u16 = 0x0800;
const ETHERTYPE_IP6: u16 = 0x86dd;
/// Bytes of a link's name where it is compared (`IFNAMSIZ`).
const LINK_NAME: usize = 16;
/// `RTN_LOCAL`.
const LOCAL: u32 = 2;
/// `IPS_DST_NAT`.
const DESTINATION_TRANSLATED: u32 = 1 << 5;

/// Whether a match is for packets with the value, or for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    Is,
    IsNot,
}

/// Protocols with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    Tcp = 6,
    Udp = 17,
    Sctp = 132,
}

/// What a packet is to the connection that it belongs to. The numbers are those of `nf_conntrack_common.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionState {
    Invalid = 1,
    Established = 2,
    Related = 4,
    New = 8,
}

/// A rule of a chain of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    family: Family,
    pub(super) expressions: Vec<Expression>,
    pub(super) comment: Option<String>,
    pub(super) tag: Option<Vec<u8>>,
    /// What the packet is known to be by now.
    is_ipv4: Option<bool>,
    transport: Option<Transport>,
}

impl Rule {
    pub fn new(family: Family) -> Self {
        Self { family, expressions: Vec::new(), comment: None, tag: None, is_ipv4: None, transport: None }
    }

    /// Shown by `nft list ruleset`; see [`super::COMMENT_LIMIT`].
    #[must_use]
    pub fn comment(self, text: impl Into<String>) -> Self {
        Self { comment: Some(text.into()), ..self }
    }

    /// What the rule does, as bytes that are equal for equal rules in every build.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut list = PushExprListAttrs::new(&mut bytes);
        for expression in &self.expressions {
            list = expression.write(list);
        }
        drop(list);
        bytes
    }

    /// Bytes beside the comment, which `nft` neither shows nor minds, for the maker to know the rule by.
    #[must_use]
    pub fn tag(self, bytes: &[u8]) -> Self {
        Self { tag: Some(bytes.to_vec()), ..self }
    }

    #[must_use]
    pub fn source(self, is: Match, network: IpNetwork) -> Self {
        let offset = if network.is_ipv4() { 12 } else { 8 };
        self.address(offset, is, network)
    }

    #[must_use]
    pub fn destination(self, is: Match, network: IpNetwork) -> Self {
        let offset = if network.is_ipv4() { 16 } else { 24 };
        self.address(offset, is, network)
    }

    #[must_use]
    pub fn source_port(self, protocol: Transport, is: Match, port: u16) -> Self {
        self.port(0, protocol, is, port)
    }

    #[must_use]
    pub fn destination_port(self, protocol: Transport, is: Match, port: u16) -> Self {
        self.port(2, protocol, is, port)
    }

    /// The sender's hardware address, in chains of bridges.
    #[must_use]
    pub fn ethernet_source(self, is: Match, address: MacAddress) -> Self {
        let MacAddress(bytes) = address;
        let load = Expression::LoadPayload { base: Header::Link, offset: 6, length: 6 };
        self.with([load, compare(is, bytes.to_vec())])
    }

    /// The link that a packet came in by.
    #[must_use]
    pub fn input_link(self, is: Match, name: &str) -> Self {
        self.with([Expression::LoadMeta(Meta::InputName), compare(is, link_name(name))])
    }

    /// The link that a packet goes out by.
    #[must_use]
    pub fn output_link(self, is: Match, name: &str) -> Self {
        self.with([Expression::LoadMeta(Meta::OutputName), compare(is, link_name(name))])
    }

    /// The bridge that a frame came in by, in chains of bridges.
    #[must_use]
    pub fn input_bridge(self, is: Match, name: &str) -> Self {
        self.with([Expression::LoadMeta(Meta::InputBridgeName), compare(is, link_name(name))])
    }

    /// IPv4 packets, or for [`Family::Ip6`] those of IPv6, in chains that see both.
    #[must_use]
    pub fn carries(self, family: Family) -> Self {
        self.needs_network(family != Family::Ip6)
    }

    /// Packets to an address of this host.
    #[must_use]
    pub fn to_local_address(self) -> Self {
        let local = Expression::Equal(LOCAL.to_ne_bytes().to_vec());
        self.with([Expression::LoadDestinationType, local])
    }

    /// Packets in one of the states.
    #[must_use]
    pub fn connection_state(self, any_of: &[ConnectionState]) -> Self {
        let bits = any_of.iter().fold(0, |bits, state| bits | *state as u32);
        self.any_bit(Connection::State, bits)
    }

    /// Packets of connections whose destination was translated.
    #[must_use]
    pub fn destination_translated(self) -> Self {
        self.any_bit(Connection::Status, DESTINATION_TRANSLATED)
    }

    /// Packets whose mark has `value` in the bits of `mask`.
    #[must_use]
    pub fn mark(self, is: Match, mask: u32, value: u32) -> Self {
        let bits = (mask != u32::MAX).then(|| and(&mask.to_ne_bytes()));
        let value = compare(is, value.to_ne_bytes().to_vec());
        self.with([Expression::LoadMeta(Meta::Mark)]).with(bits).with([value])
    }

    /// Sets bits of the packet's mark.
    #[must_use]
    pub fn set_mark_bits(self, bits: u32) -> Self {
        let (mask, xor) = ((!bits).to_ne_bytes().to_vec(), bits.to_ne_bytes().to_vec());
        let or = Expression::Bitwise { mask, xor };
        self.with([Expression::LoadMeta(Meta::Mark), or, Expression::StoreMark])
    }

    /// Counts the packets that get here.
    #[must_use]
    pub fn counter(self) -> Self {
        self.with([Expression::Counter])
    }

    /// Gives the connection the address of the link that it goes out by.
    #[must_use]
    pub fn masquerade(self) -> Self {
        self.with([Expression::Masquerade])
    }

    /// Sends the connection to another address and port.
    #[must_use]
    pub fn dnat(self, address: IpAddr, port: u16) -> Self {
        let family = if address.is_ipv4() { Family::Ip } else { Family::Ip6 };
        let load = [Expression::LoadAddress(address), Expression::LoadPort(port)];
        self.with(load).with([Expression::Dnat(family)])
    }

    #[must_use]
    pub fn accept(self) -> Self {
        self.verdict(Verdict::Accept, None)
    }

    #[must_use]
    pub fn drop(self) -> Self {
        self.verdict(Verdict::Drop, None)
    }

    /// Back to the chain that called this one.
    #[must_use]
    pub fn back(self) -> Self {
        self.verdict(Verdict::Return, None)
    }

    /// On to another chain of the table, and back here after its end.
    #[must_use]
    pub fn jump(self, chain: &str) -> Self {
        self.verdict(Verdict::Jump, Some(chain))
    }

    /// On to another chain of the table for good.
    #[must_use]
    pub fn go_to(self, chain: &str) -> Self {
        self.verdict(Verdict::Goto, Some(chain))
    }

    fn verdict(self, code: Verdict, chain: Option<&str>) -> Self {
        self.with([Expression::Verdict { code, chain: chain.map(str::to_owned) }])
    }

    fn with(mut self, expressions: impl IntoIterator<Item = Expression>) -> Self {
        self.expressions.extend(expressions);
        self
    }

    fn any_bit(self, key: Connection, bits: u32) -> Self {
        let none = Expression::NotEqual(vec![0; 4]);
        self.with([Expression::LoadConnection(key), and(&bits.to_ne_bytes()), none])
    }

    fn port(self, offset: u32, protocol: Transport, is: Match, port: u16) -> Self {
        let load = Expression::LoadPayload { base: Header::Transport, offset, length: 2 };
        self.needs_transport(protocol).with([load, compare(is, port.to_be_bytes().to_vec())])
    }

    /// Whole bytes of a prefix are loaded alone; of others, all bytes, with a mask.
    fn address(self, offset: u32, is: Match, network: IpNetwork) -> Self {
        let (address, mask) = (octets(network.network()), octets(network.mask()));
        let prefix = usize::from(network.prefix());
        let is_bytes = prefix.is_multiple_of(8) && prefix > 0;
        let length = if is_bytes { prefix / 8 } else { address.len() };
        let load = Expression::LoadPayload {
            base: Header::Network,
            offset,
            length: u32::try_from(length).unwrap_or(u32::MAX),
        };
        let masked = (!is_bytes).then(|| and(&mask));
        let value = compare(is, address[..length].to_vec());
        self.needs_network(network.is_ipv4()).with([load]).with(masked).with([value])
    }

    fn needs_network(mut self, is_ipv4: bool) -> Self {
        if self.is_ipv4 == Some(is_ipv4) {
            return self;
        }
        self.is_ipv4 = Some(is_ipv4);
        let number = if is_ipv4 { libc::NFPROTO_IPV4 } else { libc::NFPROTO_IPV6 };
        let ether_type = if is_ipv4 { ETHERTYPE_IP } else { ETHERTYPE_IP6 };
        match self.family {
            Family::Ip | Family::Ip6 => self,
            Family::Inet => {
                let protocol = Expression::Equal(vec![number as u8]);
                self.with([Expression::LoadMeta(Meta::NetworkProtocol), protocol])
            }
            Family::Bridge => {
                let protocol = Expression::Equal(ether_type.to_be_bytes().to_vec());
                self.with([Expression::LoadMeta(Meta::EtherType), protocol])
            }
        }
    }

    fn needs_transport(mut self, protocol: Transport) -> Self {
        if self.transport == Some(protocol) {
            return self;
        }
        self.transport = Some(protocol);
        let number = Expression::Equal(vec![protocol as u8]);
        self.with([Expression::LoadMeta(Meta::TransportProtocol), number])
    }
}

fn compare(is: Match, value: Vec<u8>) -> Expression {
    match is {
        Match::Is => Expression::Equal(value),
        Match::IsNot => Expression::NotEqual(value),
    }
}

fn and(mask: &[u8]) -> Expression {
    Expression::Bitwise { mask: mask.to_vec(), xor: vec![0; mask.len()] }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A name as the kernel compares it: zeroes up to its full size.
fn link_name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(LINK_NAME, 0);
    bytes
}
