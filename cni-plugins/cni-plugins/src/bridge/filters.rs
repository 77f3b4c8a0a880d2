//! An attachment's rules of the packet filter: masquerading and the guard against foreign sender addresses.
//!
//! Owns: the key `macspoofchk`, and when rules of it and of [`Masquerade`] are made, compared and deleted. Rules of an
//! attachment go whether or not its link and its namespace are there.

use cni::{AddResult, ErrorReply};
use linux::netlink::{Link, Netlink};

use super::spoof::{self, Guard};
use crate::{
    masquerade::{self, Masquerade},
    plugin::{Request, decoding},
    ruleset,
};

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Filters {
    pub(super) masquerade: Masquerade,
    guard: bool,
}

impl Filters {
    pub(super) fn read(request: &Request) -> Result<Self, ErrorReply> {
        let guard = request.root().boolean("macspoofchk").map_err(decoding)?.unwrap_or(false);
        Ok(Self { masquerade: Masquerade::read(request)?, guard })
    }

    pub(super) fn are_any(&self) -> bool {
        self.masquerade.is_wanted() || self.guard
    }

    /// Lets the container send from the hardware address that its link has now.
    pub(super) fn guard(&self, request: &Request, port: &Link, inside: &Link) -> Result<(), ErrorReply> {
        let Some(address) = inside.mac.filter(|_| self.guard) else { return Ok(()) };
        let failed = |error| ErrorReply::internal(format!("failed to setup spoof-check: {error}"));
        Guard::of(request).set_up(&*ruleset::open()?, &port.name, address).map_err(failed)
    }

    pub(super) fn check(
        &self,
        request: &Request,
        expected: &AddResult,
        port: &Link,
    ) -> Result<(), ErrorReply> {
        let guarded = !self.guard
            || Guard::of(request).is_set_up(&*ruleset::open()?, &port.name).map_err(ErrorReply::internal)?;
        if !guarded {
            let message = format!("rules of the spoof-check of interface {} not found", port.name);
            return Err(ErrorReply::internal(message));
        }
        self.masquerade.check(request, expected)
    }

    /// Deletes the attachment's rules; none is success. Its link is gone: nothing is sent from it unguarded.
    pub(super) fn tear_down(&self, request: &Request) -> Result<(), ErrorReply> {
        let ruleset = if self.are_any() { ruleset::open_to_remove()? } else { None };
        let Some(ruleset) = ruleset else { return Ok(()) };
        let unmasqueraded = self.masquerade.tear_down_by(&ruleset, request);
        let unguarded = if self.guard { Guard::of(request).tear_down(&ruleset) } else { Ok(()) };
        ErrorReply::first_of([unmasqueraded, unguarded].map(|done| done.map_err(ErrorReply::internal)))
    }
}

/// Deletes the rules of the network's attachments that are not valid, whatever the configuration says now.
pub(super) async fn collect(request: &Request) -> Result<(), ErrorReply> {
    let unguarded = collect_guards(request).await;
    ErrorReply::first_of([unguarded, masquerade::collect_of(request)])
}

async fn collect_guards(request: &Request) -> Result<(), ErrorReply> {
    let valid = request.valid_attachments()?;
    let Some(nftables) = ruleset::open_to_remove()? else { return Ok(()) };
    let host = Netlink::open().map_err(ErrorReply::internal)?;
    let links = host.links().await.map_err(ErrorReply::internal)?;
    let names: Vec<String> = links.into_iter().map(|link| link.name).collect();
    spoof::collect(&nftables, &valid, &names).map_err(ErrorReply::internal)
}
