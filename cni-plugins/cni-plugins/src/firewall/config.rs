//! The configuration of `firewall`: the reference plugin's keys, checked.

use cni::{AddResult, ErrorReply};

use crate::plugin::{Request, decoding};

const ADMIN_CHAIN: &str = "CNI-ADMIN";
/// A rule's user data, which holds it, is shorter than a chain's name may be; iptables takes 28 bytes.
const CHAIN_NAME_LIMIT: usize = 128;

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    backend: Backend,
    pub(super) admin_chain: String,
    ingress_policy: IngressPolicy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backend {
    Any,
    Iptables,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IngressPolicy {
    Open,
    SameBridge,
    Isolated,
}

/// A bridge whose containers are kept apart from those of other isolated bridges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IsolatedBridge {
    pub(super) name: String,
    /// And from each other.
    pub(super) within: bool,
    /// Frames between ports of a bridge pass the tables of IP (br_netfilter).
    pub(super) frames_are_packets: bool,
}

impl IsolatedBridge {
    /// The reference relies on br_netfilter, and without it keeps nobody of one bridge apart.
    pub(super) fn drops_frames(&self) -> bool {
        self.within && !self.frames_are_packets
    }
}

impl Config {
    pub(crate) fn read(request: &Request) -> Result<Self, ErrorReply> {
        let root = request.root();
        let text = |key: &str| root.string(key).map_err(decoding);
        // Nothing to say to firewalld, but a value that the reference would not take is told.
        text("firewalldZone")?;
        let admin_chain = text("iptablesAdminChainName")?.filter(|name| !name.is_empty());
        Ok(Self {
            backend: backend(text("backend")?.unwrap_or_default())?,
            admin_chain: chain(admin_chain.unwrap_or(ADMIN_CHAIN))?,
            ingress_policy: ingress_policy(text("ingressPolicy")?.unwrap_or_default())?,
        })
    }

    /// The bridge that the policy is for: by custom the first interface of the result.
    pub(super) fn isolated_bridge(
        &self,
        result: &AddResult,
        frames_are_packets: bool,
    ) -> Result<Option<IsolatedBridge>, ErrorReply> {
        let (within, policy) = match self.ingress_policy {
            IngressPolicy::Open => return Ok(None),
            IngressPolicy::SameBridge => (false, "same-bridge"),
            IngressPolicy::Isolated => (true, "isolated"),
        };
        let bridge = result.interfaces.first().ok_or_else(|| {
            ErrorReply::internal(format!(
                "interface needs to be set for ingress policy {policy:?}, make sure to chain \"firewall\" plugin with \"bridge\""
            ))
        })?;
        Ok(Some(IsolatedBridge { name: bridge.name.clone(), within, frames_are_packets }))
    }

    /// Says what is done instead of what was asked for.
    pub(super) fn announce_substitute(&self) {
        if self.backend == Backend::Iptables {
            eprintln!("backend \"iptables\": the rules are made with nftables");
        }
    }
}

fn backend(name: &str) -> Result<Backend, ErrorReply> {
    match name {
        "" | "nftables" => Ok(Backend::Any),
        "iptables" => Ok(Backend::Iptables),
        "firewalld" => Err(ErrorReply::config(
            "key \"backend\": \"firewalld\" is not supported: expected \"iptables\", \"nftables\" or no key",
        )
        .with_details("the plugin does not speak to firewalld; add the container's network to a zone there")),
        other => Err(ErrorReply::config(format!(
            "key \"backend\": {other:?}: expected \"iptables\", \"nftables\" or no key"
        ))),
    }
}

/// A chain of our table, which must be none of the plugin's own.
fn chain(name: &str) -> Result<String, ErrorReply> {
    let is_sign = |sign: char| sign.is_ascii_alphanumeric() || "-_./\\".contains(sign);
    if name.len() > CHAIN_NAME_LIMIT || !name.chars().all(is_sign) {
        let message = format!("key \"iptablesAdminChainName\": {name:?}: expected the name of a chain");
        return Err(ErrorReply::config(message));
    }
    if super::rules::OWN_CHAINS.contains(&name) {
        let message = format!("key \"iptablesAdminChainName\": {name:?} is a chain of the plugin");
        return Err(ErrorReply::config(message));
    }
    Ok(name.to_owned())
}

fn ingress_policy(name: &str) -> Result<IngressPolicy, ErrorReply> {
    match name {
        "" | "open" => Ok(IngressPolicy::Open),
        "same-bridge" => Ok(IngressPolicy::SameBridge),
        "isolated" => Ok(IngressPolicy::Isolated),
        other => Err(ErrorReply::internal(format!("unknown ingress policy: {other:?}"))),
    }
}

#[cfg(test)]
mod tests;
