//! An ADD in progress: what was made, so that a failure undoes it.
//!
//! The link goes first, as at DEL (see [`delegate::detach`]).

use cni::{AddResult, ErrorReply, exec::Verb};
use linux::netlink::{Error, Link, Netlink};

use crate::{delegate, plugin::Request};

/// What one ADD has made so far.
pub(crate) struct Made<'a> {
    request: &'a Request,
    /// The link, and the socket that reaches it.
    link: Option<(Netlink, u32)>,
    /// Takes away what else must go before the addresses do.
    also: Option<Box<dyn FnOnce() -> Result<(), ErrorReply> + 'a>>,
    /// The IPAM plugin that gave addresses, or may have.
    ipam: Option<&'a str>,
}

impl<'a> Made<'a> {
    pub(crate) fn nothing(request: &'a Request) -> Self {
        Self { request, link: None, also: None, ipam: None }
    }

    pub(crate) fn link(&mut self, netlink: &Netlink, index: u32) {
        self.link = Some((netlink.clone(), index));
    }

    /// Has something undone between link and addresses; of something that was not made, too.
    pub(crate) fn also(&mut self, undo: impl FnOnce() -> Result<(), ErrorReply> + 'a) {
        self.also = Some(Box::new(undo));
    }

    /// What the IPAM plugin answers; `position` is the place of the link that gets the addresses among the result's
    /// interfaces.
    pub(crate) async fn addresses(
        &mut self,
        ipam: &'a str,
        position: usize,
    ) -> Result<AddResult, ErrorReply> {
        let answer = delegate::add(self.request, ipam, self.request.stdin.clone()).await;
        // One that refused gave nothing: a DEL would take a lease of an earlier attachment.
        if answer.as_ref().map_or_else(|failed| failed.needs_undo, |_| true) {
            self.ipam = Some(ipam);
        }
        let mut given = answer.map_err(|failed| failed.reply)?;
        if given.ips.is_empty() {
            return Err(ErrorReply::internal("IPAM plugin returned missing IP config"));
        }
        for ip in &mut given.ips {
            ip.interface = Some(position);
        }
        Ok(AddResult { interfaces: Vec::new(), ..given })
    }

    /// Passes on what came of the ADD. After a failure, what was made is gone, or the details say what is left.
    pub(crate) async fn keep_or_undo<T>(mut self, done: Result<T, ErrorReply>) -> Result<T, ErrorReply> {
        let Err(error) = done else { return done };
        Err(error.with_undo(self.undo().await))
    }

    /// What could not be undone. A link that stands keeps its guard and its addresses, until DEL; but for those of DHCP.
    async fn undo(&mut self) -> Vec<String> {
        let mut left = self.release_through_link().await;
        if let Some((netlink, index)) = self.link.take() {
            match netlink.del_link(index).await {
                Err(error) if !error.is_gone() => {
                    left.push(error.to_string());
                    return left;
                }
                _ => {}
            }
        }
        let also = self.also.take().map_or(Ok(()), |undo| undo());
        left.extend(also.err().map(|error| error.to_string()));
        self.release(&mut left).await;
        left
    }

    /// A DHCP server is told through the link that its addresses are free; of other plugins' nothing is done yet.
    pub(crate) async fn release_through_link(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        if self.ipam == Some(delegate::DHCP) {
            self.release(&mut left).await;
        }
        left
    }

    /// Leaves the addresses to DEL, with a link that stands.
    pub(crate) fn keep_addresses(&mut self) {
        self.ipam = None;
    }

    async fn release(&mut self, left: &mut Vec<String>) {
        if let Some(ipam) = self.ipam.take() {
            let released = delegate::run(self.request, ipam, Verb::Del).await;
            left.extend(released.err().map(|error| error.to_string()));
        }
    }
}

/// Looks up a link that was just made, to register it by its index. One that cannot be looked up is deleted by its name.
pub(crate) async fn find(
    netlink: &Netlink,
    name: &str,
    failed: impl Fn(Error) -> ErrorReply,
) -> Result<Link, ErrorReply> {
    match netlink.link(name).await {
        Ok(link) => Ok(link),
        Err(error) => {
            let undone = netlink.del_link_named(name).await;
            Err(failed(error).with_undo(undone.err().filter(|left| !left.is_gone())))
        }
    }
}

#[cfg(test)]
mod tests;
