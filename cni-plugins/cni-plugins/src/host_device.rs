//! The plugin `host-device`: lends a link of the host to a container, and takes it back.
//!
//! Inputs: the reference plugin's keys, which name the link by its name, its hardware address or its place in sysfs;
//! outputs: the link inside under the container's name for it. Its name on the host is its alias meanwhile. A device
//! that a userspace driver (DPDK) has is no link: only IPAM is asked for it. DEL gives the link back, down, under its
//! old name; where the namespace is gone, the kernel gave it back, maybe under another name. DEL and GC restore the old one
//! where the configuration names the link by it (`device`); by any other key the link is found whatever its name is.

pub(crate) mod config;
mod find;
mod loan;

use cni::{AddResult, ErrorReply, Interface, exec::Verb};
use linux::{
    netlink::{Link, Netlink},
    netns::Netns,
};

use self::{
    config::{Config, Selector},
    loan::Loan,
};
use crate::{
    delegate,
    made::Made,
    plugin::{Plugin, Request, block_on},
    single,
};

/// See the module.
#[derive(Debug)]
pub struct HostDevice;

/// ADD of a link.
async fn lend<'a>(
    request: &'a Request,
    config: &'a Config,
    netns: &Netns,
    made: &mut Made<'a>,
) -> Result<AddResult, ErrorReply> {
    let host = Netlink::open().map_err(ErrorReply::internal)?;
    let device = find::device(&host, config.selector()?)
        .await
        .map_err(|error| ErrorReply::internal(format!("failed to find host device: {error}")))?;
    let loan = Loan::of(&device, &request.ifname);
    let attached = async {
        let inside = loan.start(&host, &device, netns).await?;
        single::address(made, &inside, config.ipam.as_deref(), &[]).await
    };
    match attached.await {
        Ok(result) => Ok(result),
        Err(error) => {
            let mut left = made.release_through_link().await;
            if let Err(error) = loan.end(&host, netns).await {
                made.keep_addresses();
                left.push(error.to_string());
            }
            Err(error.with_undo(left))
        }
    }
}

/// ADD of a device that a userspace driver has.
async fn announce<'a>(
    request: &'a Request,
    config: &'a Config,
    netns: &Netns,
    made: &mut Made<'a>,
) -> Result<AddResult, ErrorReply> {
    let given = match &config.ipam {
        Some(ipam) => made.addresses(ipam, 0).await?,
        None => AddResult::default(),
    };
    let interface = Interface {
        name: request.ifname.clone(),
        sandbox: Some(netns.path().to_string_lossy().into_owned()),
        ..Interface::default()
    };
    Ok(AddResult { interfaces: vec![interface], ..given })
}

impl Plugin for HostDevice {
    const NAME: &'static str = "host-device";

    fn add(&self, request: &Request) -> Result<AddResult, ErrorReply> {
        let config = Config::read(request)?;
        let has_userspace_driver = find::has_userspace_driver(config.selector()?)
            .map_err(|error| ErrorReply::internal(format!("error with host device: {error}")))?;
        let netns = request.open_netns()?;
        block_on(async {
            let mut made = Made::nothing(request);
            let done = if has_userspace_driver {
                announce(request, &config, &netns, &mut made).await
            } else {
                lend(request, &config, &netns, &mut made).await
            };
            let done = done.map(|result| match config.ipam {
                Some(_) => AddResult { dns: config.dns.clone(), ..result },
                None => result,
            });
            made.keep_or_undo(done).await
        })
    }

    fn del(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        // A device that is gone is no reason to keep the addresses.
        let selector = config.selector().ok();
        let has_userspace_driver =
            selector.is_some_and(|selector| find::has_userspace_driver(selector).unwrap_or(false));
        let give_back = async {
            let host = Netlink::open().map_err(ErrorReply::internal)?;
            match request.existing_netns()? {
                Some(netns) if !has_userspace_driver => loan::take_back(&host, &netns, &request.ifname).await,
                Some(_) => Ok(()),
                None => rescue(&host, selector).await,
            }
        };
        block_on(delegate::detach(request, config.ipam.as_deref(), give_back))
    }

    fn check(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        let no_prev_result = "Required prevResult missing";
        let has_userspace_driver = find::has_userspace_driver(config.selector()?)
            .map_err(|error| ErrorReply::internal(format!("error with host device: {error}")))?;
        block_on(async {
            if has_userspace_driver {
                delegate::run_if_any(request, config.ipam.as_deref(), Verb::Check).await?;
                return request.required_prev_result(no_prev_result).map(drop);
            }
            let check = single::Check { kind: None, no_prev_result, compare: |_: &Link| Ok(()) };
            single::check(request, &check).await
        })
    }

    fn gc(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        // Without the list nothing is collected.
        request.valid_attachments()?;
        let released = single::gc(request);
        let rescued = block_on(async {
            let host = Netlink::open().map_err(ErrorReply::internal)?;
            rescue(&host, config.selector().ok()).await
        });
        ErrorReply::first_of([released, rescued])
    }

    fn status(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        block_on(delegate::run_if_any(request, config.ipam.as_deref(), Verb::Status))
    }
}

/// A device that is looked for by other means than its name is found under any.
async fn rescue(host: &Netlink, selector: Option<&Selector>) -> Result<(), ErrorReply> {
    match selector {
        Some(Selector::Name(name)) => loan::restore_name(host, name).await,
        _ => Ok(()),
    }
}
