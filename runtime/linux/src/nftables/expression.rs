//! The instructions that a rule consists of, as attributes.
//!
//! Matches load what they look at into the first register and compare it there, as `nft` compiles them.

use std::net::IpAddr;

use netlink_bindings::{
    nftables::{
        BitwiseOps, CmpOps, CtKeys, ExprListAttrs, ExprOps, FibFlags, MetaKeys, NatRangeFlags, PayloadBase,
        PushExprListAttrs, Registers, VerdictCode,
    },
    traits::Pusher,
};

use super::{Family, name};

const VERDICT: u32 = Registers::RegVerdict as u32;
const FIRST: u32 = Registers::Reg1 as u32;
const SECOND: u32 = Registers::Reg2 as u32;
/// `NFT_FIB_RESULT_ADDRTYPE`; the kernel's YAML specification numbers the results one too low.
const ADDRESS_TYPE: u32 = 3;
const NAT_DESTINATION: u32 = 1;
const WITH_PORT: u32 = NatRangeFlags::ProtoSpecified as u32;
const MASK_AND_XOR: u32 = BitwiseOps::MaskXor as u32;

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expression {
    LoadPayload {
        base: Header,
        offset: u32,
        length: u32,
    },
    LoadMeta(Meta),
    LoadConnection(Connection),
    /// What the routing tables say of the destination: local, multicast, ...
    LoadDestinationType,
    /// `register = (register & mask) ^ xor`, of equal length.
    Bitwise {
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    /// Goes on when the register begins with the bytes.
    Equal(Vec<u8>),
    /// Goes on when it does not.
    NotEqual(Vec<u8>),
    StoreMark,
    Counter,
    Masquerade,
    /// An address into the first register.
    LoadAddress(IpAddr),
    /// A port into the second register.
    LoadPort(u16),
    /// To the address and the port in the registers.
    Dnat(Family),
    Verdict {
        code: Verdict,
        chain: Option<String>,
    },
}

/// Where in a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    Link,
    Network,
    Transport,
}

/// What is known of a packet besides its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meta {
    InputName,
    OutputName,
    InputBridgeName,
    EtherType,
    NetworkProtocol,
    TransportProtocol,
    Mark,
}

/// What is known of a packet's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Connection {
    State,
    Status,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Drop,
    Return,
    Jump,
    Goto,
}

impl Expression {
    /// Appends this instruction to a rule's list.
    pub(super) fn write<P: Pusher>(&self, list: PushExprListAttrs<P>) -> PushExprListAttrs<P> {
        let element = list.nested_elem();
        match self {
            Self::LoadPayload { base, offset, length } => {
                let base = match base {
                    Header::Link => PayloadBase::LinkLayerHeader,
                    Header::Network => PayloadBase::NetworkHeader,
                    Header::Transport => PayloadBase::TransportHeader,
                };
                let data = element.nested_data_payload().push_dreg(FIRST).push_base(base as u32);
                data.push_offset(*offset).push_len(*length).end_nested().end_nested()
            }
            Self::LoadMeta(key) => {
                let data = element.nested_data_meta().push_key(key.number()).push_dreg(FIRST);
                data.end_nested().end_nested()
            }
            Self::StoreMark => {
                let data = element.nested_data_meta().push_key(Meta::Mark.number()).push_sreg(FIRST);
                data.end_nested().end_nested()
            }
            Self::LoadConnection(key) => {
                let key = match key {
                    Connection::State => CtKeys::State,
                    Connection::Status => CtKeys::Status,
                };
                element.nested_data_ct().push_key(key as u32).push_dreg(FIRST).end_nested().end_nested()
            }
            Self::LoadDestinationType => {
                let data = element.nested_data_fib().push_dreg(FIRST).push_result(ADDRESS_TYPE);
                data.push_flags(FibFlags::Daddr as u32).end_nested().end_nested()
            }
            Self::Bitwise { mask, xor } => {
                let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
                let data = element.nested_data_bitwise().push_sreg(FIRST).push_dreg(FIRST).push_len(length);
                let data = data.push_op(MASK_AND_XOR).nested_mask().push_value(mask).end_nested();
                data.nested_xor().push_value(xor).end_nested().end_nested().end_nested()
            }
            Self::Equal(value) | Self::NotEqual(value) => {
                let operator = if matches!(self, Self::Equal(_)) { CmpOps::Eq } else { CmpOps::Neq };
                let data = element.nested_data_cmp().push_sreg(FIRST).push_op(operator as u32);
                data.nested_data().push_value(value).end_nested().end_nested().end_nested()
            }
            Self::Counter => {
                element.nested_data_counter().push_bytes(0).push_packets(0).end_nested().end_nested()
            }
            Self::Masquerade => element.push_name(c"masq").end_nested(),
            Self::LoadAddress(address) => {
                let data = element.nested_data_immediate().push_dreg(FIRST).nested_data();
                let data = match address {
                    IpAddr::V4(address) => data.push_value(&address.octets()),
                    IpAddr::V6(address) => data.push_value(&address.octets()),
                };
                data.end_nested().end_nested().end_nested()
            }
            Self::LoadPort(port) => {
                let data = element.nested_data_immediate().push_dreg(SECOND).nested_data();
                data.push_value(&port.to_be_bytes()).end_nested().end_nested().end_nested()
            }
            Self::Dnat(family) => {
                let data = element.nested_data_nat().push_type(NAT_DESTINATION);
                let data = data.push_family(u32::from(family.number())).push_reg_addr_min(FIRST);
                data.push_reg_proto_min(SECOND).push_flags(WITH_PORT).end_nested().end_nested()
            }
            Self::Verdict { code, chain } => {
                let verdict = element.nested_data_immediate().push_dreg(VERDICT).nested_data();
                let verdict = verdict.nested_verdict().push_code(code.number());
                let verdict = match chain {
                    Some(chain) => verdict.push_chain_bytes(name(chain)),
                    None => verdict,
                };
                verdict.end_nested().end_nested().end_nested().end_nested()
            }
        }
    }
}

/// The name that a listed rule compares the input link with, where it begins with that.
pub(super) fn input_link(expressions: &[u8]) -> Option<String> {
    let mut all = ExprListAttrs::new(expressions).get_elem();
    let ExprOps::Meta(meta) = all.next()?.get_data().ok()? else { return None };
    let ExprOps::Cmp(comparison) = all.next()?.get_data().ok()? else { return None };
    let is_input = meta.get_key() == Ok(Meta::InputName.number());
    let is_equal = comparison.get_op() == Ok(CmpOps::Eq as u32);
    let name = comparison.get_data().ok()?.get_value().ok().filter(|_| is_input && is_equal)?;
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    Some(String::from_utf8_lossy(&name[..end]).into_owned())
}

impl Meta {
    fn number(self) -> u32 {
        let key = match self {
            Self::InputName => MetaKeys::Iifname,
            Self::OutputName => MetaKeys::Oifname,
            Self::InputBridgeName => MetaKeys::BriIifname,
            Self::EtherType => MetaKeys::Protocol,
            Self::NetworkProtocol => MetaKeys::Nfproto,
            Self::TransportProtocol => MetaKeys::L4Proto,
            Self::Mark => MetaKeys::Mark,
        };
        key as u32
    }
}

impl Verdict {
    fn number(self) -> u32 {
        let code = match self {
            Self::Accept => VerdictCode::Accept,
            Self::Drop => VerdictCode::Drop,
            Self::Return => VerdictCode::Return,
            Self::Jump => VerdictCode::Jump,
            Self::Goto => VerdictCode::Goto,
        };
        code as u32
    }
}
