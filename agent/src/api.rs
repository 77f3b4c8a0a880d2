//! The way to the API server: the client, and how its errors are told.
//!
//! In: a kubeconfig. Out: a [`kube::Client`] that is shared by everything here. Connects to nobody yet: when the API server is
//! away, each caller retries with its own back-off.

use std::error::Error as StdError;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::Stream;
use kube::ResourceExt;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Event, Result as Watched};

/// Longest wait for a connection to the API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// First and longest pause between two attempts, and how the pause grows.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_LONGEST: Duration = Duration::from_secs(7);
const BACKOFF_FACTOR: u32 = 2;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("read kubeconfig {path}")]
    Kubeconfig { path: PathBuf, source: Box<KubeconfigError> },
    #[error("make a client from kubeconfig {path}")]
    Client { path: PathBuf, source: Box<kube::Error> },
}

/// A client with the identity of `kubeconfig`.
pub async fn client(kubeconfig: &Path) -> Result<kube::Client, ClientError> {
    let failed = |source| ClientError::Kubeconfig { path: kubeconfig.to_owned(), source: Box::new(source) };
    let file = Kubeconfig::read_from(kubeconfig).map_err(failed)?;
    let options = KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(file, &options).await.map_err(failed)?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    kube::Client::try_from(config)
        .map_err(|source| ClientError::Client { path: kubeconfig.to_owned(), source: Box::new(source) })
}

/// A watch as all of this node's are: it pauses as [`Backoff`] says, and its objects come without the fields that nobody here reads and
/// that are a large part of them.
pub fn watched<K: ResourceExt>(
    events: impl Stream<Item = Watched<Event<K>>>,
) -> impl Stream<Item = Watched<Event<K>>> {
    events.backoff(Backoff::default()).modify(|object| object.meta_mut().managed_fields = None)
}

/// Pauses between attempts: 200 ms, doubled up to 7 s (the kubelet's, for its Lease). Watches use it too: with kube's own,
/// up to a minute, a node would go on asleep that long after an API server that was restarted a few times.
#[derive(Debug, Clone, Default)]
pub struct Backoff {
    last: Option<Duration>,
}

impl Backoff {
    /// How long to wait before the next attempt.
    pub fn next_pause(&mut self) -> Duration {
        let pause = match self.last {
            None => BACKOFF_FIRST,
            Some(last) => (last * BACKOFF_FACTOR).min(BACKOFF_LONGEST),
        };
        self.last = Some(pause);
        pause
    }

    /// It worked.
    pub fn reset(&mut self) {
        self.last = None;
    }
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.next_pause())
    }
}

impl kube::runtime::utils::Backoff for Backoff {
    fn reset(&mut self) {
        Self::reset(self);
    }
}

/// Whether the API server answered with this HTTP code.
pub fn is_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// An error with its causes on one line; a cause that the text before already ends with is not repeated.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use k8s_openapi::api::core::v1::Pod;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;

    use super::*;

    #[tokio::test]
    async fn objects_are_kept_without_the_fields_that_nobody_reads() {
        let mut pod = Pod::default();
        pod.metadata.name = Some("web".to_owned());
        pod.metadata.managed_fields = Some(vec![ManagedFieldsEntry::default()]);
        let all = [Event::InitApply(pod.clone()), Event::Apply(pod)].map(Ok);
        let kept: Vec<_> = watched(futures::stream::iter(all)).collect().await;
        assert_eq!(kept.len(), 2);
        for event in kept {
            let Ok(Event::InitApply(pod) | Event::Apply(pod)) = event else { panic!("{event:?}") };
            assert_eq!((pod.metadata.name.as_deref(), pod.metadata.managed_fields), (Some("web"), None));
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_start_again() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..7).map(|_| backoff.next_pause().as_millis()).collect();
        assert_eq!(pauses, [200, 400, 800, 1600, 3200, 6400, 7000]);
        backoff.reset();
        assert_eq!(backoff.next_pause().as_millis(), 200);
    }
}
