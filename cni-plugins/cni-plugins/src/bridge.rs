//! The plugin `bridge`: joins a container to a Linux bridge on the host by a pair of virtual Ethernet links.
//!
//! Inputs: the reference plugin's configuration keys; outputs: the bridge, both ends of the pair, and the addresses
//! that the IPAM plugin gave. Owns the pair, the bridge (which it makes when it is missing and never deletes), the
//! bridge's gateway addresses, the link that carries those of a VLAN, the forwarding switch where the bridge is a gateway, and
//! the attachment's rules of the packet filter (`ipMasq`, `macspoofchk`), which are nftables rules whatever `ipMasqBackend`
//! says. The host's end carries an alias that names network, container and link, so that GC, and a DEL whose namespace is
//! gone, find it without a state file.
//!
//! An ADD that fails removes the pair first and releases the addresses after that, so that no address is handed out again
//! while a link still carries it.

mod attach;
mod check;
pub(crate) mod config;
mod filters;
mod gateway;
mod host;
mod spoof;
mod vlans;

use cni::{AddResult, ErrorReply, exec::Verb};
use linux::netlink::Netlink;

use self::{attach::Attach, config::Config, filters::Filters};
use crate::{
    delegate,
    made::Made,
    pair,
    plugin::{Plugin, Request, block_on},
};

/// See the module.
#[derive(Debug)]
pub struct Bridge;

impl Plugin for Bridge {
    const NAME: &'static str = "bridge";

    fn add(&self, request: &Request) -> Result<AddResult, ErrorReply> {
        let config = Config::read(request)?;
        let netns = request.open_netns()?;
        block_on(async {
            let host = Netlink::open().map_err(ErrorReply::internal)?;
            let mut made = Made::nothing(request);
            let done = Attach { request, config: &config, netns: &netns, host }.run(&mut made).await;
            made.keep_or_undo(done).await
        })
    }

    fn del(&self, request: &Request) -> Result<(), ErrorReply> {
        let (ipam, filters) = (delegate::ipam_type(request)?, Filters::read(request)?);
        let remove_link = async {
            match pair::detach(request).await {
                Ok(()) => filters.tear_down(request),
                // A link that stands keeps its guard.
                Err(error) => ErrorReply::first_of([Err(error), filters.masquerade.tear_down(request)]),
            }
        };
        block_on(delegate::detach(request, ipam.as_deref(), remove_link))
    }

    fn check(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        let netns = request.open_netns()?;
        let expected = request.required_prev_result("Required prevResult missing")?;
        block_on(async {
            delegate::run_if_any(request, config.ipam.as_deref(), Verb::Check).await?;
            let host = Netlink::open().map_err(ErrorReply::internal)?;
            let container = Netlink::open_in(&netns).map_err(ErrorReply::internal)?;
            check::attachment(request, &config, &expected, &check::Sides { host, container }).await
        })
    }

    fn gc(&self, request: &Request) -> Result<(), ErrorReply> {
        let ipam = delegate::ipam_type(request)?;
        block_on(pair::gc(request, ipam.as_deref(), filters::collect(request)))
    }

    fn status(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        block_on(delegate::run_if_any(request, config.ipam.as_deref(), Verb::Status))
    }
}
