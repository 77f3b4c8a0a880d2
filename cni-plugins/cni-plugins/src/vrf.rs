//! The plugin `vrf`: puts the container's link into a VRF, a routing domain with a table of its own.
//!
//! Inputs: the reference plugin's keys, and a result of the plugins before it, which it passes on. The VRF is made with
//! its first link and goes with its last one. The kernel sets a link down and up when it joins, which loses routes, and
//! IPv6 addresses unless they are kept: both are there again afterwards, the routes in the VRF's table. Everything is in
//! the container's namespace, so GC has nothing to find.

mod join;

use cni::{AddResult, ErrorReply, Version};
use linux::netlink::{Error, Link, LinkChange, LinkKind, Netlink, NewLink};

use self::join::Join;
use crate::{
    inside::Inside,
    made,
    netns_lock::NetnsLock,
    plugin::{Plugin, Request, block_on, decoding},
    verify::different,
};

const NO_PREV_RESULT: &str = "missing prevResult from earlier plugin";

/// See the module.
#[derive(Debug)]
pub struct Vrf;

/// Which VRF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    name: String,
    /// None takes the table that the VRF has, or a free one.
    table: Option<u32>,
}

impl Config {
    pub(crate) fn read(request: &Request) -> Result<Self, ErrorReply> {
        let root = request.root();
        let name = root.string("vrfname").map_err(decoding)?.unwrap_or_default();
        let table = root.number::<u32>("table").map_err(decoding)?;
        if name.is_empty() {
            return Err(ErrorReply::config("configuration is expected to have a valid vrf name"));
        }
        cni::interface_name(name).map_err(|error| ErrorReply::config(format!("key \"vrfname\": {error}")))?;
        Ok(Self { name: name.to_owned(), table: table.filter(|table| *table > 0) })
    }
}

/// A VRF that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Domain {
    index: u32,
    table: u32,
    /// By this call.
    is_new: bool,
}

fn internal(error: Error) -> ErrorReply {
    ErrorReply::internal(error)
}

/// The VRF of this name; none where there is no link of this name.
async fn find(netlink: &Netlink, name: &str) -> Result<Option<Domain>, ErrorReply> {
    match netlink.find_link(name).await.map_err(internal)? {
        None => Ok(None),
        Some(Link { index, settings: Some(LinkKind::Vrf { table }), .. }) => {
            Ok(Some(Domain { index, table, is_new: false }))
        }
        Some(_) => Err(ErrorReply::internal(format!("Netlink {name} is not a VRF"))),
    }
}

async fn find_or_make(netlink: &Netlink, config: &Config) -> Result<Domain, ErrorReply> {
    let name = &config.name;
    if let Some(found) = find(netlink, name).await? {
        return match config.table {
            Some(table) if table != found.table => {
                let message =
                    format!("VRF {name} already exist with different routing table {}", found.table);
                Err(ErrorReply::internal(message))
            }
            _ => Ok(found),
        };
    }
    let table = match config.table {
        Some(table) => table,
        None => free_table(&netlink.links().await.map_err(internal)?),
    };
    let new = NewLink { up: true, ..NewLink::new(name, LinkKind::Vrf { table }) };
    let failed = |error| ErrorReply::internal(format!("could not add VRF {name}: {error}"));
    netlink.add_link(&new).await.map_err(failed)?;
    let made = made::find(netlink, name, failed).await?;
    Ok(Domain { index: made.index, table, is_new: true })
}

/// The first table that no other VRF has.
fn free_table(links: &[Link]) -> u32 {
    let is_taken = |table: u32| links.iter().any(|link| link.settings == Some(LinkKind::Vrf { table }));
    (1..).find(|table| !is_taken(*table)).unwrap_or(1)
}

async fn add(inside: &Inside<'_>, config: &Config) -> Result<(), ErrorReply> {
    let netlink = &inside.netlink;
    if let Some(master) = inside.link.master {
        let master = netlink.find_link_by_index(master).await.map_err(internal)?;
        let master = master.map(|link| link.name).unwrap_or_default();
        let message = format!("interface {} has already a master set: {master}", inside.link.name);
        return Err(ErrorReply::internal(message));
    }
    let domain = find_or_make(netlink, config).await?;
    let joined = match Join::prepare(inside, domain.table).await {
        Ok(join) => join.run(inside, domain.index).await,
        Err(error) => Err(error),
    };
    let Err(error) = joined else { return Ok(()) };
    let undone = if domain.is_new { netlink.del_link(domain.index).await } else { Ok(()) };
    Err(error.with_undo(undone.err()))
}

/// Takes the link out; the last one takes the VRF along.
async fn remove(netlink: &Netlink, ifname: &str, name: &str) -> Result<(), Error> {
    let Some(vrf) = netlink.find_link(name).await?.filter(|link| link.is_kind("vrf")) else { return Ok(()) };
    let link = netlink.find_link(ifname).await?;
    if let Some(link) = link.filter(|link| link.master == Some(vrf.index)) {
        let leave = LinkChange { master: Some(None), ..LinkChange::default() };
        match netlink.change_link(link.index, &leave).await {
            Err(error) if !error.is_gone() => return Err(error),
            _ => {}
        }
    }
    if netlink.links().await?.iter().any(|link| link.master == Some(vrf.index)) {
        return Ok(());
    }
    crate::inside::delete_found(netlink, &vrf).await
}

impl Plugin for Vrf {
    const NAME: &'static str = "vrf";
    const OLDEST: Version = Version::V0_3_1;

    fn add(&self, request: &Request) -> Result<AddResult, ErrorReply> {
        let config = Config::read(request)?;
        let result = request.required_prev_result(NO_PREV_RESULT)?;
        let netns = request.open_netns()?;
        let _lock = NetnsLock::take(netns.path())?;
        block_on(async {
            let inside = Inside::open(&netns, &request.ifname).await?;
            add(&inside, &config).await
        })?;
        Ok(result)
    }

    fn del(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        let Some(netns) = request.existing_netns()? else { return Ok(()) };
        let _lock = NetnsLock::take(netns.path())?;
        block_on(async {
            let netlink = Netlink::open_in(&netns).map_err(internal)?;
            remove(&netlink, &request.ifname, &config.name).await.map_err(internal)
        })
    }

    fn check(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        request.required_prev_result(NO_PREV_RESULT)?;
        let netns = request.open_netns()?;
        block_on(async {
            let netlink = Netlink::open_in(&netns).map_err(internal)?;
            let (ifname, name) = (&request.ifname, &config.name);
            let vrf = find(&netlink, name).await?;
            let vrf = vrf.ok_or_else(|| different(format!("VRF {name} not found")))?;
            let link = netlink.find_link(ifname).await.map_err(internal)?;
            if link.is_some_and(|link| link.master == Some(vrf.index)) {
                return Ok(());
            }
            Err(different(format!("failed to find {ifname} associated to vrf {name}")))
        })
    }

    fn gc(&self, _request: &Request) -> Result<(), ErrorReply> {
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), ErrorReply> {
        Config::read(request).map(drop)
    }
}

#[cfg(test)]
mod tests;
