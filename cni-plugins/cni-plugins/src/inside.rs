//! The container's half of an attachment: switches, addresses and routes of the link inside the namespace.
//!
//! Inputs: what the IPAM plugin answered; outputs: the link as a result lists it. It refuses to make the link: that is
//! the plugin's.

use std::{io, net::IpAddr, time::Duration};

use cni::{AddResult, ErrorReply, Interface};
use ipnetwork::IpNetwork;
use linux::{
    netlink::{
        AddressWatch, Error as NetlinkError, Link, LinkChange, MAIN_TABLE, Netlink, NewAddress, OperState,
        Route,
    },
    netns::Netns,
};

use crate::sysctl;

/// How long duplicate detection of IPv6 addresses may take.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);

/// `RT_SCOPE_LINK`; greater ones are narrower.
pub(crate) const SCOPE_LINK: u8 = 253;

/// A switch of the link, as a wish: `ipv4`, `arp_notify`, `1`.
pub(crate) type Switch = (&'static str, &'static str, &'static str);

/// The kernel tells the neighbours whenever the link comes up, or gets another hardware address.
pub(crate) const ARP_NOTIFY: Switch = ("ipv4", "arp_notify", "1");
pub(crate) const NDISC_NOTIFY: Switch = ("ipv6", "ndisc_notify", "1");

/// The link in the container, and the means to reach it.
pub(crate) struct Inside<'a> {
    pub(crate) netns: &'a Netns,
    pub(crate) netlink: Netlink,
    pub(crate) link: Link,
}

impl<'a> Inside<'a> {
    pub(crate) async fn open(netns: &'a Netns, ifname: &str) -> Result<Self, ErrorReply> {
        Self::open_and_switch(netns, ifname, &[]).await
    }

    /// As [`Inside::open`], and sets switches, for which no thread has to enter the namespace once more.
    pub(crate) async fn open_and_switch(
        netns: &'a Netns,
        ifname: &str,
        switches: &[Switch],
    ) -> Result<Self, ErrorReply> {
        let opened = Netlink::open_in_and(netns, || set_switches(ifname, switches));
        let (netlink, ()) = opened.map_err(ErrorReply::internal)?;
        let link = netlink.link(ifname).await.map_err(ErrorReply::internal)?;
        Ok(Self { netns, netlink, link })
    }

    /// Sets the switches, gives the link the addresses, sets it up, and makes the routes.
    pub(crate) async fn configure(&self, result: &AddResult, switches: &[Switch]) -> Result<(), ErrorReply> {
        let has_ipv6 = result.ips.iter().any(|ip| ip.address.is_ipv6());
        if has_ipv6 || !switches.is_empty() {
            self.set_switches(switches, has_ipv6)?;
        }
        for ip in &result.ips {
            let new = NewAddress::new(self.link.index, ip.address);
            self.netlink.add_address(&new).await.map_err(|error| {
                let name = &self.link.name;
                ErrorReply::internal(format!("failed to add IP addr {} to {name:?}: {error}", ip.address))
            })?;
        }
        let watch = if has_ipv6 {
            Some(AddressWatch::open_in(self.netns, &self.netlink).map_err(ErrorReply::internal)?)
        } else {
            None
        };
        self.set_up().await?;
        if let Some(watch) = watch {
            self.settle(watch).await?;
        }
        for route in &result.routes {
            self.add_route(route, result).await?;
        }
        Ok(())
    }

    pub(crate) async fn set_up(&self) -> Result<(), ErrorReply> {
        self.netlink
            .set_link_up(self.link.index)
            .await
            .map_err(|error| ErrorReply::internal(format!("failed to set {:?} up: {error}", self.link.name)))
    }

    /// Tells the neighbours which hardware address has the addresses now. The kernel sends gratuitous ARP and
    /// unsolicited neighbour advertisements (`arp_notify`, `ndisc_notify`) when the hardware address is set, also to
    /// what it is. It would do so when the link comes up, but the bridge's port may not be forwarding then: so
    /// `arp_notify` is set here, and each of the bridge's other ports hears it once.
    pub(crate) async fn announce(&self) -> Result<(), ErrorReply> {
        let notify = LinkChange { arp_notify: Some(true), ..LinkChange::default() };
        if let Err(error) = self.netlink.change_link(self.link.index, &notify).await {
            eprintln!("set arp_notify of {}: {error}", self.link.name);
        }
        let change = LinkChange { mac: self.link.mac, ..LinkChange::default() };
        self.netlink.change_link(self.link.index, &change).await.map_err(ErrorReply::internal)
    }

    /// As the result lists it.
    pub(crate) fn interface(&self) -> Interface {
        interface(&self.link, Some(self.netns))
    }

    fn set_switches(&self, switches: &[Switch], has_ipv6: bool) -> Result<(), ErrorReply> {
        let name = &self.link.name;
        let set = self.netns.run(|| {
            set_switches(name, switches);
            if has_ipv6 { enable_ipv6(name) } else { Ok(()) }
        });
        set.map_err(ErrorReply::internal)?
            .map_err(|error| ErrorReply::internal(format!("failed to enable IPv6 for {name:?}: {error}")))
    }

    /// A link that nothing is heard on cannot ask for duplicates: its addresses settle when that changes.
    pub(crate) async fn settle(&self, mut watch: AddressWatch) -> Result<(), ErrorReply> {
        let failed = |error: NetlinkError| {
            let name = &self.link.name;
            ErrorReply::internal(format!("failed to settle addresses for {name:?}: {error}"))
        };
        match watch.wait_settled(self.link.index, SETTLE_LIMIT).await {
            Err(error @ NetlinkError::Deadline { .. }) => {
                let link = self.netlink.find_link_by_index(self.link.index).await.map_err(failed)?;
                if link.is_some_and(|link| link.oper_state == OperState::Up) {
                    Err(failed(error))
                } else {
                    Ok(())
                }
            }
            settled => settled.map_err(failed),
        }
    }

    async fn add_route(&self, route: &cni::Route, result: &AddResult) -> Result<(), ErrorReply> {
        let made = Route {
            gateway: router_of(route, result),
            link: Some(self.link.index),
            table: route.table.unwrap_or(MAIN_TABLE),
            scope: route.scope.unwrap_or(0),
            priority: route.priority,
            mtu: route.mtu,
            advmss: route.advmss,
            ..Route::to(route.dst)
        };
        match self.netlink.add_route_beside(&made).await {
            // The very same: a default route may come both from IPAM and from the plugin.
            Err(error) if error.is_exists() => Ok(()),
            added => added.map_err(|error| ErrorReply::internal(format!("failed to add route: {error}"))),
        }
    }
}

/// DEL of a link that is in the container; not being there is success.
pub(crate) async fn delete(netns: &Netns, ifname: &str) -> Result<(), ErrorReply> {
    let deleted = async {
        let netlink = Netlink::open_in(netns)?;
        match netlink.find_link(ifname).await? {
            Some(link) => delete_found(&netlink, &link).await,
            None => Ok(()),
        }
    };
    deleted.await.map_err(ErrorReply::internal)
}

/// Deletes a link that may have gone in the meantime.
pub(crate) async fn delete_found(netlink: &Netlink, link: &Link) -> Result<(), NetlinkError> {
    match netlink.del_link(link.index).await {
        Err(error) if error.is_gone() => Ok(()),
        deleted => deleted,
    }
}

/// A link as results list it; on the host without a namespace.
pub(crate) fn interface(link: &Link, netns: Option<&Netns>) -> Interface {
    Interface {
        name: link.name.clone(),
        mac: link.mac.map(|mac| mac.to_string()),
        sandbox: netns.map(|netns| netns.path().to_string_lossy().into_owned()),
        ..Interface::default()
    }
}

/// The router that a route of IPAM leads through; none when it leads to the link itself, as an unspecified one says.
pub(crate) fn router_of(route: &cni::Route, result: &AddResult) -> Option<IpAddr> {
    // The kernel refuses routers for IPv4 routes of such a scope, and ignores the scope of IPv6 ones.
    let is_of_link = route.dst.is_ipv4() && route.scope.is_some_and(|scope| scope >= SCOPE_LINK);
    match route.gw {
        Some(router) => Some(router).filter(|router| !router.is_unspecified()),
        None if is_of_link => None,
        None => gateway_for(result, route.dst),
    }
}

/// The gateway that a route of IPAM without one goes through: that of the first address of its family.
fn gateway_for(result: &AddResult, destination: IpNetwork) -> Option<IpAddr> {
    let mut gateways = result.ips.iter().filter_map(|ip| ip.gateway);
    gateways.find(|gateway| gateway.is_ipv4() == destination.is_ipv4())
}

/// In the namespace of the calling thread.
fn set_switches(name: &str, switches: &[Switch]) {
    for (family, switch, value) in switches {
        sysctl::wish(&format!("{family}/conf/{name}/{switch}"), value);
    }
}

/// Some runtimes switch IPv6 off in new namespaces. A kernel without IPv6 fails when the address is added. The addresses
/// stay when the link goes down and up again, as IPv4's do.
fn enable_ipv6(name: &str) -> io::Result<()> {
    for link in ["lo", name] {
        let switch = format!("ipv6/conf/{link}/disable_ipv6");
        match sysctl::get(&switch) {
            Ok(value) if value != "0" => sysctl::set(&switch, "0")?,
            Ok(_) => {}
            Err(error) => eprintln!("read sysctl {switch}: {error}"),
        }
    }
    sysctl::set(&format!("ipv6/conf/{name}/keep_addr_on_down"), "1")
}

#[cfg(test)]
mod tests;
