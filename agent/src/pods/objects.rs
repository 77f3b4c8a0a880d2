//! The ConfigMaps and Secrets that pods of this node use: one watch each, for as long as somebody uses it.
//!
//! In: which pod uses which objects. Out: their content, and a notification to each user when it changes. Nothing else of the API is read;
//! the number of watches is bounded by [`WATCHES`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::runtime::watcher;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use crate::api::watched;

/// Objects that are watched at a time.
const WATCHES: usize = 4_096;
/// Longest wait for the first answer about an object.
const FIRST_ANSWER: Duration = Duration::from_secs(20);

/// An object's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// v1 ConfigMap
    ConfigMap,
    /// v1 Secret
    Secret,
}

/// An object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// An object's content.
#[derive(Clone, Debug)]
pub enum Object {
    /// A ConfigMap.
    ConfigMap(Arc<ConfigMap>),
    /// A Secret.
    Secret(Arc<Secret>),
}

/// Why an object's content is not known.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ObjectError {
    /// The API server said so.
    #[error("{0}")]
    Refused(String),
    /// It did not answer in time.
    #[error("failed to sync {kind} cache: timed out waiting for the condition")]
    Timeout {
        /// `configmap` or `secret`.
        kind: &'static str,
    },
    /// Too many objects are in use.
    #[error("{WATCHES} objects are watched already")]
    TooMany,
}

/// What a watch knows.
#[derive(Clone, Debug)]
enum Known {
    /// Nothing yet.
    Waiting,
    /// The API server does not answer with the object.
    Refused(String),
    /// The object; `None`: there is none.
    Is(Option<Object>),
}

struct Entry {
    known: watch::Receiver<Known>,
    users: BTreeMap<String, Arc<Notify>>,
    task: AbortHandle,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The cache. Clones share it.
#[derive(Clone)]
pub struct Cache {
    client: kube::Client,
    entries: Arc<Mutex<BTreeMap<Key, Entry>>>,
}

impl Cache {
    /// An empty cache.
    pub fn new(client: kube::Client) -> Cache {
        Cache { client, entries: Arc::default() }
    }

    /// From now on the pod `uid` uses exactly these objects; `changed` is notified of every change.
    ///
    /// # Errors
    /// [`ObjectError::TooMany`].
    pub fn set_users(
        &self,
        uid: &str,
        keys: &BTreeSet<Key>,
        changed: &Arc<Notify>,
    ) -> Result<(), ObjectError> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, entry) in entries.iter_mut() {
            if !keys.contains(key) {
                entry.users.remove(uid);
            }
        }
        entries.retain(|_, entry| !entry.users.is_empty());
        for key in keys {
            if let Some(entry) = entries.get_mut(key) {
                entry.users.insert(uid.to_owned(), changed.clone());
                continue;
            }
            if entries.len() >= WATCHES {
                return Err(ObjectError::TooMany);
            }
            let (sender, known) = watch::channel(Known::Waiting);
            let task = self.spawn(key.clone(), sender);
            entries.insert(
                key.clone(),
                Entry { known, users: [(uid.to_owned(), changed.clone())].into(), task },
            );
        }
        Ok(())
    }

    /// The pod `uid` uses nothing any more.
    pub fn release(&self, uid: &str) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, entry| {
            entry.users.remove(uid);
            !entry.users.is_empty()
        });
    }

    /// The object; `None`: there is none. It must be in use by somebody.
    ///
    /// # Errors
    /// [`ObjectError`].
    pub async fn get(&self, key: &Key) -> Result<Option<Object>, ObjectError> {
        let known = {
            let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            entries.get(key).map(|entry| entry.known.clone())
        };
        let Some(mut known) = known else { return Ok(None) };
        let answer =
            tokio::time::timeout(FIRST_ANSWER, known.wait_for(|known| !matches!(known, Known::Waiting)))
                .await;
        match answer {
            Ok(Ok(known)) => match &*known {
                Known::Is(object) => Ok(object.clone()),
                Known::Refused(message) => Err(ObjectError::Refused(message.clone())),
                Known::Waiting => Ok(None),
            },
            Ok(Err(_)) | Err(_) => Err(ObjectError::Timeout {
                kind: match key.kind {
                    Kind::ConfigMap => "configmap",
                    Kind::Secret => "secret",
                },
            }),
        }
    }

    fn spawn(&self, key: Key, known: watch::Sender<Known>) -> AbortHandle {
        let follower = Follower { cache: self.clone(), key: key.clone(), known };
        let client = self.client.clone();
        let task = match key.kind {
            Kind::ConfigMap => tokio::spawn(
                follower.follow(Api::<ConfigMap>::namespaced(client, &key.namespace), Object::ConfigMap),
            ),
            Kind::Secret => tokio::spawn(
                follower.follow(Api::<Secret>::namespaced(client, &key.namespace), Object::Secret),
            ),
        };
        task.abort_handle()
    }

    fn notify(&self, key: &Key) {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get(key) {
            entry.users.values().for_each(|changed| changed.notify_one());
        }
    }
}

/// The task behind one entry.
struct Follower {
    cache: Cache,
    key: Key,
    known: watch::Sender<Known>,
}

impl Follower {
    async fn follow<K>(self, api: Api<K>, wrap: fn(Arc<K>) -> Object)
    where
        K: kube::Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.key.name));
        let mut events = watched(watcher(api, config)).boxed();
        let mut listed: Option<K> = None;
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listed = None,
                Ok(watcher::Event::InitApply(object)) => listed = Some(object),
                Ok(watcher::Event::InitDone) => self.set(listed.take().map(|object| wrap(Arc::new(object)))),
                Ok(watcher::Event::Apply(object)) => self.set(Some(wrap(Arc::new(object)))),
                Ok(watcher::Event::Delete(_)) => self.set(None),
                Err(error) => {
                    tracing::debug!(name = self.key.name, %error, "watch object");
                    // What was known stays true enough; a first answer is passed on.
                    self.known.send_if_modified(|known| {
                        let first = matches!(known, Known::Waiting | Known::Refused(_));
                        if first {
                            *known = Known::Refused(error.to_string());
                        }
                        first
                    });
                }
            }
        }
    }

    fn set(&self, object: Option<Object>) {
        self.known.send_replace(Known::Is(object));
        self.cache.notify(&self.key);
    }
}
