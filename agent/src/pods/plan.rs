//! What to do next for one pod: a snapshot in, printable actions and the pod's status out. Pure.
//!
//! ```text
//!            accepted                    every container over, none restarts / deadline / rejected
//!  (watch) ───────────▶ Active ────────────────────────────────────────────────▶ Ended
//!                         │  volumes, images and sandbox at once; init containers  │  stop containers, then the sandbox,
//!                         │  in order; then all containers; restarts with back-off │  then volumes and control group;
//!                         │                                                        │  records stay for status and logs
//!                         └──────── deletionTimestamp, or the object is gone ──────┴──▶ Deleting
//!                                   leave the Services, stop (preStop, signal, kill after the grace), sandbox, volumes,
//!                                   remove everything, and when the last status is written: delete the object (grace 0, uid precondition)
//! ```
//! Each step is planned only when the one before it is done, as the snapshot shows it; so a killed agent goes on where it was. A step that
//! fails is planned again after a named delay: the snapshot carries it.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, PodStatus};
use runtime::{ContainerId, SandboxId};

use super::backoff::{after, go_duration};
use super::observed::{ImageState, Observed, Operation, ProbeFailure, Record, VolumeState};
use super::{labels, resources, status};
use crate::services::Departure;

mod ending;

pub use ending::{Ending, ending};
use ending::{deadline, grace};

#[cfg(test)]
mod tests;

/// How long a failed pull is shown as such before the status says that it is waiting to try again (kubelet: until the next sync).
const PULL_ERROR_SHOWN: SignedDuration = SignedDuration::from_secs(5);
/// One thing to do. The executor does it and tells when it is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the pod's directories and volumes.
    PrepareVolumes,
    /// Look for the image by the container's pull policy, pull it when needed.
    EnsureImage {
        /// Whose.
        container: String,
    },
    /// Make the pod's control group and a sandbox.
    RunSandbox {
        /// How many there were before.
        attempt: u32,
    },
    /// Create and start a container, with its postStart hook.
    StartContainer {
        /// Which.
        container: String,
        /// Where.
        sandbox: SandboxId,
        /// How often it was started before.
        restarts: u32,
        /// When the one before it ended: the delay before the next restart grows.
        failed_at: Option<Timestamp>,
    },
    /// Take the pod off the Services of this node; it takes no new connections from here on, and none at all once it is gone.
    LeaveServices {
        /// How far its end has come.
        stage: Departure,
    },
    /// preStop hook, signal, and kill at the end of the grace.
    StopContainer {
        /// Which.
        container: String,
        /// Its id.
        id: ContainerId,
        /// Seconds.
        grace: i64,
        /// Why.
        cause: StopCause,
    },
    /// Remove a container that is over, or that was created and never started.
    RemoveContainer {
        /// Which.
        container: String,
        /// Its id.
        id: ContainerId,
    },
    /// Kill what is left in a sandbox and take its network down.
    StopSandbox {
        /// Its id.
        id: SandboxId,
    },
    /// Remove a sandbox with its containers.
    RemoveSandbox {
        /// Its id.
        id: SandboxId,
    },
    /// Take the volumes down and remove what the node keeps for the pod.
    RemoveVolumes,
    /// Remove the pod's control group.
    RemoveCgroup,
    /// Tell once that a container waits for its restart.
    AnnounceBackOff {
        /// Which.
        container: String,
        /// Its restart count.
        restarts: u32,
    },
    /// Delete the API object with grace 0 and its uid as precondition.
    DeletePodObject,
    /// Nothing is left to do: the task ends.
    Finish,
}

/// Why a container is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// The pod ends.
    PodEnds,
    /// The liveness probe failed.
    Liveness,
    /// The startup probe failed.
    Startup,
    /// The image in its spec is another one now.
    Changed,
}

/// What comes out of a pass.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What to do, all at once.
    pub actions: Vec<Action>,
    /// What the API server should know.
    pub status: PodStatus,
    /// When to plan again at the latest, should nothing happen.
    pub wake_at: Option<Timestamp>,
}

/// Why a container does not run, where there is more to say than that it is being created.
pub type Waiting = BTreeMap<String, (String, String)>;

/// Decides what to do for a pod.
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let ending = ending(observed, now);
    let mut pass = Pass {
        observed,
        now,
        actions: Vec::new(),
        waiting: Waiting::new(),
        wake_at: deadline(observed, now),
    };
    if observed.is_deleting() {
        pass.end(grace(observed));
        pass.delete();
    } else if ending.is_some() {
        if pass.end(grace(observed)) && !observed.cgroup_removed {
            pass.cleanup(Action::RemoveCgroup);
        }
    } else {
        pass.run();
    }
    pass.tidy();
    let status = status::status(observed, ending.as_ref(), &pass.waiting, now);
    Plan { actions: pass.actions, status, wake_at: pass.wake_at }
}

/// How far the pod's end has come, for the Services of this node: before the first signal, and before its address is free. `None` while it
/// lives, and for one that never had an address. A sandbox that is taken down says nothing about the slices: they may still name it.
pub fn departure(observed: &Observed, now: Timestamp) -> Option<Departure> {
    let reported = observed.pod.status.as_ref().is_some_and(|status| status.pod_ip.is_some());
    let ends = observed.is_deleting() || ending(observed, now).is_some();
    if !ends || (observed.sandboxes.is_empty() && !reported) {
        return None;
    }
    let runs = observed.records.iter().any(Record::is_live)
        || observed.busy.values().any(|operation| *operation == Operation::Start);
    Some(if runs { Departure::Terminating } else { Departure::Gone })
}

/// A pass being made.
struct Pass<'a> {
    observed: &'a Observed,
    now: Timestamp,
    actions: Vec<Action>,
    waiting: Waiting,
    wake_at: Option<Timestamp>,
}

impl<'a> Pass<'a> {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |now| now.min(at)));
    }

    /// Plans a cleaning step, unless one failed a moment ago.
    fn cleanup(&mut self, action: Action) {
        match self.observed.cleanup_retry_at {
            Some(at) if at > self.now => self.wake(at),
            _ => self.actions.push(action),
        }
    }

    // ----- the pod runs

    fn run(&mut self) {
        match self.observed.volumes {
            VolumeState::Unknown | VolumeState::Removed => self.actions.push(Action::PrepareVolumes),
            VolumeState::Failed { retry_at } if retry_at <= self.now => {
                self.actions.push(Action::PrepareVolumes);
            }
            VolumeState::Failed { retry_at } => self.wake(retry_at),
            VolumeState::Preparing | VolumeState::Ready | VolumeState::Removing => {}
        }
        let sandbox = self.sandbox();
        if self.init_containers(sandbox.as_ref()) {
            let observed = self.observed;
            for container in &observed.spec().containers {
                self.keep(container, sandbox.as_ref(), observed.restart_policy());
            }
        }
    }

    /// The sandbox to make containers in; plans one where there is none.
    fn sandbox(&mut self) -> Option<SandboxId> {
        let observed = self.observed;
        if let Some(ready) = observed.ready_sandbox() {
            return Some(ready.status.id.clone());
        }
        if observed.sandbox_creating || !self.stop_sandboxes(|_| true) {
            return None;
        }
        if observed.restart_policy() == "Never" && !observed.records.is_empty() {
            return None;
        }
        match observed.sandbox_retry_at {
            Some(at) if at > self.now => self.wake(at),
            _ => {
                let attempt = observed.sandboxes.last().map_or(0, |last| last.status.config.attempt + 1);
                self.actions.push(Action::RunSandbox { attempt });
            }
        }
        None
    }

    /// Plans the stop of the chosen sandboxes; true when all of them are stopped.
    fn stop_sandboxes(&mut self, chosen: impl Fn(usize) -> bool) -> bool {
        let observed = self.observed;
        let mut stopped = true;
        for (index, sandbox) in observed.sandboxes.iter().enumerate() {
            if !chosen(index) || sandbox.settled {
                continue;
            }
            stopped = false;
            if !observed.sandbox_busy.contains(sandbox.status.id.as_str()) {
                self.cleanup(Action::StopSandbox { id: sandbox.status.id.clone() });
            }
        }
        stopped
    }

    /// Brings the init containers forward; true when the containers may run.
    fn init_containers(&mut self, sandbox: Option<&SandboxId>) -> bool {
        let observed = self.observed;
        let spec = observed.spec();
        let initialized = spec.containers.iter().any(|container| observed.current(&container.name).is_some());
        for init in spec.init_containers.iter().flatten() {
            let record = observed.current(&init.name);
            if resources::is_sidecar(init) {
                self.keep(init, sandbox, "Always");
                if !initialized && !record.is_some_and(|record| observed.is_started(init, record)) {
                    return false;
                }
            } else if !initialized {
                match record {
                    Some(record) if record.succeeded() => {}
                    _ => {
                        let never = observed.restart_policy() == "Never";
                        self.keep(init, sandbox, if never { "Never" } else { "OnFailure" });
                        return false;
                    }
                }
            }
        }
        true
    }

    /// Keeps a container running, or lets it rest where its policy says so.
    fn keep(&mut self, container: &Container, sandbox: Option<&SandboxId>, policy: &str) {
        let observed = self.observed;
        let name = container.name.as_str();
        if observed.busy.contains_key(name) {
            return;
        }
        match observed.current(name) {
            Some(record) if record.is_running() => self.watch_over(container, record),
            Some(record) if record.is_live() => self.remove(record),
            Some(record) if record.removed && !record.is_over() => self.start(container, sandbox, None),
            Some(record) if restarts(policy, record) => self.restart(container, sandbox, record),
            Some(_) => {}
            None => match observed.newest(name).filter(|record| record.is_over()) {
                // In a new sandbox what succeeded is not repeated, but for init containers and where it is to run always.
                Some(record) if self.is_init(name) => {
                    self.start(container, sandbox, Some(record.finished_at()))
                }
                Some(record) if restarts(policy, record) => self.restart(container, sandbox, record),
                Some(_) => {}
                None => self.start(container, sandbox, None),
            },
        }
    }

    fn is_init(&self, name: &str) -> bool {
        self.observed.spec().init_containers.iter().flatten().any(|init| init.name == name)
    }

    /// Stops a running container that a probe or a changed spec wants stopped.
    fn watch_over(&mut self, container: &Container, record: &Record) {
        let failed = self.observed.probe_state(record).and_then(|state| state.failed);
        let hash = labels::get(&record.status.config.annotations, labels::CONTAINER_HASH);
        let (cause, own_grace) = match failed {
            Some(ProbeFailure { startup: true, grace }) => (StopCause::Startup, grace),
            Some(ProbeFailure { startup: false, grace }) => (StopCause::Liveness, grace),
            None if !hash.is_empty() && hash != container_hash(container) => (StopCause::Changed, None),
            None => return,
        };
        self.actions.push(Action::StopContainer {
            container: container.name.clone(),
            id: record.status.id.clone(),
            grace: own_grace.unwrap_or_else(|| grace(self.observed)),
            cause,
        });
    }

    /// Starts a container again after its end, when its back-off allows.
    fn restart(&mut self, container: &Container, sandbox: Option<&SandboxId>, last: &Record) {
        let name = &container.name;
        let failed_at = last.finished_at();
        let backoff = self.observed.backoffs.get(name);
        let Some((backoff, until)) =
            backoff.and_then(|backoff| Some((backoff, backoff.waits_until(failed_at, self.now)?)))
        else {
            return self.start(container, sandbox, Some(failed_at));
        };
        let message = format!(
            "back-off {} restarting failed container={name} pod={}",
            go_duration(backoff.delay),
            self.observed.pod_text()
        );
        self.waiting.insert(name.clone(), ("CrashLoopBackOff".into(), message));
        self.wake(until);
        if !self.observed.announced.contains(&(name.clone(), last.restarts())) {
            self.actions.push(Action::AnnounceBackOff { container: name.clone(), restarts: last.restarts() });
        }
    }

    /// Plans what is missing for a start: the image, and when everything is there the start itself.
    fn start(&mut self, container: &Container, sandbox: Option<&SandboxId>, failed_at: Option<Timestamp>) {
        let name = &container.name;
        if let Some(failure) = self.observed.failures.get(name) {
            self.waiting.insert(name.clone(), (failure.reason.into(), failure.message.clone()));
            if failure.retry_at > self.now {
                return self.wake(failure.retry_at);
            }
        }
        match self.observed.images.get(name) {
            None => self.actions.push(Action::EnsureImage { container: name.clone() }),
            Some(ImageState::Pulling) => {}
            Some(ImageState::Failed { reason, message, at, retry_at }) => {
                self.show_pull_failure(container, reason, message, *at);
                if *retry_at > self.now {
                    self.wake(*retry_at);
                } else {
                    self.actions.push(Action::EnsureImage { container: name.clone() });
                }
            }
            Some(ImageState::Present) => {
                if let Some(sandbox) = sandbox
                    && self.observed.volumes == VolumeState::Ready
                {
                    self.actions.push(Action::StartContainer {
                        container: name.clone(),
                        sandbox: sandbox.clone(),
                        restarts: self.observed.next_restarts(name),
                        failed_at,
                    });
                }
            }
        }
    }

    /// ErrImagePull for a moment, then ImagePullBackOff; the other reasons stay.
    fn show_pull_failure(&mut self, container: &Container, reason: &str, message: &str, at: Timestamp) {
        let shown_until = after(at, PULL_ERROR_SHOWN);
        let backs_off = matches!(reason, "ErrImagePull" | "RegistryUnavailable");
        let text = if backs_off && shown_until <= self.now {
            let image = container.image.as_deref().unwrap_or_default();
            (
                "ImagePullBackOff".to_owned(),
                format!("Back-off pulling image \"{image}\": {reason}: {message}"),
            )
        } else {
            (reason.to_owned(), message.to_owned())
        };
        if backs_off && shown_until > self.now {
            self.wake(shown_until);
        }
        self.waiting.insert(container.name.clone(), text);
    }

    // ----- the pod ends

    /// Stops everything, in order; true when nothing runs and nothing is mounted any more.
    fn end(&mut self, grace: i64) -> bool {
        if !self.leave_services()
            || !self.stop_containers(grace)
            || self.observed.sandbox_creating
            || !self.stop_sandboxes(|_| true)
        {
            return false;
        }
        match self.observed.volumes {
            VolumeState::Removed => true,
            VolumeState::Preparing | VolumeState::Removing => false,
            VolumeState::Unknown | VolumeState::Ready | VolumeState::Failed { .. } => {
                self.cleanup(Action::RemoveVolumes);
                false
            }
        }
    }

    /// True when the services of this node know how far the pod's end has come.
    fn leave_services(&mut self) -> bool {
        let observed = self.observed;
        let Some(stage) = departure(observed, self.now).filter(|stage| observed.left_services < Some(*stage))
        else {
            return true;
        };
        if !observed.leaving_services {
            self.actions.push(Action::LeaveServices { stage });
        }
        false
    }

    /// Stops the containers, and after them the sidecars from the last to the first; true when none is left.
    fn stop_containers(&mut self, grace: i64) -> bool {
        let observed = self.observed;
        let starting = observed.busy.values().any(|operation| *operation == Operation::Start);
        let sidecars: Vec<&str> = observed
            .spec()
            .init_containers
            .iter()
            .flatten()
            .filter(|init| resources::is_sidecar(init))
            .map(|init| init.name.as_str())
            .collect();
        let live: Vec<&Record> = observed.records.iter().filter(|record| record.is_live()).collect();
        let rank = |record: &Record| sidecars.iter().position(|name| *name == record.name());
        let last_sidecar = live.iter().filter_map(|record| rank(record)).max();
        let mains_live = live.iter().any(|record| rank(record).is_none());
        for record in &live {
            let its_turn = match rank(record) {
                None => true,
                Some(position) => !mains_live && Some(position) == last_sidecar,
            };
            if its_turn {
                self.stop(record, grace);
            }
        }
        live.is_empty() && !starting
    }

    fn stop(&mut self, record: &Record, grace: i64) {
        let by = after(self.now, SignedDuration::from_secs(grace));
        match self.observed.busy.get(record.name()) {
            Some(Operation::Stop { by: planned }) if *planned <= by => return,
            Some(Operation::Start) if !record.is_running() => return,
            Some(Operation::Remove) => return,
            _ => {}
        }
        if !record.is_running() {
            // It was made and never started: a stop would end nothing.
            return self.remove(record);
        }
        self.actions.push(Action::StopContainer {
            container: record.name().to_owned(),
            id: record.status.id.clone(),
            grace,
            cause: StopCause::PodEnds,
        });
    }

    fn remove(&mut self, record: &Record) {
        let (container, id) = (record.name().to_owned(), record.status.id.clone());
        self.cleanup(Action::RemoveContainer { container, id });
    }

    /// Removes what is left of a pod whose end has come, and the pod's object last.
    fn delete(&mut self) {
        let observed = self.observed;
        let quiet = !observed.records.iter().any(Record::is_live)
            && observed.sandboxes.iter().all(|sandbox| sandbox.settled)
            && observed.volumes == VolumeState::Removed
            && observed.busy.is_empty()
            && !observed.sandbox_creating;
        if !quiet {
            return;
        }
        for sandbox in &observed.sandboxes {
            if !observed.sandbox_busy.contains(sandbox.status.id.as_str()) {
                self.cleanup(Action::RemoveSandbox { id: sandbox.status.id.clone() });
            }
        }
        if !observed.sandboxes.is_empty() {
            return;
        }
        if !observed.cgroup_removed {
            return self.cleanup(Action::RemoveCgroup);
        }
        if observed.gone {
            self.actions.push(Action::Finish);
        } else if observed.status_written && !observed.deleting_object {
            self.cleanup(Action::DeletePodObject);
        }
    }

    // ----- both

    /// Removes containers that a newer end of the same container supersedes, and sandboxes that are stopped and hold nothing of interest.
    fn tidy(&mut self) {
        let observed = self.observed;
        if observed.is_deleting() {
            return;
        }
        for record in &observed.records {
            if self.is_superseded(record) && !observed.removing.contains(record.status.id.as_str()) {
                self.remove(record);
            }
        }
        let newest = observed.sandboxes.len().saturating_sub(1);
        if newest > 0 {
            self.stop_sandboxes(|index| index < newest);
        }
        for sandbox in &observed.sandboxes[..newest] {
            let id = &sandbox.status.id;
            let holds = observed.records.iter().any(|record| !record.removed && record.status.sandbox == *id);
            if sandbox.settled && !holds && !observed.sandbox_busy.contains(id.as_str()) {
                self.cleanup(Action::RemoveSandbox { id: id.clone() });
            }
        }
    }

    fn is_superseded(&self, record: &Record) -> bool {
        let newest_end = self.observed.records_of(record.name()).rev().find(|other| other.is_over());
        record.is_over()
            && !record.removed
            && newest_end.is_some_and(|newest| newest.status.id != record.status.id)
    }
}

fn restarts(policy: &str, record: &Record) -> bool {
    match policy {
        "Never" => false,
        "OnFailure" => !record.succeeded(),
        _ => true,
    }
}

/// Hash of what needs a new container when it changes: name and image, as the kubelet since 1.31.
pub fn container_hash(container: &Container) -> String {
    use sha2::{Digest, Sha256};
    let image = container.image.as_deref().unwrap_or_default();
    let digest = Sha256::digest(format!("{}\0{image}", container.name).as_bytes());
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
