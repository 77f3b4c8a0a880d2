//! A link's way into the container and back.
//!
//! Namespace, name and alias change in one message each way. So nobody on the host sees the container's name, and a
//! plugin that is killed leaves the link on one side or on the other, with the alias that DEL needs. The kernel stops at
//! the first of the three that it refuses: what can be known before is asked before, and the rest is undone.

use std::os::fd::{AsFd, BorrowedFd};

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
    was_up: bool,
    ifname: &'a str,
}

impl<'a> Loan<'a> {
    pub(super) fn of(device: &Link, ifname: &'a str) -> Self {
        Self { name: device.name.clone(), was_up: device.up, ifname }
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
    pub(super) async fn end(&self, host: &Netlink, netns: &Netns) -> Result<(), Error> {
        let Some(back) = self.recover(host, netns).await? else { return Ok(()) };
        if self.was_up { host.set_link_up(back.index).await } else { Ok(()) }
    }

    /// The link on the host again; none if it never left.
    async fn recover(&self, host: &Netlink, netns: &Netns) -> Result<Option<Link>, Error> {
        if host.find_link(&self.name).await?.is_some() {
            return Ok(None);
        }
        let inside = Netlink::open_in(netns)?;
        let moved = match inside.find_link(self.ifname).await? {
            Some(link) => Some(link),
            None => inside.find_link(&self.name).await?,
        };
        let Some(moved) = moved else { return Ok(None) };
        let own = Netns::current().map_err(Error::Netns)?;
        give_back(&inside, moved.index, &self.name, own.as_fd()).await?;
        host.find_link(&self.name).await
    }
}

/// DEL: moves the link out. One that is not there (any more) is back already.
pub(super) async fn take_back(host: &Netlink, netns: &Netns, ifname: &str) -> Result<(), ErrorReply> {
    let failed =
        |error: Error| ErrorReply::internal(format!("failed to move {ifname:?} to the host: {error}"));
    let inside = Netlink::open_in(netns).map_err(failed)?;
    let Some(link) = inside.find_link(ifname).await.map_err(failed)? else { return Ok(()) };
    let Some(name) = link.alias.filter(|alias| !alias.is_empty()) else {
        let message = format!("failed to find original ifname for {ifname:?} (alias is not set)");
        return Err(ErrorReply::internal(message));
    };
    if host.find_link(&name).await.map_err(failed)?.is_some() {
        let message = format!("failed to rename device {ifname:?} to {name:?}: the host has such a link");
        return Err(ErrorReply::internal(message));
    }
    let own = Netns::current().map_err(ErrorReply::internal)?;
    give_back(&inside, link.index, &name, own.as_fd()).await.map_err(failed)
}

async fn give_back(inside: &Netlink, index: u32, name: &str, host: BorrowedFd<'_>) -> Result<(), Error> {
    let change = LinkChange {
        netns: Some(host),
        name: Some(name.to_owned()),
        alias: Some(String::new()),
        ..LinkChange::default()
    };
    inside.change_link(index, &change).await
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
