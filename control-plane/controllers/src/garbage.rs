//! The garbage collector: deletes what no living owner holds.
//!
//! Input: every kind that the API server serves, by the shared caches where there is one and by watches of its own for the
//! others. Output: deletions in the background, deletions in the foreground that wait for blocking dependents, and
//! dependents set free. The graph is in `garbage/graph.rs`, the decisions in `garbage/plan.rs`. Before anything is
//! deleted the API server itself is asked about the object and about each owner. Refuses to collect events.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::discovery::verbs;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bare::{self, Bare, ServedKind};
use crate::failure::{self, Failure, chain};
use crate::key::ObjectKey;
use crate::options::Context;
use crate::ownership::{is_deleting, owners_patch, release_patch, uid_of};
use crate::queue::{Queue, QueueOptions};
use crate::store::Store;
use crate::worker::{Outcome, drive};

pub mod graph;
pub mod plan;
#[cfg(test)]
mod tests;

use graph::{Effect, FINALIZER_FOREGROUND, FINALIZER_ORPHAN, Graph, Identity, Item};
use plan::{Action, Fate, Wait};

/// Owners that were found to be gone and are not asked for again.
const ABSENT_OWNERS: usize = 500;

/// What the watches and the workers share.
struct Shared {
    graph: Mutex<Graph>,
    checks: Queue<String>,
    orphans: Queue<String>,
}

impl Shared {
    fn graph(&self) -> MutexGuard<'_, Graph> {
        // Nothing panics while the lock is held, so a poisoned graph is still whole.
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observe(&self, api_version: &str, kind: &str, meta: &ObjectMeta) {
        let identity = Identity {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            key: ObjectKey {
                namespace: meta.namespace.clone().unwrap_or_default(),
                name: meta.name.clone().unwrap_or_default(),
            },
            uid: uid_of(meta).to_owned(),
        };
        let effects = self.graph().observe(identity, meta);
        self.take(effects);
    }

    fn forget(&self, uid: &str) {
        let effects = self.graph().forget(uid);
        self.take(effects);
    }

    fn take(&self, effects: BTreeSet<Effect>) {
        for effect in effects {
            match effect {
                Effect::Check(uid) => self.checks.add(uid),
                Effect::Orphan(uid) => self.orphans.add(uid),
            }
        }
    }
}

/// Uids of owners that are gone, the newest ones.
#[derive(Default)]
struct Absent {
    uids: HashSet<String>,
    order: VecDeque<String>,
}

impl Absent {
    fn add(&mut self, uid: &str) {
        if !self.uids.insert(uid.to_owned()) {
            return;
        }
        self.order.push_back(uid.to_owned());
        if self.order.len() > ABSENT_OWNERS
            && let Some(oldest) = self.order.pop_front()
        {
            self.uids.remove(&oldest);
        }
    }
}

pub struct Controller {
    context: Context,
    shared: Arc<Shared>,
    absent: Mutex<Absent>,
    /// Kinds by apiVersion and kind.
    kinds: Mutex<HashMap<(String, String), ServedKind>>,
}

impl Controller {
    /// Makes the controller and hangs it on the caches.
    pub fn new(context: Context) -> Arc<Self> {
        let shared = Arc::new(Shared {
            graph: Mutex::new(Graph::default()),
            checks: Queue::new(QueueOptions::named("garbage-check")),
            orphans: Queue::new(QueueOptions::named("garbage-orphan")),
        });
        let caches = &context.caches;
        follow(&caches.pods, &shared);
        follow(&caches.nodes, &shared);
        follow(&caches.namespaces, &shared);
        follow(&caches.services, &shared);
        follow(&caches.endpoints, &shared);
        follow(&caches.slices, &shared);
        follow(&caches.replica_sets, &shared);
        follow(&caches.deployments, &shared);
        Arc::new(Self {
            context,
            shared,
            absent: Mutex::new(Absent::default()),
            kinds: Mutex::new(HashMap::new()),
        })
    }

    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) -> Result<(), Failure> {
        let kinds = bare::discover(&self.context.client).await;
        let kinds = kinds.map_err(Failure::api("discover kinds", "for the garbage collector"))?;
        let stop = shutdown.child_token();
        let _guard = stop.clone().drop_guard();
        let tasks = TaskTracker::new();
        let mut synced = Vec::new();
        for kind in &kinds {
            if is_collected(kind) && !is_shared(kind) {
                let (sender, receiver) = watch::channel(false);
                synced.push(receiver);
                let api = kind.api(self.context.client.clone(), "");
                tasks.spawn(feed(api, kind.clone(), self.shared.clone(), sender, stop.clone()));
            }
        }
        self.set_kinds(kinds);
        for mut receiver in synced {
            // An error means that the watch ended, which it does only on shutdown.
            let _ = receiver.wait_for(|synced| *synced).await.map(drop);
        }
        let resync = || {
            let uids = self.shared.graph().uids();
            for uid in uids {
                self.shared.checks.add(uid);
            }
        };
        // Owners that went while nobody looked are still named by their dependents: those are virtual and were queued.
        let concurrency = self.context.options.concurrency.garbage;
        let nothing = || {};
        tokio::join!(
            drive(&self.shared.checks, concurrency, &shutdown, &resync, |uid| self.check(uid)),
            drive(&self.shared.orphans, concurrency, &shutdown, &nothing, |uid| self.orphan(uid)),
        );
        Ok(())
    }

    fn set_kinds(&self, kinds: Vec<ServedKind>) {
        let table = kinds.into_iter().map(|kind| {
            let name = (kind.resource.api_version.clone(), kind.resource.kind.clone());
            (name, kind)
        });
        *self.kinds.lock().unwrap_or_else(PoisonError::into_inner) = table.collect();
    }

    /// The kind of an object; an unknown one may be served by now.
    async fn kind(&self, api_version: &str, kind: &str) -> Result<ServedKind, Failure> {
        let name = (api_version.to_owned(), kind.to_owned());
        if let Some(known) = self.known_kind(&name) {
            return Ok(known);
        }
        let kinds = bare::discover(&self.context.client).await;
        self.set_kinds(kinds.map_err(Failure::api("discover kind", kind))?);
        self.known_kind(&name).ok_or_else(|| Failure::Retry {
            operation: "find kind",
            object: format!("{api_version}/{kind}"),
            reason: "the API server does not serve it".to_owned(),
        })
    }

    fn known_kind(&self, name: &(String, String)) -> Option<ServedKind> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    async fn api(&self, identity: &Identity) -> Result<Api<Bare>, Failure> {
        let kind = self.kind(&identity.api_version, &identity.kind).await?;
        Ok(kind.api(self.context.client.clone(), &identity.key.namespace))
    }

    /// Looks whether one object has to go.
    async fn check(&self, uid: String) -> Result<Outcome, Failure> {
        let Some(item) = self.shared.graph().get(&uid).cloned() else { return Ok(Outcome::Done) };
        if (item.deleting && !item.foreground) || self.shared.graph().is_held(&item) {
            return Ok(Outcome::Done);
        }
        let api = self.api(&item.identity).await?;
        let live = get(&api, &item.identity).await?;
        let Some(live) = live else {
            self.gone(&item);
            return Ok(Outcome::Done);
        };
        if item.is_virtual {
            // It exists: its own watch will tell.
            return Ok(Outcome::Done);
        }
        if is_deleting(&live.metadata) {
            return self.wait(&api, &item, &live.metadata).await;
        }
        let mut owners = Vec::new();
        for owner in live.metadata.owner_references.iter().flatten() {
            owners.push((owner.uid.clone(), self.fate(owner, &item.identity.key.namespace).await?));
        }
        let dependents = self.shared.graph().dependents(&uid);
        match plan::plan(&live.metadata, &owners, &dependents) {
            Action::Nothing => {}
            Action::Disown(uids) => {
                let uids: Vec<&str> = uids.iter().map(String::as_str).collect();
                let patch = release_patch(&live.metadata, &uids);
                change(&api, &item.identity, &patch, "remove absent owners of").await?;
            }
            Action::Delete { policy, unblock } => {
                if unblock {
                    self.unblock(&item).await?;
                }
                self.delete(&api, &item.identity, &live.metadata, policy).await?;
            }
        }
        Ok(Outcome::Done)
    }

    /// The object does not exist: its dependents have to be looked at.
    fn gone(&self, item: &Item) {
        let uid = &item.identity.uid;
        self.absent.lock().unwrap_or_else(PoisonError::into_inner).add(uid);
        if item.is_virtual {
            // It stays virtual as long as dependents name it; they are looked at once more.
            for dependent in &item.dependents {
                self.shared.checks.add(dependent.clone());
            }
        } else {
            self.shared.forget(uid);
        }
    }

    /// An object that is deleted in the foreground goes when nothing blocks it any more.
    async fn wait(&self, api: &Api<Bare>, item: &Item, live: &ObjectMeta) -> Result<Outcome, Failure> {
        let finalizers = live.finalizers.clone().unwrap_or_default();
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER_FOREGROUND) {
            return Ok(Outcome::Done);
        }
        let dependents = self.shared.graph().dependents(&item.identity.uid);
        match plan::wait(&item.identity.uid, &dependents) {
            Wait::Over => remove_finalizer(api, &item.identity, live, FINALIZER_FOREGROUND).await?,
            Wait::For(uids) => {
                for uid in uids {
                    self.shared.checks.add(uid);
                }
            }
        }
        Ok(Outcome::Done)
    }

    /// Asks what became of an owner.
    async fn fate(&self, owner: &OwnerReference, namespace: &str) -> Result<Fate, Failure> {
        if self.absent.lock().unwrap_or_else(PoisonError::into_inner).uids.contains(&owner.uid) {
            return Ok(Fate::Gone);
        }
        let identity = Identity {
            api_version: owner.api_version.clone(),
            kind: owner.kind.clone(),
            key: ObjectKey::new(namespace, &owner.name),
            uid: owner.uid.clone(),
        };
        let api = self.api(&identity).await?;
        let Some(live) = get(&api, &identity).await? else {
            self.absent.lock().unwrap_or_else(PoisonError::into_inner).add(&owner.uid);
            return Ok(Fate::Gone);
        };
        let finalizers = live.metadata.finalizers.as_deref().unwrap_or_default();
        let waits = is_deleting(&live.metadata)
            && finalizers.iter().any(|finalizer| finalizer == FINALIZER_FOREGROUND);
        Ok(if waits { Fate::Waiting } else { Fate::Solid })
    }

    /// Ends the blocking by this object, so that a circle of waiting objects comes apart.
    async fn unblock(&self, item: &Item) -> Result<(), Failure> {
        let api = self.api(&item.identity).await?;
        let Some(live) = get(&api, &item.identity).await? else { return Ok(()) };
        let mut owners = live.metadata.owner_references.clone().unwrap_or_default();
        for owner in owners.iter_mut().filter(|owner| owner.block_owner_deletion == Some(true)) {
            owner.block_owner_deletion = Some(false);
        }
        let patch = owners_patch(&live.metadata, &owners);
        change(&api, &item.identity, &patch, "unblock the owners of").await
    }

    async fn delete(
        &self,
        api: &Api<Bare>,
        identity: &Identity,
        live: &ObjectMeta,
        policy: PropagationPolicy,
    ) -> Result<(), Failure> {
        // A conflict on the version of an object that was unblocked just now would only repeat the look.
        let preconditions = Preconditions { uid: live.uid.clone(), resource_version: None };
        let parameters = DeleteParams {
            propagation_policy: Some(policy),
            ..DeleteParams::default().preconditions(preconditions)
        };
        match api.delete(&identity.key.name, &parameters).await {
            Ok(_) => {
                tracing::debug!(kind = identity.kind, object = %identity.key, "garbage deleted");
                Ok(())
            }
            Err(error) if failure::is_not_found(&error) => {
                self.shared.forget(&identity.uid);
                Ok(())
            }
            Err(error) => Err(Failure::api("delete garbage", &identity.key)(error)),
        }
    }

    /// Sets the dependents of an object free that is deleted without them, then lets it go.
    async fn orphan(&self, uid: String) -> Result<Outcome, Failure> {
        let Some(item) = self.shared.graph().get(&uid).cloned() else { return Ok(Outcome::Done) };
        let dependents = self.shared.graph().dependents(&uid);
        for dependent in dependents {
            let api = self.api(&dependent.identity).await?;
            let Some(live) = get(&api, &dependent.identity).await? else { continue };
            let patch = release_patch(&live.metadata, &[uid.as_str()]);
            change(&api, &dependent.identity, &patch, "set free").await?;
        }
        let api = self.api(&item.identity).await?;
        if let Some(live) = get(&api, &item.identity).await? {
            remove_finalizer(&api, &item.identity, &live.metadata, FINALIZER_ORPHAN).await?;
        }
        Ok(Outcome::Done)
    }
}

/// Feeds the graph from a shared cache.
fn follow<K>(store: &Store<K>, shared: &Arc<Shared>)
where
    K: Resource<DynamicType = ()> + Send + Sync + 'static,
{
    let shared = shared.clone();
    store.on_change(move |change| match (&change.old, &change.new) {
        (_, Some(new)) => shared.observe(&K::api_version(&()), &K::kind(&()), new.meta()),
        (Some(old), None) => shared.forget(uid_of(old.meta())),
        (None, None) => {}
    });
}

/// Feeds the graph from a watch of one kind.
async fn feed(
    api: Api<Bare>,
    kind: ServedKind,
    shared: Arc<Shared>,
    synced: watch::Sender<bool>,
    shutdown: CancellationToken,
) {
    let (version, name) = (kind.resource.api_version, kind.resource.kind);
    let mut known: HashMap<ObjectKey, String> = HashMap::new();
    let mut listed: HashMap<ObjectKey, String> = HashMap::new();
    let mut events = pin!(watcher(api, watcher::Config::default()).default_backoff());
    loop {
        let event = tokio::select! {
            biased;
            // Cancel-safe: a token stays cancelled.
            () = shutdown.cancelled() => return,
            // Cancel-safe: the stream keeps its place between polls.
            event = events.next() => event,
        };
        match event {
            None => return,
            Some(Err(error)) => {
                tracing::warn!(kind = name, error = chain(&error), "watch failed, resuming");
            }
            Some(Ok(Event::Init)) => listed.clear(),
            Some(Ok(Event::InitApply(object))) => {
                shared.observe(&version, &name, &object.metadata);
                listed.insert(ObjectKey::of(&object), uid_of(&object.metadata).to_owned());
            }
            Some(Ok(Event::InitDone)) => {
                let gone = known.iter().filter(|(key, uid)| listed.get(*key) != Some(*uid));
                gone.for_each(|(_, uid)| shared.forget(uid));
                known = std::mem::take(&mut listed);
                synced.send_replace(true);
            }
            Some(Ok(Event::Apply(object))) => {
                shared.observe(&version, &name, &object.metadata);
                let uid = uid_of(&object.metadata);
                let former = known.insert(ObjectKey::of(&object), uid.to_owned());
                if let Some(former) = former.filter(|former| former != uid) {
                    shared.forget(&former);
                }
            }
            Some(Ok(Event::Delete(object))) => {
                known.remove(&ObjectKey::of(&object));
                shared.forget(uid_of(&object.metadata));
            }
        }
    }
}

/// Whether objects of the kind can own, be owned and be deleted.
fn is_collected(kind: &ServedKind) -> bool {
    kind.is_deletable() && kind.can(verbs::WATCH) && kind.resource.kind != "Event"
}

/// Whether a shared cache holds all objects of the kind.
fn is_shared(kind: &ServedKind) -> bool {
    matches!(
        (kind.resource.group.as_str(), kind.resource.kind.as_str()),
        ("", "Pod" | "Node" | "Namespace" | "Service" | "Endpoints")
            | ("apps", "ReplicaSet" | "Deployment")
            | ("discovery.k8s.io", "EndpointSlice")
    )
}

/// The object as the API server has it; absent where another one has its name.
async fn get(api: &Api<Bare>, identity: &Identity) -> Result<Option<Bare>, Failure> {
    let live = api.get_opt(&identity.key.name).await;
    let live = live.map_err(Failure::api("get", &identity.key))?;
    Ok(live.filter(|live| uid_of(&live.metadata) == identity.uid))
}

async fn change(
    api: &Api<Bare>,
    identity: &Identity,
    patch: &serde_json::Value,
    operation: &'static str,
) -> Result<(), Failure> {
    let changed = api.patch(&identity.key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
    failure::ignore_gone(changed).map_err(Failure::api(operation, &identity.key))?;
    Ok(())
}

async fn remove_finalizer(
    api: &Api<Bare>,
    identity: &Identity,
    live: &ObjectMeta,
    finalizer: &str,
) -> Result<(), Failure> {
    let mut finalizers = live.finalizers.clone().unwrap_or_default();
    let count = finalizers.len();
    finalizers.retain(|own| own != finalizer);
    if finalizers.len() == count {
        return Ok(());
    }
    let patch = json!({ "metadata": {
        "uid": live.uid,
        "resourceVersion": live.resource_version,
        "finalizers": finalizers,
    }});
    change(api, identity, &patch, "remove the finalizer of").await
}
