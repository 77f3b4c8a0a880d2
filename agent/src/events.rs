//! core/v1 Events about this node's objects, as the kubelet and kube-proxy write them.
//!
//! In: [`Recorder::record`], which never blocks. Out: Events; a repeat raises the count of the Event that is there. What is written and
//! what is dropped is decided in `aggregate` (pure); the one task here writes in order and gives up on an Event after a named number of
//! attempts: Events are a help, not a record.

mod aggregate;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use aggregate::{Aggregator, Decision};

/// Events that wait for being written; more are dropped and counted.
const QUEUE_EVENTS: usize = 1_000;
/// Attempts to write one Event (client-go: `maxTriesPerEvent`).
const ATTEMPTS: u32 = 12;
/// Wait between two attempts (client-go: `defaultSleepDuration`).
const RETRY_DELAY: Duration = Duration::from_secs(10);

/// Whether an Event is a warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// Just so that one knows.
    Normal,
    /// Something is wrong.
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// Whom the Events name as their source.
#[derive(Clone, Debug)]
pub struct Source {
    component: &'static str,
    node_name: String,
}

impl Source {
    /// A whole node agent.
    pub fn kubelet(node_name: String) -> Self {
        Self { component: "kubelet", node_name }
    }

    /// The service proxy alone.
    pub fn kube_proxy(node_name: String) -> Self {
        Self { component: "kube-proxy", node_name }
    }
}

/// Something that happened.
#[derive(Clone, Debug)]
struct Report {
    object: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
    at: Timestamp,
}

/// Takes Events. Clones share one queue.
#[derive(Clone, Debug)]
pub struct Recorder {
    queue: mpsc::Sender<Report>,
    dropped: Arc<AtomicU64>,
}

impl Recorder {
    /// Starts the task that writes.
    pub fn start(client: kube::Client, source: Source, shutdown: CancellationToken) -> Recorder {
        let (queue, reports) = mpsc::channel(QUEUE_EVENTS);
        tokio::spawn(Writer { client, source, known: Aggregator::default() }.run(reports, shutdown));
        Recorder { queue, dropped: Arc::default() }
    }

    /// A recorder without a task: what it takes is dropped. For tests.
    pub fn discarding() -> Recorder {
        let (queue, _) = mpsc::channel(1);
        Recorder { queue, dropped: Arc::default() }
    }

    /// Takes an Event. Never blocks; when the queue is full the Event is dropped and counted.
    pub fn record(&self, object: ObjectReference, kind: EventType, reason: &str, message: String) {
        tracing::debug!(object = object.name, reason, message, "event");
        let report = Report { object, kind, reason: reason.to_owned(), message, at: Timestamp::now() };
        if self.queue.try_send(report).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Events that did not fit into the queue.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

struct Writer {
    client: kube::Client,
    source: Source,
    known: Aggregator,
}

impl Writer {
    async fn run(mut self, mut reports: mpsc::Receiver<Report>, shutdown: CancellationToken) {
        loop {
            let report = tokio::select! {
                // Cancel safe: nothing is taken out of the queue until `recv` is ready.
                report = reports.recv() => report,
                // Cancel safe: only a flag is read.
                () = shutdown.cancelled() => return,
            };
            let Some(report) = report else { return };
            tokio::select! {
                // Dropped only when the agent ends.
                () = self.write(&report) => {}
                // Cancel safe: only a flag is read.
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn write(&mut self, report: &Report) {
        for attempt in 1..=ATTEMPTS {
            let decision = self.known.decide(report);
            match self.try_write(report, &decision).await {
                Ok(()) => return self.known.written(report, &decision),
                Err(kube::Error::Api(status)) if status.is_not_found() && decision.is_repeat() => {
                    // The Event has expired: the next attempt makes a new one.
                    self.known.forget(report);
                }
                // The API server has spoken: another attempt would hear the same (namespace that ends, not allowed, malformed).
                Err(kube::Error::Api(status)) if (400..500).contains(&status.code) && status.code != 429 => {
                    tracing::debug!(reason = report.reason, %status, "event refused");
                    return;
                }
                Err(error) => {
                    tracing::debug!(reason = report.reason, %error, attempt, "write event");
                    tokio::time::sleep(RETRY_DELAY).await;
                }
            }
        }
    }

    async fn try_write(&self, report: &Report, decision: &Decision) -> kube::Result<()> {
        let namespace = report.object.namespace.as_deref().unwrap_or("default");
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        match decision {
            Decision::Drop => {}
            Decision::Create { name } => {
                let event = self.event(report, namespace, name);
                events.create(&PostParams::default(), &event).await?;
            }
            Decision::Repeat { name, count } => {
                let patch = serde_json::json!({
                    "count": count,
                    "lastTimestamp": Time(report.at),
                    "message": report.message,
                });
                events.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
            }
        }
        Ok(())
    }

    fn event(&self, report: &Report, namespace: &str, name: &str) -> Event {
        Event {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: report.object.clone(),
            reason: Some(report.reason.clone()),
            message: Some(report.message.clone()),
            source: Some(EventSource {
                component: Some(self.source.component.into()),
                host: Some(self.source.node_name.clone()),
            }),
            first_timestamp: Some(Time(report.at)),
            last_timestamp: Some(Time(report.at)),
            count: Some(1),
            type_: Some(report.kind.as_str().into()),
            reporting_component: Some(self.source.component.into()),
            reporting_instance: Some(self.source.node_name.clone()),
            ..Event::default()
        }
    }
}
