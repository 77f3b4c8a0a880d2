//! The plugin `macvlan`: gives a container a link with a hardware address of its own on a link of the host.
//!
//! Inputs: the reference plugin's keys. Without an IPAM plugin the link has no addresses and is only set up.

use cni::{AddResult, Dns, ErrorReply, exec::Verb};
use linux::netlink::{Link, LinkKind, MacAddress, MacVlanMode};

use crate::{
    delegate,
    hardware_address::{self, Source},
    inside::{ARP_NOTIFY, NDISC_NOTIFY},
    made::Made,
    plugin::{Plugin, Request, block_on, decoding},
    single,
    stacked::{Stack, Upper},
    verify::different,
};

/// See the module.
#[derive(Debug)]
pub struct Macvlan;

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    stack: Stack,
    mode: MacVlanMode,
    broadcast_queue: Option<u32>,
    mac: Option<MacAddress>,
    dns: Dns,
    ipam: Option<String>,
}

impl Config {
    pub(crate) fn read(request: &Request) -> Result<Self, ErrorReply> {
        let root = request.root();
        let queue = root.number::<u32>("bcqueuelen").map_err(decoding)?;
        Ok(Self {
            stack: Stack::read(request)?,
            mode: mode(root.string("mode").map_err(decoding)?.unwrap_or_default())?,
            broadcast_queue: queue.filter(|length| *length > 0),
            mac: hardware_address::wanted(request, &[Source::Config, Source::Environment, Source::Runtime])?,
            dns: Dns::read(&root).map_err(decoding)?,
            ipam: delegate::ipam_type(request)?,
        })
    }

    fn upper(&self) -> Upper {
        let kind = LinkKind::Macvlan { mode: self.mode, broadcast_queue: self.broadcast_queue };
        Upper { kind, mac: self.mac }
    }

    fn compare(&self, link: &Link) -> Result<(), ErrorReply> {
        let Some(LinkKind::Macvlan { mode, .. }) = link.settings else { return Ok(()) };
        if mode == self.mode {
            return Ok(());
        }
        let expected = self.mode;
        Err(different(format!("container macvlan mode {mode} does not match expected value: {expected}")))
    }
}

fn mode(text: &str) -> Result<MacVlanMode, ErrorReply> {
    match text {
        "" | "bridge" => Ok(MacVlanMode::Bridge),
        "private" => Ok(MacVlanMode::Private),
        "vepa" => Ok(MacVlanMode::Vepa),
        "passthru" => Ok(MacVlanMode::Passthrough),
        _ => Err(ErrorReply::config(format!(
            "unknown macvlan mode: {text:?}; expected bridge, private, vepa or passthru"
        ))),
    }
}

impl Plugin for Macvlan {
    const NAME: &'static str = "macvlan";

    fn add(&self, request: &Request) -> Result<AddResult, ErrorReply> {
        let config = Config::read(request)?;
        let netns = request.open_netns()?;
        block_on(async {
            let mut made = Made::nothing(request);
            let attach = async {
                let master = config.stack.find_master(&netns).await?;
                config.stack.check_mtu(&master)?;
                let inside = config.stack.make(&master, request, &netns, config.upper(), &mut made).await?;
                single::address(&mut made, &inside, config.ipam.as_deref(), &[ARP_NOTIFY, NDISC_NOTIFY]).await
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
                kind: Some("macvlan"),
                no_prev_result: "required prevResult missing",
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
            delegate::run_if_any(request, config.ipam.as_deref(), Verb::Status).await?;
            config.stack.available().await
        })
    }
}
