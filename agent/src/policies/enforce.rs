//! The task that owns NetworkPolicies: watches and the pods of this node in; the dataplane out.
//!
//! ```text
//! Syncing --all that is needed was listed--> Ready --the first policy of the cluster--> Syncing
//! ```
//! Policies are watched always; namespaces and pods of the whole cluster only while there is a policy, since they are for nothing else and
//! many. While Syncing the kernel keeps what it has, an earlier agent's too, and containers that start wait. At the first Ready everything
//! wanted is written, then what nobody wants is removed. What the dataplane refuses is tried again after [`RETRY`], rules as a whole; until
//! then each pod has what it had, one that a policy selects does not start, and the answer to it says why.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use dataplane::policy::{self, Isolation, PodLink, RulesetId};
use futures::stream::{self, BoxStream};
use futures::{FutureExt, Stream, StreamExt};
use k8s_openapi::api::core::v1::{Namespace, ObjectReference, Pod as ApiPod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};
use runtime::{SandboxId, SandboxState, SandboxStatus};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::guard::{Endpoint, Notice, Selected};
use super::plan::{self, Change, Key, Planner, Uid};
use super::{Context, convert, link};
use crate::api::{Listing, News, chain, watched};
use crate::events::EventType;
use crate::pods::labels;

/// How long a write that the dataplane refused waits.
const RETRY: Duration = Duration::from_secs(30);
/// Watch events that are taken in before the dataplane is written once.
const BATCH_EVENTS: usize = 1024;

type Watched<K> = Result<Event<K>, watcher::Error>;
type Answer = oneshot::Sender<Result<(), String>>;

/// What the watches for peers bring.
enum PeerEvent {
    Namespace(Box<Watched<Namespace>>),
    Pod(Box<Watched<ApiPod>>),
}

/// A pod of this node.
struct Local {
    key: Key,
    sandbox: SandboxId,
    netns: PathBuf,
    /// Known from when a policy selects the pod for the first time.
    link: Option<PodLink>,
}

struct Enforcer {
    context: Context,
    planner: Planner,
    policies: Listing<Key>,
    namespaces: Listing<String>,
    pods: Listing<Key>,
    /// The watches for peers, while there is a policy.
    peers: Option<BoxStream<'static, PeerEvent>>,
    local: HashMap<Uid, Local>,
    waiting: Vec<(Uid, Answer)>,
    /// What policies say that cannot be read.
    problems: HashMap<Key, Vec<String>>,
    /// Pods whose isolation does not hold yet, with the reason if that was tried.
    unenforced: HashMap<Uid, String>,
    /// Why the rules are not all in the dataplane.
    trouble: Option<String>,
    /// A bridge comes with the first pod, and with it an address of the node.
    addresses_may_differ: bool,
    /// What an earlier agent left and nobody wants is gone.
    retained: bool,
    retry_at: Option<Instant>,
    /// It has come.
    is_due: bool,
}

/// Runs until shutdown.
pub async fn run(context: Context, notices: mpsc::Receiver<Notice>) {
    let policies: Api<NetworkPolicy> = Api::all(context.client.clone());
    let policies = pin!(watched(watcher(policies, watcher::Config::default())));
    let shutdown = context.shutdown.clone();
    // Cancel-safe: what is not in the maps yet is planned again by the next agent.
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = Enforcer::new(context).watch(policies, notices) => {}
    }
}

impl Enforcer {
    fn new(mut context: Context) -> Self {
        let sandboxes = std::mem::take(&mut context.sandboxes);
        let first = context.dataplane.with(|dataplane| dataplane.first_ruleset());
        let mut enforcer = Self {
            planner: Planner::new(first.0),
            policies: Listing::default(),
            namespaces: Listing::default(),
            pods: Listing::default(),
            peers: None,
            local: HashMap::new(),
            waiting: Vec::new(),
            problems: HashMap::new(),
            unenforced: HashMap::new(),
            trouble: None,
            addresses_may_differ: true,
            retained: false,
            retry_at: None,
            is_due: false,
            context,
        };
        sandboxes.into_iter().filter_map(endpoint).for_each(|endpoint| enforcer.add(endpoint));
        enforcer
    }

    async fn watch(
        mut self,
        mut policies: impl Stream<Item = Watched<NetworkPolicy>> + Unpin,
        mut notices: mpsc::Receiver<Notice>,
    ) {
        loop {
            let retry_at = self.retry_at;
            let peers = async {
                match &mut self.peers {
                    Some(peers) => peers.next().await,
                    None => std::future::pending().await,
                }
            };
            // `next` and `recv` take an item only when they return it, and a timer has nothing to lose: each arm is cancel-safe.
            tokio::select! {
                Some(notice) = notices.recv() => self.on_notice(notice),
                Some(event) = policies.next() => self.on_policy(event),
                Some(event) = peers => self.on_peer(event),
                () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {
                    (self.retry_at, self.is_due) = (None, true);
                }
                else => return,
            }
            for _ in 0..BATCH_EVENTS {
                if let Ok(notice) = notices.try_recv() {
                    self.on_notice(notice);
                } else if let Some(Some(event)) = policies.next().now_or_never() {
                    self.on_policy(event);
                } else if let Some(Some(event)) =
                    self.peers.as_mut().and_then(|peers| peers.next().now_or_never())
                {
                    self.on_peer(event);
                } else {
                    break;
                }
            }
            self.mind_peers();
            // Netlink and files may block for a moment.
            tokio::task::block_in_place(|| self.flush());
            self.release().await;
        }
    }

    fn on_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Starts { endpoint, answer } => {
                let uid = endpoint.pod.uid.clone();
                let known = self.local.get(&uid).is_some_and(|local| local.sandbox == endpoint.sandbox);
                if !known {
                    self.add(endpoint);
                }
                self.waiting.retain(|(_, answer)| !answer.is_closed());
                self.waiting.push((uid, answer));
            }
            Notice::List { answer } => {
                let _gave_up = answer.send(self.list());
            }
            Notice::Ended { uid, sandbox } => {
                if self.local.get(uid.as_str()).is_some_and(|local| local.sandbox == sandbox) {
                    self.remove(&uid);
                }
            }
        }
    }

    fn list(&self) -> Vec<Selected> {
        let names =
            |keys: Vec<Key>| (!keys.is_empty()).then(|| keys.into_iter().map(|key| key.name).collect());
        let selected = self.local.iter().filter_map(|(uid, local)| {
            let plan::Selecting { ingress, egress } = self.planner.explain(uid)?;
            let (ingress, egress) = (names(ingress), names(egress));
            (ingress.is_some() || egress.is_some()).then(|| Selected {
                namespace: local.key.namespace.clone(),
                pod: local.key.name.clone(),
                link: local.link.as_ref().map(|link| link.name.clone()),
                ingress,
                egress,
                problem: self.unenforced.get(uid).cloned(),
            })
        });
        let mut all: Vec<Selected> = selected.collect();
        all.sort_by(|one, other| (&one.namespace, &one.pod).cmp(&(&other.namespace, &other.pod)));
        all
    }

    fn add(&mut self, endpoint: Endpoint) {
        let Endpoint { key, pod, sandbox, netns } = endpoint;
        // The link of an earlier sandbox is gone, or goes with it.
        self.remove(&pod.uid);
        self.local.insert(pod.uid.clone(), Local { key: key.clone(), sandbox, netns, link: None });
        self.planner.set_endpoint(key, pod);
        self.addresses_may_differ = true;
    }

    fn remove(&mut self, uid: &str) {
        let Some(local) = self.local.remove(uid) else { return };
        self.planner.remove_endpoint(uid);
        self.unenforced.remove(uid);
        if let Some(link) = local.link {
            let open = Isolation::default();
            let opened = self.context.dataplane.with(|dataplane| dataplane.isolate(&link, open));
            if let Err(error) = opened {
                tracing::warn!(pod = %local.key, error = chain(&error), "remove the filters of a pod that ended");
            }
        }
    }

    fn on_policy(&mut self, event: Watched<NetworkPolicy>) {
        let event = match event {
            Ok(event) => event,
            Err(error) => return warn_watch("networkpolicies", &error),
        };
        match self.policies.on_event(event, |object| convert::key(&object.metadata)) {
            Some(News::Is(key, object)) => self.apply_policy(key, &object),
            Some(News::Gone(key)) => {
                self.planner.remove_policy(&key);
                self.problems.remove(&key);
            }
            Some(News::All(seen)) => {
                self.problems.retain(|key, _| seen.contains(key));
                self.planner.retain_policies(&seen);
            }
            None => {}
        }
    }

    fn apply_policy(&mut self, key: Key, object: &NetworkPolicy) {
        let (policy, problems) = convert::policy(object);
        let before = match problems.is_empty() {
            true => self.problems.remove(&key),
            false => self.problems.insert(key.clone(), problems.clone()),
        };
        // Told once, and not at every full list.
        for problem in problems
            .into_iter()
            .filter(|problem| before.as_ref().is_none_or(|before| !before.contains(problem)))
        {
            tracing::warn!(policy = %key, problem, "a part of a NetworkPolicy allows nothing");
            let reference = ObjectReference {
                api_version: Some("networking.k8s.io/v1".to_owned()),
                kind: Some("NetworkPolicy".to_owned()),
                namespace: Some(key.namespace.clone()),
                name: Some(key.name.clone()),
                uid: object.metadata.uid.clone(),
                ..ObjectReference::default()
            };
            self.context.recorder.record(reference, EventType::Warning, "InvalidNetworkPolicy", problem);
        }
        self.planner.set_policy(key, policy);
    }

    fn on_peer(&mut self, event: PeerEvent) {
        match event {
            PeerEvent::Namespace(event) => self.on_namespace(*event),
            PeerEvent::Pod(event) => self.on_pod(*event),
        }
    }

    fn on_namespace(&mut self, event: Watched<Namespace>) {
        let event = match event {
            Ok(event) => event,
            Err(error) => return warn_watch("namespaces", &error),
        };
        match self.namespaces.on_event(event, |object| object.metadata.name.clone()) {
            Some(News::Is(name, object)) => {
                self.planner.set_namespace(&name, object.metadata.labels.unwrap_or_default().into());
            }
            Some(News::Gone(name)) => self.planner.remove_namespace(&name),
            Some(News::All(seen)) => self.planner.retain_namespaces(&seen),
            None => {}
        }
    }

    fn on_pod(&mut self, event: Watched<ApiPod>) {
        let event = match event {
            Ok(event) => event,
            Err(error) => return warn_watch("pods", &error),
        };
        match self.pods.on_event(event, |object| convert::key(&object.metadata)) {
            Some(News::Is(_, object)) => {
                if let Some((key, pod)) = convert::pod(&object) {
                    self.planner.set_pod(key, pod);
                }
            }
            Some(News::Gone(key)) => self.planner.remove_pod(&key),
            Some(News::All(seen)) => self.planner.retain_pods(&seen),
            None => {}
        }
    }

    /// Watches peers while there is a policy, and forgets them after the last one.
    fn mind_peers(&mut self) {
        match (self.planner.has_policies(), &self.peers) {
            (true, None) => self.peers = Some(watch_peers(&self.context.client)),
            (false, Some(_)) if self.policies.listed_once => {
                self.peers = None;
                (self.namespaces, self.pods) = (Listing::default(), Listing::default());
                self.planner.retain_namespaces(&HashSet::new());
                self.planner.retain_pods(&HashSet::new());
            }
            _ => {}
        }
    }

    fn is_ready(&self) -> bool {
        let peers = !self.planner.has_policies() || (self.namespaces.listed_once && self.pods.listed_once);
        self.policies.listed_once && peers
    }

    /// Writes what changed, and answers those who wait.
    fn flush(&mut self) {
        if !self.is_ready() {
            return;
        }
        let mut changes = Vec::new();
        for change in self.planner.take_changes() {
            changes.push(match change {
                Change::Allow { ruleset, network, ports } => {
                    policy::Change::Allow { ruleset, network, ports }
                }
                Change::Forget { ruleset, network } => policy::Change::Forget { ruleset, network },
                Change::Drop { ruleset } => policy::Change::Drop { ruleset },
                Change::Isolate { endpoint, .. } => {
                    self.unenforced.entry(endpoint).or_default();
                    continue;
                }
            });
        }
        let is_due = std::mem::take(&mut self.is_due);
        // What is left out meanwhile comes with everything else.
        if self.trouble.is_none() || is_due {
            self.trouble = self.write(&changes).err();
        }
        // Those that are open, or become it, need no rules.
        let has_rules = self.trouble.is_none();
        let asked: HashSet<&Uid> = self.waiting.iter().map(|(uid, _)| uid).collect();
        let is_tried = |(uid, reason): &(&Uid, &String)| reason.is_empty() || is_due || asked.contains(uid);
        let pending = self.unenforced.iter().filter(is_tried).map(|(uid, _)| uid.clone());
        for uid in pending.collect::<Vec<_>>() {
            let isolation = self.planner.isolation(&uid).unwrap_or_default();
            if has_rules || isolation == Isolation::default() {
                self.enforce(&uid, isolation);
            }
        }
        if !self.unenforced.is_empty() || !has_rules {
            self.retry_at.get_or_insert_with(|| Instant::now() + RETRY);
        } else if !self.retained {
            // Only now: an earlier agent's filters hold for those that ours do not hold for yet.
            match self.context.dataplane.with(|dataplane| dataplane.retain_policies()) {
                Ok(()) => self.retained = true,
                Err(error) => {
                    tracing::error!(error = chain(&error), "remove what an earlier agent filtered");
                    self.retry_at.get_or_insert_with(|| Instant::now() + RETRY);
                }
            }
        }
        for (uid, answer) in self.waiting.drain(..) {
            let reason = self.unenforced.get(&uid).map(|reason| match (&self.trouble, reason) {
                (Some(trouble), _) => trouble.clone(),
                (None, reason) => reason.clone(),
            });
            // One that gave up in the meantime asks again.
            let _gave_up = answer.send(reason.map_or(Ok(()), Err));
        }
    }

    /// Writes the rules that changed; after a failure, all of them: what stands already costs nothing.
    fn write(&mut self, changes: &[policy::Change]) -> Result<(), String> {
        let addresses = match self.planner.has_policies() && std::mem::take(&mut self.addresses_may_differ) {
            true => Some(link::node_addresses().map_err(|error| chain(&error))),
            false => None,
        };
        let everything = if self.trouble.is_some() { self.everything() } else { Vec::new() };
        let changes = if self.trouble.is_some() { &everything } else { changes };
        let written = self.context.dataplane.with(|dataplane| {
            if let Some(Ok(addresses)) = &addresses {
                dataplane.set_node_addresses(addresses)?;
            }
            if changes.is_empty() { Ok(()) } else { dataplane.change_policies(changes) }
        });
        if let Some(Err(error)) = addresses {
            self.addresses_may_differ = true;
            tracing::warn!(error, "pods may not reach their own node");
        }
        written.map_err(|error| {
            self.addresses_may_differ = true;
            let reason = format!("NetworkPolicies cannot be enforced: {}", chain(&error));
            tracing::error!(reason, "trying again in {RETRY:?}");
            reason
        })
    }

    /// The rules as they should be, what is not wanted first: it makes room.
    fn everything(&self) -> Vec<policy::Change> {
        let wanted: HashSet<RulesetId> = self.planner.rulesets().collect();
        let present = self.context.dataplane.with(|dataplane| dataplane.rulesets());
        let unwanted = present.into_iter().filter(|ruleset| !wanted.contains(ruleset));
        let dropped = unwanted.map(|ruleset| policy::Change::Drop { ruleset });
        let whole = wanted.iter().map(|ruleset| policy::Change::Replace {
            ruleset: *ruleset,
            entries: self
                .planner
                .entries(*ruleset)
                .map(|(network, ports)| (network, ports.clone()))
                .collect(),
        });
        dropped.chain(whole).collect()
    }

    /// Makes an isolation hold for a pod. One that it does not hold for does not start.
    fn enforce(&mut self, uid: &Uid, isolation: Isolation) {
        let done = match self.link_for(uid, isolation) {
            Ok(Some(link)) => {
                let done = self.context.dataplane.with(|dataplane| dataplane.isolate(&link, isolation));
                done.map_err(|error| chain(&error))
            }
            Ok(None) => Ok(()),
            Err(error) => Err(chain(&error)),
        };
        match done {
            Ok(()) => drop(self.unenforced.remove(uid)),
            Err(reason) => self.failed(uid, &reason),
        }
    }

    /// The link of a pod that is selected, or was; none: there is nothing to take back.
    fn link_for(&mut self, uid: &Uid, isolation: Isolation) -> Result<Option<PodLink>, link::Error> {
        let Some(local) = self.local.get_mut(uid) else { return Ok(None) };
        if local.link.is_none() && isolation != Isolation::default() {
            local.link = Some(link::find(&local.netns)?);
        }
        Ok(local.link.clone())
    }

    /// Tells that policies do not hold for a pod, once for each reason.
    fn failed(&mut self, uid: &Uid, reason: &str) {
        let Some(local) = self.local.get(uid) else { return };
        let message = format!("NetworkPolicies cannot be enforced: {reason}");
        if self.unenforced.insert(uid.clone(), message.clone()).as_ref() == Some(&message) {
            return;
        }
        tracing::warn!(pod = %local.key, message);
        let reference = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(local.key.namespace.clone()),
            name: Some(local.key.name.clone()),
            uid: Some(uid.to_string()),
            ..ObjectReference::default()
        };
        self.context.recorder.record(reference, EventType::Warning, "FailedToEnforceNetworkPolicy", message);
    }

    /// Takes away what changes left, once no program can be on its way to it.
    async fn release(&mut self) {
        if !self.context.dataplane.with(|dataplane| dataplane.has_retired_policies()) {
            return;
        }
        let waited = tokio::task::spawn_blocking(dataplane::wait_for_readers).await;
        let released = match waited {
            Ok(Ok(())) => {
                self.context.dataplane.with(|dataplane| dataplane.release_policies()).map_err(|e| chain(&e))
            }
            Ok(Err(error)) => Err(chain(&error)),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = released {
            tracing::error!(error, "remove rules that are not used any more");
        }
    }
}

fn watch_peers(client: &kube::Client) -> BoxStream<'static, PeerEvent> {
    let config = watcher::Config::default();
    let namespaces = watched(watcher(Api::<Namespace>::all(client.clone()), config.clone()));
    let pods = watched(watcher(Api::<ApiPod>::all(client.clone()), config));
    let namespaces = namespaces.map(|event| PeerEvent::Namespace(Box::new(event)));
    let pods = pods.map(|event| PeerEvent::Pod(Box::new(event)));
    stream::select(namespaces, pods).boxed()
}

/// A sandbox that an earlier agent made. What the API shows of the pod counts more than its labels.
fn endpoint(sandbox: SandboxStatus) -> Option<Endpoint> {
    let SandboxStatus { id, config, state: SandboxState::Ready, ips, netns: Some(netns), .. } = sandbox
    else {
        return None;
    };
    let mut labels = config.labels;
    labels.retain(|name, _| {
        ![labels::POD_NAME, labels::POD_NAMESPACE, labels::POD_UID].contains(&name.as_str())
    });
    let pod = plan::Pod {
        uid: config.uid.as_str().into(),
        labels: labels.into(),
        ips,
        ports: [].into(),
        is_peer: true,
    };
    Some(Endpoint { key: Key { namespace: config.namespace, name: config.name }, pod, sandbox: id, netns })
}

fn warn_watch(what: &str, error: &watcher::Error) {
    tracing::warn!(what, error = chain(error), "watch failed; trying again");
}
