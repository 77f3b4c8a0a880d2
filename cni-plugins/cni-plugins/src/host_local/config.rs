//! The configuration of `host-local`: the `ipam` object, and the addresses that the runtime asks for.

use std::{net::IpAddr, path::PathBuf};

use cni::{
    ErrorReply, Route, Version, code,
    json::{self, JsonError, Object},
};

use super::range::{RangeSet, RawRange};
use crate::plugin::{Request, decoding};

const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// What to hand out, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// One address is taken from each.
    pub(crate) sets: Vec<RangeSet>,
    pub(crate) routes: Vec<Route>,
    pub(crate) data_dir: PathBuf,
    pub(crate) resolv_conf: Option<PathBuf>,
    /// Addresses that the runtime wants, without repeats: `CNI_ARGS`, then `args.cni.ips`, then `runtimeConfig.ips`.
    pub(crate) requested: Vec<IpAddr>,
}

impl Config {
    /// For ADD, which needs ranges, and for DEL, which is told the same.
    pub(crate) fn read(request: &Request) -> Result<Self, ErrorReply> {
        let config = Self::read_without_runtime(request)?;
        if config.sets.is_empty() {
            return Err(ErrorReply::config("no IP ranges specified"));
        }
        Ok(config)
    }

    /// For the verbs that need none: the ranges may be the runtime's (`ipRanges`), which GC and STATUS are not told.
    pub(crate) fn read_without_runtime(request: &Request) -> Result<Self, ErrorReply> {
        let root = request.root();
        let ipam = root.object("ipam").map_err(decoding)?;
        let ipam = ipam.ok_or_else(|| ErrorReply::config("IPAM config missing 'ipam' key"))?;
        let raw = raw_sets(&root, &ipam).map_err(decoding)?;
        let routes = Route::read_all(&ipam).map_err(decoding)?;
        let text = |key: &str| -> Result<Option<PathBuf>, ErrorReply> {
            let text = ipam.string(key).map_err(decoding)?;
            Ok(text.filter(|text| !text.is_empty()).map(PathBuf::from))
        };
        let config = Self {
            sets: checked_sets(&raw, request.version)?,
            routes,
            data_dir: text("dataDir")?.unwrap_or_else(|| PathBuf::from(DEFAULT_DATA_DIR)),
            resolv_conf: text("resolvConf")?,
            requested: requested(request, &root)?,
        };
        Ok(config)
    }
}

/// The sets in the order of the reference plugin: the runtime's, the old single range, then `ranges`.
fn raw_sets(root: &Object<'_>, ipam: &Object<'_>) -> Result<Vec<Vec<RawRange>>, JsonError> {
    let mut sets = match root.object("runtimeConfig")? {
        Some(runtime) => read_sets(&runtime, "ipRanges")?,
        None => Vec::new(),
    };
    if let Some(single) = RawRange::read(ipam)? {
        sets.push(vec![single]);
    }
    sets.extend(read_sets(ipam, "ranges")?);
    Ok(sets)
}

fn read_sets(parent: &Object<'_>, key: &str) -> Result<Vec<Vec<RawRange>>, JsonError> {
    let mut sets = Vec::new();
    for (place, set) in parent.array(key)? {
        let mut ranges = Vec::new();
        for (place, range) in json::elements(set, &place)? {
            let range = Object::of(range, place)?;
            ranges.push(range.required("subnet", RawRange::read(&range)?)?);
        }
        sets.push(ranges);
    }
    Ok(sets)
}

fn checked_sets(raw: &[Vec<RawRange>], version: Version) -> Result<Vec<RangeSet>, ErrorReply> {
    let mut sets: Vec<RangeSet> = Vec::new();
    for (index, ranges) in raw.iter().enumerate() {
        let set = RangeSet::new(ranges)
            .map_err(|error| ErrorReply::config(format!("invalid range set {index}: {error}")))?;
        if let Some(other) = sets.iter().position(|other| other.overlaps(&set)) {
            return Err(ErrorReply::config(format!("range set {other} overlaps with {index}")));
        }
        sets.push(set);
    }
    let v4 = sets.iter().filter(|set| set.is_ipv4()).count();
    if !version.has_interfaces() && (v4 > 1 || sets.len() - v4 > 1) {
        let message = format!("CNI version {version} does not support more than 1 address per family");
        return Err(ErrorReply::config(message));
    }
    Ok(sets)
}

fn requested(request: &Request, root: &Object<'_>) -> Result<Vec<IpAddr>, ErrorReply> {
    let invalid = |error: String| ErrorReply::new(code::INVALID_ENVIRONMENT, format!("CNI_ARGS: {error}"));
    let mut addresses: Vec<IpAddr> = Vec::new();
    if let Some(text) = request.args(&["IP"])?.get("IP").filter(|text| !text.is_empty()) {
        addresses.push(address(text).map_err(invalid)?);
    }
    let parents = [root.cni_args().map_err(decoding)?, root.object("runtimeConfig").map_err(decoding)?];
    for parent in parents.iter().flatten() {
        for (index, text) in parent.strings("ips").map_err(decoding)?.iter().enumerate() {
            let place = format!("{}[{index}]", parent.place_of("ips"));
            addresses.push(address(text).map_err(|error| decoding(JsonError::key(place, error)))?);
        }
    }
    let mut seen = std::collections::HashSet::new();
    addresses.retain(|address| seen.insert(*address));
    Ok(addresses)
}

/// A requested address may come with a prefix length, which the range's subnet overrules.
fn address(text: &str) -> Result<IpAddr, String> {
    if text.contains('/') { json::cidr(text).map(|network| network.ip()) } else { json::ip(text) }
}

#[cfg(test)]
mod tests;
