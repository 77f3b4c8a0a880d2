//! Images for containers: pull policy, one pull per reference at a time, a bounded number of pulls, and what the kubelet says about them.
//!
//! In: a container and the pod's pull secrets. Out: the image is here, or why not. When to try again is the plan's business.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Container, Pod};
use runtime::{AuthConfig, Image, ImageError, Runtime};
use tokio::sync::{Semaphore, watch};

use super::backoff::go_duration;
use super::site::Site;
use crate::api::chain;
use crate::events::EventType;

mod credentials;

pub use credentials::auth_for;

#[cfg(test)]
mod tests;

/// Pulls that run at a time (kubelet: `maxParallelImagePulls`).
const PARALLEL_PULLS: usize = 5;

/// The end of a pull, for everybody who waits for it.
#[derive(Clone, Debug)]
struct Pulled {
    result: Result<Image, (Kind, String)>,
    waited: SignedDuration,
    took: SignedDuration,
}

/// What kind of failure a pull had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    InvalidName,
    Unreachable,
    Other,
}

/// Why an image is not here: a waiting reason and its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFailure {
    /// `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName`, `RegistryUnavailable`.
    pub reason: &'static str,
    /// In words.
    pub message: String,
}

/// A pull that several may wait for: by reference and by all that the registry is shown. Who shows something else has to ask for himself.
type PullKey = (String, Option<AuthConfig>);

/// Pulls under way: at most one per container that waits for its image.
#[derive(Default)]
struct Running(Vec<(PullKey, watch::Receiver<Option<Pulled>>)>);

impl Running {
    /// The end of the same pull, and what to tell it with when this one is the first.
    fn join(
        &mut self,
        key: &PullKey,
    ) -> (watch::Receiver<Option<Pulled>>, Option<watch::Sender<Option<Pulled>>>) {
        if let Some((_, done)) = self.0.iter().find(|(other, _)| other == key) {
            return (done.clone(), None);
        }
        let (sender, done) = watch::channel(None);
        self.0.push((key.clone(), done.clone()));
        (done, Some(sender))
    }

    fn leave(&mut self, key: &PullKey) {
        self.0.retain(|(other, _)| other != key);
    }
}

/// Pulls images. Clones share the pulls.
#[derive(Clone)]
pub struct Puller {
    runtime: Runtime,
    running: Arc<Mutex<Running>>,
    permits: Arc<Semaphore>,
}

impl Puller {
    /// Without any pull.
    pub fn new(runtime: Runtime) -> Puller {
        Puller { runtime, running: Arc::default(), permits: Arc::new(Semaphore::new(PARALLEL_PULLS)) }
    }

    /// Pulls, or waits for the pull of the same reference that is under way. A pull goes on when nobody waits for it any more.
    async fn pull(&self, reference: &str, auth: Option<AuthConfig>) -> Option<Pulled> {
        let key = (reference.to_owned(), auth);
        let (mut done, first) = self.running.lock().unwrap_or_else(PoisonError::into_inner).join(&key);
        if let Some(sender) = first {
            tokio::spawn(self.clone().run(key, sender));
        }
        done.wait_for(Option::is_some).await.ok().and_then(|pulled| pulled.clone())
    }

    async fn run(self, key: PullKey, done: watch::Sender<Option<Pulled>>) {
        // Taken out of the map however the task ends, so that nobody waits for a pull that is gone.
        let _entry = Entry { puller: self.clone(), key: key.clone() };
        let asked = Instant::now();
        let Ok(_permit) = self.permits.acquire().await else { return };
        let started = Instant::now();
        let result = self.runtime.pull(&key.0, key.1, None).await.map_err(|error| {
            let kind = match &error {
                ImageError::InvalidReference { .. } => Kind::InvalidName,
                ImageError::Unreachable { .. } => Kind::Unreachable,
                _ => Kind::Other,
            };
            (kind, chain(&error))
        });
        let waited = SignedDuration::try_from(asked.elapsed()).unwrap_or_default();
        let took = SignedDuration::try_from(started.elapsed()).unwrap_or_default();
        done.send_replace(Some(Pulled { result, waited, took }));
    }
}

struct Entry {
    puller: Puller,
    key: PullKey,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.puller.running.lock().unwrap_or_else(PoisonError::into_inner).leave(&self.key);
    }
}

/// imagePullPolicy of a container; where the spec has none: Always for the tag `latest` and none, else IfNotPresent.
pub fn pull_policy(container: &Container) -> &str {
    if let Some(policy) = container.image_pull_policy.as_deref().filter(|policy| !policy.is_empty()) {
        return policy;
    }
    let image = container.image.as_deref().unwrap_or_default();
    if image.contains('@') {
        return "IfNotPresent";
    }
    match image.rsplit('/').next().unwrap_or_default().split_once(':') {
        Some((_, tag)) if tag != "latest" => "IfNotPresent",
        _ => "Always",
    }
}

/// Answers at once where no pull is needed; `None`: it has to be pulled.
pub fn look(site: &Site, pod: &Pod, container: &Container) -> Option<Result<(), ImageFailure>> {
    let reference = container.image.as_deref().unwrap_or_default();
    let policy = pull_policy(container);
    let warn = |reason: &str, message: &str| {
        site.container_event(pod, &container.name, EventType::Warning, reason, message.to_owned());
    };
    let present = match site.runtime.image_status(reference) {
        Ok(image) => image.is_some(),
        Err(error) => {
            let message = format!("Failed to apply default image tag \"{reference}\": {}", chain(&error));
            warn("InspectFailed", &message);
            return Some(Err(ImageFailure { reason: "InvalidImageName", message }));
        }
    };
    if present && policy != "Always" {
        let message = format!("Container image \"{reference}\" already present on machine");
        site.container_event(pod, &container.name, EventType::Normal, "Pulled", message);
        return Some(Ok(()));
    }
    if policy == "Never" {
        let message = format!("Container image \"{reference}\" is not present with pull policy of Never");
        warn("ErrImageNeverPull", &message);
        return Some(Err(ImageFailure { reason: "ErrImageNeverPull", message }));
    }
    None
}

/// Pulls the image of a container.
///
/// # Errors
/// [`ImageFailure`]; the Events are recorded.
pub async fn pull(
    site: &Site,
    pod: &Pod,
    container: &Container,
    auth: Option<AuthConfig>,
) -> Result<(), ImageFailure> {
    let reference = container.image.as_deref().unwrap_or_default();
    let event = |kind, reason: &str, message: String| {
        site.container_event(pod, &container.name, kind, reason, message);
    };
    event(EventType::Normal, "Pulling", format!("Pulling image \"{reference}\""));
    let pulled = site.images.pull(reference, auth).await;
    let (kind, message) = match pulled {
        Some(Pulled { result: Ok(image), waited, took }) => {
            let text = format!(
                "Successfully pulled image \"{reference}\" in {} ({} including waiting). Image size: {} bytes.",
                go_duration(rounded(took)),
                go_duration(rounded(waited)),
                image.size
            );
            event(EventType::Normal, "Pulled", text);
            return Ok(());
        }
        Some(Pulled { result: Err(failure), .. }) => failure,
        None => (Kind::Other, "the pull was interrupted".into()),
    };
    event(EventType::Warning, "Failed", format!("Failed to pull image \"{reference}\": {message}"));
    let reason = match kind {
        Kind::InvalidName => "InvalidImageName",
        Kind::Unreachable => "RegistryUnavailable",
        Kind::Other => "ErrImagePull",
    };
    event(EventType::Warning, "Failed", format!("Error: {reason}"));
    Err(ImageFailure { reason, message })
}

fn rounded(duration: SignedDuration) -> SignedDuration {
    SignedDuration::from_millis(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX))
}
