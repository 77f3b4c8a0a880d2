//! The plugin `loopback`: sets `lo` of the container's namespace up, and reports its addresses.
//!
//! It ignores `CNI_IFNAME`. A previous result passes through unchanged. GC has nothing to collect.

use cni::{AddResult, ErrorReply, Interface, IpConfig};
use linux::netlink::Netlink;

use crate::plugin::{Plugin, Request, block_on};

const NAME: &str = "lo";

/// See the module.
#[derive(Debug)]
pub struct Loopback;

impl Plugin for Loopback {
    const NAME: &'static str = "loopback";

    fn add(&self, request: &Request) -> Result<AddResult, ErrorReply> {
        let netns = request.open_netns()?;
        let prev_result = request.prev_result()?;
        block_on(async {
            let netlink = Netlink::open_in(&netns).map_err(ErrorReply::internal)?;
            let addresses = bring_up(&netlink).await?;
            Ok(prev_result.unwrap_or_else(|| result(request, addresses)))
        })
    }

    fn del(&self, request: &Request) -> Result<(), ErrorReply> {
        let Some(netns) = request.existing_netns()? else { return Ok(()) };
        block_on(async {
            let netlink = Netlink::open_in(&netns).map_err(ErrorReply::internal)?;
            let link = netlink.link(NAME).await.map_err(ErrorReply::internal)?;
            netlink.set_link_down(link.index).await.map_err(ErrorReply::internal)
        })
    }

    fn check(&self, request: &Request) -> Result<(), ErrorReply> {
        let netns = request.open_netns()?;
        block_on(async {
            let netlink = Netlink::open_in(&netns).map_err(ErrorReply::internal)?;
            let link = netlink.link(NAME).await.map_err(ErrorReply::internal)?;
            if link.up { Ok(()) } else { Err(ErrorReply::internal("loopback interface is down")) }
        })
    }

    fn gc(&self, _request: &Request) -> Result<(), ErrorReply> {
        Ok(())
    }

    fn status(&self, _request: &Request) -> Result<(), ErrorReply> {
        Ok(())
    }
}

/// The first address of each family; the kernel assigns them when the link goes up.
async fn bring_up(netlink: &Netlink) -> Result<Vec<ipnetwork::IpNetwork>, ErrorReply> {
    let link = netlink.link(NAME).await.map_err(ErrorReply::internal)?;
    netlink.set_link_up(link.index).await.map_err(ErrorReply::internal)?;
    let all = netlink.addresses(Some(link.index)).await.map_err(ErrorReply::internal)?;
    if let Some(foreign) = all.iter().find(|address| !address.network.ip().is_loopback()) {
        return Err(ErrorReply::internal(format!(
            "loopback interface found with non-loopback address {:?}",
            foreign.network.ip().to_string()
        )));
    }
    let first = |is_ipv4: bool| all.iter().map(|a| a.network).find(|network| network.is_ipv4() == is_ipv4);
    Ok([first(true), first(false)].into_iter().flatten().collect())
}

fn result(request: &Request, addresses: Vec<ipnetwork::IpNetwork>) -> AddResult {
    let sandbox = request.netns.as_ref().map(|path| path.to_string_lossy().into_owned());
    let interface = Interface {
        name: NAME.to_owned(),
        mac: Some("00:00:00:00:00:00".to_owned()),
        sandbox,
        ..Interface::default()
    };
    let ip = |address| IpConfig { interface: Some(0), address, gateway: None };
    AddResult {
        interfaces: vec![interface],
        ips: addresses.into_iter().map(ip).collect(),
        ..AddResult::default()
    }
}
