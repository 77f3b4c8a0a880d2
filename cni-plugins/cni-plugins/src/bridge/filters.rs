//! An attachment's rules of the packet filter: masquerading and the guard against foreign sender addresses.
//!
//! Owns: the keys `ipMasq`, `ipMasqBackend` and `macspoofchk`, and when rules are made, compared and deleted. Rules of an
//! attachment go whether or not its link and its namespace are there.

use cni::{AddResult, ErrorReply, json::JsonError};
use linux::{netlink::Link, nftables::Nftables};

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

    /// Begins to delete the attachment's rules, none is success: what is masqueraded first, so that the kernel's grace period
    /// for it, which the end of the socket waits for, passes while the link is deleted.
    pub(super) fn begin_tear_down(&self, request: &Request) -> TearDown {
        let mut begun = TearDown::default();
        if !self.are_any() {
            return begun;
        }
        match ruleset::open_to_remove() {
            Ok(nftables) => begun.nftables = nftables,
            Err(error) => begun.errors.push(error.to_string()),
        }
        begun.guard = self.guard.then(|| Guard::of(request));
        if let Some(nftables) = begun.nftables.as_ref().filter(|_| self.masquerade) {
            let ended = masquerade::tear_down(nftables, Owner::of(request));
            begun.errors.extend(ended.err().map(|error| error.to_string()));
        }
        begun
    }
}

/// The deletion of an attachment's rules, under way.
#[derive(Debug, Default)]
pub(super) struct TearDown {
    nftables: Option<Nftables>,
    guard: Option<Guard>,
    errors: Vec<String>,
}

impl TearDown {
    /// Deletes what may go only after the link. To be kept until the rest of the work is done: see
    /// [`Filters::begin_tear_down`].
    pub(super) fn go_on(&mut self) {
        if let (Some(nftables), Some(guard)) = (&self.nftables, self.guard.take()) {
            self.errors.extend(guard.tear_down(nftables).err().map(|error| error.to_string()));
        }
    }

    /// What could not be deleted.
    pub(super) fn end(self) -> Result<(), ErrorReply> {
        if self.errors.is_empty() { Ok(()) } else { Err(ErrorReply::internal(self.errors.join("; "))) }
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
