//! What every namespace has: the ServiceAccount `default` and the ConfigMap `kube-root-ca.crt`.
//!
//! Input: the caches of namespaces and of those two objects. Output: the objects, made again when they are deleted, and
//! the certificate put back when it is changed. Refuses to touch namespaces that are on their way out.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use tokio_util::sync::CancellationToken;

use crate::caches::{DEFAULT_SERVICE_ACCOUNT, ROOT_CA_CONFIG_MAP};
use crate::failure::{self, Failure};
use crate::key::ObjectKey;
use crate::options::Context;
use crate::queue::{Queue, QueueOptions};
use crate::worker::{Outcome, drive};

pub mod plan;
#[cfg(test)]
mod tests;

use plan::Action;

pub struct Controller {
    context: Context,
    queue: Arc<Queue<ObjectKey>>,
}

impl Controller {
    /// Makes the controller and hangs it on the caches.
    pub fn new(context: Context) -> Arc<Self> {
        let queue = Arc::new(Queue::new(QueueOptions::named("namespace-defaults")));
        let namespaces = queue.clone();
        context.caches.namespaces.on_change(move |change| {
            if let Some(namespace) = &change.new {
                namespaces.add(ObjectKey::of(&**namespace));
            }
        });
        let accounts = queue.clone();
        context.caches.service_accounts.on_change(move |change| {
            if change.new.is_none() {
                add_namespace(&accounts, change.old.as_ref().map(|old| &old.metadata));
            }
        });
        let maps = queue.clone();
        context.caches.config_maps.on_change(move |change| {
            add_namespace(&maps, change.latest().map(|map| &map.metadata));
        });
        Arc::new(Self { context, queue })
    }

    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) -> Result<(), Failure> {
        let resync = || {
            for key in self.context.caches.namespaces.keys() {
                self.queue.add(key);
            }
        };
        let concurrency = self.context.options.concurrency.namespace_defaults;
        drive(&self.queue, concurrency, &shutdown, &resync, |key| self.pass(key)).await;
        Ok(())
    }

    async fn pass(&self, key: ObjectKey) -> Result<Outcome, Failure> {
        let caches = &self.context.caches;
        let Some(namespace) = caches.namespaces.get(&key) else { return Ok(Outcome::Done) };
        let account = caches.service_accounts.contains(&ObjectKey::new(&key.name, DEFAULT_SERVICE_ACCOUNT));
        let map = caches.config_maps.get(&ObjectKey::new(&key.name, ROOT_CA_CONFIG_MAP));
        let certificate = &self.context.options.cluster_ca_pem;
        for action in plan::plan(&namespace, account, map.as_deref(), certificate) {
            self.execute(&namespace, action).await?;
        }
        Ok(Outcome::Done)
    }

    async fn execute(&self, namespace: &Namespace, action: Action) -> Result<(), Failure> {
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        let client = self.context.client.clone();
        let parameters = PostParams::default();
        match action {
            Action::CreateAccount => {
                let accounts: Api<ServiceAccount> = Api::namespaced(client, name);
                let account = ServiceAccount {
                    metadata: ObjectMeta {
                        name: Some(DEFAULT_SERVICE_ACCOUNT.to_owned()),
                        namespace: Some(name.to_owned()),
                        ..ObjectMeta::default()
                    },
                    ..ServiceAccount::default()
                };
                let result = accounts.create(&parameters, &account).await.map(drop);
                ignore_races(result).map_err(Failure::api("create default service account in", name))
            }
            Action::CreateMap(map) => {
                let maps: Api<ConfigMap> = Api::namespaced(client, name);
                let result = maps.create(&parameters, &map).await.map(drop);
                ignore_races(result).map_err(Failure::api("create root certificate config map in", name))
            }
            Action::ReplaceMap(map) => {
                let maps: Api<ConfigMap> = Api::namespaced(client, name);
                let result = maps.replace(ROOT_CA_CONFIG_MAP, &parameters, &map).await.map(drop);
                result.map_err(Failure::api("update root certificate config map in", name))
            }
        }
    }
}

fn add_namespace(queue: &Queue<ObjectKey>, meta: Option<&ObjectMeta>) {
    if let Some(namespace) = meta.and_then(|meta| meta.namespace.as_deref()) {
        queue.add(ObjectKey::cluster(namespace));
    }
}

/// Somebody else made the object, or the namespace is going away: both are fine.
fn ignore_races(result: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(error) if failure::is_already_exists(&error) || failure::is_namespace_terminating(&error) => {
            Ok(())
        }
        // The namespace is gone already.
        Err(error) if failure::is_not_found(&error) => Ok(()),
        other => other,
    }
}
