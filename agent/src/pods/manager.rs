//! The task that watches this node's pods and the runtime, and gives each pod a task of its own.
//!
//! In: pods with `spec.nodeName` of this node, the Node object, the runtime's events. Out: messages to the pods' tasks. Decides only which
//! pods the node takes (by `admission`, pure) and, after the first full list, which sandboxes belong to no pod any more.

mod crashes;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Container, Node, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use runtime::{ContainerStatus, Event, Events, SandboxId, SandboxStatus};
use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use self::crashes::Crashes;
use super::leftovers::{self, Owner, Queue};
use super::observed::Rejection;
use super::registry::Registry;
use super::resources::{self, Amounts, Qos};
use super::sandbox::Names;
use super::site::Site;
use super::worker::{Begin, INBOX, Input, Worker};
use super::{Context, Handle, StartError, admission, execute, labels};
use crate::api::watched;
use crate::events::EventType;

/// Makes what pods live in, and starts the task.
///
/// # Errors
/// [`StartError`].
pub fn start(context: Context) -> Result<(Handle, JoinHandle<()>), StartError> {
    let site = Arc::new(Site::new(&context)?);
    for path in [&site.root, &site.log_root] {
        std::fs::create_dir_all(path)
            .map_err(|source| StartError::Directory { path: path.clone(), source })?;
    }
    // Subscribed before the list, so that nothing falls between the two.
    let events = context.runtime.events();
    let (synced_sender, synced) = watch::channel(false);
    let registry = Registry::default();
    let task = Task {
        unclaimed: group(&context.runtime),
        leftovers: Queue::default(),
        max_pods: context.settings.max_pods,
        site,
        registry: registry.clone(),
        shutdown: context.shutdown,
        synced: synced_sender,
        workers: HashMap::new(),
        running: JoinSet::new(),
        listed: None,
        node: None,
        burstable_cpu: 0,
    };
    let task = tokio::spawn(task.run(events));
    Ok((Handle { registry, synced }, task))
}

/// What the runtime has of one pod.
#[derive(Default)]
struct Group {
    sandboxes: Vec<SandboxStatus>,
    containers: Vec<ContainerStatus>,
}

/// What the runtime has, by pod uid. Only pods: sandboxes that somebody else made by CRI carry no uid of ours and are left alone.
fn group(runtime: &runtime::Runtime) -> BTreeMap<String, Group> {
    let snapshot = runtime.list();
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    let mut owners: HashMap<SandboxId, String> = HashMap::new();
    for sandbox in snapshot.sandboxes {
        let uid = labels::get(&sandbox.config.labels, labels::POD_UID);
        if !uid.is_empty() {
            owners.insert(sandbox.id.clone(), uid.to_owned());
            groups.entry(uid.to_owned()).or_default().sandboxes.push(sandbox);
        }
    }
    for container in snapshot.containers {
        if let Some(uid) = owners.get(&container.sandbox) {
            groups.entry(uid.clone()).or_default().containers.push(container);
        }
    }
    groups
}

/// A pod's task, seen from outside.
struct Known {
    pod: Arc<Pod>,
    inbox: mpsc::Sender<Input>,
    task: Id,
    gone: bool,
    rejected: Option<Rejection>,
    crashes: Crashes,
    burstable_cpu: i64,
}

struct Task {
    site: Arc<Site>,
    registry: Registry,
    shutdown: CancellationToken,
    synced: watch::Sender<bool>,
    max_pods: u32,
    workers: HashMap<String, Known>,
    running: JoinSet<()>,
    /// What the runtime had at the start and no pod has claimed yet.
    unclaimed: BTreeMap<String, Group>,
    /// What the first full list left of nobody.
    leftovers: Queue,
    /// Uids seen since the last list began; `None` outside of a list.
    listed: Option<HashSet<String>>,
    node: Option<Node>,
    burstable_cpu: i64,
}

impl Task {
    async fn run(mut self, mut events: Events) {
        let name = &self.site.node.name;
        let client = self.site.client.clone();
        let nodes = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let pods = watcher::Config::default().fields(&format!("spec.nodeName={name}"));
        let mut nodes = watched(watcher(Api::<Node>::all(client.clone()), nodes)).boxed();
        let mut pods = watched(watcher(Api::<Pod>::all(client), pods)).boxed();
        let mut node_synced = false;
        loop {
            tokio::select! {
                // Cancel safe: a stream keeps what it has until it is polled again.
                Some(event) = nodes.next() => node_synced |= self.take_node(event),
                // Cancel safe as above. Pods wait for the Node: its labels and resources decide about them.
                Some(event) = pods.next(), if node_synced => self.take_pod(event).await,
                // Cancel safe: documented by the runtime.
                event = events.recv() => match event {
                    Some(event) => self.take_event(event).await,
                    None => return,
                },
                // Cancel safe: a finished task stays in the set until it is asked for.
                Some(end) = self.running.join_next_with_id(), if !self.running.is_empty() => match end {
                    Ok((id, ())) => self.ended(id),
                    Err(error) => self.restart(&error),
                },
                // Cancel safe: only a flag is read.
                () = self.shutdown.cancelled() => break,
            }
        }
        // The pods' tasks see the same flag; what they were doing is found again at the next start.
        while self.running.join_next().await.is_some() {}
    }

    // ----- the Node

    /// True once the Node has been listed.
    fn take_node(&mut self, event: watcher::Result<watcher::Event<Node>>) -> bool {
        match event {
            Ok(watcher::Event::Apply(node) | watcher::Event::InitApply(node)) => {
                let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
                self.site.set_allocatable(Amounts::parse(allocatable));
                self.node = Some(node);
                false
            }
            Ok(watcher::Event::InitDone) => true,
            Ok(watcher::Event::Init | watcher::Event::Delete(_)) => false,
            Err(error) => {
                tracing::warn!(%error, "watch the node");
                false
            }
        }
    }

    // ----- pods

    async fn take_pod(&mut self, event: watcher::Result<watcher::Event<Pod>>) {
        match event {
            Ok(watcher::Event::Init) => self.listed = Some(HashSet::new()),
            Ok(watcher::Event::InitApply(pod)) => {
                if let Some(listed) = &mut self.listed {
                    listed.insert(pod.uid().unwrap_or_default());
                }
                self.put(pod).await;
            }
            Ok(watcher::Event::Apply(pod)) => self.put(pod).await,
            Ok(watcher::Event::Delete(pod)) => self.gone(&pod.uid().unwrap_or_default()).await,
            Ok(watcher::Event::InitDone) => self.list_done().await,
            Err(error) => tracing::warn!(%error, "watch pods"),
        }
    }

    async fn put(&mut self, pod: Pod) {
        let seen = Instant::now();
        let pod = Arc::new(pod);
        let uid = Names::of(&pod).uid.to_owned();
        if let Some(known) = self.workers.get_mut(&uid) {
            known.pod = pod.clone();
            // An error means that the task has just ended: the pod is gone.
            let _ended = known.inbox.send(Input::Spec(pod)).await;
            return;
        }
        self.leftovers.begins(&uid);
        let group = self.unclaimed.remove(&uid);
        let rejected = if group.is_some() { None } else { self.admit(&pod) };
        let group = group.unwrap_or_default();
        self.spawn(Begin {
            pod,
            seen,
            gone: false,
            rejected,
            sandboxes: group.sandboxes,
            containers: group.containers,
        });
    }

    /// Whether the node takes a pod that it has not begun with.
    fn admit(&self, pod: &Arc<Pod>) -> Option<Rejection> {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if pod.metadata.deletion_timestamp.is_some() || matches!(phase, Some("Failed" | "Succeeded")) {
            return None;
        }
        let rejected: HashSet<&str> = self
            .workers
            .values()
            .filter(|known| known.rejected.is_some())
            .map(|known| Names::of(&known.pod).uid)
            .collect();
        let others = self.registry.list();
        let active: Vec<&Pod> = others
            .iter()
            .map(Arc::as_ref)
            .filter(|other| {
                let phase = other.status.as_ref().and_then(|status| status.phase.as_deref());
                !matches!(phase, Some("Failed" | "Succeeded")) && !rejected.contains(Names::of(other).uid)
            })
            .collect();
        let allocatable = self.site.allocatable();
        let inputs = admission::Inputs {
            node: self.node.as_ref(),
            allocatable: &allocatable,
            max_pods: self.max_pods,
        };
        let rejection = admission::admit(pod, &active, inputs)?;
        self.site.pod_event(pod, EventType::Warning, &rejection.reason, rejection.message.clone());
        Some(rejection)
    }

    fn spawn(&mut self, begin: Begin) {
        let (inbox, messages) = mpsc::channel(INBOX);
        let (pod, gone, rejected) = (begin.pod.clone(), begin.gone, begin.rejected.clone());
        let worker = Worker::new(self.site.clone(), self.registry.clone(), begin);
        let task = self.running.spawn(worker.run(messages, self.shutdown.clone())).id();
        self.know(Known { pod, inbox, task, gone, rejected, crashes: Crashes::default(), burstable_cpu: 0 });
    }

    /// Adds a pod whose task runs.
    fn know(&mut self, mut known: Known) {
        let pod = known.pod.clone();
        let no_spec = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&no_spec);
        let burstable = known.rejected.is_none() && resources::qos(spec) == Qos::Burstable;
        known.burstable_cpu = if burstable { resources::pod_requests(spec).get("cpu") } else { 0 };
        self.change_burstable(known.burstable_cpu);
        self.workers.insert(Names::of(&pod).uid.to_owned(), known);
    }

    fn change_burstable(&mut self, by: i64) {
        if by != 0 {
            self.burstable_cpu = self.burstable_cpu.saturating_add(by).max(0);
            self.site.set_burstable_cpu(self.burstable_cpu);
        }
    }

    async fn gone(&mut self, uid: &str) {
        if let Some(known) = self.workers.get_mut(uid) {
            known.gone = true;
            // An error means that the task has just ended.
            let _ended = known.inbox.send(Input::Gone).await;
        }
    }

    /// A full list is here: what it does not name is gone, and what the runtime has of nobody is ended.
    async fn list_done(&mut self) {
        let Some(listed) = self.listed.take() else { return };
        let missing: Vec<String> =
            self.workers.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
        for uid in missing {
            self.gone(&uid).await;
        }
        for (uid, group) in std::mem::take(&mut self.unclaimed) {
            tracing::info!(uid, "pod is not in the API any more, it is ended");
            self.end(orphan(&uid, &group), group);
        }
        if !*self.synced.borrow() {
            // Each pod's task has told of its end when it was made.
            self.site.departures.caught_up();
            self.find_leftovers().await;
            self.synced.send_replace(true);
        }
    }

    /// Looks for pods that are gone and have no sandbox, but something else: an agent died between two steps of their start or of their end.
    /// Which they are is decided before any more pods begin: a pod that begins later is not among them.
    async fn find_leftovers(&mut self) {
        let site = self.site.clone();
        match execute::blocking(move || leftovers::owners(&site)).await {
            Ok(owners) => self.leftovers = Queue::of(owners, |uid| self.workers.contains_key(uid)),
            Err(error) => tracing::warn!(error, "look for what is left of pods that are gone"),
        }
        self.end_leftovers();
    }

    fn end_leftovers(&mut self) {
        while let Some((uid, owner)) = self.leftovers.next() {
            tracing::info!(uid, pod = owner.name, "pod is gone, what is left of it is removed");
            self.end(bare(&uid, owner), Group::default());
        }
    }

    /// Begins with a pod that the API does not have, to end it.
    fn end(&mut self, pod: Pod, group: Group) {
        self.spawn(Begin {
            pod: Arc::new(pod),
            seen: Instant::now(),
            gone: true,
            rejected: None,
            sandboxes: group.sandboxes,
            containers: group.containers,
        });
    }

    // ----- tasks that end

    fn ended(&mut self, id: Id) {
        if let Some(known) = self.forget(id) {
            self.leftovers.ended(Names::of(&known.pod).uid);
            self.end_leftovers();
        }
    }

    fn forget(&mut self, id: Id) -> Option<Known> {
        let uid = self.workers.iter().find(|(_, known)| known.task == id).map(|(uid, _)| uid.clone())?;
        let known = self.workers.remove(&uid)?;
        self.change_burstable(-known.burstable_cpu);
        Some(known)
    }

    /// A pod's task panicked: after a pause it begins again with what the runtime has then.
    fn restart(&mut self, error: &tokio::task::JoinError) {
        let Some(known) = self.forget(error.id()) else { return };
        let mut crashes = known.crashes;
        let pause = crashes.count(Instant::now());
        let pod = Names::of(&known.pod).name;
        tracing::error!(pod, %error, ?pause, "the pod's task was interrupted, it begins again");
        let (inbox, messages) = mpsc::channel(INBOX);
        let again = Again {
            site: self.site.clone(),
            registry: self.registry.clone(),
            shutdown: self.shutdown.clone(),
            pod: known.pod.clone(),
            gone: known.gone,
            rejected: known.rejected.clone(),
        };
        let task = self.running.spawn(again.run(messages, pause)).id();
        self.know(Known { inbox, task, crashes, ..known });
    }

    // ----- the runtime

    async fn take_event(&mut self, event: Event) {
        let sandbox = match &event {
            Event::ContainerCreated { sandbox, .. }
            | Event::ContainerStarted { sandbox, .. }
            | Event::ContainerExited { sandbox, .. }
            | Event::ContainerOom { sandbox, .. }
            | Event::SandboxGone { sandbox } => sandbox,
            Event::Lagged => return self.take_everything().await,
        };
        // Nobody: the sandbox was removed, and its pod's task did that.
        let Some(status) = self.site.runtime.sandbox_status(sandbox) else { return };
        let uid = labels::get(&status.config.labels, labels::POD_UID);
        if let Some(known) = self.workers.get(uid) {
            // An error means that the task has just ended.
            let _ended = known.inbox.send(Input::Runtime(event)).await;
        }
    }

    /// Events were lost: every pod is told what there is.
    async fn take_everything(&mut self) {
        tracing::warn!("runtime events were lost, listing again");
        let mut groups = group(&self.site.runtime);
        for (uid, known) in &self.workers {
            let group = groups.remove(uid).unwrap_or_default();
            let _ended = known.inbox.send(Input::Snapshot(group.sandboxes, group.containers)).await;
        }
    }
}

/// A pod's task that begins again after a pause.
struct Again {
    site: Arc<Site>,
    registry: Registry,
    shutdown: CancellationToken,
    pod: Arc<Pod>,
    gone: bool,
    rejected: Option<Rejection>,
}

impl Again {
    async fn run(mut self, mut inbox: mpsc::Receiver<Input>, pause: Duration) {
        tokio::select! {
            () = crashes::wait(&mut inbox, &mut self.pod, &mut self.gone, pause) => {}
            // Cancel safe: only a flag is read.
            () = self.shutdown.cancelled() => return,
        }
        let group = group(&self.site.runtime).remove(Names::of(&self.pod).uid).unwrap_or_default();
        let begin = Begin {
            pod: self.pod,
            seen: Instant::now(),
            gone: self.gone,
            rejected: self.rejected,
            sandboxes: group.sandboxes,
            containers: group.containers,
        };
        Worker::new(self.site, self.registry, begin).run(inbox, self.shutdown).await;
    }
}

/// What can be said about a pod of which only its sandboxes are left.
fn orphan(uid: &str, group: &Group) -> Pod {
    let config = group.sandboxes.first().map(|sandbox| sandbox.config.clone()).unwrap_or_default();
    let grace = group
        .containers
        .iter()
        .filter_map(|status| {
            labels::get(&status.config.annotations, labels::GRACE_PERIOD).parse::<i64>().ok()
        })
        .max();
    let mut names: Vec<String> = group.containers.iter().map(|status| status.config.name.clone()).collect();
    names.sort_unstable();
    names.dedup();
    let spec = PodSpec {
        containers: names.into_iter().map(|name| Container { name, ..Container::default() }).collect(),
        termination_grace_period_seconds: grace,
        ..PodSpec::default()
    };
    let owner = Owner { namespace: config.namespace, name: config.name };
    Pod { spec: Some(spec), ..bare(uid, owner) }
}

/// What can be said about a pod of which not even a sandbox is left.
fn bare(uid: &str, owner: Owner) -> Pod {
    let metadata = ObjectMeta {
        name: Some(owner.name),
        namespace: Some(owner.namespace),
        uid: Some(uid.to_owned()),
        ..ObjectMeta::default()
    };
    Pod { metadata, ..Pod::default() }
}
