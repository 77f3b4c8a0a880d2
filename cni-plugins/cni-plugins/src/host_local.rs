//! The IPAM plugin `host-local`: hands out addresses of configured ranges, and remembers them on the local disk.
//!
//! Inputs: the `ipam` object of the configuration; outputs: one address per range set, the configured routes, DNS from
//! `resolvConf`. Owns the leases (see [`store`](self)). Addresses are handed out round robin, so that one that was
//! released is used again as late as possible. It refuses an attachment that has an address already.

pub(crate) mod config;
mod index;
mod range;
mod resolv_conf;
mod store;

use std::net::IpAddr;

use cni::{AddResult, ErrorReply, IpConfig, code};
use ipnetwork::IpNetwork;

use self::{
    config::Config,
    range::{Range, RangeSet},
    store::{Leasing, Owner, Store, StoreError},
};
use crate::plugin::{Plugin, Request};

/// Addresses that are tried one by one before the folder is listed once to know all that are taken.
const PROBE_LIMIT: usize = 64;

/// See the module.
#[derive(Debug)]
pub struct HostLocal;

impl Plugin for HostLocal {
    const NAME: &'static str = "host-local";

    fn add(&self, request: &Request) -> Result<AddResult, ErrorReply> {
        let config = Config::read(request)?;
        let dns = match &config.resolv_conf {
            Some(path) => resolv_conf::read(path).map_err(|error| {
                ErrorReply::new(code::IO_FAILURE, format!("read resolvConf {}: {error}", path.display()))
            })?,
            None => cni::Dns::default(),
        };
        let store = Store::open(&config.data_dir, &request.network).map_err(io_failure)?;
        let ips = allocate_all(&config, &store, &owner(request))?;
        Ok(AddResult { ips, routes: config.routes, dns, ..AddResult::default() })
    }

    fn del(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        match Store::open_existing(&config.data_dir, &request.network).map_err(io_failure)? {
            Some(store) => store.release(&owner(request)).map_err(io_failure),
            None => Ok(()),
        }
    }

    fn check(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read_without_runtime(request)?;
        let store = Store::open_existing(&config.data_dir, &request.network).map_err(io_failure)?;
        let owned = match store {
            Some(store) => store.owned(&owner(request)).map_err(io_failure)?,
            None => Vec::new(),
        };
        if owned.is_empty() {
            let message =
                format!("host-local: Failed to find address added by container {}", request.container_id);
            return Err(ErrorReply::internal(message));
        }
        Ok(())
    }

    fn gc(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read_without_runtime(request)?;
        let valid = request.valid_attachments()?;
        let Some(store) = Store::open_existing(&config.data_dir, &request.network).map_err(io_failure)?
        else {
            return Ok(());
        };
        let keep = |owner: &Owner| {
            // A lease without a link's name is kept for any link of its container.
            let any = || valid.iter().any(|(container_id, _)| *container_id == owner.container_id);
            if owner.ifname.is_empty() {
                any()
            } else {
                valid.contains(&(owner.container_id.clone(), owner.ifname.clone()))
            }
        };
        store.collect(keep).map_err(io_failure)
    }

    /// A range without a free address does not count: runtimes take this for the state of the whole node, whose pods a full
    /// range does no harm, and ADD says what is wrong with the next one.
    fn status(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read_without_runtime(request)?;
        let opened = Store::open_existing(&config.data_dir, &request.network);
        opened.map(drop).map_err(|error| ErrorReply::new(code::PLUGIN_NOT_AVAILABLE, error.to_string()))
    }
}

/// One address per set. An error takes back what was leased, when the [`Leasing`] is dropped.
fn allocate_all(config: &Config, store: &Store, owner: &Owner) -> Result<Vec<IpConfig>, ErrorReply> {
    let owned = store.owned(owner).map_err(io_failure)?;
    let mut leasing = store.lease(owner).map_err(io_failure)?;
    let mut requested = config.requested.clone();
    let mut ips = Vec::new();
    for (index, set) in config.sets.iter().enumerate() {
        let wanted = requested.iter().position(|address| set.range_of(*address).is_some());
        let taken = match wanted.map(|position| requested.remove(position)) {
            Some(address) => take_requested(&mut leasing, set, index, address),
            None => take_next(&mut leasing, set, index, &Known { store, owned: &owned, owner }),
        };
        let (address, range) = taken.map_err(|error| ErrorReply {
            msg: format!("failed to allocate for range {index}: {}", error.msg),
            ..error
        })?;
        ips.push(ip_config(address, range)?);
    }
    if !requested.is_empty() {
        let left: Vec<String> = requested.iter().map(ToString::to_string).collect();
        let message = format!("failed to allocate all requested IPs: {}", left.join(" "));
        return Err(ErrorReply::internal(message));
    }
    leasing.finish().map_err(io_failure)?;
    Ok(ips)
}

fn take_requested<'a>(
    leasing: &mut Leasing<'_>,
    set: &'a RangeSet,
    index: usize,
    address: IpAddr,
) -> Result<(IpAddr, &'a Range), ErrorReply> {
    let range = set.range_of(address).ok_or_else(|| ErrorReply::internal(no_address(set)))?;
    if address == range.gateway {
        return Err(ErrorReply::internal(format!("requested ip {address} is subnet's gateway")));
    }
    if leasing.try_take(address, index).map_err(io_failure)? {
        return Ok((address, range));
    }
    let message = format!("requested IP address {address} is not available in range set {set}");
    Err(ErrorReply::internal(message))
}

/// What is known before an allocation.
struct Known<'a> {
    store: &'a Store,
    owned: &'a [IpAddr],
    owner: &'a Owner,
}

/// The next free address. Costs a few file operations however many leases there are, until the ranges are so full that
/// the next free one is far; then one listing of the folder.
fn take_next<'a>(
    leasing: &mut Leasing<'_>,
    set: &'a RangeSet,
    index: usize,
    known: &Known<'_>,
) -> Result<(IpAddr, &'a Range), ErrorReply> {
    if let Some(address) = known.owned.iter().find(|address| set.range_of(**address).is_some()) {
        let id = &known.owner.container_id;
        let message = format!("{address} has been allocated to {id}, duplicate allocation is not allowed");
        return Err(ErrorReply::internal(message));
    }
    let mut candidates = set.candidates(known.store.last(index));
    for (address, range) in candidates.by_ref().take(PROBE_LIMIT) {
        if leasing.try_take(address, index).map_err(io_failure)? {
            return Ok((address, range));
        }
    }
    let taken = known.store.taken().map_err(io_failure)?;
    for (address, range) in candidates.filter(|(address, _)| !taken.contains(address)) {
        if leasing.try_take(address, index).map_err(io_failure)? {
            return Ok((address, range));
        }
    }
    Err(ErrorReply::internal(no_address(set)))
}

fn ip_config(address: IpAddr, range: &Range) -> Result<IpConfig, ErrorReply> {
    let address = IpNetwork::new(address, range.subnet.prefix()).map_err(ErrorReply::internal)?;
    Ok(IpConfig { interface: None, address, gateway: Some(range.gateway) })
}

fn no_address(set: &RangeSet) -> String {
    format!("no IP addresses available in range set: {set}")
}

fn owner(request: &Request) -> Owner {
    Owner::new(&request.container_id, &request.ifname)
}

fn io_failure(error: StoreError) -> ErrorReply {
    ErrorReply::new(code::IO_FAILURE, error.to_string())
}

/// See [`crate::fuzz`].
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &str) {
    drop(resolv_conf::parse(text));
}

#[cfg(test)]
mod tests;
