//! The configuration of `portmap`: the reference plugin's keys, checked.

use std::net::IpAddr;

use cni::{
    ErrorReply,
    json::{JsonError, Object},
};
use linux::nftables::Transport;

use super::conditions::{Condition, Language, parse};
use crate::plugin::{Request, decoding};

const NFTABLES: &str = "nftables";
const IPTABLES: &str = "iptables";

/// What to publish, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    backend: Option<String>,
    external_chain: Option<String>,
    /// Masquerade where the answers would not find back: from the host itself, from the container to itself.
    pub(super) snat: bool,
    /// Masquerade whoever sends.
    pub(super) masquerade_all: bool,
    pub(super) conditions_v4: Vec<Condition>,
    pub(super) conditions_v6: Vec<Condition>,
    pub(super) mappings: Vec<Mapping>,
}

/// A port of the host that leads to a port of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) host_port: u16,
    pub(super) container_port: u16,
    pub(super) transport: Transport,
    /// Whose port; the unspecified address is any of its family, none is any.
    pub(super) host_ip: Option<IpAddr>,
}

impl Mapping {
    /// Whether it is for the container's address of this family.
    pub(super) fn is_for(&self, is_ipv4: bool) -> bool {
        self.host_ip.is_none_or(|ip| ip.is_ipv4() == is_ipv4)
    }
}

impl Config {
    pub(crate) fn read(request: &Request) -> Result<Self, ErrorReply> {
        let root = request.root();
        let text = |key: &str| -> Result<Option<String>, ErrorReply> {
            Ok(root.string(key).map_err(decoding)?.map(str::to_owned))
        };
        let (backend, external_chain) = (text("backend")?, text("externalSetMarkChain")?);
        check_mark(&root, external_chain.is_some())?;
        check_backend(&root, backend.as_deref(), external_chain.is_some())?;
        Ok(Self {
            backend,
            external_chain,
            snat: root.boolean("snat").map_err(decoding)?.unwrap_or(true),
            masquerade_all: root.boolean("masqAll").map_err(decoding)?.unwrap_or(false),
            conditions_v4: conditions(&root, "conditionsV4", true)?,
            conditions_v6: conditions(&root, "conditionsV6", false)?,
            mappings: mappings(&root)?,
        })
    }

    /// Says what is done instead of what was asked for.
    pub(super) fn announce_substitutes(&self) {
        if self.backend.as_deref() == Some(IPTABLES) {
            eprintln!("backend \"iptables\": the rules are made with nftables");
        }
        if let Some(chain) = &self.external_chain {
            eprintln!("externalSetMarkChain {chain:?}: the plugin's own rules masquerade");
        }
    }
}

/// With nftables nothing is marked; the key is only looked at.
fn check_mark(root: &Object<'_>, has_external_chain: bool) -> Result<(), ErrorReply> {
    let Some(bit) = root.number::<i64>("markMasqBit").map_err(decoding)? else { return Ok(()) };
    if has_external_chain {
        return Err(ErrorReply::internal("Cannot specify externalSetMarkChain and markMasqBit"));
    }
    if !(0..=31).contains(&bit) {
        return Err(ErrorReply::internal("MasqMarkBit must be between 0 and 31"));
    }
    Ok(())
}

/// A configuration that names its backend must be in that one's language.
fn check_backend(
    root: &Object<'_>,
    backend: Option<&str>,
    has_external_chain: bool,
) -> Result<(), ErrorReply> {
    let Some(backend) = backend else { return Ok(()) };
    let (other, foreign) = match backend {
        IPTABLES => (NFTABLES, Language::Nftables),
        _ => (IPTABLES, Language::Iptables),
    };
    let mut options = Vec::new();
    if has_external_chain && foreign == Language::Iptables {
        options.push("externalSetMarkChain");
    }
    for key in ["conditionsV4", "conditionsV6"] {
        if Language::of(&root.strings(key).map_err(decoding)?) == Some(foreign) {
            options.push(key);
        }
    }
    if !options.is_empty() {
        return Err(ErrorReply::internal(format!(
            "{backend} backend was requested but configuration contains {other}-specific options [{}]",
            options.join(" ")
        )));
    }
    if ![IPTABLES, NFTABLES].contains(&backend) {
        return Err(ErrorReply::internal(format!(
            "unrecognized backend {backend:?}: expected \"nftables\" or \"iptables\""
        )));
    }
    Ok(())
}

fn conditions(root: &Object<'_>, key: &str, is_ipv4: bool) -> Result<Vec<Condition>, ErrorReply> {
    let words = root.strings(key).map_err(decoding)?;
    parse(&words, is_ipv4)
        .map_err(|detail| ErrorReply::config(format!("key {key:?}: {:?}: {detail}", words.join(" "))))
}

fn mappings(root: &Object<'_>) -> Result<Vec<Mapping>, ErrorReply> {
    let Some(runtime) = root.object("runtimeConfig").map_err(decoding)? else { return Ok(Vec::new()) };
    let each = runtime.array("portMappings").map_err(decoding)?.into_iter();
    each.map(|(place, value)| mapping(&Object::of(value, place).map_err(decoding)?)).collect()
}

fn mapping(object: &Object<'_>) -> Result<Mapping, ErrorReply> {
    let port = |key: &str, what: &str| -> Result<u16, ErrorReply> {
        let number = object.number::<i64>(key).map_err(decoding)?.unwrap_or(0);
        let port = u16::try_from(number).ok().filter(|port| *port > 0);
        port.ok_or_else(|| ErrorReply::internal(format!("Invalid {what} port number: {number}")))
    };
    let container_port = port("containerPort", "container")?;
    let host_port = port("hostPort", "host")?;
    let name = object.string("protocol").map_err(decoding)?.unwrap_or_default();
    let transport = match name.to_ascii_lowercase().as_str() {
        "tcp" => Transport::Tcp,
        "udp" => Transport::Udp,
        "sctp" => Transport::Sctp,
        _ => {
            let detail = format!("{name:?}: expected tcp, udp or sctp");
            return Err(ErrorReply::config(JsonError::key(object.place_of("protocol"), detail)));
        }
    };
    let host_ip = object.ip("hostIP").map_err(ErrorReply::config)?;
    Ok(Mapping { host_port, container_port, transport, host_ip })
}

#[cfg(test)]
mod tests;
