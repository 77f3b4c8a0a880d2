//! The scheduler and the controllers of a slim control plane, as clients of the Kubernetes API.
//!
//! Owns everything that turns wishes into objects: Deployments into ReplicaSets into pods, Services into EndpointSlices
//! and Endpoints, pods onto nodes, and what has to be cleaned up. Input: two clients ([`Options`]) of any Kubernetes API
//! server. Output: writes to it. State lives in the API server only: everything here can die at any line and start again.
//!
//! ```text
//!  API server --watch--> caches (indexed, one per kind) --keys--> queue per controller --> pass: observe, plan, execute
//!      ^                                                                                             |
//!      '---------------------------------------- writes ---------------------------------------------'
//! ```
//!
//! A pass looks only at its key and at what the indexes bring up for it. Decisions are in `plan.rs`-like modules: no I/O,
//! no clock. Refuses to know the API server's insides.

use std::sync::Arc;

use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub mod backends;
pub mod bare;
pub mod caches;
pub mod claim;
pub mod deployment;
pub mod endpoints;
pub mod endpointslice;
pub mod events;
pub mod failure;
pub mod garbage;
pub mod key;
pub mod namespace;
pub mod namespace_defaults;
pub mod node_lifecycle;
pub mod options;
pub mod ownership;
pub mod pod_cidr;
pub mod pod_gc;
pub mod pods;
pub mod quantity;
pub mod queue;
pub mod replicaset;
pub mod scheduler;
pub mod selector;
pub mod store;
pub mod supervise;
pub mod taint_eviction;
pub mod taints;
pub mod watch;
pub mod worker;

pub use options::{Concurrency, Context, Options};

use caches::Caches;
use events::Recorder;
use supervise::supervise;

/// Why the controllers cannot start.
#[derive(Debug, Error)]
pub enum Error {
    #[error("start the pod range allocator")]
    PodRanges {
        #[source]
        source: pod_cidr::allocator::Error,
    },
}

/// Runs the scheduler and all controllers until `shutdown`; each is restarted when it fails.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    let options = Arc::new(options);
    let caches = Caches::new();
    let tasks = TaskTracker::new();
    let controllers = part(&options, &caches, options.controller_client.clone(), &tasks, &shutdown);
    let scheduler = part(&options, &caches, options.scheduler_client.clone(), &tasks, &shutdown);
    let starters = assemble(&controllers, &scheduler)?;
    // Every handler hangs on the caches by now, so that none misses a change.
    caches.start(&controllers.client, &tasks, &shutdown);
    tokio::select! {
        () = caches.wait_synced() => tracing::info!("controller caches are complete"),
        () = shutdown.cancelled() => {}
    }
    if !shutdown.is_cancelled() {
        for starter in starters {
            starter(&tasks, &shutdown);
        }
    }
    shutdown.cancelled().await;
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// What one identity works with, and its task that writes events.
fn part(
    options: &Arc<Options>,
    caches: &Caches,
    client: kube::Client,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> Context {
    let (events, receiver) = Recorder::new("controller-manager");
    tasks.spawn(events::write(client.clone(), receiver, shutdown.clone()));
    Context { client, caches: caches.clone(), events, options: options.clone() }
}

type Starter = Box<dyn FnOnce(&TaskTracker, &CancellationToken) + Send>;

/// Makes a starter out of a controller that has a method `run`.
macro_rules! starter {
    ($name:literal, $controller:expr) => {{
        let controller = $controller;
        let starter: Starter = Box::new(move |tasks: &TaskTracker, shutdown: &CancellationToken| {
            let stop = shutdown.clone();
            let start = move || controller.clone().run(stop.clone());
            tasks.spawn(supervise($name, shutdown.clone(), start));
        });
        starter
    }};
}

/// Makes all controllers; they are not running yet.
fn assemble(context: &Context, scheduler: &Context) -> Result<Vec<Starter>, Error> {
    let ranges = pod_cidr::Controller::new(context.clone()).map_err(|source| Error::PodRanges { source })?;
    Ok(vec![
        starter!("scheduler", scheduler::Scheduler::new(scheduler.clone())),
        starter!("pod-cidr", ranges),
        starter!("namespace-defaults", namespace_defaults::Controller::new(context.clone())),
        starter!("deployment", deployment::Controller::new(context.clone())),
        starter!("replicaset", replicaset::Controller::new(context.clone())),
        starter!("endpointslice", endpointslice::Controller::new(context.clone())),
        starter!("endpoints", endpoints::Controller::new(context.clone())),
        starter!("node-lifecycle", node_lifecycle::Controller::new(context.clone())),
        starter!("taint-eviction", taint_eviction::Controller::new(context.clone())),
        starter!("namespace", namespace::Controller::new(context.clone())),
        starter!("garbage", garbage::Controller::new(context.clone())),
        starter!("pod-gc", pod_gc::Controller::new(context.clone())),
    ])
}
