//! The pod's volumes as operations of its task: made, brought up to date, taken down; one of them at a time.
//!
//! In: what the plan asks for, changes of objects and labels. Out: operations, and the volumes' state in the snapshot. What a volume is made
//! of is no business of this module.

use jiff::{SignedDuration, Timestamp};

use super::{Done, Worker};
use crate::events::EventType;
use crate::pods::backoff::after;
use crate::pods::observed::VolumeState;
use crate::pods::{execute, volumes};

/// When volumes that could not be made are tried again; it doubles up to the longest (kubelet: `exponentialbackoff`).
const VOLUME_RETRY: SignedDuration = SignedDuration::from_millis(500);
const VOLUME_LONGEST_RETRY: SignedDuration = SignedDuration::from_secs(122);
impl Worker {
    pub(super) fn prepare_volumes(&mut self) -> bool {
        let keys = volumes::pod_keys(&self.observed.pod);
        if let Err(error) = self.site.objects.set_users(self.names().uid, &keys, &self.objects_changed) {
            self.volumes_failed(&error.to_string());
            return true;
        }
        self.observed.volumes = VolumeState::Preparing;
        let work = volumes::prepare(self.site.clone(), self.observed.pod.clone(), self.tokens.clone());
        self.operations.spawn(async move { Done::Volumes(work.await) });
        false
    }

    pub(super) fn volumes_failed(&mut self, message: &str) {
        self.site.pod_event(&self.observed.pod, EventType::Warning, "FailedMount", message.to_owned());
        let factor = 1 << self.volume_failures.min(16);
        let delay = VOLUME_RETRY.saturating_mul(factor).min(VOLUME_LONGEST_RETRY);
        self.volume_failures = self.volume_failures.saturating_add(1);
        self.observed.volumes = VolumeState::Failed { retry_at: after(Timestamp::now(), delay) };
    }

    /// ConfigMaps, Secrets, fields or tokens changed: what is mounted is brought up to date, and what waited for them is tried again.
    pub(super) fn refresh_volumes(&mut self) {
        let now = Timestamp::now();
        self.observed.failures.values_mut().for_each(|failure| failure.retry_at = failure.retry_at.min(now));
        if let VolumeState::Failed { retry_at } = &mut self.observed.volumes {
            *retry_at = now;
        }
        if self.observed.volumes == VolumeState::Preparing || self.refreshing {
            self.refresh_again = true;
        } else if self.observed.volumes == VolumeState::Ready {
            self.refreshing = true;
            let work = volumes::prepare(self.site.clone(), self.observed.pod.clone(), self.tokens.clone());
            self.operations.spawn(async move { Done::VolumesRefreshed(work.await) });
        }
    }

    pub(super) fn remove_volumes(&mut self) {
        self.observed.volumes = VolumeState::Removing;
        self.refresh_at = None;
        self.site.objects.release(self.names().uid);
        let (site, uid) = (self.site.clone(), self.names().uid.to_owned());
        let work = execute::blocking(move || volumes::remove(&site, &uid));
        self.operations.spawn(async move { Done::VolumesRemoved(work.await) });
    }
}
