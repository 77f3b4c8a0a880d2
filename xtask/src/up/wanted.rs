//! The cluster that the user asks for: the options of `up` that make one cluster differ from another. Pure.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::network;

#[cfg(test)]
mod tests;

/// Machines on one host; each runs an agent of its own.
const MAX_NODES: i64 = 100;

#[derive(Debug, Clone, PartialEq, Eq, clap::Args, Serialize, Deserialize)]
pub struct Wanted {
    /// Run executables that are built without optimisation.
    #[arg(long)]
    pub debug: bool,
    /// How many nodes; the first one runs the server too.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=MAX_NODES))]
    pub nodes: u8,
    /// Nodes, pods and Services of IPv6 too.
    #[arg(long)]
    #[serde(default)]
    pub dual_stack: bool,
    /// Leave the host's forwarding and its rules alone: nodes and pods then reach the host and nothing behind it.
    #[arg(long)]
    pub no_egress: bool,
    /// Where images of a registry are pulled from, such as docker.io=http://127.0.0.1:5000; may be given several times.
    #[arg(long = "registry-mirror", value_name = "REGISTRY=URL")]
    pub mirrors: Vec<Mirror>,
    /// A further flag of orlop-server, such as --server-flag=--node-monitor-grace-period=10s.
    #[arg(long = "server-flag", value_name = "FLAG", allow_hyphen_values = true)]
    pub server_flags: Vec<String>,
    /// A further flag of orlop-agent, such as --agent-flag=--max-pods=50.
    #[arg(long = "agent-flag", value_name = "FLAG", allow_hyphen_values = true)]
    pub agent_flags: Vec<String>,
}

/// As the user would type it.
impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        if self.debug {
            words.push("--debug".to_owned());
        }
        if self.nodes != 1 {
            words.push(format!("--nodes {}", self.nodes));
        }
        if self.dual_stack {
            words.push("--dual-stack".to_owned());
        }
        if self.no_egress {
            words.push("--no-egress".to_owned());
        }
        words.extend(self.mirrors.iter().map(|mirror| format!("--registry-mirror {mirror}")));
        words.extend(self.server_flags.iter().map(|flag| format!("--server-flag={flag}")));
        words.extend(self.agent_flags.iter().map(|flag| format!("--agent-flag={flag}")));
        f.write_str(if words.is_empty() { "no options" } else { "" })?;
        f.write_str(&words.join(" "))
    }
}

/// A registry whose images are pulled from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirror {
    /// The host part of image names.
    pub registry: String,
    pub scheme: Scheme,
    pub host: String,
    pub port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    Http,
    Https,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
        })
    }
}

impl fmt::Display for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}://{}:{}", self.registry, self.scheme, self.host, self.port)
    }
}

impl FromStr for Mirror {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: expected REGISTRY=URL such as docker.io=http://127.0.0.1:5000");
        let (registry, url) = text.split_once('=').ok_or_else(wrong)?;
        let (scheme, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
            (Some(rest), _) => (Scheme::Http, rest),
            (None, Some(rest)) => (Scheme::Https, rest),
            (None, None) => return Err(wrong()),
        };
        let authority = rest.trim_end_matches('/');
        // The colons of an IPv6 address stand in brackets.
        let (host, port) = match authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
            Some((host, port)) => (host, port.parse().map_err(|_| wrong())?),
            None if scheme == Scheme::Https => (authority, 443),
            None => (authority, 80),
        };
        let names = [registry, host];
        if names.iter().any(|name| name.is_empty() || name.contains(['/', ' ', '@'])) || port == 0 {
            return Err(wrong());
        }
        let mirror = Self { registry: registry.to_owned(), scheme, host: host.to_owned(), port };
        if mirror.is_on_loopback() && scheme == Scheme::Https {
            return Err(format!(
                "{text:?}: nodes reach a registry on this machine's loopback under another address, for which its \
                 certificate does not hold: use http://"
            ));
        }
        Ok(mirror)
    }
}

impl Mirror {
    /// Whether only this machine itself reaches it.
    pub fn is_on_loopback(&self) -> bool {
        self.host == "localhost" || self.host == "[::1]" || self.host.starts_with("127.")
    }

    /// What the nodes are told.
    pub fn seen_by_nodes(&self) -> String {
        let host = if self.is_on_loopback() { network::HOST_ADDRESS } else { &self.host };
        format!("{}://{host}:{}", self.scheme, self.port)
    }
}
