//! The plugin `vlan`: gives a container a link that sends and receives one VLAN of a link of the host.
//!
//! Inputs: the reference plugin's keys; `master` and `ipam` have to be there.

use cni::{AddResult, Dns, ErrorReply, exec::Verb};
use linux::netlink::{Link, LinkKind};

use crate::{
    delegate,
    made::Made,
    plugin::{Plugin, Request, block_on, decoding},
    single,
    stacked::{Stack, Upper},
    verify::different,
};

const LAST_ID: u16 = 4094;

/// See the module.
#[derive(Debug)]
pub struct Vlan;

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    stack: Stack,
    id: u16,
    dns: Dns,
    ipam: String,
}

impl Config {
    pub(crate) fn read(request: &Request) -> Result<Self, ErrorReply> {
        let root = request.root();
        let stack = Stack::read(request)?;
        if stack.master.is_none() {
            let message =
                "\"master\" field is required. It specifies the host interface name to create the VLAN for";
            return Err(ErrorReply::config(message));
        }
        let id = root.number::<i64>("vlanId").map_err(decoding)?.unwrap_or(0);
        let id = u16::try_from(id).ok().filter(|id| *id <= LAST_ID).ok_or_else(|| {
            ErrorReply::config(format!("invalid VLAN ID {id} (must be between 0 and {LAST_ID} inclusive)"))
        })?;
        let ipam = delegate::required_ipam(request)?;
        Ok(Self { stack, id, dns: Dns::read(&root).map_err(decoding)?, ipam })
    }

    fn compare(&self, link: &Link) -> Result<(), ErrorReply> {
        let (name, expected) = (&link.name, self.id);
        match link.settings {
            Some(LinkKind::Vlan { id }) if id != expected => {
                return Err(different(format!(
                    "VLAN ID of {name} is configured as {expected}, current value is {id}"
                )));
            }
            _ => {}
        }
        if self.stack.mtu != 0 && self.stack.mtu != i64::from(link.mtu) {
            let (expected, found) = (self.stack.mtu, link.mtu);
            return Err(different(format!(
                "configured MTU of {name} is {expected}, current value is {found}"
            )));
        }
        Ok(())
    }
}

impl Plugin for Vlan {
    const NAME: &'static str = "vlan";

    fn add(&self, request: &Request) -> Result<AddResult, ErrorReply> {
        let config = Config::read(request)?;
        let netns = request.open_netns()?;
        block_on(async {
            let mut made = Made::nothing(request);
            let attach = async {
                let master = config.stack.find_master(&netns).await?;
                config.stack.check_mtu(&master)?;
                let upper = Upper { kind: LinkKind::Vlan { id: config.id }, mac: None };
                let inside = config.stack.make(&master, request, &netns, upper, &mut made).await?;
                single::address(&mut made, &inside, Some(&config.ipam), &[]).await
            };
            let done = attach.await.map(|result| AddResult { dns: config.dns.clone(), ..result });
            made.keep_or_undo(done).await
        })
    }

    fn del(&self, request: &Request) -> Result<(), ErrorReply> {
        single::del(request)
    }

    fn check(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        block_on(async {
            config.stack.find_master(&request.open_netns()?).await?;
            let check = single::Check {
                kind: Some("vlan"),
                no_prev_result: "vlan: Required prevResult missing",
                compare: |link: &Link| config.compare(link),
            };
            single::check(request, &check).await
        })
    }

    fn gc(&self, request: &Request) -> Result<(), ErrorReply> {
        single::gc(request)
    }

    fn status(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        block_on(async {
            delegate::run(request, &config.ipam, Verb::Status).await?;
            config.stack.available().await
        })
    }
}
