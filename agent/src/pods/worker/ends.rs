//! Ends of a pod's operations: what each changes in the snapshot.
//!
//! In: [`Done`]. Out: the snapshot of the next pass. A failed step is logged here, once, and tried again after a named delay.

use std::collections::BTreeSet;

use jiff::Timestamp;
use runtime::{ContainerId, SandboxId, SandboxState, SandboxStatus};
use tokio::task::JoinSet;

use super::{Done, Worker};
use crate::events::EventType;
use crate::pods::backoff::after;
use crate::pods::observed::{ImageState, Operation, StartFailure, VolumeState};
use crate::pods::site::RETRY_AFTER;
use crate::pods::volumes;

impl Worker {
    pub(super) fn finish(&mut self, done: Done) {
        match done {
            Done::Volumes(Ok(prepared)) => {
                self.observed.volumes = VolumeState::Ready;
                self.volume_failures = 0;
                self.refresh_at = prepared.refresh_at;
                // Objects that changed while the volumes were being made.
                if std::mem::take(&mut self.refresh_again) {
                    self.refresh_volumes();
                }
            }
            Done::Volumes(Err(message)) => self.volumes_failed(&message),
            Done::VolumesRefreshed(result) => self.volumes_refreshed(result),
            Done::VolumesRemoved(result) => {
                let removed = self.cleaned("remove volumes", result);
                self.observed.volumes = if removed { VolumeState::Removed } else { VolumeState::Unknown };
            }
            Done::Image { container, result } => self.image_found(container, result, Timestamp::now()),
            Done::Sandbox(Ok(id)) => {
                self.observed.sandbox_creating = false;
                self.observed.sandbox_retry_at = None;
                self.refresh_sandbox(&id);
            }
            Done::Sandbox(Err(_)) => {
                self.observed.sandbox_creating = false;
                self.observed.sandbox_retry_at = Some(after(Timestamp::now(), RETRY_AFTER));
            }
            Done::Started { container, id, result } => self.started(container, id, result),
            Done::LeftServices { stage, result } => {
                self.observed.leaving_services = false;
                self.observed.left_services = Some(stage);
                if let Err(error) = result {
                    let pod = self.observed.pod_text();
                    tracing::warn!(pod, %error, ?stage, "the pod may still get connections, it is ended all the same");
                }
            }
            Done::Stopped { container, id, result } => {
                self.free(&container, |operation| matches!(operation, Operation::Stop { .. }));
                self.refresh_container(&id);
                self.cleaned("stop container", result);
            }
            Done::Removed { container, id, result } => {
                self.free(&container, |operation| *operation == Operation::Remove);
                self.observed.removing.remove(id.as_str());
                if self.cleaned("remove container", result) {
                    self.mark_removed(&id);
                }
            }
            Done::SandboxStopped { id, result } => {
                self.observed.sandbox_busy.remove(id.as_str());
                let stopped = self.cleaned("stop sandbox", result);
                self.refresh_sandbox(&id);
                let sandboxes = self.observed.sandboxes.iter_mut();
                sandboxes.filter(|sandbox| sandbox.status.id == id).for_each(|sandbox| {
                    sandbox.settled |= stopped;
                    if stopped {
                        sandbox.status.state = SandboxState::NotReady;
                    }
                });
            }
            Done::SandboxRemoved { id, result } => {
                self.observed.sandbox_busy.remove(id.as_str());
                if self.cleaned("remove sandbox", result) {
                    self.sandbox_removed(&id);
                }
            }
            Done::CgroupRemoved(result) => {
                self.observed.cleanup_retry_at = None;
                self.observed.cgroup_removed |= self.cleaned("remove control group", result);
            }
            Done::Status(end) => self.writer.finish(end),
            Done::ObjectDeleted(result) => {
                if !self.cleaned("delete pod", result) {
                    self.observed.deleting_object = false;
                }
            }
        }
    }

    /// Whether a step succeeded; a failed one is logged and not repeated at once.
    pub(super) fn cleaned(&mut self, operation: &'static str, result: Result<(), String>) -> bool {
        match result {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(
                    pod = self.observed.pod_text(),
                    error,
                    operation,
                    "step failed, will be repeated"
                );
                self.observed.cleanup_retry_at = Some(after(Timestamp::now(), RETRY_AFTER));
                false
            }
        }
    }

    pub(super) fn free(&mut self, container: &str, ours: impl Fn(&Operation) -> bool) {
        if self.observed.busy.get(container).is_some_and(ours) {
            self.observed.busy.remove(container);
        }
    }

    pub(super) fn started(
        &mut self,
        container: String,
        id: Option<ContainerId>,
        result: Result<(), StartFailure>,
    ) {
        self.free(&container, |operation| *operation == Operation::Start);
        // The next start looks for the image again, as the pull policy says.
        self.observed.images.remove(&container);
        match result {
            Ok(()) => {
                self.observed.failures.remove(&container);
            }
            Err(failure) => {
                self.observed.failures.insert(container.clone(), failure);
            }
        }
        // Its events may still be on their way.
        if let Some(id) = id {
            self.refresh_container(&id);
        }
        // A start that ended as an exit is a matter of the restart delay.
        let over = self.observed.newest(&container).is_some_and(|record| record.is_over());
        if over && let Some(failure) = self.observed.failures.get_mut(&container) {
            failure.retry_at = failure.retry_at.min(Timestamp::now());
        }
    }

    pub(super) fn volumes_refreshed(&mut self, result: Result<volumes::Prepared, String>) {
        self.refreshing = false;
        match result {
            Ok(prepared) => self.refresh_at = prepared.refresh_at,
            Err(message) => {
                self.site.pod_event(&self.observed.pod, EventType::Warning, "FailedMount", message);
                self.refresh_at = Some(after(Timestamp::now(), RETRY_AFTER.saturating_mul(10)));
            }
        }
        if std::mem::take(&mut self.refresh_again) {
            self.refresh_volumes();
        }
    }

    pub(super) fn sandbox_removed(&mut self, id: &SandboxId) {
        self.observed.sandboxes.retain(|sandbox| sandbox.status.id != *id);
        let ids: Vec<ContainerId> = self
            .observed
            .records
            .iter()
            .filter(|record| record.status.sandbox == *id)
            .map(|record| record.status.id.clone())
            .collect();
        ids.iter().for_each(|id| self.mark_removed(id));
    }

    /// An operation panicked: nobody knows which, so all are taken for ended and the runtime is asked.
    pub(super) fn forget_operations(&mut self, error: &tokio::task::JoinError) {
        tracing::error!(pod = self.observed.pod_text(), %error, "an operation was interrupted");
        self.operations.abort_all();
        self.operations = JoinSet::new();
        let observed = &mut self.observed;
        observed.busy.clear();
        observed.removing.clear();
        observed.sandbox_busy.clear();
        observed.sandbox_creating = false;
        observed.leaving_services = false;
        observed.deleting_object = false;
        observed.images.retain(|_, state| *state != ImageState::Pulling);
        observed.cleanup_retry_at = Some(after(Timestamp::now(), RETRY_AFTER));
        if matches!(observed.volumes, VolumeState::Preparing | VolumeState::Removing) {
            observed.volumes = VolumeState::Unknown;
        }
        self.refreshing = false;
        self.writer.interrupted();
        let uid = self.names().uid.to_owned();
        let list = self.site.runtime.list();
        let sandboxes: Vec<SandboxStatus> =
            list.sandboxes.into_iter().filter(|sandbox| sandbox.config.uid == uid).collect();
        let ids: BTreeSet<String> = sandboxes.iter().map(|sandbox| sandbox.id.to_string()).collect();
        let containers =
            list.containers.into_iter().filter(|status| ids.contains(status.sandbox.as_str())).collect();
        self.take_snapshot(sandboxes, containers);
    }
}
