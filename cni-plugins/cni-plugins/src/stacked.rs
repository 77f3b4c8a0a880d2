//! Links that stand on another link: what macvlan, ipvlan and vlan share.
//!
//! Owns the keys `master`, `mtu` and `linkInContainer`, finding the master, and making the link, which nobody on the
//! host gets to see. It refuses an MTU above the master's where the plugin asks for that.

use std::os::fd::AsFd;

use cni::{ErrorReply, code};
use linux::{
    netlink::{Error, Link, LinkChange, LinkKind, MAIN_TABLE, MacAddress, Netlink, NewLink, Parent},
    netns::Netns,
};

use crate::{
    inside::Inside,
    made::{self, Made},
    pair,
    plugin::{Request, decoding},
};

/// Where the master is, and how large packets may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stack {
    /// None stands for the link that the default route leads through.
    pub(crate) master: Option<String>,
    /// `linkInContainer`: the master is in the container's namespace.
    pub(crate) in_container: bool,
    /// 0 leaves it to the kernel.
    pub(crate) mtu: i64,
}

/// A new link, as the plugins differ.
pub(crate) struct Upper {
    pub(crate) kind: LinkKind,
    pub(crate) mac: Option<MacAddress>,
}

impl Stack {
    pub(crate) fn read(request: &Request) -> Result<Self, ErrorReply> {
        let root = request.root();
        let master = root.string("master").map_err(decoding)?.filter(|name| !name.is_empty());
        if let Some(name) = master {
            cni::interface_name(name)
                .map_err(|error| ErrorReply::config(format!("key \"master\": {error}")))?;
        }
        Ok(Self {
            master: master.map(str::to_owned),
            in_container: root.boolean("linkInContainer").map_err(decoding)?.unwrap_or(false),
            mtu: root.number("mtu").map_err(decoding)?.unwrap_or(0),
        })
    }

    pub(crate) async fn find_master(&self, netns: &Netns) -> Result<Link, ErrorReply> {
        self.master(&self.around(Some(netns))?).await
    }

    /// None of the packets that the link may be given is too large for its master.
    pub(crate) fn check_mtu(&self, master: &Link) -> Result<(), ErrorReply> {
        if (0..=i64::from(master.mtu)).contains(&self.mtu) {
            return Ok(());
        }
        let message = format!("invalid MTU {}, must be [0, master MTU({})]", self.mtu, master.mtu);
        Err(ErrorReply::config(message))
    }

    /// Makes the link on the master that [`Stack::find_master`] found.
    pub(crate) async fn make<'n>(
        &self,
        master: &Link,
        request: &Request,
        netns: &'n Netns,
        upper: Upper,
        made: &mut Made<'_>,
    ) -> Result<Inside<'n>, ErrorReply> {
        let netlink = Netlink::open_in(netns).map_err(ErrorReply::internal)?;
        let host = Netns::current().map_err(ErrorReply::internal)?;
        let number = match self.in_container {
            true => None,
            false => Some(netlink.netns_id(host.as_fd()).await.map_err(ErrorReply::internal)?),
        };
        let new = NewLink {
            parent: Some(Parent { index: master.index, netns: number }),
            mtu: u32::try_from(self.mtu).ok().filter(|mtu| *mtu > 0),
            mac: upper.mac,
            ..NewLink::new(&request.ifname, upper.kind)
        };
        let failed = |error: Error| {
            ErrorReply::internal(format!("failed to create link on master {:?}: {error}", master.name))
        };
        let link = match netlink.add_link(&new).await {
            Err(error) if error.is_exists() && !self.in_container => {
                if netlink.find_link(&new.name).await.map_err(failed)?.is_some() {
                    return Err(failed(error));
                }
                make_elsewhere_first(&netlink, &new, request, made, failed).await?
            }
            added => {
                added.map_err(failed)?;
                let link = made::find(&netlink, &new.name, failed).await?;
                made.link(&netlink, link.index);
                link
            }
        };
        Ok(Inside { netns, netlink, link })
    }

    /// STATUS: there is no ADD without the master. One in containers is not looked for: there is no container.
    pub(crate) async fn available(&self) -> Result<(), ErrorReply> {
        if self.in_container {
            return Ok(());
        }
        let found = self.master(&self.around(None)?).await;
        found.map(drop).map_err(|error| ErrorReply::new(code::PLUGIN_NOT_AVAILABLE, error.msg))
    }

    /// A socket where the master is.
    fn around(&self, netns: Option<&Netns>) -> Result<Netlink, ErrorReply> {
        let opened = match netns.filter(|_| self.in_container) {
            Some(netns) => Netlink::open_in(netns),
            None => Netlink::open(),
        };
        opened.map_err(ErrorReply::internal)
    }

    async fn master(&self, around: &Netlink) -> Result<Link, ErrorReply> {
        match &self.master {
            Some(name) => around
                .link(name)
                .await
                .map_err(|error| ErrorReply::internal(format!("failed to lookup master {name:?}: {error}"))),
            None => default_route_link(around).await,
        }
    }
}

/// Kernels before 6.15 make the link beside its master before they move it, so that no link there may have its name. It
/// gets its own once it has moved; until then it has one that DEL knows.
async fn make_elsewhere_first(
    netlink: &Netlink,
    new: &NewLink,
    request: &Request,
    made: &mut Made<'_>,
    failed: impl Fn(Error) -> ErrorReply + Copy,
) -> Result<Link, ErrorReply> {
    let interim = NewLink { name: interim_name(request), ..new.clone() };
    netlink.add_link(&interim).await.map_err(failed)?;
    let link = made::find(netlink, &interim.name, failed).await?;
    made.link(netlink, link.index);
    let rename = LinkChange { name: Some(new.name.clone()), ..LinkChange::default() };
    netlink.change_link(link.index, &rename).await.map_err(failed)?;
    netlink.link(&new.name).await.map_err(failed)
}

/// The name that a link of the attachment may have before it has its own.
pub(crate) fn interim_name(request: &Request) -> String {
    pair::port_name(&request.network, &request.container_id, &request.ifname)
}

/// The link that the first default route leads through, IPv4 before IPv6.
async fn default_route_link(netlink: &Netlink) -> Result<Link, ErrorReply> {
    let routes = netlink.routes().await.map_err(ErrorReply::internal)?;
    let mut defaults =
        routes.iter().filter(|route| route.table == MAIN_TABLE && route.destination.prefix() == 0);
    let index = defaults.find_map(|route| route.link);
    let index = index.ok_or_else(|| ErrorReply::internal("no default route interface found"))?;
    let link = netlink.find_link_by_index(index).await.map_err(ErrorReply::internal)?;
    link.ok_or_else(|| ErrorReply::internal("no default route interface found"))
}
