//! The plugin `bridge`: joins a container to a Linux bridge on the host by a pair of virtual Ethernet links.
//!
//! Inputs: the reference plugin's configuration keys; outputs: the bridge, both ends of the pair, and the addresses
//! that the IPAM plugin gave. Owns the pair, the bridge (which it makes when it is missing and never deletes), the
//! bridge's gateway addresses, the forwarding switch where the bridge is a gateway, and the attachment's rules of the packet
//! filter (`ipMasq`, `macspoofchk`), which are nftables rules whatever `ipMasqBackend` says. The host's end carries an alias
//! that names network, container and link, so that GC, and a DEL whose namespace is gone, find it without a state file.
//!
//! It refuses keys that it cannot honour (see [`config`](self)). An ADD that fails removes the pair first and releases
//! the addresses after that, so that no address is handed out again while a link still carries it.

mod attach;
mod check;
mod config;
mod container;
mod filters;
mod gateway;
mod host;
mod spoof;

use cni::{AddResult, ErrorReply, code, exec::Verb};
use linux::{
    netlink::{Error as NetlinkError, Netlink},
    netns::Netns,
};

pub use self::host::{port_name, unfinished_group};
use self::{
    attach::Attach,
    config::Config,
    filters::Filters,
    host::{Alias, delete_leftovers, delete_port},
};
use crate::{
    delegate,
    plugin::{Plugin, Request, block_on},
};

/// See the module.
#[derive(Debug)]
pub struct Bridge;

impl Plugin for Bridge {
    const NAME: &'static str = "bridge";

    fn add(&self, request: &Request) -> Result<AddResult, ErrorReply> {
        let config = Config::read(request)?;
        let netns = open_netns(request)?;
        block_on(async {
            let host = Netlink::open().map_err(ErrorReply::internal)?;
            let mut attach = Attach::new(request, &config, &netns, host);
            match attach.run().await {
                Ok(result) => Ok(result),
                Err(error) => Err(match attach.undo().await {
                    Ok(()) => error,
                    Err(left) => {
                        let details = format!("undo: {left}");
                        ErrorReply { details, ..error }
                    }
                }),
            }
        })
    }

    fn del(&self, request: &Request) -> Result<(), ErrorReply> {
        let (ipam, filters) = (delegate::ipam_type(request)?, Filters::read(request)?);
        block_on(async {
            let mut rules = filters.begin_tear_down(request);
            delete_link(request).await?;
            rules.go_on();
            let released = match ipam {
                Some(ipam) => delegate::run(request, &ipam, Verb::Del).await,
                None => Ok(()),
            };
            released.and(rules.end())
        })
    }

    fn check(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        let netns = open_netns(request)?;
        let expected =
            request.prev_result()?.ok_or_else(|| ErrorReply::config("Required prevResult missing"))?;
        block_on(async {
            if let Some(ipam) = &config.ipam {
                delegate::run(request, ipam, Verb::Check).await?;
            }
            let host = Netlink::open().map_err(ErrorReply::internal)?;
            let container = Netlink::open_in(&netns).map_err(ErrorReply::internal)?;
            check::attachment(request, &config, &expected, &check::Sides { host, container }).await
        })
    }

    fn gc(&self, request: &Request) -> Result<(), ErrorReply> {
        let ipam = delegate::ipam_type(request)?;
        let valid = request.valid_attachments()?;
        block_on(async {
            let host = Netlink::open().map_err(ErrorReply::internal)?;
            delete_leftovers(&host, &request.network, &valid).await.map_err(ErrorReply::internal)?;
            let links = host.links().await.map_err(ErrorReply::internal)?;
            let unfiltered = filters::collect(request, &valid, &links);
            match ipam {
                Some(ipam) => delegate::run(request, &ipam, Verb::Gc).await.and(unfiltered),
                None => unfiltered,
            }
        })
    }

    fn status(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        block_on(async {
            match &config.ipam {
                Some(ipam) => delegate::run(request, ipam, Verb::Status).await,
                None => Ok(()),
            }
        })
    }
}

fn open_netns(request: &Request) -> Result<Netns, ErrorReply> {
    let path = request.netns.as_deref().unwrap_or_else(|| std::path::Path::new(""));
    Netns::open(path).map_err(|error| {
        ErrorReply::new(code::INVALID_NETNS, format!("failed to open netns {path:?}: {error}"))
    })
}

/// Deletes the pair by the container's end; where the namespace is gone or not told, by the host's end, which is
/// usually gone with it.
async fn delete_link(request: &Request) -> Result<(), ErrorReply> {
    let netns = match request.netns.as_ref().map(Netns::open) {
        Some(Ok(netns)) => netns,
        Some(Err(error)) if !error.is_gone() => return Err(ErrorReply::internal(error)),
        Some(Err(_)) | None => {
            let host = Netlink::open().map_err(ErrorReply::internal)?;
            return delete_port(&host, Alias::of(request)).await.map_err(ErrorReply::internal);
        }
    };
    let container = Netlink::open_in(&netns).map_err(ErrorReply::internal)?;
    delete_named(&container, &request.ifname).await.map_err(ErrorReply::internal)
}

async fn delete_named(container: &Netlink, name: &str) -> Result<(), NetlinkError> {
    let Some(link) = container.find_link(name).await? else { return Ok(()) };
    match container.del_link(link.index).await {
        Err(error) if error.is_gone() => Ok(()),
        deleted => deleted,
    }
}
