//! The plugin `bandwidth`: limits what goes into a container and what comes out of it.
//!
//! Chained after a plugin that made a pair of links. What goes in is queued at the host's end of the pair; what comes out can
//! only be queued where it leaves a link, so it is sent through an `ifb` of its own, which DEL removes: the rest goes with the
//! pair. The kernel waits as long for the end of one link as for that of several, and the pair is to go next: so `ifb` and port
//! share a link group, unless the port has one already, and DEL removes both at once. Inputs: rates and bursts in bits of `runtimeConfig.bandwidth`, or of the configuration itself;
//! output: the previous result, and the `ifb` if there is one.
//!
//! The `ifb` has the reference plugin's name, a hash of network and container, and like a port of `bridge` an alias that says
//! whose it is, for GC. It refuses to replace a queue that somebody else gave the link.

pub(crate) mod config;

use cni::{AddResult, ErrorReply, Interface, Version};
use linux::{
    netlink::{Error as NetlinkError, Link, LinkChange, Netlink, OWN_GROUPS},
    netns::Netns,
};

use self::config::{Config, Limit};
use crate::{
    hash, made,
    pair::{Alias, unfinished_group},
    plugin::{Plugin, Request, block_on},
};

/// Characters of a link's name.
const NAME_LENGTH: usize = 15;
const PREFIX: &str = "bwp";
const NOT_CHAINED: &str = "must be called as chained plugin";

/// See the module.
#[derive(Debug)]
pub struct Bandwidth;

impl Plugin for Bandwidth {
    const NAME: &'static str = "bandwidth";
    const OLDEST: Version = Version::V0_3_0;

    fn add(&self, request: &Request) -> Result<AddResult, ErrorReply> {
        let config = Config::read(request)?;
        let mut result = request.required_prev_result(NOT_CHAINED)?;
        if config.is_empty() {
            return Ok(result);
        }
        let netns = request.open_netns()?;
        block_on(async {
            let host = Netlink::open().map_err(ErrorReply::internal)?;
            let port = host_end(&host, &result, request, &netns).await?;
            let mut limiting = Limiting { request, host, port, made: Vec::new() };
            match limiting.run(&config).await {
                Ok(ifb) => {
                    result.interfaces.extend(ifb);
                    Ok(result)
                }
                Err(error) => Err(limiting.undo(error).await),
            }
        })
    }

    fn del(&self, request: &Request) -> Result<(), ErrorReply> {
        block_on(async {
            let host = Netlink::open().map_err(ErrorReply::internal)?;
            delete_own(&host, request).await
        })
    }

    fn check(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        let result = request.required_prev_result(NOT_CHAINED)?;
        let netns = request.open_netns()?;
        block_on(async {
            let host = Netlink::open().map_err(ErrorReply::internal)?;
            let port = host_end(&host, &result, request, &netns).await?;
            if let Some(limit) = &config.ingress {
                check_bucket(&host, &port, limit).await?;
            }
            if let Some(limit) = &config.egress {
                let name = ifb_name(&request.network, &request.container_id);
                let ifb = host.link(&name).await.map_err(ErrorReply::internal)?;
                check_bucket(&host, &ifb, limit).await?;
            }
            Ok(())
        })
    }

    /// Removes every `ifb` of the network whose container is not among the valid attachments.
    fn gc(&self, request: &Request) -> Result<(), ErrorReply> {
        let valid = request.valid_attachments()?;
        let kept: Vec<String> = valid.iter().map(|(id, _)| ifb_name(&request.network, id)).collect();
        block_on(async {
            let host = Netlink::open().map_err(ErrorReply::internal)?;
            let links = host.links().await.map_err(ErrorReply::internal)?;
            let mut deleted = Vec::new();
            for link in
                links.iter().filter(|link| is_of(link, &request.network) && !kept.contains(&link.name))
            {
                deleted.push(delete(&host, link).await);
            }
            ErrorReply::first_of(deleted)
        })
    }

    fn status(&self, _request: &Request) -> Result<(), ErrorReply> {
        Ok(())
    }
}

/// An ADD in progress: what it works with, and what it has made.
struct Limiting<'a> {
    request: &'a Request,
    host: Netlink,
    port: Link,
    made: Vec<Made>,
}

/// What an undo takes back.
enum Made {
    Bucket,
    Ifb(u32),
    Ingress,
}

impl Limiting<'_> {
    /// The `ifb` for the result, if one was made.
    async fn run(&mut self, config: &Config) -> Result<Option<Interface>, ErrorReply> {
        if let Some(limit) = &config.ingress {
            let added = self.host.add_token_bucket(self.port.index, &limit.bucket()).await;
            added.map_err(|error| ErrorReply::internal(format!("create qdisc: {error}")))?;
            self.made.push(Made::Bucket);
        }
        match &config.egress {
            Some(limit) => self.limit_egress(limit).await.map(Some),
            None => Ok(None),
        }
    }

    async fn limit_egress(&mut self, limit: &Limit) -> Result<Interface, ErrorReply> {
        let name = ifb_name(&self.request.network, &self.request.container_id);
        let group = unfinished_group(&self.request.network);
        let failed =
            |what: &'static str| move |error: NetlinkError| ErrorReply::internal(format!("{what}: {error}"));
        self.host.add_ifb(&name, self.port.mtu, group).await.map_err(failed("adding link"))?;
        let ifb = made::find(&self.host, &name, failed("adding link")).await?;
        self.made.push(Made::Ifb(ifb.index));
        // The bucket first: nothing passes without a limit.
        self.host.add_token_bucket(ifb.index, &limit.bucket()).await.map_err(failed("create ifb qdisc"))?;
        let shared = Some(shared_group(&ifb));
        let alias = Alias::of(self.request).text();
        let finish = LinkChange { alias, group: shared, up: Some(true), ..LinkChange::default() };
        self.host.change_link(ifb.index, &finish).await.map_err(failed("adding link"))?;
        let port = self.port.index;
        self.host.add_ingress(port).await.map_err(failed("create ingress qdisc"))?;
        self.made.push(Made::Ingress);
        self.host.redirect_ingress(port, ifb.index).await.map_err(failed("create ingress filter"))?;
        if self.port.group == 0 {
            let join = LinkChange { group: shared, ..LinkChange::default() };
            self.host.change_link(self.port.index, &join).await.map_err(failed("adding link"))?;
        }
        Ok(Interface { name, mac: ifb.mac.map(|mac| mac.to_string()), ..Interface::default() })
    }

    async fn undo(self, error: ErrorReply) -> ErrorReply {
        let mut left = Vec::new();
        for made in self.made.iter().rev() {
            let undone = match made {
                Made::Bucket => self.host.del_token_bucket(self.port.index).await,
                Made::Ifb(index) => self.host.del_link(*index).await,
                Made::Ingress => self.host.del_ingress(self.port.index).await,
            };
            left.extend(undone.err().filter(|error| !error.is_gone()).map(|error| error.to_string()));
        }
        error.with_undo(left)
    }
}

/// The host's end of the container's pair, which must be in the result.
async fn host_end(
    host: &Netlink,
    result: &AddResult,
    request: &Request,
    netns: &Netns,
) -> Result<Link, ErrorReply> {
    use std::os::fd::AsFd;
    if result.interfaces.is_empty() {
        return Err(ErrorReply::internal("no interfaces provided"));
    }
    let inside = host.find_link_in(netns.as_fd(), &request.ifname).await.map_err(ErrorReply::internal)?;
    let peer = inside.filter(|link| link.is_kind("veth")).and_then(|link| link.peer);
    let peer = peer.ok_or_else(|| {
        ErrorReply::internal(format!("container interface {} has no veth peer", request.ifname))
    })?;
    let port = host.find_link_by_index(peer).await.map_err(ErrorReply::internal)?;
    let port =
        port.ok_or_else(|| ErrorReply::internal(format!("veth peer with index {peer} is not in host ns")))?;
    let told = result.interfaces.iter().any(|known| known.sandbox.is_none() && known.name == port.name);
    if told {
        Ok(port)
    } else {
        Err(ErrorReply::internal("no veth peer of container interface found in host ns"))
    }
}

async fn check_bucket(host: &Netlink, link: &Link, limit: &Limit) -> Result<(), ErrorReply> {
    let found = host.token_bucket(link.index).await.map_err(ErrorReply::internal)?;
    let found =
        found.ok_or_else(|| ErrorReply::internal(format!("Failed to find qdisc of {}", link.name)))?;
    let wanted = limit.bucket();
    for (what, found, wanted) in [
        ("Rate", found.rate, wanted.rate),
        ("Limit", found.limit.into(), wanted.limit.into()),
        ("Buffer", found.buffer.into(), wanted.buffer.into()),
    ] {
        if found != wanted {
            let name = &link.name;
            return Err(ErrorReply::internal(format!(
                "{what} doesn't match: {found} on {name}, expected {wanted}"
            )));
        }
    }
    Ok(())
}

fn is_of(link: &Link, network: &str) -> bool {
    let named = link.alias.as_deref().and_then(Alias::parse).map(|alias| alias.network == network);
    link.is_kind("ifb") && named.unwrap_or(link.group == unfinished_group(network))
}

fn ifb_name(network: &str, container_id: &str) -> String {
    hash::name(NAME_LENGTH, PREFIX, &format!("{network}{container_id}"))
}

/// The group of an `ifb` and of the port that it is for: no other link has its index.
fn shared_group(ifb: &Link) -> u32 {
    OWN_GROUPS | ifb.index
}

/// The name says the container; its other link may have the `ifb`, as the alias tells.
async fn delete_own(host: &Netlink, request: &Request) -> Result<(), ErrorReply> {
    let name = ifb_name(&request.network, &request.container_id);
    let found = host.find_link(&name).await.map_err(ErrorReply::internal)?;
    let is_own = |link: &Link| {
        link.alias.as_deref().and_then(Alias::parse).is_none_or(|alias| alias == Alias::of(request))
    };
    match found.filter(is_own) {
        Some(link) => delete(host, &link).await,
        None => Ok(()),
    }
}

async fn delete(host: &Netlink, ifb: &Link) -> Result<(), ErrorReply> {
    let deleted = if ifb.group == shared_group(ifb) {
        host.del_group(ifb.group).await
    } else {
        host.del_link(ifb.index).await
    };
    match deleted {
        Err(error) if !error.is_gone() => Err(ErrorReply::internal(error)),
        _ => Ok(()),
    }
}
