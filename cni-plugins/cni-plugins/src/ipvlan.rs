//! The plugin `ipvlan`: gives a container a link that shares the hardware address of a link of the host.
//!
//! Inputs: the reference plugin's keys. In a chain it may stand on the one link of the plugins before it, and take the
//! addresses that they got instead of asking an IPAM plugin.

use cni::{AddResult, Dns, ErrorReply, exec::Verb};
use linux::{
    netlink::{IpVlanMode, Link, LinkKind},
    netns::Netns,
};

use crate::{
    delegate,
    inside::{ARP_NOTIFY, NDISC_NOTIFY},
    made::Made,
    plugin::{Plugin, Request, block_on, decoding},
    single,
    stacked::{Stack, Upper},
    verify::different,
};

/// See the module.
#[derive(Debug)]
pub struct Ipvlan;

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    stack: Stack,
    mode: IpVlanMode,
    dns: Dns,
    ipam: Option<String>,
}

impl Config {
    pub(crate) fn read(request: &Request) -> Result<Self, ErrorReply> {
        let root = request.root();
        Ok(Self {
            stack: Stack::read(request)?,
            mode: mode(root.string("mode").map_err(decoding)?.unwrap_or_default())?,
            dns: Dns::read(&root).map_err(decoding)?,
            ipam: delegate::ipam_type(request)?,
        })
    }

    /// As for ADD, which may be in a chain.
    fn chained(mut self, previous: Option<&AddResult>) -> Result<Self, ErrorReply> {
        if self.stack.master.is_none()
            && let Some(previous) = previous
        {
            let [only] = previous.interfaces.as_slice() else {
                let message = "chained master failure. PrevResult lacks a single named interface";
                return Err(ErrorReply::config(message));
            };
            self.stack.master = Some(only.name.clone());
        }
        Ok(self)
    }

    fn compare(&self, link: &Link) -> Result<(), ErrorReply> {
        let Some(LinkKind::Ipvlan { mode }) = link.settings else { return Ok(()) };
        if mode == self.mode {
            return Ok(());
        }
        let (found, expected) = (name(mode), name(self.mode));
        Err(different(format!("Container IPVlan mode {found} does not match expected value: {expected}")))
    }
}

fn mode(text: &str) -> Result<IpVlanMode, ErrorReply> {
    match text {
        "" | "l2" => Ok(IpVlanMode::L2),
        "l3" => Ok(IpVlanMode::L3),
        "l3s" => Ok(IpVlanMode::L3S),
        _ => Err(ErrorReply::config(format!("unknown ipvlan mode: {text:?}; expected l2, l3 or l3s"))),
    }
}

fn name(mode: IpVlanMode) -> String {
    match mode {
        IpVlanMode::L2 => "l2".to_owned(),
        IpVlanMode::L3 => "l3".to_owned(),
        IpVlanMode::L3S => "l3s".to_owned(),
        other => format!("{other:?}"),
    }
}

/// The addresses that came with the previous result, unless this plugin is to ask for some.
fn inherited(config: &Config, previous: Option<AddResult>) -> Option<AddResult> {
    previous.filter(|previous| config.ipam.is_none() && !previous.ips.is_empty())
}

async fn attach<'a>(
    request: &Request,
    config: &'a Config,
    previous: Option<AddResult>,
    netns: &Netns,
    made: &mut Made<'a>,
) -> Result<AddResult, ErrorReply> {
    let previous = inherited(config, previous);
    if previous.is_none() && config.ipam.is_none() {
        let message = "key \"ipam\": missing, and the previous result has no addresses";
        return Err(ErrorReply::config(message));
    }
    let master = config.stack.find_master(netns).await?;
    let upper = Upper { kind: LinkKind::Ipvlan { mode: config.mode }, mac: None };
    let inside = config.stack.make(&master, request, netns, upper, made).await?;
    match previous {
        Some(previous) => single::adopt(&inside, previous, &[ARP_NOTIFY, NDISC_NOTIFY]).await,
        None => single::address(made, &inside, config.ipam.as_deref(), &[ARP_NOTIFY, NDISC_NOTIFY]).await,
    }
}

impl Plugin for Ipvlan {
    const NAME: &'static str = "ipvlan";

    fn add(&self, request: &Request) -> Result<AddResult, ErrorReply> {
        let previous = request.prev_result()?;
        let config = Config::read(request)?.chained(previous.as_ref())?;
        let netns = request.open_netns()?;
        block_on(async {
            let mut made = Made::nothing(request);
            let done = attach(request, &config, previous, &netns, &mut made).await;
            let done = done.map(|result| AddResult { dns: config.dns.clone(), ..result });
            made.keep_or_undo(done).await
        })
    }

    fn del(&self, request: &Request) -> Result<(), ErrorReply> {
        single::del(request)
    }

    fn check(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        block_on(async {
            // Which link a chain named is not known any more.
            if config.stack.master.is_some() {
                config.stack.find_master(&request.open_netns()?).await?;
            }
            let check = single::Check {
                kind: Some("ipvlan"),
                no_prev_result: "Required prevResult missing",
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
            match config.stack.master {
                Some(_) => config.stack.available().await,
                None => Ok(()),
            }
        })
    }
}
