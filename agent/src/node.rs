//! This node's Node object: registration, status, and the Lease beside it.
//!
//! In: settings, the machine's facts, the network's state, the runtime's images. Out: a Node that says what is true, posted
//! when something changed and at least every [`REPORT_EVERY`], and a Lease renewed four times in its duration.
//!
//! ```text
//! Registering --created, or adopted with labels and annotations corrected--> Reporting --object deleted--> Registering
//! ```
//! Registering repeats with back-off while the API server is away; so does a failed post. `facts` reads the machine, `status`
//! decides (pure), `lease` owns the Lease. Eviction is not done here, so pressure conditions are always False.

mod facts;
mod lease;
mod status;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watch_object;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

pub use facts::{Facts, machine_memory};

use crate::api::{Backoff, chain, is_code};
use crate::network;
use crate::settings::Settings;

/// How often the facts that nobody announces (memory, disk, images) are looked at; the kubelet's nodeStatusUpdateFrequency.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How often the status is posted when nothing changes; the kubelet's nodeStatusReportFrequency.
const REPORT_EVERY: Duration = Duration::from_secs(300);

/// What the node task needs.
pub struct Context {
    pub client: kube::Client,
    pub settings: Arc<Settings>,
    pub runtime: runtime::Runtime,
    pub network: watch::Receiver<network::State>,
    /// What other nodes are told of this one.
    pub annotations: BTreeMap<String, String>,
    pub shutdown: CancellationToken,
}

/// The own Node as the API server has it; `None` until it is registered.
pub type OwnNode = watch::Receiver<Option<Arc<Node>>>;

/// Starts the tasks that own the Node and its Lease.
pub fn start(context: Context) -> (OwnNode, Vec<JoinHandle<()>>) {
    let (sender, receiver) = watch::channel(None);
    let lease = lease::run(lease::Context {
        client: context.client.clone(),
        node_name: context.settings.node_name.clone(),
        duration_seconds: context.settings.node_lease_duration_seconds,
        node: receiver.clone(),
        shutdown: context.shutdown.clone(),
    });
    let shutdown = context.shutdown.clone();
    let reporter = Reporter {
        api: Api::all(context.client.clone()),
        context,
        sender,
        posted_at: None,
        backoff: Backoff::default(),
    };
    let report = async move {
        // Cancel-safe: every post is one request, and the next agent compares with what the server has.
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = reporter.run() => {}
        }
    };
    (receiver, vec![tokio::spawn(report), tokio::spawn(lease)])
}

struct Reporter {
    context: Context,
    api: Api<Node>,
    sender: watch::Sender<Option<Arc<Node>>>,
    posted_at: Option<Instant>,
    backoff: Backoff,
}

impl Reporter {
    async fn run(mut self) {
        self.register().await;
        let name = self.context.settings.node_name.clone();
        let mut changes = Box::pin(watch_object(self.api.clone(), &name).backoff(Backoff::default()));
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut network = self.context.network.clone();
        loop {
            // A tick, a change of a watch channel and a stream item are each taken only when returned: cancel-safe.
            tokio::select! {
                node = next_node(&mut changes) => match node {
                    Some(node) => {
                        self.repair_annotations(&node).await;
                        self.sender.send_replace(Some(Arc::new(node)));
                    }
                    None => {
                        tracing::warn!(node = name, "the Node was deleted: registering it again");
                        self.sender.send_replace(None);
                        self.register().await;
                    }
                },
                _ = look.tick() => self.post_if_needed().await,
                Ok(()) = network.changed() => self.post_if_needed().await,
            }
        }
    }

    /// Creates the Node, or takes over the one that is there. Repeats until it worked.
    async fn register(&mut self) {
        loop {
            match self.try_register().await {
                Ok(node) => {
                    tracing::info!(node = self.context.settings.node_name, "registered");
                    self.sender.send_replace(Some(Arc::new(node)));
                    self.posted_at = None;
                    self.backoff.reset();
                    self.post_if_needed().await;
                    return;
                }
                Err(error) => {
                    let pause = self.backoff.next_pause();
                    tracing::warn!(error = chain(&error), ?pause, "cannot register the Node, retrying");
                    sleep(pause).await;
                }
            }
        }
    }

    async fn try_register(&self) -> Result<Node, kube::Error> {
        let settings = &self.context.settings;
        let annotations = self.context.annotations.clone();
        let desired = status::node(settings, annotations, self.desired_status(None).await);
        match self.api.create(&PostParams::default(), &desired).await {
            Err(error) if is_code(&error, 409) => {}
            created => return created,
        }
        let existing = self.api.get(&settings.node_name).await?;
        match status::missing_metadata(&existing, &desired) {
            Some(metadata) => {
                let patch = serde_json::json!({"metadata": metadata});
                self.api.patch(&settings.node_name, &PatchParams::default(), &Patch::Merge(patch)).await
            }
            None => Ok(existing),
        }
    }

    /// Without them other nodes do not find this one's pods. What fails is tried again at the Node's next change.
    async fn repair_annotations(&self, node: &Node) {
        let Some(annotations) = status::missing_annotations(node, &self.context.annotations) else { return };
        tracing::warn!(?annotations, "annotations of the own Node were changed: setting them again");
        let patch = Patch::Merge(serde_json::json!({"metadata": {"annotations": annotations}}));
        let name = &self.context.settings.node_name;
        if let Err(error) = self.api.patch(name, &PatchParams::default(), &patch).await {
            tracing::warn!(error = chain(&error), "cannot set the own Node's annotations");
        }
    }

    async fn desired_status(&self, before: Option<&Node>) -> k8s_openapi::api::core::v1::NodeStatus {
        let root = self.context.settings.root_dir.clone();
        let facts = tokio::task::spawn_blocking(move || Facts::read(&root)).await.unwrap_or_default();
        let inputs = status::Inputs {
            settings: &self.context.settings,
            facts: &facts,
            images: &self.context.runtime.list_images(),
            network: &self.context.network.borrow().clone(),
            now: Timestamp::now(),
        };
        status::build(&inputs, before.and_then(|node| node.status.as_ref()))
    }

    /// Posts the status when it differs from the server's or is old. A failure is retried at the next look.
    async fn post_if_needed(&mut self) {
        let Some(before) = self.sender.borrow().clone() else { return };
        let next = self.desired_status(Some(&before)).await;
        let fresh = self.posted_at.is_some_and(|at| at.elapsed() < REPORT_EVERY);
        if fresh && !status::differs(before.status.as_ref(), &next) {
            return;
        }
        let name = &self.context.settings.node_name;
        let patch = Patch::Strategic(status::patch(&next));
        match self.api.patch_status(name, &PatchParams::default(), &patch).await {
            Ok(node) => {
                self.posted_at = Some(Instant::now());
                self.sender.send_replace(Some(Arc::new(node)));
            }
            Err(error) => tracing::warn!(error = chain(&error), "cannot post the Node's status, retrying"),
        }
    }
}

/// The Node after its next change, `None` when it was deleted. Errors of the watch are told and waited out.
pub(crate) async fn next_node<S>(changes: &mut S) -> Option<Node>
where
    S: Stream<Item = Result<Option<Node>, kube::runtime::watcher::Error>> + Unpin,
{
    loop {
        match changes.next().await {
            Some(Ok(node)) => return node,
            Some(Err(error)) => {
                tracing::warn!(error = chain(&error), "watch of the own Node failed, retrying")
            }
            // A watcher never ends; if it did, waiting is better than registering in a loop.
            None => std::future::pending().await,
        }
    }
}
