//! A link joins a VRF, and has afterwards what it had before.

use cni::ErrorReply;
use linux::netlink::{Address, AddressScope, AddressWatch, Error, LinkChange, MAIN_TABLE, NewAddress, Route};

use crate::inside::Inside;

/// What the kernel would lose.
pub(super) struct Join {
    /// Of IPv6, of more than the link.
    addresses: Vec<Address>,
    /// Of the main table, without those that come with the addresses.
    routes: Vec<Route>,
    table: u32,
}

impl Join {
    /// Remembers, for a VRF with this table.
    pub(super) async fn prepare(inside: &Inside<'_>, table: u32) -> Result<Self, ErrorReply> {
        let name = &inside.link.name;
        let addresses = global_addresses(inside).await.map_err(|error| {
            let message =
                format!("failed getting global ipv6 addresses before slaving interface {name}: {error}");
            ErrorReply::internal(message)
        })?;
        let routes = inside.netlink.routes().await;
        let mut routes = routes.map_err(|error| {
            ErrorReply::internal(format!("failed getting all routes for {name}: {error}"))
        })?;
        // A route with hops of other links is not this one's to make again.
        routes.retain(|route| {
            route.link == Some(inside.link.index)
                && route.table == MAIN_TABLE
                && route.scope == 0
                && !route.inseparable
        });
        Ok(Self { addresses, routes, table })
    }

    /// Joins. A failure leaves the link outside, with what it had.
    pub(super) async fn run(&self, inside: &Inside<'_>, vrf: u32) -> Result<(), ErrorReply> {
        let name = &inside.link.name;
        let watch = AddressWatch::open_in(inside.netns, &inside.netlink).map_err(ErrorReply::internal)?;
        let enter = LinkChange { master: Some(Some(vrf)), ..LinkChange::default() };
        inside.netlink.change_link(inside.link.index, &enter).await.map_err(|error| {
            ErrorReply::internal(format!("could not set the vrf as master of {name}: {error}"))
        })?;
        let Err(error) = self.restore(inside, watch, self.table).await else { return Ok(()) };
        let undone = async {
            let watch = AddressWatch::open_in(inside.netns, &inside.netlink).map_err(ErrorReply::internal)?;
            let leave = LinkChange { master: Some(None), ..LinkChange::default() };
            inside.netlink.change_link(inside.link.index, &leave).await.map_err(ErrorReply::internal)?;
            self.restore(inside, watch, MAIN_TABLE).await
        };
        Err(error.with_undo(undone.await.err()))
    }

    async fn restore(&self, inside: &Inside<'_>, watch: AddressWatch, table: u32) -> Result<(), ErrorReply> {
        let name = &inside.link.name;
        let kept = global_addresses(inside).await.map_err(|error| {
            let message =
                format!("failed getting global ipv6 addresses after slaving interface {name}: {error}");
            ErrorReply::internal(message)
        })?;
        let is_lost = |address: &&Address| !kept.iter().any(|kept| kept.network == address.network);
        let lost: Vec<&Address> = self.addresses.iter().filter(is_lost).collect();
        for address in &lost {
            let new = NewAddress { link: inside.link.index, network: address.network, flags: address.flags };
            inside.netlink.add_address(&new).await.map_err(|error| {
                ErrorReply::internal(format!(
                    "could not restore address {} to {name}: {error}",
                    address.network
                ))
            })?;
        }
        if !lost.is_empty() {
            inside.settle(watch).await?;
        }
        for (index, route) in self.routes.iter().enumerate() {
            let is_beside = self.routes[..index].iter().any(|earlier| earlier.is_beside(route));
            let route = Route { table, ..route.clone() };
            let added = match is_beside {
                true => inside.netlink.append_route(&route).await,
                false => inside.netlink.replace_route(&route).await,
            };
            match added {
                // Two routes may differ in what is not remembered.
                Err(error) if is_beside && error.is_exists() => {}
                added => {
                    added.map_err(|error| ErrorReply::internal(format!("could not add route: {error}")))?
                }
            }
        }
        Ok(())
    }
}

async fn global_addresses(inside: &Inside<'_>) -> Result<Vec<Address>, Error> {
    let mut all = inside.netlink.addresses(Some(inside.link.index)).await?;
    all.retain(|address| address.network.is_ipv6() && address.scope == AddressScope::Universe);
    Ok(all)
}
