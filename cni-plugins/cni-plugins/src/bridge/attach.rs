//! ADD, step by step, and its undo.

use std::time::Duration;

use cni::{AddResult, Dns, ErrorReply, Interface, exec::Verb};
use linux::{
    netlink::{Link, LinkWatch, Netlink, OperState},
    netns::Netns,
};

use super::{
    config::Config,
    container::Inside,
    gateway::complete,
    host::{Alias, dress_port, ensure_bridge, make_gateway, make_pair},
};
use crate::{delegate, plugin::Request};

/// How long the bridge's port may take to come up. The kernel does that in a work of its own, after everyone else who waits for
/// the lock that all namespaces share: 50 pods at once on two emulated processors took up to 3.3 s. The reference plugin gives
/// it 2.5 s.
const PORT_UP_LIMIT: Duration = Duration::from_secs(10);

/// An ADD in progress: what it works with, and what it has made.
pub(super) struct Attach<'a> {
    request: &'a Request,
    config: &'a Config,
    netns: &'a Netns,
    host: Netlink,
    /// Index of the host's end, once made.
    pair: Option<u32>,
    /// The packet filter may have rules of this attachment.
    filtered: bool,
    /// The IPAM plugin that gave addresses.
    ipam: Option<&'a str>,
}

impl<'a> Attach<'a> {
    pub(super) fn new(request: &'a Request, config: &'a Config, netns: &'a Netns, host: Netlink) -> Self {
        Self { request, config, netns, host, pair: None, filtered: false, ipam: None }
    }

    pub(super) async fn run(&mut self) -> Result<AddResult, ErrorReply> {
        let config = self.config;
        if config.ipam.is_some() {
            config.filters.validate()?;
        }
        let bridge = ensure_bridge(&self.host, config).await?;
        let port = make_pair(&self.host, &bridge, self.request, self.config, self.netns).await?;
        self.pair = Some(port.index);
        dress_port(&self.host, &port, Alias::of(self.request), self.config)
            .await
            .map_err(|error| ErrorReply::internal(format!("failed to connect {:?}: {error}", port.name)))?;
        let inside = Inside::open(self.netns, &self.request.ifname).await?;
        self.filtered = config.filters.are_any();
        config.filters.guard(self.request, &port, &inside.link)?;
        let mut result = match &config.ipam {
            Some(ipam) => self.addresses(ipam).await?,
            None => AddResult::default(),
        };
        let gateways = complete(&mut result, self.config);
        let mut watch = LinkWatch::open().map_err(ErrorReply::internal)?;
        if self.config.ipam.is_some() {
            inside.configure(&result, self.config).await?;
            make_gateway(&self.host, &bridge, &gateways, self.config).await?;
            config.filters.masquerade(self.request, &result)?;
        } else if !self.config.disable_container_interface {
            inside.set_up().await?;
        }
        let port =
            if self.config.disable_container_interface { port } else { port_up(&mut watch, &port).await? };
        if self.config.ipam.is_some() {
            inside.announce().await?;
        }
        // Its hardware address may have changed with its first port.
        let bridge = self.host.link(&bridge.name).await.map_err(ErrorReply::internal)?;
        Ok(self.finished(result, &bridge, &port, &inside.link))
    }

    /// The pair goes first: while it is there, its addresses are in use.
    pub(super) async fn undo(&mut self) -> Result<(), ErrorReply> {
        let mut errors = Vec::new();
        if let Some(index) = self.pair.take() {
            match self.host.del_link(index).await {
                Err(error) if !error.is_gone() => errors.push(error.to_string()),
                _ => {}
            }
        }
        if std::mem::take(&mut self.filtered) {
            let mut rules = self.config.filters.begin_tear_down(self.request);
            rules.go_on();
            errors.extend(rules.end().err().map(|error| error.to_string()));
        }
        if let Some(ipam) = self.ipam.take() {
            errors.extend(
                delegate::run(self.request, ipam, Verb::Del).await.err().map(|error| error.to_string()),
            );
        }
        if errors.is_empty() { Ok(()) } else { Err(ErrorReply::internal(errors.join("; "))) }
    }

    async fn addresses(&mut self, ipam: &'a str) -> Result<AddResult, ErrorReply> {
        let given = delegate::add(self.request, ipam).await?;
        self.ipam = Some(ipam);
        if given.ips.is_empty() {
            return Err(ErrorReply::internal("IPAM plugin returned missing IP config"));
        }
        Ok(AddResult { interfaces: Vec::new(), ..given })
    }

    /// The configuration's DNS wins over IPAM's.
    fn finished(&self, given: AddResult, bridge: &Link, port: &Link, inside: &Link) -> AddResult {
        let interface = |link: &Link, sandbox: Option<String>| Interface {
            name: link.name.clone(),
            mac: link.mac.map(|mac| mac.to_string()),
            sandbox,
            ..Interface::default()
        };
        let sandbox = Some(self.netns.path().to_string_lossy().into_owned());
        let dns: Dns = if self.config.dns.is_empty() { given.dns } else { self.config.dns.clone() };
        AddResult {
            interfaces: vec![interface(bridge, None), interface(port, None), interface(inside, sandbox)],
            ips: given.ips,
            routes: given.routes,
            dns,
        }
    }
}

async fn port_up(watch: &mut LinkWatch, port: &Link) -> Result<Link, ErrorReply> {
    let is_up = |link: &Link| link.oper_state == OperState::Up;
    let up = watch.wait_until(port.index, PORT_UP_LIMIT, "bring bridge port up", is_up).await;
    up.map_err(|error| ErrorReply::internal(format!("bridge port in error state: {error}")))
}
