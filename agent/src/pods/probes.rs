//! Startup, readiness and liveness probes of one pod's containers.
//!
//! In: which containers run. Out: reports to the pod's task, and Events about failures. Each probe is a task of its own, which lives as long
//! as the container runs; liveness and readiness begin when startup is through. Thresholds are counted in [`Counter`] (pure); what a result
//! leads to is the plan's decision.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use runtime::ContainerId;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::observed::{Observed, ProbeFailure, ProbeState, Record, timestamp};
use super::resources;
use super::site::Site;
use super::status::CONTAINER_ID_SCHEME;
use crate::api::chain;
use crate::events::EventType;

pub mod dial;

#[cfg(test)]
mod tests;

/// Output of a failed command that an Event shows, bytes.
const OUTPUT_BYTES: usize = 1_024;

/// A kind of probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Startup,
    Readiness,
    Liveness,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Readiness => "Readiness",
            Kind::Liveness => "Liveness",
        }
    }

    fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Kind::Startup => container.startup_probe.as_ref(),
            Kind::Readiness => container.readiness_probe.as_ref(),
            Kind::Liveness => container.liveness_probe.as_ref(),
        }
    }
}

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Update {
    Started,
    Ready(bool),
    Failed(ProbeFailure),
}

/// A probe's word to the pod's task.
#[derive(Clone, Debug)]
pub struct Report {
    /// The container that was probed.
    pub container: ContainerId,
    name: String,
    update: Update,
}

impl Report {
    /// Changes the state of the container that was probed.
    pub fn apply(self, states: &mut BTreeMap<String, ProbeState>) {
        let Some(state) = states.get_mut(&self.name).filter(|state| state.container == self.container) else {
            return;
        };
        match self.update {
            Update::Started => state.started = true,
            Update::Ready(ready) => state.ready = ready,
            Update::Failed(failure) => state.failed = Some(failure),
        }
    }
}

/// Counts results against thresholds.
#[derive(Clone, Debug)]
struct Counter {
    success_threshold: i32,
    failure_threshold: i32,
    last: Option<bool>,
    run: i32,
}

impl Counter {
    fn new(probe: &Probe) -> Counter {
        Counter {
            success_threshold: probe.success_threshold.unwrap_or(1).max(1),
            failure_threshold: probe.failure_threshold.unwrap_or(3).max(1),
            last: None,
            run: 0,
        }
    }

    /// The result that counts now; `None` while the threshold is not reached.
    fn count(&mut self, success: bool) -> Option<bool> {
        if self.last == Some(success) {
            self.run = self.run.saturating_add(1);
        } else {
            self.last = Some(success);
            self.run = 1;
        }
        let threshold = if success { self.success_threshold } else { self.failure_threshold };
        (self.run >= threshold).then_some(success)
    }
}

/// The probes of one pod.
pub struct Probes {
    site: Arc<Site>,
    pod: Arc<Pod>,
    reports: mpsc::Sender<Report>,
    tasks: BTreeMap<(String, Kind), Task>,
}

struct Task {
    container: ContainerId,
    handle: AbortHandle,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl Probes {
    /// Without any.
    pub fn new(site: Arc<Site>, pod: Arc<Pod>, reports: mpsc::Sender<Report>) -> Probes {
        Probes { site, pod, reports, tasks: BTreeMap::new() }
    }

    /// Events name this version of the pod from now on.
    pub fn set_pod(&mut self, pod: Arc<Pod>) {
        self.pod = pod;
    }

    /// Starts and stops probes as containers come and go, and gives new containers their first state.
    pub fn follow(&mut self, observed: &mut Observed) {
        let pod = observed.pod.clone();
        let Some(spec) = &pod.spec else { return };
        let mut wanted: Vec<(Container, Record, Kind)> = Vec::new();
        for container in resources::all_containers(spec) {
            if [Kind::Startup, Kind::Readiness, Kind::Liveness]
                .iter()
                .all(|kind| kind.of(container).is_none())
            {
                continue;
            }
            let Some(record) = observed.newest(&container.name).filter(|record| record.is_running()).cloned()
            else {
                continue;
            };
            if observed.probe_state(&record).is_none() {
                let first = first_state(observed, container, &record);
                observed.probes.insert(container.name.clone(), first);
            }
            let Some(state) = observed.probe_state(&record) else { continue };
            for kind in kinds(container, state, observed.is_deleting()) {
                wanted.push((container.clone(), record.clone(), kind));
            }
        }
        self.tasks.retain(|(name, kind), task| {
            wanted.iter().any(|(container, record, other)| {
                container.name == *name && other == kind && record.status.id == task.container
            })
        });
        for (container, record, kind) in wanted {
            self.start(observed, container, &record, kind);
        }
    }

    fn start(&mut self, observed: &Observed, container: Container, record: &Record, kind: Kind) {
        let key = (container.name.clone(), kind);
        if self.tasks.contains_key(&key) {
            return;
        }
        let Some(probe) = kind.of(&container).cloned() else { return };
        let sandbox = observed.sandboxes.last();
        let ip = sandbox.and_then(|sandbox| sandbox.status.ips.first()).or(observed.node.ips.first());
        let id = record.status.id.clone();
        let probing = Loop {
            site: self.site.clone(),
            pod: self.pod.clone(),
            started_at: timestamp(record.status.started_at),
            id: id.clone(),
            ip: ip.copied(),
            counter: Counter::new(&probe),
            reports: self.reports.clone(),
            container,
            probe,
            kind,
        };
        let handle = tokio::spawn(probing.run()).abort_handle();
        self.tasks.insert(key, Task { container: id, handle });
    }
}

/// The probes that are to run in a state.
fn kinds(container: &Container, state: &ProbeState, deleting: bool) -> Vec<Kind> {
    let has = |kind: &Kind| kind.of(container).is_some();
    if !state.started {
        return [Kind::Startup]
            .into_iter()
            .filter(|_| !deleting && state.failed.is_none())
            .filter(has)
            .collect();
    }
    let liveness = !deleting && state.failed.is_none();
    [Kind::Readiness, Kind::Liveness]
        .into_iter()
        .filter(|kind| *kind != Kind::Liveness || liveness)
        .filter(has)
        .collect()
}

/// A container that was running under an earlier agent is what it was then; a new one has to prove itself.
fn first_state(observed: &Observed, container: &Container, record: &Record) -> ProbeState {
    let id = format!("{CONTAINER_ID_SCHEME}{}", record.status.id);
    let reported = observed
        .reported(&container.name)
        .filter(|status| status.container_id.as_deref() == Some(id.as_str()));
    let was_started = reported.is_some_and(|status| status.started == Some(true));
    let was_ready = reported.is_some_and(|status| status.ready);
    ProbeState {
        container: record.status.id.clone(),
        started: container.startup_probe.is_none() || was_started,
        ready: container.readiness_probe.is_none() || was_ready,
        failed: None,
    }
}

/// One probe's task.
struct Loop {
    site: Arc<Site>,
    pod: Arc<Pod>,
    container: Container,
    probe: Probe,
    kind: Kind,
    id: ContainerId,
    ip: Option<IpAddr>,
    started_at: Timestamp,
    counter: Counter,
    reports: mpsc::Sender<Report>,
}

fn seconds(value: Option<i32>, default: u64, minimum: u64) -> Duration {
    Duration::from_secs(value.and_then(|value| u64::try_from(value).ok()).unwrap_or(default).max(minimum))
}

impl Loop {
    async fn run(mut self) {
        let delay = seconds(self.probe.initial_delay_seconds, 0, 0);
        let age = Duration::try_from(Timestamp::now().duration_since(self.started_at)).unwrap_or_default();
        tokio::time::sleep(delay.saturating_sub(age)).await;
        let mut ticks = tokio::time::interval(seconds(self.probe.period_seconds, 10, 1));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Some(success) = self.once().await else { continue };
            let Some(result) = self.counter.count(success) else { continue };
            let update = self.update(result);
            if let Some(update) = update {
                let report = Report { container: self.id.clone(), name: self.container.name.clone(), update };
                if self.reports.send(report).await.is_err() {
                    return;
                }
            }
            let finished = match self.kind {
                Kind::Startup => true,
                Kind::Liveness => !result,
                Kind::Readiness => false,
            };
            if finished {
                return;
            }
        }
    }

    fn update(&self, result: bool) -> Option<Update> {
        let grace = self.probe.termination_grace_period_seconds;
        match (self.kind, result) {
            (Kind::Startup, true) => Some(Update::Started),
            (Kind::Startup, false) => Some(Update::Failed(ProbeFailure { startup: true, grace })),
            (Kind::Readiness, ready) => Some(Update::Ready(ready)),
            (Kind::Liveness, true) => None,
            (Kind::Liveness, false) => Some(Update::Failed(ProbeFailure { startup: false, grace })),
        }
    }

    /// Probes once; `None` when nobody knows.
    async fn once(&self) -> Option<bool> {
        let failed = match self.ask().await {
            Ok(()) => return Some(true),
            Err(failed) => failed,
        };
        let kind = self.kind.name();
        let (text, result) = match failed {
            Failed::Said(output) => (format!("{kind} probe failed: {output}"), Some(false)),
            Failed::Unknown(error) => {
                (format!("{kind} probe errored and resulted in unknown state: {error}"), None)
            }
        };
        let name = &self.container.name;
        self.site.container_event(&self.pod, name, EventType::Warning, "Unhealthy", text);
        result
    }

    async fn ask(&self) -> Result<(), Failed> {
        let timeout = seconds(self.probe.timeout_seconds, 1, 1);
        if let Some(exec) = &self.probe.exec {
            return self.exec(exec.command.clone().unwrap_or_default(), timeout).await;
        }
        if let Some(get) = &self.probe.http_get {
            let endpoint = dial::Endpoint::http(get, &self.container, self.ip).map_err(Failed::Unknown)?;
            let answer = dial::http(&endpoint, timeout).await.map_err(Failed::Said)?;
            return match answer.status {
                200..400 => Ok(()),
                status => {
                    tracing::debug!(container = self.container.name, status, body = answer.body, "probe");
                    Err(Failed::Said(format!("HTTP probe failed with statuscode: {status}")))
                }
            };
        }
        if let Some(tcp) = &self.probe.tcp_socket {
            let (host, port) = dial::tcp_target(tcp, &self.container, self.ip).map_err(Failed::Unknown)?;
            return dial::tcp(&host, port, timeout).await.map_err(Failed::Said);
        }
        if let Some(grpc) = &self.probe.grpc {
            let host = self.ip.map(|ip| ip.to_string()).unwrap_or_default();
            let port = u16::try_from(grpc.port)
                .map_err(|_| Failed::Unknown(format!("invalid port number: {}", grpc.port)))?;
            let service = grpc.service.as_deref().unwrap_or_default();
            return dial::grpc(&host, port, service, timeout).await.map_err(Failed::Said);
        }
        Err(Failed::Unknown("missing probe handler".into()))
    }

    async fn exec(&self, command: Vec<String>, timeout: Duration) -> Result<(), Failed> {
        let text = command.join(" ");
        match self.site.runtime.exec_sync(&self.id, command, Some(timeout)).await {
            Ok(result) if result.exit_code == 0 => Ok(()),
            Ok(result) => {
                let mut output = result.stdout;
                output.extend(result.stderr);
                output.truncate(OUTPUT_BYTES);
                Err(Failed::Said(String::from_utf8_lossy(&output).into_owned()))
            }
            Err(runtime::Error::Timeout { .. }) => {
                let seconds = timeout.as_secs();
                Err(Failed::Said(format!("command timed out: \"{text}\" timed out after {seconds}s")))
            }
            Err(error) => Err(Failed::Unknown(chain(&error))),
        }
    }
}

/// Why a probe did not succeed.
enum Failed {
    /// The container said no, or nothing.
    Said(String),
    /// It could not be asked.
    Unknown(String),
}
