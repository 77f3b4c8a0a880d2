//! Feeds one store from one watch of the API server.
//!
//! Input: an API handle and a watch configuration. Output: `Store::apply` calls. Lost connections are resumed by
//! kube-runtime's watcher with its own back-off; each loss is logged. Refuses to interpret objects.

use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::failure::chain;
use crate::store::Store;

/// Keeps `store` equal to what `api` shows until `shutdown`.
pub async fn feed<K>(api: Api<K>, config: watcher::Config, store: Arc<Store<K>>, shutdown: CancellationToken)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let url = api.resource_url().to_owned();
    let mut events = pin!(watcher(api, config).default_backoff());
    loop {
        tokio::select! {
            biased;
            // Cancel-safe: a token stays cancelled.
            () = shutdown.cancelled() => return,
            // Cancel-safe: the stream keeps its place between polls.
            event = events.next() => match event {
                Some(Ok(event)) => store.apply(event),
                Some(Err(error)) => tracing::warn!(url, error = chain(&error), "watch failed, resuming"),
                None => return,
            },
        }
    }
}
