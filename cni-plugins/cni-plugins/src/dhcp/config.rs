//! The configuration of `dhcp`: where its daemon is, and which options go to the server. Pure.

use std::path::PathBuf;

use cni::{
    ErrorReply,
    args::CniArgs,
    json::{JsonError, Object},
};
use serde::{Deserialize, Serialize};

use crate::plugin::{Request, decoding};

pub(super) const DEFAULT_SOCKET: &str = "/run/cni/dhcp.sock";
/// Bytes of one option's value.
const VALUE_LIMIT: usize = 255;
/// Asked for unless the configuration says otherwise: subnet mask and routers.
const DEFAULT_REQUESTS: [u8; 2] = [3, 1];

/// What to ask the daemon for, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(super) socket: PathBuf,
    pub(super) options: Options,
    /// Metric of the routes.
    pub(super) priority: Option<u32>,
}

/// DHCP options, by number.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Options {
    /// Values that are sent along.
    pub(super) provided: Vec<(u8, String)>,
    /// Options that are asked for.
    pub(super) requested: Vec<u8>,
}

impl Config {
    pub(crate) fn read(request: &Request) -> Result<Self, ErrorReply> {
        let root = request.root();
        let ipam = root.object("ipam").map_err(decoding)?;
        let ipam = ipam.ok_or_else(|| ErrorReply::config("IPAM config missing 'ipam' key"))?;
        let socket = ipam.string("daemonSocketPath").map_err(decoding)?.filter(|path| !path.is_empty());
        let args = args(&request.raw_args);
        Ok(Self {
            socket: PathBuf::from(socket.unwrap_or(DEFAULT_SOCKET)),
            options: Options { provided: provided(&ipam, &args)?, requested: requested(&ipam)? },
            priority: ipam.number::<u32>("priority").map_err(decoding)?.filter(|priority| *priority != 0),
        })
    }
}

/// Arguments for other plugins of the chain are none of its business: what can be read is taken, as by the reference, and a value may have
/// further `=`.
fn args(text: &str) -> CniArgs {
    let pairs = text.split(';').filter_map(|pair| pair.split_once('=')).filter(|(key, _)| !key.is_empty());
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn provided(ipam: &Object<'_>, args: &CniArgs) -> Result<Vec<(u8, String)>, ErrorReply> {
    let mut provided = Vec::new();
    for (place, entry) in ipam.array("provide").map_err(decoding)? {
        let entry = Object::of(entry, place).map_err(decoding)?;
        let number = number(&entry)?;
        let value = entry.string("value").map_err(decoding)?.filter(|value| !value.is_empty());
        let from_args = entry.string("fromArg").map_err(decoding)?.and_then(|key| args.get(key));
        for value in [value, from_args].into_iter().flatten() {
            if value.len() > VALUE_LIMIT {
                let detail = format!("a value of {} bytes: expected at most {VALUE_LIMIT}", value.len());
                return Err(decoding(JsonError::key(entry.place_of("value"), detail)));
            }
            provided.push((number, value.to_owned()));
        }
    }
    Ok(provided)
}

fn requested(ipam: &Object<'_>) -> Result<Vec<u8>, ErrorReply> {
    let (mut requested, mut skips_default) = (Vec::new(), false);
    for (place, entry) in ipam.array("request").map_err(decoding)? {
        let entry = Object::of(entry, place).map_err(decoding)?;
        skips_default |= entry.boolean("skipDefault").map_err(decoding)?.unwrap_or(false);
        if entry.string("option").map_err(decoding)?.is_some_and(|option| !option.is_empty()) {
            requested.push(number(&entry)?);
        }
    }
    if !skips_default {
        requested.extend(DEFAULT_REQUESTS);
    }
    Ok(requested)
}

/// A number as text, or one of the names of dhcp-options(5) that the reference plugin knows.
fn number(entry: &Object<'_>) -> Result<u8, ErrorReply> {
    let text = entry.string("option").map_err(decoding)?.unwrap_or_default();
    let named = match text {
        "subnet-mask" => Some(1),
        "routers" => Some(3),
        "host-name" => Some(12),
        "vendor-class-identifier" => Some(60),
        "dhcp-client-identifier" => Some(61),
        "user-class" => Some(77),
        number => number.parse().ok(),
    };
    named.ok_or_else(|| {
        let detail = format!("{text:?}: expected a number up to 255, or a name of dhcp-options(5)");
        decoding(JsonError::key(entry.place_of("option"), detail))
    })
}

#[cfg(test)]
mod tests;
