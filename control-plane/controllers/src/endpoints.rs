//! The Endpoints controller: the same as EndpointSlices, for clients that know only Endpoints.
//!
//! Input: the caches of Services, pods and Endpoints. Output: one Endpoints object per Service with a selector, deleted
//! with it. The content is decided in `endpoints/plan.rs`. Refuses to touch the Endpoints of Services without a selector.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Endpoints, Service};
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};
use tokio_util::sync::CancellationToken;

use crate::backends::{self, TriggerTimes};
use crate::events::{Recorder, Severity};
use crate::failure::{self, Failure};
use crate::key::ObjectKey;
use crate::options::Context;
use crate::queue::{Queue, QueueOptions};
use crate::worker::{Outcome, drive};

pub mod plan;
#[cfg(test)]
mod tests;

use plan::Write;

/// The name under which events come from this controller.
pub const COMPONENT: &str = "endpoint-controller";

pub struct Controller {
    context: Context,
    events: Recorder,
    queue: Arc<Queue<ObjectKey>>,
    triggers: Mutex<HashMap<ObjectKey, TriggerTimes>>,
}

impl Controller {
    /// Makes the controller and hangs it on the caches.
    pub fn new(context: Context) -> Arc<Self> {
        let queue = Arc::new(Queue::new(QueueOptions::named("endpoints")));
        backends::queue_services(&context.caches, &queue);
        context.caches.endpoints.queue_changes(&queue);
        let events = context.events.named(COMPONENT);
        Arc::new(Self { context, events, queue, triggers: Mutex::new(HashMap::new()) })
    }

    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) -> Result<(), Failure> {
        let resync = || {
            let caches = &self.context.caches;
            for key in caches.services.keys().into_iter().chain(caches.endpoints.keys()) {
                self.queue.add(key);
            }
        };
        let concurrency = self.context.options.concurrency.endpoints;
        drive(&self.queue, concurrency, &shutdown, &resync, |key| self.pass(key)).await;
        Ok(())
    }

    async fn pass(&self, key: ObjectKey) -> Result<Outcome, Failure> {
        let existing = self.context.caches.endpoints.get(&key);
        let Some(service) = self.context.caches.services.get(&key) else {
            self.triggers_mut(|triggers| triggers.remove(&key));
            if let Some(existing) = existing.filter(|existing| is_ours(existing)) {
                self.delete(&key, &existing).await?;
            }
            return Ok(Outcome::Done);
        };
        if !backends::is_selecting(&service) || service.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        let pods = backends::selected_pods(&self.context.caches, &service);
        let trigger =
            self.triggers_mut(|triggers| triggers.entry(key.clone()).or_default().observe(&service, &pods));
        let write = plan::plan(&service, &pods, existing.as_deref(), trigger);
        self.write(&key, &service, write).await?;
        Ok(Outcome::Done)
    }

    fn triggers_mut<T>(&self, change: impl FnOnce(&mut HashMap<ObjectKey, TriggerTimes>) -> T) -> T {
        change(&mut self.triggers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn api(&self, key: &ObjectKey) -> Api<Endpoints> {
        Api::namespaced(self.context.client.clone(), &key.namespace)
    }

    async fn write(&self, key: &ObjectKey, service: &Service, write: Write) -> Result<(), Failure> {
        let (result, operation, reason) = match &write {
            Write::Nothing => return Ok(()),
            Write::Create(object) => {
                let result = self.api(key).create(&PostParams::default(), object).await;
                (result, "create endpoints", "FailedToCreateEndpoint")
            }
            Write::Replace(object) => {
                let result = self.api(key).replace(&key.name, &PostParams::default(), object).await;
                (result, "update endpoints", "FailedToUpdateEndpoint")
            }
        };
        let error = match result {
            Ok(_) => return Ok(()),
            Err(error) if failure::is_namespace_terminating(&error) => return Ok(()),
            Err(error) => error,
        };
        // Somebody else was faster, or the cache was: the next pass sees it.
        if !failure::is_conflict(&error) && !failure::is_already_exists(&error) {
            let message = format!("Failed to {operation} {key}: {}", failure::message(&error));
            self.events.record(service, Severity::Warning, reason, message);
        }
        Err(Failure::api(operation, key)(error))
    }

    async fn delete(&self, key: &ObjectKey, existing: &Endpoints) -> Result<(), Failure> {
        let precondition = Preconditions { uid: existing.metadata.uid.clone(), resource_version: None };
        let parameters = DeleteParams::default().preconditions(precondition);
        let deleted = self.api(key).delete(&key.name, &parameters).await;
        failure::ignore_gone(deleted).map_err(Failure::api("delete endpoints", key))?;
        Ok(())
    }
}

/// Whether the object says that this controller made it.
fn is_ours(endpoints: &Endpoints) -> bool {
    endpoints.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(plan::LABEL_MANAGED_BY))
}
