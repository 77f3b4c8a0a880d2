//! The plugin `firewall`: lets forwarded packets of a container pass, and keeps bridges apart.
//!
//! Inputs: the reference plugin's configuration keys, and the result of the plugins before it, which passes through. Owns:
//! the table `inet cni_firewall`, and where bridges' frames pass no table of IP (no br_netfilter) `bridge cni_firewall` for the
//! policy `isolated`. The decisions are those of the reference's iptables backend, in
//! its order: isolation of bridges (`ingressPolicy`), the administrator's chain (`iptablesAdminChainName`, a chain of our
//! table that is never emptied), then what is established or related is accepted to a container, and everything from it.
//!
//! It makes nftables rules whatever `backend` says; only `firewalld`, asked for by name, is refused. An accept ends the way
//! through this table alone. It cannot overrule a drop elsewhere: in another table, or by iptables' policy of its chain
//! FORWARD, where the reference's rules stand and do overrule it. Drops hold wherever they are.
//!
//! Rules of bridges stay when containers go, as the reference's do: other containers may be behind them.

pub(crate) mod config;
mod rules;

use cni::{AddResult, ErrorReply, Version};

use self::{config::Config, rules::Owner};
use crate::{
    plugin::{Plugin, Request},
    ruleset, sysctl,
};

/// See the module.
#[derive(Debug)]
pub struct Firewall;

impl Plugin for Firewall {
    const NAME: &'static str = "firewall";
    const OLDEST: Version = Version::V0_4_0;

    /// One transaction, so there is nothing to undo.
    fn add(&self, request: &Request) -> Result<AddResult, ErrorReply> {
        let config = Config::read(request)?;
        let result = previous(request)?;
        let bridge = config.isolated_bridge(&result, frames_are_packets())?;
        config.announce_substitute();
        Owner::of(request).set_up(&*ruleset::open()?, &config, bridge.as_ref(), &result).map_err(
            |error| {
                let reply = ErrorReply::internal(format!("failed to set up firewall rules: {error}"));
                // A module that is not installed is "not found".
                let is_lacking = error.is_unsupported() || error.is_gone();
                if is_lacking && bridge.is_some_and(|bridge| bridge.drops_frames()) {
                    let details =
                        "the kernel cannot filter by bridge (NFT_BRIDGE_META): load br_netfilter instead";
                    return reply.with_details(details);
                }
                reply
            },
        )?;
        Ok(result)
    }

    fn del(&self, request: &Request) -> Result<(), ErrorReply> {
        let Some(nftables) = ruleset::open_to_remove()? else { return Ok(()) };
        Owner::of(request).tear_down(&nftables).map_err(ErrorReply::internal)
    }

    fn check(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        let result = previous(request)?;
        let bridge = config.isolated_bridge(&result, frames_are_packets())?;
        let missing = Owner::of(request).find_missing(&*ruleset::open()?, &config, bridge.as_ref(), &result);
        match missing.map_err(ErrorReply::internal)? {
            Some(rule) => Err(ErrorReply::internal(format!("expected rule {rule} not found"))),
            None => Ok(()),
        }
    }

    fn gc(&self, request: &Request) -> Result<(), ErrorReply> {
        let valid = request.valid_attachments()?;
        let Some(nftables) = ruleset::open_to_remove()? else { return Ok(()) };
        rules::collect(&nftables, &request.network, &valid).map_err(ErrorReply::internal)
    }

    fn status(&self, request: &Request) -> Result<(), ErrorReply> {
        Config::read(request)?;
        ruleset::status()
    }
}

/// Whether frames that a bridge forwards pass the tables of IP, for both families.
fn frames_are_packets() -> bool {
    let switches = ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"];
    switches.into_iter().all(|switch| sysctl::get(switch).is_ok_and(|value| value != "0"))
}

fn previous(request: &Request) -> Result<AddResult, ErrorReply> {
    let result = request.prev_result()?;
    result.ok_or_else(|| ErrorReply::internal("missing prevResult from earlier plugin"))
}
