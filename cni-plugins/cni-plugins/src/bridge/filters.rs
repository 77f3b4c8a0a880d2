//! An attachment's rules of the packet filter: masquerading and the guard against foreign sender addresses.
//!
//! Owns: the keys `ipMasq`, `ipMasqBackend` and `macspoofchk`, and when rules are made, compared and deleted. Rules of an
//! attachment go whether or not its link and its namespace are there.

use cni::{AddResult, ErrorReply, json::JsonError};
use linux::netlink::Link;

use super::spoof::{self, Guard};
use crate::{
    masquerade::{self, Owner},
    plugin::{Request, Valid, decoding},
    ruleset,
};

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Filters {
    masquerade: bool,
    backend: Option<String>,
    guard: bool,
}

impl Filters {
    pub(super) fn read(request: &Request) -> Result<Self, ErrorReply> {
        let root = request.root();
        let read = || -> Result<Self, JsonError> {
            Ok(Self {
                masquerade: root.boolean("ipMasq")?.unwrap_or(false),
                backend: root.string("ipMasqBackend")?.map(str::to_owned),
                guard: root.boolean("macspoofchk")?.unwrap_or(false),
            })
        };
        read().map_err(decoding)
    }

    pub(super) fn are_any(&self) -> bool {
        self.masquerade || self.guard
    }

    /// Refuses what no ADD could do, before one does anything.
    pub(super) fn validate(&self) -> Result<(), ErrorReply> {
        match self.backend.as_deref().filter(|_| self.masquerade) {
            None | Some("nftables") => {}
            Some("iptables") => eprintln!("ipMasqBackend \"iptables\": the rules are made with nftables"),
            Some(other) => return Err(ErrorReply::internal(format!("unknown ipmasq backend {other:?}"))),
        }
        Ok(())
    }

    /// Lets the container send from the hardware address that its link has now.
    pub(super) fn guard(&self, request: &Request, port: &Link, inside: &Link) -> Result<(), ErrorReply> {
        let Some(address) = inside.mac.filter(|_| self.guard) else { return Ok(()) };
        let failed = |error| ErrorReply::internal(format!("failed to setup spoof-check: {error}"));
        Guard::of(request).set_up(&ruleset::open()?, &port.name, address).map_err(failed)
    }

    /// Masquerades the addresses that the container got.
    pub(super) fn masquerade(&self, request: &Request, result: &AddResult) -> Result<(), ErrorReply> {
        if !self.masquerade {
            return Ok(());
        }
        let addresses: Vec<_> = result.ips.iter().map(|ip| ip.address).collect();
        masquerade::set_up(&ruleset::open()?, Owner::of(request), &addresses)
            .map_err(|error| ErrorReply::internal(format!("failed to set up masquerading: {error}")))
    }

    /// Masquerading is compared only where the configuration says that it is done with nftables: an attachment that the
    /// reference plugin made may have iptables rules, and be sound.
    pub(super) fn check(
        &self,
        request: &Request,
        expected: &AddResult,
        port: &Link,
    ) -> Result<(), ErrorReply> {
        let guarded = !self.guard
            || Guard::of(request).is_set_up(&ruleset::open()?, &port.name).map_err(ErrorReply::internal)?;
        if !guarded {
            let message = format!("rules of the spoof-check of interface {} not found", port.name);
            return Err(ErrorReply::internal(message));
        }
        let comparable = self.masquerade && self.backend.as_deref() == Some("nftables");
        let count = expected.ips.len();
        let masqueraded = !comparable
            || masquerade::is_set_up(&ruleset::open()?, Owner::of(request), count)
                .map_err(ErrorReply::internal)?;
        if masqueraded {
            Ok(())
        } else {
            Err(ErrorReply::internal(format!("rules that masquerade {} not found", request.container_id)))
        }
    }

    /// Deletes the attachment's rules; none is success.
    pub(super) fn tear_down(&self, request: &Request) -> Result<(), ErrorReply> {
        if !self.are_any() {
            return Ok(());
        }
        let Some(nftables) = ruleset::open_to_remove()? else { return Ok(()) };
        let unguarded = if self.guard { Guard::of(request).tear_down(&nftables) } else { Ok(()) };
        let unmasqueraded =
            if self.masquerade { masquerade::tear_down(&nftables, Owner::of(request)) } else { Ok(()) };
        unguarded.and(unmasqueraded).map_err(ErrorReply::internal)
    }
}

/// Deletes the rules of the network's attachments that are not valid, whatever the configuration says now.
pub(super) fn collect(request: &Request, valid: &Valid, links: &[Link]) -> Result<(), ErrorReply> {
    let Some(nftables) = ruleset::open_to_remove()? else { return Ok(()) };
    let names: Vec<String> = links.iter().map(|link| link.name.clone()).collect();
    let unguarded = spoof::collect(&nftables, valid, &names);
    let unmasqueraded = masquerade::collect(&nftables, &request.network, valid);
    unguarded.and(unmasqueraded).map_err(ErrorReply::internal)
}
