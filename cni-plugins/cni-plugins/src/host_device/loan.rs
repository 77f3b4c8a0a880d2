//! A link's way into the container and back.
//!
//! Namespace, name and alias change in one message each way. So nobody on the host sees the container's name, and a
//! plugin that is killed leaves the link on one side or on the other, with the alias that DEL needs. The kernel stops at
//! the first of the three that it refuses: what can be known before is asked before, and the rest is undone.

use std::os::fd::AsFd;

use cni::ErrorReply;
use linux::{
    netlink::{Error, Link, LinkChange, Netlink},
    netns::Netns,
};

use crate::inside::Inside;

/// Who borrows what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Loan<'a> {
    /// The link's name on the host.
    name: String,
    /// Its index there.
    index: u32,
    was_up: bool,
    ifname: &'a str,
}

impl<'a> Loan<'a> {
    pub(super) fn of(device: &Link, ifname: &'a str) -> Self {
        Self { name: device.name.clone(), index: device.index, was_up: device.up, ifname }
    }

    /// Moves the link in. A failure needs [`Loan::end`].
    pub(super) async fn start<'n>(
        &self,
        host: &Netlink,
        device: &Link,
        netns: &'n Netns,
    ) -> Result<Inside<'n>, ErrorReply> {
        let failed =
            |error: Error| ErrorReply::internal(format!("failed to move link {:?}: {error}", self.name));
        let netlink = Netlink::open_in(netns).map_err(failed)?;
        if netlink.find_link(self.ifname).await.map_err(failed)?.is_some() {
            let message = format!(
                "failed to move link {:?}: {:?} already exists in the container",
                self.name, self.ifname
            );
            return Err(ErrorReply::internal(message));
        }
        let change = LinkChange {
            netns: Some(netns.as_fd()),
            name: Some(self.ifname.to_owned()),
            alias: Some(self.name.clone()),
            ..LinkChange::default()
        };
        host.change_link(device.index, &change).await.map_err(failed)?;
        // It may have another index now.
        let link = netlink.link(self.ifname).await.map_err(failed)?;
        Ok(Inside { netns, netlink, link })
    }

    /// Undoes [`Loan::start`], however far it came.
    pub(super) async fn end(&self, host: &Netlink, netns: &Netns) -> Result<(), ErrorReply> {
        // Either alone another link may have meanwhile.
        let here = host.find_link_by_index(self.index).await.map_err(ErrorReply::internal)?;
        if here.is_some_and(|link| link.name == self.name) {
            return Ok(());
        }
        let inside = Netlink::open_in(netns).map_err(ErrorReply::internal)?;
        let moved = match inside.find_link(self.ifname).await.map_err(ErrorReply::internal)? {
            Some(link) => Some(link),
            None => inside.find_link(&self.name).await.map_err(ErrorReply::internal)?,
        };
        let Some(moved) = moved else { return Ok(()) };
        give_back(host, &inside, &moved, &self.name).await?;
        let back = host.find_link(&self.name).await.map_err(ErrorReply::internal)?;
        match back.filter(|_| self.was_up) {
            Some(back) => host.set_link_up(back.index).await.map_err(ErrorReply::internal),
            None => Ok(()),
        }
    }
}

/// DEL: moves the link out. One that is not there (any more) is back already.
pub(super) async fn take_back(host: &Netlink, netns: &Netns, ifname: &str) -> Result<(), ErrorReply> {
    let failed =
        |error: Error| ErrorReply::internal(format!("failed to move {ifname:?} to the host: {error}"));
    let inside = Netlink::open_in(netns).map_err(failed)?;
    let Some(link) = inside.find_link(ifname).await.map_err(failed)? else { return Ok(()) };
    let Some(name) = link.alias.as_deref().filter(|alias| !alias.is_empty()) else {
        let message = format!("failed to find original ifname for {ifname:?} (alias is not set)");
        return Err(ErrorReply::internal(message));
    };
    give_back(host, &inside, &link, name).await
}

/// Moves the link out, unless its name is taken there: the kernel would move it first, and then not rename it.
async fn give_back(host: &Netlink, inside: &Netlink, link: &Link, name: &str) -> Result<(), ErrorReply> {
    let failed =
        |error: Error| ErrorReply::internal(format!("failed to move {:?} to the host: {error}", link.name));
    if host.find_link(name).await.map_err(failed)?.is_some() {
        let message =
            format!("failed to rename device {:?} to {name:?}: the host has such a link", link.name);
        return Err(ErrorReply::internal(message));
    }
    let own = Netns::current().map_err(ErrorReply::internal)?;
    let change = LinkChange {
        netns: Some(own.as_fd()),
        name: Some(name.to_owned()),
        alias: Some(String::new()),
        ..LinkChange::default()
    };
    inside.change_link(link.index, &change).await.map_err(failed)
}

/// The kernel brings devices back that were in a namespace which ended, under the name that they had there or one of
/// its own. The link that has `name` for an alias, and not for a name, gets it back, unless it is taken.
pub(super) async fn restore_name(host: &Netlink, name: &str) -> Result<(), ErrorReply> {
    let links = host.links().await.map_err(ErrorReply::internal)?;
    if links.iter().any(|link| link.name == name) {
        return Ok(());
    }
    let Some(lost) = links.iter().find(|link| link.alias.as_deref() == Some(name)) else { return Ok(()) };
    eprintln!("{} came back as {}: it gets its name back", name, lost.name);
    let down = LinkChange { up: Some(false), ..LinkChange::default() };
    let rename =
        LinkChange { name: Some(name.to_owned()), alias: Some(String::new()), ..LinkChange::default() };
    // A link that is up cannot be renamed by older kernels.
    let restored = async {
        host.change_link(lost.index, &down).await?;
        host.change_link(lost.index, &rename).await
    };
    restored.await.map_err(ErrorReply::internal)
}
