//! What the runtime has of a pod: the part of the task's state that follows the runtime's events.
//!
//! In: events and lists of the runtime. Out: [`Observed`]'s sandboxes and records. A container that is removed stays as a record for as long as
//! a status tells about it.
//!
//! [`Observed`]: crate::pods::observed::Observed

use std::collections::{BTreeMap, BTreeSet};

use runtime::{ContainerId, ContainerStatus, Event, SandboxId, SandboxStatus};

use super::Worker;
use crate::pods::observed::{Record, Sandbox};
use crate::pods::termination;

/// Records of a container that are kept: the newest, and the one before it.
const RECORDS_PER_CONTAINER: usize = 2;

impl Worker {
    pub(super) fn take_event(&mut self, event: Event) {
        match event {
            Event::ContainerCreated { container, .. }
            | Event::ContainerStarted { container, .. }
            | Event::ContainerExited { container, .. }
            | Event::ContainerOom { container, .. } => self.refresh_container(&container),
            Event::SandboxGone { sandbox } => self.refresh_sandbox(&sandbox),
            Event::Lagged => {}
        }
    }

    pub(super) fn take_snapshot(&mut self, sandboxes: Vec<SandboxStatus>, containers: Vec<ContainerStatus>) {
        let ids: BTreeSet<String> = containers.iter().map(|status| status.id.to_string()).collect();
        for record in &mut self.observed.records {
            record.removed |= !ids.contains(record.status.id.as_str());
        }
        containers.into_iter().for_each(|status| self.put_container(status));
        let settled: BTreeSet<String> = self
            .observed
            .sandboxes
            .iter()
            .filter(|sandbox| sandbox.settled)
            .map(|sandbox| sandbox.status.id.to_string())
            .collect();
        self.observed.sandboxes = sandboxes
            .into_iter()
            .map(|status| Sandbox { settled: settled.contains(status.id.as_str()), status })
            .collect();
        self.observed.sandboxes.sort_by_key(|sandbox| sandbox.status.created_at);
    }

    pub(super) fn refresh_container(&mut self, id: &ContainerId) {
        match self.site.runtime.container_status(id) {
            Some(status) => self.put_container(status),
            None => self.mark_removed(id),
        }
    }

    pub(super) fn put_container(&mut self, status: ContainerStatus) {
        let records = &mut self.observed.records;
        let place = records.iter().position(|record| record.status.id == status.id);
        let was_over = place.is_some_and(|place| records[place].is_over());
        let message = match place {
            Some(place) if was_over => std::mem::take(&mut records[place].message),
            _ => String::new(),
        };
        let mut record = Record { status, removed: false, message };
        if record.is_over() && !was_over {
            record.message = termination::message(&record.status);
        }
        match place {
            Some(place) => records[place] = record,
            None => {
                records.push(record);
                records.sort_by_key(|record| (record.restarts(), record.status.created_at));
            }
        }
    }

    pub(super) fn mark_removed(&mut self, id: &ContainerId) {
        let records = &mut self.observed.records;
        records.iter_mut().filter(|record| record.status.id == *id).for_each(|record| record.removed = true);
        // One that never ran says nothing; of the others the newest say what the status tells.
        let mut kept: BTreeMap<String, usize> = BTreeMap::new();
        let mut keep: Vec<bool> = records
            .iter()
            .rev()
            .map(|record| {
                let count = kept.entry(record.name().to_owned()).or_insert(0);
                *count += 1;
                !record.removed || (record.is_over() && *count <= RECORDS_PER_CONTAINER)
            })
            .collect();
        records.retain(|_| keep.pop().unwrap_or(true));
    }

    pub(super) fn refresh_sandbox(&mut self, id: &SandboxId) {
        let place = self.observed.sandboxes.iter().position(|sandbox| sandbox.status.id == *id);
        match (self.site.runtime.sandbox_status(id), place) {
            (Some(status), Some(place)) => self.observed.sandboxes[place].status = status,
            (Some(status), None) => self.observed.sandboxes.push(Sandbox { status, settled: false }),
            (None, Some(place)) => {
                self.observed.sandboxes.remove(place);
            }
            (None, None) => {}
        }
        // What ran in it has ended with it.
        let ids: Vec<ContainerId> = self
            .observed
            .records
            .iter()
            .filter(|record| !record.removed && record.status.sandbox == *id)
            .map(|record| record.status.id.clone())
            .collect();
        ids.iter().for_each(|id| self.refresh_container(id));
    }
}
