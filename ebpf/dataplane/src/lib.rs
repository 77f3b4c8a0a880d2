//! User space of the load balancer: loads the BPF programs, pins and adopts them, and keeps the maps equal to what is wanted.
//!
//! In: frontends and where they lead ([`Dataplane::set`]), the masquerade settings. Out: minimal map writes, each visible at
//! once. What to write is decided in `model` (pure); `kernel` writes it; `attach` owns programs, links and pins. Watching the
//! Kubernetes API is the agent's business.
//!
//! Everything stands pinned below [`Options::pin_root`]: translation goes on when this process dies, and the next one adopts
//! programs and maps as they are.

mod attach;
mod identity;
mod inspect;
mod kernel;
mod model;
mod orphans;
mod packets;
pub mod policy;
mod sys;
pub mod trace;
mod unapplied;

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU8, NonZeroU32};
use std::path::PathBuf;
use std::sync::Arc;

use attach::{ForPods, PinRoot};
use dataplane_abi::{ClientAddresses, Config};
pub use dataplane_abi::{Origin, Scheduler, Selection, ServiceCounts, counter};
use ipnetwork::IpNetwork;
use kernel::Kernel;
use linux::netns::Netns;
use model::{Capacity, Model};
use packets::Served;
use unapplied::Unapplied;

pub use attach::{OpenError, Packets, Refusal};
pub use identity::{Identity, Names};
pub use inspect::{Backend, Programmed, Stays};
pub use kernel::{MapError, wait_for_readers};
pub use model::{Full, Resource};
pub use orphans::{EndError, Ended, Orphan, end};
pub use packets::{Loaded, Loader};
pub use policy::PolicyError;
use policy::{PodLink, RulesetId};

/// Where the dataplane lives.
#[derive(Debug, Clone)]
pub struct Options {
    /// A folder on a BPF file system. Everything of ours is below it.
    pub pin_root: PathBuf,
    /// Sockets of processes in this cgroup (of the unified hierarchy) and below are translated.
    pub cgroup: PathBuf,
    /// Names of the links that traffic from outside comes in by, and of the one that leads to other nodes' pods.
    pub uplinks: Vec<String>,
    pub uplink_hook: UplinkHook,
    pub uplink_acceleration: Acceleration,
}

/// How programs are attached to the uplinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UplinkHook {
    /// As TCX links where the kernel has them (6.6), else as with [`UplinkHook::Clsact`].
    #[default]
    Newest,
    /// As filters of a clsact qdisc.
    Clsact,
}

/// Whether the drivers of the uplinks send packets of known flows on by XDP, before the kernel sees them. Links without a driver (tunnels) have none
/// either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Acceleration {
    /// Attaching switches off what some drivers do for the whole link.
    #[default]
    Disabled,
    /// Where the driver can; elsewhere a line of the log says why not.
    BestEffort,
    /// An uplink whose driver cannot is an error.
    Native,
    /// As [`Acceleration::Native`], on veth links too. No setting names it: whoever asks for it, such as a test, sees to it that packets come there with
    /// whole checksums.
    EvenVeth,
}

/// The transport protocols that are translated; SCTP by packets alone, since the kernel tells of none of its sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    const NAMES: [(Self, &'static str); 3] = [(Self::Tcp, "TCP"), (Self::Udp, "UDP"), (Self::Sctp, "SCTP")];

    /// As the Kubernetes API writes it.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(protocol, _)| *protocol == self).map_or("", |(_, name)| name)
    }

    /// The protocol of a name, in capitals or not.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(_, known)| known.eq_ignore_ascii_case(name)).map(|(protocol, _)| *protocol)
    }
}

/// An address and port that a service answers at: a cluster IP, or a node port on one of the node's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    pub address: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.address, self.port), self.protocol.name())
    }
}

/// Where a frontend leads: to addresses of its own family. An empty list refuses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Target {
    /// The endpoints for clients on this node.
    pub inside: Arc<[SocketAddr]>,
    /// The endpoints for what comes in by an uplink.
    pub outside: Arc<[SocketAddr]>,
    /// A client whose last connection is no longer ago than so many seconds is led to the same endpoint.
    pub affinity_seconds: Option<NonZeroU32>,
    /// The networks that may ask, sorted and each once; none: everybody may. Of clients on the node, those whose addresses are
    /// known ([`Dataplane::set_client`]).
    pub sources: Option<Arc<[IpNetwork]>>,
    /// Endpoints that serve clients that were led to them before, whether new ones are or not.
    pub draining: Arc<[SocketAddr]>,
    /// The frontend's address is one of the node's: while there is no endpoint at all, the node's kernel refuses what comes in by
    /// an uplink. At another address that is dropped.
    pub own_address: bool,
    /// What comes in by an uplink and goes on to an endpoint on another node is answered from there, past this one. That node has to
    /// know this one ([`Dataplane::set_peers`]).
    pub direct_return: bool,
    /// An endpoint to which so many TCP connections of this node in a row came not about gets no new ones for half a minute, where one of up to
    /// eight others is better.
    pub set_aside_after: Option<NonZeroU8>,
    /// How an endpoint is chosen. One that stands in a list several times has as many shares, but for the fewest connections.
    pub scheduler: Scheduler,
    /// What endpoints are known by in lookup tables other than their addresses; says nothing under other schedulers.
    pub names: Option<Arc<Names>>,
}

impl Target {
    /// The same endpoints for everybody.
    pub fn all(endpoints: impl Into<Arc<[SocketAddr]>>) -> Self {
        let endpoints = endpoints.into();
        Self { inside: endpoints.clone(), outside: endpoints, ..Self::default() }
    }

    /// All that is in it, which is of one family.
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let endpoints =
            [&self.inside, &self.outside, &self.draining].into_iter().flat_map(|list| list.iter());
        let sources = self.sources.iter().flat_map(|networks| networks.iter());
        endpoints.map(SocketAddr::ip).chain(sources.map(IpNetwork::ip))
    }

    pub fn endpoints(&self, origin: Origin) -> &[SocketAddr] {
        match origin {
            Origin::Inside => &self.inside,
            Origin::Outside => &self.outside,
        }
    }
}

/// How pods appear outside of the cluster, in one address family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masquerade {
    /// The pods of this node.
    pub pods: IpNetwork,
    /// The node's own address on the uplink.
    pub address: IpAddr,
    /// Destinations that pods reach under their own address, such as all pods of the cluster; at most 8. Those of the other family
    /// say nothing.
    pub excluded: Vec<IpNetwork>,
    /// Where the link to other nodes' pods is no uplink.
    pub overlay: Option<Overlay>,
}

/// The link to the pods of other nodes, where packets are wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overlay {
    /// Its index.
    pub link: u32,
    /// What is masqueraded on its way there, such as a node port's flow to a backend elsewhere, shows this address.
    pub address: IpAddr,
}

/// What a map write can fail with.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("program {frontend}")]
    Full { frontend: Frontend, source: Full },
    #[error("program the kernel")]
    Map(#[source] MapError),
    #[error("hear how connections to endpoints end")]
    Tries(#[source] Box<OpenError>),
    #[error("remove what another version left")]
    OtherLayout(#[source] Box<OpenError>),
    #[error("masquerade: {count} excluded networks, at most {limit} are supported")]
    TooManyExcluded { count: usize, limit: usize },
    #[error("masquerade: {address} is not of the family of {pods}")]
    MixedFamilies { address: IpAddr, pods: IpNetwork },
    #[error("{frontend} cannot lead to {address}, which is of another address family")]
    OtherFamily { frontend: Frontend, address: IpAddr },
}

/// What was fully written since this process opened the dataplane.
#[derive(Clone, Copy, Default)]
struct Synced {
    services: bool,
    policies: bool,
}

/// The load balancer of this machine.
pub struct Dataplane {
    model: Model,
    kernel: Kernel,
    unapplied: Unapplied,
    policies: policy::Policies,
    options: Options,
    /// Pods that reach services by packets, and those whose SCTP is led.
    packets: Served,
    sctp: Served,
    /// Those that set failing endpoints aside, and whether the program that hears of failures is attached; none: an earlier process knew.
    mindful: BTreeSet<Frontend>,
    watches_tries: Option<bool>,
    synced: Synced,
    pin_root: PathBuf,
    adopted: usize,
    /// An earlier process may have left connected UDP sockets whose backend has gone.
    adopted_orphans: bool,
    _root: PinRoot,
}

impl Dataplane {
    /// Loads the programs, or adopts those that an earlier process pinned at the same place. Refused while another process, or
    /// this one, has the same place open. The caller's network namespace is the node's: sockets of other ones reach no service at
    /// a loopback address.
    pub fn open(options: &Options) -> Result<Self, OpenError> {
        let node_netns = Netns::current().and_then(|own| own.cookie()).map_err(OpenError::Namespace)?;
        let (root, maps, ForPods { policy, packets: [packets, sctp] }) = attach::open(options)?;
        let mut kernel = Kernel::open(maps).map_err(OpenError::Maps)?;
        let state = kernel.read().map_err(OpenError::Maps)?;
        let (model, leftovers) = Model::adopt(&state, Capacity::default());
        for write in leftovers {
            kernel.apply(&write).map_err(OpenError::Maps)?;
        }
        let policies = policy::Policies::adopt(policy, &mut kernel).map_err(OpenError::Maps)?;
        let config = kernel.read_config().map_err(OpenError::Maps)?;
        kernel.write_config(&Config { node_netns, ..config }).map_err(OpenError::Maps)?;
        // Pieces of the tables that the earlier process freed a moment ago may be reused from here on.
        kernel::wait_for_readers().map_err(OpenError::Maps)?;
        let adopted = model.frontends().count();
        let pin_root = options.pin_root.clone();
        let unapplied = Unapplied::default();
        let synced = Synced::default();
        Ok(Self {
            model,
            kernel,
            unapplied,
            policies,
            options: options.clone(),
            packets: Served::new(Packets::All, packets),
            sctp: Served::new(Packets::Sctp, sctp),
            mindful: BTreeSet::new(),
            watches_tries: None,
            synced,
            pin_root,
            adopted,
            adopted_orphans: true,
            _root: root,
        })
    }

    /// How many frontends an earlier process had left, and this one took over.
    pub fn adopted(&self) -> usize {
        self.adopted
    }

    /// Whether a frontend whose scheduler looks clients up by hash has no room for a table of its own: its clients are led by hash over the list
    /// of its endpoints, and more of them move when that changes. The next call of [`Self::set`] tries again.
    pub fn lacks_lookup(&self, frontend: Frontend) -> bool {
        self.model.lacks_lookup(frontend)
    }

    /// Makes `frontend` lead to `target`. The switch is one store in memory for each [`Origin`]: a connection sees the old list
    /// or the new one. After an error of the kernel the same call tries again.
    pub fn set(&mut self, frontend: Frontend, target: &Target) -> Result<(), WriteError> {
        let writes = self.plan(frontend, target)?;
        self.apply(frontend, &writes)?;
        self.heed(frontend, target);
        self.watch_tries()
    }

    /// As [`Self::set`] of each, in their order; what that would have said of each. New frontends take one system call together.
    pub fn set_all(&mut self, wanted: &[(Frontend, Target)]) -> Vec<Result<(), WriteError>> {
        let mut inserts = Vec::new();
        let mut results: Vec<Result<(), WriteError>> = Vec::with_capacity(wanted.len());
        for (place, (frontend, target)) in wanted.iter().enumerate() {
            let planned = self.plan(*frontend, target);
            let Self { unapplied, kernel, .. } = self;
            let applied = planned.and_then(|writes| {
                let own = model::to_key(*frontend);
                let apply = |write: &model::Write| match write {
                    // That of another one, which is tried again, tells at once whether it stands now.
                    model::Write::FrontendInsert { key, slot } if *key == own => {
                        inserts.push((place, *key, *slot));
                        Ok(())
                    }
                    write => kernel.apply(write),
                };
                unapplied.apply(own, &writes, apply).map_err(WriteError::Map)
            });
            if applied.is_ok() {
                self.heed(*frontend, target);
            }
            results.push(applied);
        }
        if self.kernel.insert_frontends(inserts.iter().map(|(_, key, slot)| (*key, *slot))).is_err() {
            // Each for itself: the kernel tells of the first that failed alone.
            for (place, key, slot) in inserts {
                let Self { unapplied, kernel, .. } = self;
                let write = [model::Write::FrontendInsert { key, slot }];
                let inserted = unapplied.apply_own(key, &write, |write| kernel.apply(write));
                if results[place].is_ok() {
                    results[place] = inserted.map_err(WriteError::Map);
                }
            }
        }
        if let Err(error) = self.watch_tries()
            && let Some(last) = results.last_mut().filter(|last| last.is_ok())
        {
            *last = Err(error);
        }
        results
    }

    /// The writes that make `frontend` lead to `target`.
    fn plan(&mut self, frontend: Frontend, target: &Target) -> Result<Vec<model::Write>, WriteError> {
        if let Some(address) = target.addresses().find(|ip| ip.is_ipv4() != frontend.address.is_ipv4()) {
            return Err(WriteError::OtherFamily { frontend, address });
        }
        let planned = match self.model.set(frontend, target) {
            // What was freed may be reused once no program can still be reading it.
            Err(_) if self.model.release_pending() => {
                kernel::wait_for_readers().map_err(WriteError::Map)?;
                self.model.release();
                self.model.set(frontend, target)
            }
            planned => planned,
        };
        planned.map_err(|source| WriteError::Full { frontend, source })
    }

    /// Remembers who wants failing endpoints set aside.
    fn heed(&mut self, frontend: Frontend, target: &Target) {
        match target.set_aside_after {
            Some(_) => drop(self.mindful.insert(frontend)),
            None => drop(self.mindful.remove(&frontend)),
        }
    }

    /// Hears how connections end while a service wants to know that.
    fn watch_tries(&mut self) -> Result<(), WriteError> {
        let watch = !self.mindful.is_empty();
        // What an earlier process attached may be needed until everything is known.
        if self.watches_tries == Some(watch) || (!watch && !self.synced.services) {
            return Ok(());
        }
        let changed = attach::watch_tries(&self.options, watch);
        changed.map_err(|source| WriteError::Tries(Box::new(source)))?;
        self.watches_tries = Some(watch);
        Ok(())
    }

    /// Takes `frontend` away; its address is no longer translated. One that is not there is fine.
    pub fn remove(&mut self, frontend: Frontend) -> Result<(), WriteError> {
        let writes = self.model.remove(frontend);
        self.apply(frontend, &writes)?;
        self.mindful.remove(&frontend);
        self.watch_tries()
    }

    /// Removes every frontend that is not in `keep`, as far as that succeeds: called once after the first full sync of an adopted dataplane.
    /// What builds with other map layouts left behind goes with the later one of this call and [`Self::retain_policies`].
    pub fn retain(&mut self, keep: &HashSet<Frontend>) -> Result<usize, WriteError> {
        let stale: Vec<Frontend> =
            self.model.frontends().filter(|frontend| !keep.contains(frontend)).collect();
        let mut result = Ok(stale.len());
        for frontend in &stale {
            result = self.remove(*frontend).and(result);
        }
        for write in self.model.release_held() {
            result = self.kernel.apply(&write).map_err(WriteError::Map).and(result);
        }
        self.synced.services = true;
        let result = self.watch_tries().and(result);
        self.remove_other_layouts().map_err(WriteError::OtherLayout).and(result)
    }

    /// Sets how pods appear outside, at most once for each address family; those of one that is not there keep their addresses.
    pub fn set_masquerade(&mut self, families: &[Masquerade]) -> Result<(), WriteError> {
        let before = self.kernel.read_config().map_err(WriteError::Map)?;
        let config = model::config(before, families)?;
        self.kernel.write_config(&config).map_err(WriteError::Map)
    }

    /// What loads the programs that pods are served with, unless they are: the first pod has them loaded else, which takes the kernel long.
    pub fn packets_loader(&self, which: Packets) -> Option<Loader> {
        self.served(which).loader(&self.options)
    }

    /// Serves pods with what was loaded, if they need it yet.
    pub fn put_packets(&mut self, loaded: Loaded) {
        let served = match loaded.which() {
            Packets::All => &mut self.packets,
            Packets::Sctp => &mut self.sctp,
        };
        served.put(loaded);
    }

    fn served(&self, which: Packets) -> &Served {
        match which {
            Packets::All => &self.packets,
            Packets::Sctp => &self.sctp,
        }
    }

    /// Lets the pod behind a link reach services by packets, whoever makes those: a network stack of its own, or a virtual machine. Its
    /// sockets, if they are led to backends already, notice nothing.
    pub fn serve_packets(&mut self, link: &PodLink) -> Result<(), OpenError> {
        self.packets.serve(link, &self.options)
    }

    /// Ends that; a link that is gone is fine.
    pub fn end_packets(&mut self, link: &PodLink) -> Result<(), OpenError> {
        self.packets.end(link)
    }

    /// Ends it for the links that an earlier process served and this one does not: called once when all pods of the node are known.
    pub fn retain_packets(&mut self) -> Result<(), OpenError> {
        self.packets.retain()
    }

    /// Lets the pod behind a link reach services over SCTP, whose sockets the kernel tells nobody of; nothing else of its packets is led. For links
    /// that [`Self::serve_packets`] does not serve.
    pub fn serve_sctp(&mut self, link: &PodLink) -> Result<(), OpenError> {
        self.sctp.serve(link, &self.options)
    }

    /// Ends that; a link that is gone is fine.
    pub fn end_sctp(&mut self, link: &PodLink) -> Result<(), OpenError> {
        self.sctp.end(link)
    }

    /// Ends it for the links that an earlier process served and this one does not.
    pub fn retain_sctp(&mut self) -> Result<(), OpenError> {
        self.sctp.retain()
    }

    /// Whether links have been served so, by this process or an earlier one.
    pub fn serves_sctp(&self) -> bool {
        self.sctp.is_loaded()
    }

    /// The cookie of the node's own network namespace.
    pub fn node_netns(&self) -> Result<u64, MapError> {
        Ok(self.kernel.read_config()?.node_netns)
    }

    /// Tells of a client on the node, by the cookie of its network namespace: sockets there may ask where source ranges hold one of its addresses, of
    /// which the first eight count. Who shares them is one client.
    pub fn set_client(&mut self, netns: u64, addresses: &[IpAddr]) -> Result<(), MapError> {
        let mut client = ClientAddresses::default();
        for (place, address) in client.addresses.iter_mut().zip(addresses) {
            *place = model::to_address(*address);
        }
        self.kernel.set_client(netns, client)
    }

    /// Its sockets, if there are any, may ask everywhere. One that is not known is fine.
    pub fn forget_client(&mut self, netns: u64) -> Result<(), MapError> {
        self.kernel.forget_client(netns)
    }

    /// Forgets all others, which an earlier process told of.
    pub fn retain_clients(&mut self, keep: &HashSet<u64>) -> Result<(), MapError> {
        for netns in self.kernel.clients()?.into_iter().filter(|netns| !keep.contains(netns)) {
            self.kernel.forget_client(netns)?;
        }
        Ok(())
    }

    /// The first number for rulesets of this process: no earlier process used it or a higher one.
    pub fn first_ruleset(&self) -> RulesetId {
        self.policies.first_ruleset()
    }

    /// The rulesets that were written, but for the node's own addresses.
    pub fn rulesets(&self) -> Vec<RulesetId> {
        self.policies.rulesets().collect()
    }

    /// Does the changes in order, up to one that fails. Flows that go on are judged again by what holds then. What was planned before an error of
    /// the kernel comes first in the next call.
    pub fn change_policies(&mut self, changes: &[policy::Change]) -> Result<(), PolicyError> {
        self.policies.change(&mut self.kernel, changes)
    }

    /// Makes the isolation hold for the pod behind a link; open in both directions, the link has no program of ours. After an
    /// error the same call tries again.
    pub fn isolate(
        &mut self,
        link: &policy::PodLink,
        isolation: policy::Isolation,
    ) -> Result<(), PolicyError> {
        self.policies.isolate(&mut self.kernel, link, isolation)
    }

    /// The node's own addresses, which its pods may always reach.
    pub fn set_node_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), PolicyError> {
        self.policies.set_node(&mut self.kernel, addresses)
    }

    /// The addresses of other nodes: what those tell of flows that they lead to endpoints of this node is believed ([`Target::direct_return`]).
    pub fn set_peers(&mut self, addresses: &[IpAddr]) -> Result<(), PolicyError> {
        self.policies.set_peers(&mut self.kernel, addresses)
    }

    /// Takes away what an earlier process left of policies and this one does not want: called once after the first full sync.
    pub fn retain_policies(&mut self) -> Result<(), PolicyError> {
        self.policies.retain(&mut self.kernel)?;
        self.synced.policies = true;
        self.remove_other_layouts().map_err(PolicyError::OtherLayout)
    }

    /// Whether changes left elements that [`Self::release_policies`] is to take away.
    pub fn has_retired_policies(&self) -> bool {
        self.policies.has_retired()
    }

    /// Takes away what changes before the last [`wait_for_readers`] left.
    pub fn release_policies(&mut self) -> Result<(), PolicyError> {
        self.policies.release(&mut self.kernel)
    }

    /// Every frontend, and where it leads; endpoints in the order of their addresses, without names.
    pub fn list(&self) -> Vec<(Frontend, Target)> {
        self.model.list().collect()
    }

    /// The counters of `counter`, summed over the processors.
    pub fn counters(&self) -> Result<Vec<u64>, MapError> {
        self.kernel.counters()
    }

    /// What builds with other layouts left goes on until everything stands in ours.
    fn remove_other_layouts(&self) -> Result<(), Box<OpenError>> {
        match self.synced {
            Synced { services: true, policies: true } => {
                attach::remove_other_layouts(&self.pin_root).map_err(Box::new)
            }
            _ => Ok(()),
        }
    }

    fn apply(&mut self, frontend: Frontend, writes: &[model::Write]) -> Result<(), WriteError> {
        let Self { unapplied, kernel, .. } = self;
        unapplied.apply(model::to_key(frontend), writes, |write| kernel.apply(write)).map_err(WriteError::Map)
    }
}

/// Detaches everything below `pin_root` and removes it. What is gone already is fine; a place that is open is refused.
pub fn remove_all(pin_root: &std::path::Path) -> Result<(), OpenError> {
    attach::remove_all(pin_root)
}
