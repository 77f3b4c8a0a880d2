//! The EndpointSlice controller: tells everybody which pods stand behind a Service.
//!
//! Input: the caches of Services, pods, nodes and slices. Output: EndpointSlices with the label that says that they are
//! this controller's. The packing is decided in `endpointslice/plan.rs`. After its own writes a Service is left alone until
//! the cache shows them. Slices of deleted Services go with their owner. Refuses to touch slices of others.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};
use tokio_util::sync::CancellationToken;

use crate::backends::{self, TriggerTimes};
use crate::caches::{LABEL_SERVICE_NAME, SLICE_BY_SERVICE, service_value};
use crate::events::{Recorder, Severity};
use crate::failure::{self, Failure};
use crate::key::ObjectKey;
use crate::options::Context;
use crate::pods;
use crate::queue::{Queue, QueueOptions};
use crate::store::{Change, WriteMark};
use crate::taints;
use crate::worker::{Outcome, drive};

pub mod plan;
#[cfg(test)]
mod tests;

use plan::{LABEL_MANAGED_BY, MANAGED_BY, Plan, View};

/// The name under which events come from this controller.
pub const COMPONENT: &str = "endpoint-slice-controller";
/// How long own writes may stay unseen before the cache is trusted anyway.
const WRITES_TIMEOUT: Duration = Duration::from_secs(60);

/// What is remembered of a Service between passes.
#[derive(Default)]
struct Memory {
    triggers: TriggerTimes,
    written: Vec<WriteMark>,
    deleted: Vec<(ObjectKey, Option<String>)>,
    since: Option<Instant>,
}

pub struct Controller {
    context: Context,
    events: Recorder,
    queue: Arc<Queue<ObjectKey>>,
    memory: Mutex<HashMap<ObjectKey, Memory>>,
}

impl Controller {
    /// Makes the controller and hangs it on the caches.
    pub fn new(context: Context) -> Arc<Self> {
        let queue = Arc::new(Queue::new(QueueOptions::named("endpointslice")));
        backends::queue_services(&context.caches, &queue);
        let slices = queue.clone();
        context.caches.slices.on_change(move |change| slice_changed(change, &slices));
        let events = context.events.named(COMPONENT);
        Arc::new(Self { context, events, queue, memory: Mutex::new(HashMap::new()) })
    }

    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) -> Result<(), Failure> {
        let resync = || {
            for key in self.context.caches.services.keys() {
                self.queue.add(key);
            }
        };
        let concurrency = self.context.options.concurrency.endpoint_slices;
        drive(&self.queue, concurrency, &shutdown, &resync, |key| self.pass(key)).await;
        Ok(())
    }

    async fn pass(&self, key: ObjectKey) -> Result<Outcome, Failure> {
        let service = self.context.caches.services.get(&key);
        let Some(service) = service.filter(|service| backends::is_selecting(service)) else {
            self.memory_mut(|memory| memory.remove(&key));
            return Ok(Outcome::Done);
        };
        if service.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        if !self.settled(&key) {
            // The slices' own events bring the Service back; the timeout is for a watch that lost them.
            return Ok(Outcome::After(WRITES_TIMEOUT));
        }
        let pods = backends::selected_pods(&self.context.caches, &service);
        let slices = self.own_slices(&key);
        let zones = self.zones(&pods);
        let trigger = self
            .memory_mut(|memory| memory.entry(key.clone()).or_default().triggers.observe(&service, &pods));
        let view = View { service: &service, pods: &pods, zones: &zones, slices: &slices, trigger };
        let plan = plan::plan(&view);
        match self.execute(&key, plan).await {
            Ok(()) => Ok(Outcome::Done),
            Err(failure) if failure.is_conflict() => Err(failure),
            Err(failure) => {
                let message =
                    format!("Error updating Endpoint Slices for Service {key}: {}", failure.chain());
                self.events.record(&*service, Severity::Warning, "FailedToUpdateEndpointSlices", message);
                Err(failure)
            }
        }
    }

    fn own_slices(&self, key: &ObjectKey) -> Vec<Arc<EndpointSlice>> {
        let value = service_value(&key.namespace, &key.name);
        let mut slices = self.context.caches.slices.by_index(SLICE_BY_SERVICE, &value);
        slices.retain(|slice| is_ours(slice));
        slices
    }

    fn zones(&self, pods: &[Arc<Pod>]) -> HashMap<String, String> {
        let mut zones = HashMap::new();
        for node in pods.iter().filter_map(|pod| pods::node_name(pod)) {
            if zones.contains_key(node) {
                continue;
            }
            let found = self.context.caches.nodes.get(&ObjectKey::cluster(node));
            if let Some(zone) = found.as_deref().and_then(taints::zone) {
                zones.insert(node.to_owned(), zone.to_owned());
            }
        }
        zones
    }

    /// Whether the cache shows all own writes for the Service.
    fn settled(&self, key: &ObjectKey) -> bool {
        let cache = &self.context.caches.slices;
        self.memory_mut(|all| {
            let Some(memory) = all.get_mut(key) else { return true };
            memory.written.retain(|mark| !cache.has_seen(mark));
            memory
                .deleted
                .retain(|(slice, uid)| cache.get(slice).is_some_and(|slice| slice.metadata.uid == *uid));
            let waiting = !memory.written.is_empty() || !memory.deleted.is_empty();
            if waiting && memory.since.is_some_and(|since| since.elapsed() < WRITES_TIMEOUT) {
                return false;
            }
            memory.written.clear();
            memory.deleted.clear();
            true
        })
    }

    fn memory_mut<T>(&self, change: impl FnOnce(&mut HashMap<ObjectKey, Memory>) -> T) -> T {
        change(&mut self.memory.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn execute(&self, key: &ObjectKey, plan: Plan) -> Result<(), Failure> {
        let api: Api<EndpointSlice> = Api::namespaced(self.context.client.clone(), &key.namespace);
        for slice in &plan.create {
            match api.create(&PostParams::default(), slice).await {
                Ok(created) => self.note_written(key, &created),
                Err(error) if failure::is_namespace_terminating(&error) => return Ok(()),
                Err(error) => return Err(Failure::api("create endpoint slice for service", key)(error)),
            }
        }
        for slice in &plan.update {
            let name = ObjectKey::of(slice);
            let updated = api.replace(&name.name, &PostParams::default(), slice).await;
            let updated = updated.map_err(Failure::api("update endpoint slice", &name))?;
            self.note_written(key, &updated);
        }
        for slice in &plan.delete {
            let name = ObjectKey::of(slice);
            let precondition = Preconditions { uid: slice.metadata.uid.clone(), resource_version: None };
            let parameters = DeleteParams::default().preconditions(precondition);
            let deleted = api.delete(&name.name, &parameters).await;
            let deleted =
                failure::ignore_gone(deleted).map_err(Failure::api("delete endpoint slice", &name))?;
            if deleted.is_some() {
                self.note_deleted(key, slice);
            }
        }
        Ok(())
    }

    fn note_written(&self, key: &ObjectKey, slice: &EndpointSlice) {
        let mark = self.context.caches.slices.mark(slice.metadata.resource_version.as_deref());
        self.memory_mut(|all| {
            let memory = all.entry(key.clone()).or_default();
            memory.written.push(mark);
            memory.since = Some(Instant::now());
        });
    }

    fn note_deleted(&self, key: &ObjectKey, slice: &EndpointSlice) {
        let entry = (ObjectKey::of(slice), slice.metadata.uid.clone());
        self.memory_mut(|all| {
            let memory = all.entry(key.clone()).or_default();
            memory.deleted.push(entry);
            memory.since = Some(Instant::now());
        });
    }
}

/// Whether the slice says that this controller made it.
fn is_ours(slice: &EndpointSlice) -> bool {
    label(slice.metadata.labels.as_ref(), LABEL_MANAGED_BY) == Some(MANAGED_BY)
}

fn label<'a>(labels: Option<&'a BTreeMap<String, String>>, key: &str) -> Option<&'a str> {
    labels?.get(key).map(String::as_str)
}

/// A slice's change concerns its Service: somebody else may have changed it, or a pass waits to see it.
fn slice_changed(change: &Change<EndpointSlice>, queue: &Queue<ObjectKey>) {
    for slice in change.states().filter(|slice| is_ours(slice)) {
        let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
        if let Some(service) = label(slice.metadata.labels.as_ref(), LABEL_SERVICE_NAME) {
            queue.add(ObjectKey::new(namespace, service));
        }
    }
}
