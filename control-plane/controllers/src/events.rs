//! Events: what controllers tell users about objects.
//!
//! Input: [`Recorder::record`] calls, which never wait. Output: core/v1 Event objects. One task owns the correlation
//! state (`events/correlate.rs`): a repeated event raises the count of the one that exists, many similar events become
//! one, and an object that makes too many is cut off. Figures are those of client-go's recorder. Events are best effort:
//! what cannot be written after a few tries is dropped and logged. Refuses to be a log.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::failure;

pub mod correlate;

use correlate::{Correlator, Verdict};

/// Events that wait to be written; more are dropped.
pub const EVENT_BACKLOG: usize = 1000;
/// How often one event is tried.
const WRITE_ATTEMPTS: u32 = 3;
/// The pause between two tries.
const WRITE_PAUSE: Duration = Duration::from_secs(2);

/// Whether a user should worry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    Normal,
    Warning,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// One thing that happened to one object.
#[derive(Clone, Debug, PartialEq)]
pub struct Happening {
    pub component: &'static str,
    pub regarding: ObjectReference,
    pub severity: Severity,
    pub reason: &'static str,
    pub message: String,
}

/// Hands events of one component to the writing task.
#[derive(Clone, Debug)]
pub struct Recorder {
    component: &'static str,
    sender: mpsc::Sender<Happening>,
}

impl Recorder {
    /// A recorder and the channel that [`write`] reads.
    pub fn new(component: &'static str) -> (Self, mpsc::Receiver<Happening>) {
        let (sender, receiver) = mpsc::channel(EVENT_BACKLOG);
        (Self { component, sender }, receiver)
    }

    /// The same channel under another component's name.
    pub fn named(&self, component: &'static str) -> Self {
        Self { component, sender: self.sender.clone() }
    }

    /// Tells that something happened to `object`.
    pub fn record<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        severity: Severity,
        reason: &'static str,
        message: String,
    ) {
        self.record_about(reference(object), severity, reason, message);
    }

    /// Tells that something happened to the object that is referred to.
    pub fn record_about(
        &self,
        regarding: ObjectReference,
        severity: Severity,
        reason: &'static str,
        message: String,
    ) {
        let happening = Happening { component: self.component, regarding, severity, reason, message };
        if let Err(error) = self.sender.try_send(happening) {
            tracing::debug!(component = self.component, reason, %error, "event dropped");
        }
    }
}

/// The reference by which events name an object.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    ObjectReference { resource_version: object.meta().resource_version.clone(), ..object.object_ref(&()) }
}

/// Writes what recorders send until `shutdown`.
pub async fn write(client: Client, mut receiver: mpsc::Receiver<Happening>, shutdown: CancellationToken) {
    let mut correlator = Correlator::default();
    loop {
        let happening = tokio::select! {
            // Cancel-safe: a token stays cancelled.
            () = shutdown.cancelled() => return,
            // Cancel-safe: a message leaves the channel only in the poll that returns it.
            happening = receiver.recv() => match happening {
                Some(happening) => happening,
                None => return,
            },
        };
        let now = Timestamp::now();
        match correlator.take(&happening, now) {
            Verdict::Drop => {
                tracing::debug!(reason = happening.reason, "event cut off: its object makes too many");
            }
            verdict => tokio::select! {
                () = shutdown.cancelled() => return,
                () = store(&client, &mut correlator, &happening, verdict, now) => {}
            },
        }
    }
}

/// Writes one event, a few times if need be.
async fn store(
    client: &Client,
    correlator: &mut Correlator,
    happening: &Happening,
    verdict: Verdict,
    now: Timestamp,
) {
    let mut verdict = verdict;
    for attempt in 1..=WRITE_ATTEMPTS {
        let error = match attempt_store(client, happening, &verdict, now).await {
            Ok(()) => return,
            Err(error) => error,
        };
        if let Verdict::Repeat { message, .. } = &verdict
            && failure::is_not_found(&error)
        {
            // The event expired meanwhile: start a new one.
            verdict = correlator.renew(happening, message.clone(), now);
            continue;
        }
        if matches!(error, kube::Error::Api(_)) {
            // The API server has said no; saying it again does not help.
            tracing::debug!(reason = happening.reason, error = failure::chain(&error), "event refused");
            return;
        }
        tracing::debug!(
            reason = happening.reason,
            attempt,
            error = failure::chain(&error),
            "event not written"
        );
        tokio::time::sleep(WRITE_PAUSE).await;
    }
}

async fn attempt_store(
    client: &Client,
    happening: &Happening,
    verdict: &Verdict,
    now: Timestamp,
) -> Result<(), kube::Error> {
    let namespace = namespace_for(&happening.regarding);
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    match verdict {
        Verdict::Drop => Ok(()),
        Verdict::First { name, message } => {
            let event = event(happening, name, message, now);
            events.create(&PostParams::default(), &event).await.map(drop)
        }
        Verdict::Repeat { name, message, count } => {
            let patch = json!({ "count": count, "lastTimestamp": Time(now), "message": message });
            events.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
        }
    }
}

/// Events about cluster-scoped objects live in "default".
fn namespace_for(regarding: &ObjectReference) -> &str {
    regarding.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or("default")
}

fn event(happening: &Happening, name: &str, message: &str, now: Timestamp) -> Event {
    Event {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace_for(&happening.regarding).to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: happening.regarding.clone(),
        reason: Some(happening.reason.to_owned()),
        message: Some(message.to_owned()),
        type_: Some(happening.severity.as_str().to_owned()),
        count: Some(1),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        source: Some(EventSource { component: Some(happening.component.to_owned()), host: None }),
        reporting_component: Some(happening.component.to_owned()),
        reporting_instance: Some(String::new()),
        ..Event::default()
    }
}
