//! Services: what pods learn of them by environment variables, and what the dataplane does for them.
//!
//! In: watches of Services and EndpointSlices, the own Node, and what the node knows of the end of its own pods ([`Departures`]). Out:
//! [`Cache`], a snapshot for whoever builds an environment, writes to the dataplane, and health check ports. `convert` reads API
//! objects, `plan` decides (pure), `proxy` owns the one task that watches and writes,
//! `directory` says whose an address is, `drops` what a drop means, `bypass` serves pods by packets, `clients` tells of their addresses, `health` answers
//! load balancers, `progress` those who ask whether the dataplane follows, `orphans` ends what is connected to a backend that has gone, `peers` knows the other nodes.

mod bypass;
mod clients;
mod convert;
mod departures;
mod directory;
mod drops;
pub mod environment;
mod health;
mod orphans;
mod peers;
pub mod plan;
mod progress;
mod proxy;
mod scheduling;
pub mod table;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use bypass::Bypass;
pub use clients::Clients;
pub use departures::{Departures, Unheard};
pub use directory::{AddressKind, Directory, Known, Owner, Type};
pub use drops::{DROPS, DropReason};
pub use plan::Departure;
pub use progress::{Health, Progress};
pub use scheduling::scheduler_name;
pub use table::{Entry, EntryPort, ServiceTable};

use crate::events::Recorder;
use crate::node::OwnNode;

/// The dataplane, shared by the tasks that program it: services here, masquerade in `network`.
#[derive(Clone)]
pub struct Dataplane(Arc<Mutex<dataplane::Dataplane>>);

impl Dataplane {
    pub fn new(dataplane: dataplane::Dataplane) -> Self {
        Self(Arc::new(Mutex::new(dataplane)))
    }

    /// Runs `work` alone with the dataplane. Every operation of it is short: map writes, no waiting for anybody.
    pub fn with<T>(&self, work: impl FnOnce(&mut dataplane::Dataplane) -> T) -> T {
        // A panic elsewhere leaves the model as it was between two writes; the next reconciliation corrects it.
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the services task needs.
pub struct Context {
    pub client: kube::Client,
    pub node_name: String,
    pub node: OwnNode,
    /// Where node ports answer: addresses of the node, its loopback too where that is wanted.
    pub node_addresses: Vec<IpAddr>,
    /// None: somebody else translates services; the cache is still kept.
    pub dataplane: Option<Dataplane>,
    /// This node's pods, where they are known.
    pub bypass: Option<Arc<Bypass>>,
    /// Kept as the Services are seen and the dataplane is written.
    pub directory: Directory,
    pub recorder: Recorder,
    pub progress: Progress,
    pub shutdown: CancellationToken,
}

/// The Services as the API server last said. Clones share the state.
#[derive(Debug, Clone)]
pub struct Cache {
    table: Arc<RwLock<Arc<ServiceTable>>>,
    synced: watch::Receiver<bool>,
}

impl Cache {
    /// The Services now; the snapshot does not change any more.
    pub fn get(&self) -> Arc<ServiceTable> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Resolves once all Services have been seen. Cancel safe.
    pub async fn synced(&self) {
        // An error means that the task has ended, and with it the agent.
        let mut synced = self.synced.clone();
        let _ended = synced.wait_for(|synced| *synced).await;
    }
}

/// The writing side of a [`Cache`].
struct CacheWriter {
    table: Arc<RwLock<Arc<ServiceTable>>>,
    synced: watch::Sender<bool>,
}

impl CacheWriter {
    /// Changes the table; copied first when a snapshot of it is in use.
    fn change(&self, change: impl FnOnce(&mut ServiceTable)) {
        change(Arc::make_mut(&mut self.table.write().unwrap_or_else(PoisonError::into_inner)));
    }

    fn set_synced(&self) {
        self.synced.send_replace(true);
    }
}

fn cache() -> (CacheWriter, Cache) {
    let table = Arc::new(RwLock::new(Arc::new(ServiceTable::default())));
    let (synced_sender, synced) = watch::channel(false);
    (CacheWriter { table: table.clone(), synced: synced_sender }, Cache { table, synced })
}

/// Starts the task that owns Services on this node.
pub fn start(context: Context) -> (Cache, Departures, JoinHandle<()>) {
    let (writer, cache) = cache();
    let (departures, notices) = departures::channel();
    (cache, departures, tokio::spawn(proxy::run(context, writer, notices)))
}
