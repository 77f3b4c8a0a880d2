//! The task of one pod: it owns everything that this node knows about the pod, and has one `select!`.
//!
//! In: the pod's spec, the runtime's events, probe results, ends of its own operations, changes of ConfigMaps and Secrets, and the moment
//! that the plan asked for. Out: operations (each a task of its own that reports its end here), the status, and what others may look up.
//!
//! A pass: snapshot -> `plan` -> start the planned operations -> write the status when it changed. An operation that is under way is part
//! of the snapshot, so nothing is begun twice. When the agent dies, operations die with it: the next start finds in the runtime what was
//! done, and plans the rest.

mod ends;
mod records;
mod volumes;

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use runtime::{ContainerId, ContainerStatus, Event, SandboxId, SandboxStatus};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::backoff::{Backoff, after};
use super::cgroup;
use super::execute::{self, Start, Stop};
use super::images::{self, ImageFailure};
use super::observed::{ImageState, Observed, Operation, Rejection, StartFailure, VolumeState};
use super::plan::{self, Action};
use super::probes::{Probes, Report};
use super::registry::Registry;
use super::sandbox::Names;
use super::site::{RETRY_AFTER, Site};
use super::startup::{self, Progress, Startup, Step};
use super::status;
use super::status_writer::{StatusWriter, WriteEnd};
use super::volumes::{KeptTokens, Prepared};
use crate::api::chain;
use crate::events::EventType;
use crate::services::{Departure, Unheard};

/// Messages that wait for a pod's task; the sender waits when there are more.
pub const INBOX: usize = 256;
/// Probe results that wait for a pod's task.
const PROBE_REPORTS: usize = 64;
/// Passes in a row without waiting, when a pass changed the snapshot by itself.
const PASSES: usize = 16;

/// What the manager tells a pod's task.
#[derive(Clone, Debug)]
pub enum Input {
    /// The API server has a new version of the pod.
    Spec(Arc<Pod>),
    /// The API server no longer has the pod.
    Gone,
    /// Something happened to a container or the sandbox.
    Runtime(Event),
    /// Events may have been lost: this is all that the runtime has of the pod.
    Snapshot(Vec<SandboxStatus>, Vec<ContainerStatus>),
}

/// What a task begins with.
pub struct Begin {
    /// The pod.
    pub pod: Arc<Pod>,
    /// When the node saw it for the first time.
    pub seen: Instant,
    /// The API server no longer has it.
    pub gone: bool,
    /// The node does not take it.
    pub rejected: Option<Rejection>,
    /// What the runtime has of it.
    pub sandboxes: Vec<SandboxStatus>,
    /// What the runtime has of it.
    pub containers: Vec<ContainerStatus>,
}

/// The end of an operation.
enum Done {
    Volumes(Result<Prepared, String>),
    VolumesRefreshed(Result<Prepared, String>),
    VolumesRemoved(Result<(), String>),
    Image { container: String, result: Result<(), ImageFailure> },
    Sandbox(Result<SandboxId, String>),
    Started { container: String, id: Option<ContainerId>, result: Result<(), StartFailure> },
    LeftServices { stage: Departure, result: Result<(), Unheard> },
    Stopped { container: String, id: ContainerId, result: Result<(), String> },
    Removed { container: String, id: ContainerId, result: Result<(), String> },
    SandboxStopped { id: SandboxId, result: Result<(), String> },
    SandboxRemoved { id: SandboxId, result: Result<(), String> },
    CgroupRemoved(Result<(), String>),
    Status(WriteEnd),
    ObjectDeleted(Result<(), String>),
}

/// The task's state.
pub struct Worker {
    site: Arc<Site>,
    registry: Registry,
    observed: Observed,
    operations: JoinSet<Done>,
    probes: Probes,
    reports: mpsc::Receiver<Report>,
    objects_changed: Arc<Notify>,
    writer: StatusWriter,
    tokens: Arc<KeptTokens>,
    /// While the pod starts.
    startup: Option<Startup>,
    volume_failures: u32,
    refreshing: bool,
    refresh_again: bool,
    refresh_at: Option<Timestamp>,
    wake_at: Option<Timestamp>,
}

impl Worker {
    /// A task's state at its beginning.
    pub fn new(site: Arc<Site>, registry: Registry, begin: Begin) -> Worker {
        let (sender, reports) = mpsc::channel(PROBE_REPORTS);
        let probes = Probes::new(site.clone(), begin.pod.clone(), sender);
        // One that runs already was started by an earlier process of ours.
        let startup = begin.sandboxes.is_empty().then(|| Startup::new(begin.seen));
        let mut worker = Worker {
            startup,
            writer: StatusWriter::new(&begin.pod),
            observed: Observed {
                gone: begin.gone,
                rejected: begin.rejected,
                ..Observed::new(begin.pod, site.node.clone(), Timestamp::now())
            },
            site,
            registry,
            operations: JoinSet::new(),
            probes,
            reports,
            objects_changed: Arc::default(),
            tokens: Arc::default(),
            volume_failures: 0,
            refreshing: false,
            refresh_again: false,
            refresh_at: None,
            wake_at: None,
        };
        worker.take_snapshot(begin.sandboxes, begin.containers);
        // Others, and the next admission, see the pod from now on.
        worker.registry.put(&worker.observed);
        // One whose end an earlier process began: the services know before they are written for the first time.
        if let Some(stage) = plan::departure(&worker.observed, Timestamp::now()) {
            worker.site.departures.found(worker.names().uid.to_owned(), stage);
            if worker.observed.sandboxes.is_empty() {
                // No signal and no address are still to come for which the services would have to be waited for.
                worker.observed.left_services = Some(stage);
            }
        }
        worker
    }

    /// Runs until nothing of the pod is left, or the agent ends.
    pub async fn run(mut self, mut inbox: mpsc::Receiver<Input>, shutdown: CancellationToken) {
        loop {
            if self.passes() {
                break;
            }
            let wake_at = [self.wake_at, self.refresh_at].into_iter().flatten().min();
            let sleep = wake_at.map(until);
            tokio::select! {
                // Cancel safe: a message stays in the channel until `recv` is ready.
                input = inbox.recv() => match input {
                    Some(input) => self.take(input),
                    None => break,
                },
                // Cancel safe: a finished task stays in the set until `join_next` is ready.
                Some(end) = self.operations.join_next(), if !self.operations.is_empty() => match end {
                    Ok(done) => self.finish(done),
                    Err(error) => self.forget_operations(&error),
                },
                // Cancel safe: a report stays in the channel until `recv` is ready; the probes hold a sender, so it never ends.
                Some(report) = self.reports.recv() => self.take_report(report),
                // Cancel safe: a permit that is not taken stays.
                () = self.objects_changed.notified() => self.refresh_volumes(),
                // Cancel safe: the moment is computed anew.
                () = tokio::time::sleep(sleep.unwrap_or_default()), if sleep.is_some() => self.wake(),
                // Cancel safe: only a flag is read.
                () = shutdown.cancelled() => return,
            }
            // What has arrived meanwhile goes into the same pass.
            while let Ok(input) = inbox.try_recv() {
                self.take(input);
            }
            while let Some(end) = self.operations.try_join_next() {
                match end {
                    Ok(done) => self.finish(done),
                    Err(error) => self.forget_operations(&error),
                }
            }
        }
        self.site.objects.release(self.names().uid);
        self.registry.remove(self.names().uid);
        if let Err(error) = execute::forget(self.site.clone(), self.observed.pod.clone()).await {
            tracing::warn!(pod = self.observed.pod_text(), error, "remove the pod's folder");
        }
    }

    fn names(&self) -> Names<'_> {
        Names::of(&self.observed.pod)
    }

    // ----- inputs

    fn take(&mut self, input: Input) {
        match input {
            Input::Spec(pod) => self.take_spec(pod),
            Input::Gone => self.observed.gone = true,
            Input::Runtime(event) => self.take_event(event),
            Input::Snapshot(sandboxes, containers) => self.take_snapshot(sandboxes, containers),
        }
    }

    /// The spec is the API server's; the status is ours, but for conditions that others set and an end that others decided.
    fn take_spec(&mut self, pod: Arc<Pod>) {
        self.writer.seen(&pod);
        let theirs = pod.status.clone().unwrap_or_default();
        let merged = match self.observed.pod.status.clone() {
            None => theirs,
            Some(ours) => status::merge(ours, theirs),
        };
        let labels_changed = pod.metadata.labels != self.observed.pod.metadata.labels
            || pod.metadata.annotations != self.observed.pod.metadata.annotations;
        let mut pod = pod;
        Arc::make_mut(&mut pod).status = Some(merged);
        self.observed.pod = pod;
        self.probes.set_pod(self.observed.pod.clone());
        if labels_changed && self.observed.volumes == VolumeState::Ready {
            self.refresh_volumes();
        }
    }

    fn take_report(&mut self, report: Report) {
        let running = self
            .observed
            .records
            .iter()
            .any(|record| record.is_running() && record.status.id == report.container);
        if running {
            report.apply(&mut self.observed.probes);
        }
    }

    fn wake(&mut self) {
        if self.refresh_at.is_some_and(|at| at <= Timestamp::now()) {
            self.refresh_at = None;
            self.refresh_volumes();
        }
    }

    // ----- passes

    /// Passes until one changes nothing by itself; true when nothing is left to do for the pod.
    fn passes(&mut self) -> bool {
        for _ in 0..PASSES {
            let now = Timestamp::now();
            self.probes.follow(&mut self.observed);
            let plan = plan::plan(&self.observed, now);
            self.wake_at = plan.wake_at;
            let written = self.write_status(&plan.status);
            self.set_status(plan.status);
            let mut again = self.observed.status_written != written;
            self.observed.status_written = written;
            for action in plan.actions {
                tracing::debug!(pod = self.observed.pod_text(), ?action, "plan");
                match action {
                    Action::Finish => return true,
                    Action::DeletePodObject if !written => {}
                    action => again |= self.execute(action, now),
                }
            }
            self.follow_startup();
            if !again {
                return false;
            }
        }
        // Whatever goes round is looked at again a little later instead of at once.
        self.wake_at = Some(after(Timestamp::now(), SignedDuration::from_secs(1)));
        false
    }

    /// Takes note of where the time of the pod's start goes, until the API server has it as Running.
    fn follow_startup(&mut self) {
        let metrics = &self.site.metrics;
        match (startup::step(&self.observed), &mut self.startup) {
            (_, None) => {}
            (Step::Abandoned, _) => self.startup = None,
            (Step::At(phase), Some(startup)) => {
                if let Progress::Runs(took) = startup.advance(phase, Instant::now()) {
                    metrics.pod_start.observe(took.as_secs_f64());
                }
            }
            (Step::Told, Some(_)) => {
                let phases = self.startup.take().map(|startup| startup.finish(Instant::now()));
                for (phase, took) in phases.into_iter().flatten() {
                    metrics.pod_start_phases.observe(phase.as_str(), took);
                }
            }
        }
    }

    /// Writes the status when it changed and no write is under way; true when the API server has it.
    fn write_status(&mut self, status: &PodStatus) -> bool {
        if self.observed.gone {
            return true;
        }
        if let Some(write) = self.writer.begin(&self.observed.pod, status) {
            let client = self.site.client.clone();
            self.operations.spawn(async move { Done::Status(write.run(client).await) });
        }
        self.writer.has(status)
    }

    /// Keeps the status as the base of the next one, and shows it to others.
    fn set_status(&mut self, status: PodStatus) {
        if self.observed.pod.status.as_ref() != Some(&status) {
            Arc::make_mut(&mut self.observed.pod).status = Some(status);
        }
        self.registry.put(&self.observed);
    }

    /// Begins an action; true when it was done on the spot.
    fn execute(&mut self, action: Action, now: Timestamp) -> bool {
        match action {
            Action::PrepareVolumes => return self.prepare_volumes(),
            Action::EnsureImage { container } => return self.ensure_image(container, now),
            Action::RunSandbox { attempt } => {
                self.observed.sandbox_creating = true;
                let work = execute::run_sandbox(self.site.clone(), self.observed.pod.clone(), attempt);
                self.operations.spawn(async move { Done::Sandbox(work.await) });
            }
            Action::StartContainer { container, sandbox, restarts, failed_at } => {
                if let Some(failed_at) = failed_at {
                    let before = self.observed.backoffs.get(&container).copied();
                    self.observed.backoffs.insert(container.clone(), Backoff::next(before, failed_at, now));
                }
                self.start_container(container, sandbox, restarts);
            }
            Action::LeaveServices { stage } => {
                self.observed.leaving_services = true;
                let (departures, pod) = (self.site.departures.clone(), self.names().uid.to_owned());
                self.operations.spawn(async move {
                    Done::LeftServices { stage, result: departures.tell(pod, stage).await }
                });
            }
            Action::StopContainer { container, id, grace, cause } => {
                let running = self.observed.records.iter().any(|r| r.status.id == id && r.is_running());
                let by = after(now, SignedDuration::from_secs(grace));
                let again = matches!(self.observed.busy.get(&container), Some(Operation::Stop { .. }));
                self.observed.busy.insert(container.clone(), Operation::Stop { by });
                // A shortened grace does not run the hook a second time.
                let stop =
                    Stop { name: container, id, grace, cause, running: running && !again, ip: self.ip() };
                self.spawn_stop(stop);
            }
            Action::RemoveContainer { container, id } => self.remove_container(container, id),
            Action::StopSandbox { id } => {
                self.observed.sandbox_busy.insert(id.to_string());
                let (site, uid) = (self.site.clone(), self.names().uid.to_owned());
                self.operations.spawn(async move {
                    let result = site.runtime.stop_sandbox(&id).await.map_err(|error| chain(&error));
                    if result.is_ok() {
                        site.policies.ended(&uid, &id).await;
                        tokio::task::block_in_place(|| {
                            site.bypass.ended(&id);
                            site.clients.ended(&id);
                        });
                    }
                    Done::SandboxStopped { id, result }
                });
            }
            Action::RemoveSandbox { id } => {
                self.observed.sandbox_busy.insert(id.to_string());
                let runtime = self.site.runtime.clone();
                self.operations.spawn(async move {
                    let result = runtime.remove_sandbox(&id).await.map_err(|error| chain(&error));
                    Done::SandboxRemoved { id, result }
                });
            }
            Action::RemoveVolumes => self.remove_volumes(),
            Action::RemoveCgroup => {
                self.observed.cleanup_retry_at = Some(after(now, RETRY_AFTER));
                let work = cgroup::remove(self.site.clone(), self.observed.pod.clone());
                self.operations.spawn(async move { Done::CgroupRemoved(work.await) });
            }
            Action::AnnounceBackOff { container, restarts } => {
                let text = format!(
                    "Back-off restarting failed container {container} in pod {}",
                    self.observed.pod_text()
                );
                let pod = &self.observed.pod;
                self.site.container_event(pod, &container, EventType::Warning, "BackOff", text);
                self.observed.announced.retain(|(name, _)| *name != container);
                self.observed.announced.insert((container, restarts));
            }
            Action::DeletePodObject => {
                self.observed.deleting_object = true;
                let work = execute::delete_object(self.site.clone(), self.observed.pod.clone());
                self.operations.spawn(async move { Done::ObjectDeleted(work.await) });
            }
            Action::Finish => {}
        }
        false
    }

    fn ip(&self) -> Option<IpAddr> {
        let sandbox = self.observed.sandboxes.last();
        let own = sandbox.and_then(|sandbox| sandbox.status.ips.first());
        own.or(self.site.node.ips.first()).copied()
    }

    fn ensure_image(&mut self, container: String, now: Timestamp) -> bool {
        let pod = self.observed.pod.clone();
        let Some(spec) = execute::find(&pod, &container) else { return false };
        match images::look(&self.site, &pod, spec) {
            Some(result) => {
                self.image_found(container, result, now);
                true
            }
            None => {
                self.observed.images.insert(container.clone(), ImageState::Pulling);
                let work = execute::pull_image(self.site.clone(), pod, container.clone());
                self.operations.spawn(async move { Done::Image { container, result: work.await } });
                false
            }
        }
    }

    fn image_found(&mut self, container: String, result: Result<(), ImageFailure>, now: Timestamp) {
        let key = format!("image/{container}");
        let state = match result {
            Ok(()) => {
                self.observed.backoffs.remove(&key);
                ImageState::Present
            }
            Err(failure) => {
                let before = self.observed.backoffs.get(&key).copied();
                let backoff = Backoff::next(before, now, now);
                self.observed.backoffs.insert(key, backoff);
                if failure.reason == "ErrImagePull" || failure.reason == "RegistryUnavailable" {
                    let image = execute::find(&self.observed.pod, &container)
                        .and_then(|spec| spec.image.clone())
                        .unwrap_or_default();
                    let text = format!("Back-off pulling image \"{image}\"");
                    self.site.container_event(
                        &self.observed.pod,
                        &container,
                        EventType::Normal,
                        "BackOff",
                        text,
                    );
                }
                ImageState::Failed {
                    reason: failure.reason,
                    message: failure.message,
                    at: now,
                    retry_at: after(now, backoff.delay),
                }
            }
        };
        self.observed.images.insert(container, state);
    }

    fn start_container(&mut self, container: String, sandbox: SandboxId, restarts: u32) {
        self.observed.busy.insert(container.clone(), Operation::Start);
        self.observed.probes.remove(&container);
        let ips = self.observed.sandboxes.last().map(|last| last.status.ips.clone()).unwrap_or_default();
        let created = Arc::new(OnceLock::new());
        let start = Start { name: container.clone(), sandbox, ips, restarts, created: created.clone() };
        let work = execute::start_container(self.site.clone(), self.observed.pod.clone(), start);
        self.operations.spawn(async move {
            let result = work.await;
            Done::Started { container, id: created.get().cloned(), result }
        });
    }

    fn spawn_stop(&mut self, stop: Stop) {
        let (container, id) = (stop.name.clone(), stop.id.clone());
        let work = execute::stop_container(self.site.clone(), self.observed.pod.clone(), stop);
        self.operations.spawn(async move { Done::Stopped { container, id, result: work.await } });
    }

    fn remove_container(&mut self, container: String, id: ContainerId) {
        let live = self.observed.records.iter().any(|record| record.status.id == id && record.is_live());
        if live {
            self.observed.busy.insert(container.clone(), Operation::Remove);
        }
        self.observed.removing.insert(id.to_string());
        let runtime = self.site.runtime.clone();
        self.operations.spawn(async move {
            let result = runtime.remove_container(&id).await.map_err(|error| chain(&error));
            Done::Removed { container, id, result }
        });
    }
}

/// From now until a moment.
fn until(at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()
}
