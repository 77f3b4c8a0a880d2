//! The namespace controller: empties a namespace that is on its way out, then lets it go.
//!
//! Input: the caches of namespaces and pods, discovery, and watches of what a finalizer keeps (`namespace/leftovers.rs`).
//! Output: deletions of all content, pods before everything else; the namespace's conditions; its finalizer taken away once
//! nothing is left. What the conditions say is decided in `namespace/plan.rs`. Refuses to touch a namespace that is not
//! being deleted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::discovery::verbs;
use tokio_util::sync::CancellationToken;

use crate::bare::{self, Bare, ServedKind};
use crate::caches::{Caches, POD_BY_NAMESPACE};
use crate::failure::{self, Failure, chain};
use crate::key::ObjectKey;
use crate::options::Context;
use crate::ownership::is_deleting;
use crate::queue::{Queue, QueueOptions};
use crate::store::Change;
use crate::worker::{Outcome, drive};

pub mod leftovers;
pub mod plan;
#[cfg(test)]
mod tests;

use leftovers::{Leftovers, REPORT_DELAY};
use plan::{Remaining, Report};

/// The finalizer that keeps a namespace until this controller emptied it.
pub const FINALIZER: &str = "kubernetes";
/// How soon content that cannot be watched is looked at again.
const UNWATCHED_RECHECK: Duration = Duration::from_secs(8);
/// Objects of a kind that are listed at once.
const PAGE: u32 = 500;

/// What a pass found: the report, and whether a change of every kind that is left will bring the namespace back.
#[derive(Default)]
struct Found {
    report: Report,
    unwatched: bool,
}

pub struct Controller {
    context: Context,
    queue: Arc<Queue<ObjectKey>>,
}

impl Controller {
    /// Makes the controller and hangs it on the caches.
    pub fn new(context: Context) -> Arc<Self> {
        let queue = Arc::new(Queue::new(QueueOptions::named("namespace")));
        let namespaces = queue.clone();
        context.caches.namespaces.on_change(move |change| {
            if let Some(namespace) = change.new.as_ref().filter(|new| is_deleting(&new.metadata)) {
                namespaces.add(ObjectKey::of(&**namespace));
            }
        });
        let (pods, caches) = (queue.clone(), context.caches.clone());
        context.caches.pods.on_change(move |change| pod_gone(change, &pods, &caches));
        Arc::new(Self { context, queue })
    }

    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) -> Result<(), Failure> {
        let resync = || {
            for namespace in self.context.caches.namespaces.all() {
                if is_deleting(&namespace.metadata) {
                    self.queue.add(ObjectKey::of(&*namespace));
                }
            }
        };
        let concurrency = self.context.options.concurrency.namespaces;
        let leftovers = Leftovers::new(self.queue.clone());
        drive(&self.queue, concurrency, &shutdown, &resync, |key| self.pass(key, &leftovers)).await;
        Ok(())
    }

    async fn pass(&self, key: ObjectKey, leftovers: &Leftovers) -> Result<Outcome, Failure> {
        let Some(namespace) = self.context.caches.namespaces.get(&key) else { return Ok(Outcome::Done) };
        let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_deref());
        let waits = finalizers.unwrap_or_default().iter().any(|finalizer| finalizer == FINALIZER);
        if !is_deleting(&namespace.metadata) || !waits {
            return Ok(Outcome::Done);
        }
        let Found { report, unwatched } = self.empty(&key, leftovers).await;
        let namespace = self.write_conditions(&key, &namespace, &report).await?;
        if !report.errors.is_empty() || report.discovery.is_some() {
            let failed = report.discovery.iter().chain(&report.errors);
            return Err(Failure::Retry {
                operation: "empty namespace",
                object: key.to_string(),
                reason: failed.cloned().collect::<Vec<_>>().join("; "),
            });
        }
        if !report.remaining.is_empty() {
            return Ok(Outcome::after(unwatched.then_some(UNWATCHED_RECHECK)));
        }
        self.finalize(&key, namespace).await?;
        Ok(Outcome::Done)
    }

    /// Deletes what the namespace holds, pods first, and reports what is left.
    async fn empty(&self, key: &ObjectKey, leftovers: &Leftovers) -> Found {
        let mut found = Found::default();
        let kinds = match bare::discover(&self.context.client).await {
            Ok(kinds) => kinds,
            Err(error) => {
                found.report.discovery = Some(chain(&error));
                return found;
            }
        };
        let kinds = kinds.into_iter().filter(|kind| kind.namespaced && kind.is_deletable());
        let (pods, others): (Vec<_>, Vec<_>) = kinds.partition(is_pods);
        // Their cache tells of pods, see `pod_gone`.
        self.empty_kinds(key, &pods, &mut found.report).await;
        if found.report.remaining.is_empty() && found.report.errors.is_empty() {
            for kind in self.empty_kinds(key, &others, &mut found.report).await {
                let api = kind.api(self.context.client.clone(), &key.name);
                let watched = kind.can(verbs::WATCH) && leftovers.watch(key, kind.qualified(), api);
                found.unwatched |= !watched;
            }
        }
        found
    }

    /// The kinds of which something is left.
    async fn empty_kinds<'a>(
        &self,
        key: &ObjectKey,
        kinds: &'a [ServedKind],
        report: &mut Report,
    ) -> Vec<&'a ServedKind> {
        let mut left = Vec::new();
        for kind in kinds {
            match self.empty_kind(key, kind).await {
                Ok(Some(remaining)) => {
                    report.remaining.push(remaining);
                    left.push(kind);
                }
                Ok(None) => {}
                Err(failure) => report.errors.push(failure.chain()),
            }
        }
        left
    }

    /// Deletes all objects of a kind; what is left afterwards waits for a grace period or a finalizer.
    async fn empty_kind(&self, key: &ObjectKey, kind: &ServedKind) -> Result<Option<Remaining>, Failure> {
        let api = kind.api(self.context.client.clone(), &key.name);
        let what = format!("{} of namespace {key}", kind.qualified());
        let mut left = list(&api, &what).await?;
        if left.is_empty() {
            return Ok(None);
        }
        let parameters = DeleteParams::background();
        if kind.can(verbs::DELETE_COLLECTION) {
            let deleted = api.delete_collection(&parameters, &ListParams::default()).await;
            deleted.map_err(Failure::api("delete all", &what))?;
        } else {
            for object in left.iter().filter(|object| !is_deleting(&object.metadata)) {
                let name = object.metadata.name.as_deref().unwrap_or_default();
                let uid = Preconditions { uid: object.metadata.uid.clone(), resource_version: None };
                let deleted = api.delete(name, &parameters.clone().preconditions(uid)).await;
                failure::ignore_replaced(deleted).map_err(Failure::api("delete one of", &what))?;
            }
        }
        left = list(&api, &what).await?;
        if left.is_empty() {
            return Ok(None);
        }
        let mut finalizers = BTreeMap::new();
        for finalizer in left.iter().flat_map(|object| object.metadata.finalizers.iter().flatten()) {
            *finalizers.entry(finalizer.clone()).or_insert(0) += 1;
        }
        Ok(Some(Remaining { kind: kind.qualified(), count: left.len(), finalizers }))
    }

    async fn write_conditions(
        &self,
        key: &ObjectKey,
        namespace: &Namespace,
        report: &Report,
    ) -> Result<Namespace, Failure> {
        let status = plan::status(namespace.status.as_ref(), report, Timestamp::now());
        if namespace.status.as_ref() == Some(&status) {
            return Ok(namespace.clone());
        }
        let api: Api<Namespace> = Api::all(self.context.client.clone());
        let mut changed = namespace.clone();
        changed.status = Some(status);
        let written = api.replace_status(&key.name, &PostParams::default(), &changed).await;
        written.map_err(Failure::api("update status of namespace", key))
    }

    /// Takes the finalizer away: the API server removes the namespace when it was the last one.
    async fn finalize(&self, key: &ObjectKey, mut namespace: Namespace) -> Result<(), Failure> {
        if let Some(finalizers) = namespace.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
            finalizers.retain(|finalizer| finalizer != FINALIZER);
        }
        let api: Api<Namespace> = Api::all(self.context.client.clone());
        let finalized =
            api.replace_subresource("finalize", &key.name, &PostParams::default(), &namespace).await;
        failure::ignore_gone(finalized).map_err(Failure::api("finalize namespace", key))?;
        Ok(())
    }
}

/// All objects behind a handle, page by page.
async fn list(api: &Api<Bare>, what: &str) -> Result<Vec<Bare>, Failure> {
    let mut parameters = ListParams::default().limit(PAGE);
    let mut objects = Vec::new();
    loop {
        let page = api.list(&parameters).await.map_err(Failure::api("list", what))?;
        objects.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(objects),
        }
    }
}

fn is_pods(kind: &ServedKind) -> bool {
    kind.resource.group.is_empty() && kind.resource.plural == "pods"
}

/// The last pod of a dying namespace is what its controller waits for; the others change only what the conditions say.
fn pod_gone(change: &Change<Pod>, queue: &Queue<ObjectKey>, caches: &Caches) {
    let (Some(old), None) = (&change.old, &change.new) else { return };
    let namespace = old.metadata.namespace.as_deref().unwrap_or_default();
    let key = ObjectKey::cluster(namespace);
    let dying = caches.namespaces.get(&key).is_some_and(|namespace| is_deleting(&namespace.metadata));
    if !dying {
        return;
    }
    match caches.pods.index_len(POD_BY_NAMESPACE, namespace) {
        0 => queue.add(key),
        _ => queue.add_after(key, REPORT_DELAY),
    }
}
