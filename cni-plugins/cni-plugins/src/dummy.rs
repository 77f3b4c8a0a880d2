//! The plugin `dummy`: gives a container a link that drops what is sent through it, to carry addresses.
//!
//! Inputs: the reference plugin's one key `ipam`, which has to be there.

use cni::{AddResult, ErrorReply, exec::Verb};
use linux::{
    netlink::{Link, LinkKind, Netlink, NewLink},
    netns::Netns,
};

use crate::{
    delegate,
    inside::Inside,
    made::{self, Made},
    plugin::{Plugin, Request, block_on},
    single,
    verify::different,
};

/// See the module.
#[derive(Debug)]
pub struct Dummy;

fn ipam(request: &Request) -> Result<String, ErrorReply> {
    let named = delegate::ipam_type(request)?;
    named.ok_or_else(|| ErrorReply::config("dummy interface requires an IPAM configuration"))
}

async fn make<'n>(
    request: &Request,
    netns: &'n Netns,
    made: &mut Made<'_>,
) -> Result<Inside<'n>, ErrorReply> {
    let netlink = Netlink::open_in(netns).map_err(ErrorReply::internal)?;
    let new = NewLink::new(&request.ifname, LinkKind::Dummy);
    let failed = |error| ErrorReply::internal(format!("failed to create dummy: {error}"));
    netlink.add_link(&new).await.map_err(failed)?;
    let link = made::find(&netlink, &request.ifname, failed).await?;
    made.link(&netlink, link.index);
    Ok(Inside { netns, netlink, link })
}

fn is_up(link: &Link) -> Result<(), ErrorReply> {
    if link.up { Ok(()) } else { Err(different(format!("Interface {} is down", link.name))) }
}

impl Plugin for Dummy {
    const NAME: &'static str = "dummy";

    fn add(&self, request: &Request) -> Result<AddResult, ErrorReply> {
        let ipam = ipam(request)?;
        let netns = request.open_netns()?;
        block_on(async {
            let mut made = Made::nothing(request);
            let attach = async {
                let inside = make(request, &netns, &mut made).await?;
                single::address(&mut made, &inside, Some(&ipam), &[]).await
            };
            let done = attach.await;
            made.keep_or_undo(done).await
        })
    }

    fn del(&self, request: &Request) -> Result<(), ErrorReply> {
        single::del(request)
    }

    fn check(&self, request: &Request) -> Result<(), ErrorReply> {
        ipam(request)?;
        let check = single::Check {
            kind: Some("dummy"),
            no_prev_result: "dummy: Required prevResult missing",
            compare: is_up,
        };
        block_on(single::check(request, &check))
    }

    fn gc(&self, request: &Request) -> Result<(), ErrorReply> {
        single::gc(request)
    }

    fn status(&self, request: &Request) -> Result<(), ErrorReply> {
        let ipam = ipam(request)?;
        block_on(delegate::run(request, &ipam, Verb::Status))
    }
}
