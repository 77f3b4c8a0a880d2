//! The container's half: sysctls, addresses, routes of the link inside the namespace.

use std::{io, time::Duration};

use cni::{AddResult, ErrorReply};
use linux::{
    netlink::{AddressWatch, Link, LinkChange, MAIN_TABLE, Netlink, NewAddress, Route},
    netns::Netns,
};

use super::{config::Config, gateway};
use crate::sysctl;

/// How long duplicate detection of IPv6 addresses may take.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);

/// The container's end, and the means to reach it.
pub(super) struct Inside<'a> {
    pub(super) netns: &'a Netns,
    pub(super) netlink: Netlink,
    pub(super) link: Link,
}

impl<'a> Inside<'a> {
    pub(super) async fn open(netns: &'a Netns, ifname: &str) -> Result<Self, ErrorReply> {
        let netlink = Netlink::open_in(netns).map_err(ErrorReply::internal)?;
        let link = netlink.link(ifname).await.map_err(ErrorReply::internal)?;
        Ok(Self { netns, netlink, link })
    }

    /// Gives the link its addresses, sets it up, and makes its routes: what IPAM answered.
    pub(super) async fn configure(&self, result: &AddResult, config: &Config) -> Result<(), ErrorReply> {
        let has_ipv6 = result.ips.iter().any(|ip| ip.address.is_ipv6());
        self.set_switches(config, has_ipv6)?;
        for ip in &result.ips {
            let new = NewAddress::new(self.link.index, ip.address);
            self.netlink.add_address(&new).await.map_err(|error| {
                let name = &self.link.name;
                ErrorReply::internal(format!("failed to add IP addr {} to {name:?}: {error}", ip.address))
            })?;
        }
        let watch = if has_ipv6 {
            Some(AddressWatch::open_in(self.netns).map_err(ErrorReply::internal)?)
        } else {
            None
        };
        self.set_up().await?;
        if let Some(mut watch) = watch {
            watch.wait_settled(self.link.index, SETTLE_LIMIT).await.map_err(ErrorReply::internal)?;
        }
        for route in &result.routes {
            self.add_route(route, result).await?;
        }
        Ok(())
    }

    pub(super) async fn set_up(&self) -> Result<(), ErrorReply> {
        self.netlink
            .set_link_up(self.link.index)
            .await
            .map_err(|error| ErrorReply::internal(format!("failed to set {:?} up: {error}", self.link.name)))
    }

    /// Tells the neighbours which hardware address has the addresses now. The kernel sends gratuitous ARP and
    /// unsolicited neighbour advertisements (`arp_notify`, `ndisc_notify`) when the hardware address is set, also to
    /// what it is; it did so when the link came up, but the bridge's port may not have been forwarding then.
    pub(super) async fn announce(&self) -> Result<(), ErrorReply> {
        let change = LinkChange { mac: self.link.mac, ..LinkChange::default() };
        self.netlink.change_link(self.link.index, &change).await.map_err(ErrorReply::internal)
    }

    fn set_switches(&self, config: &Config, has_ipv6: bool) -> Result<(), ErrorReply> {
        let name = &self.link.name;
        let inside = self.netns.run(|| {
            if config.enable_dad {
                sysctl::wish(&format!("ipv6/conf/{name}/enhanced_dad"), "1");
            }
            let dad = if config.enable_dad { "1" } else { "0" };
            sysctl::wish(&format!("ipv6/conf/{name}/accept_dad"), dad);
            sysctl::wish(&format!("ipv4/conf/{name}/arp_notify"), "1");
            if has_ipv6 {
                sysctl::wish(&format!("ipv6/conf/{name}/ndisc_notify"), "1");
                enable_ipv6(name)
            } else {
                Ok(())
            }
        });
        inside
            .map_err(ErrorReply::internal)?
            .map_err(|error| ErrorReply::internal(format!("failed to enable IPv6 for {name:?}: {error}")))
    }

    async fn add_route(&self, route: &cni::Route, result: &AddResult) -> Result<(), ErrorReply> {
        let made = Route {
            gateway: route.gw.or_else(|| gateway::default_for(result, route.dst)),
            link: Some(self.link.index),
            table: route.table.unwrap_or(MAIN_TABLE),
            scope: route.scope.unwrap_or(0),
            priority: route.priority,
            mtu: route.mtu,
            advmss: route.advmss,
            ..Route::to(route.dst)
        };
        match self.netlink.prepend_route(&made).await {
            // A route that is asked for twice is one route.
            Err(error) if error.is_exists() => Ok(()),
            added => added.map_err(|error| ErrorReply::internal(format!("failed to add route: {error}"))),
        }
    }
}

/// Some runtimes switch IPv6 off in new namespaces. A kernel without IPv6 fails when the address is added.
fn enable_ipv6(name: &str) -> io::Result<()> {
    for link in ["lo", name] {
        let switch = format!("ipv6/conf/{link}/disable_ipv6");
        match sysctl::get(&switch) {
            Ok(value) if value != "0" => sysctl::set(&switch, "0")?,
            Ok(_) => {}
            Err(error) => eprintln!("read sysctl {switch}: {error}"),
        }
    }
    // Else a link that is set down and up again comes back without its addresses.
    sysctl::wish(&format!("ipv6/conf/{name}/keep_addr_on_down"), "1");
    Ok(())
}
