//! The control group of a pod: made with its limits before the sandbox, removed after everything in it.
//!
//! In: the pod. Out: a group in every hierarchy, or none. A group that still has processes is not tried again by the clock: the kernel tells
//! when the last of them is gone. Who is still there then is killed, as the kubelet does: no container of the pod is left that it could
//! belong to.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use linux::cgroup::Group;
use nix::sys::inotify::AddWatchFlags;

use super::execute::blocking;
use super::resources::{self, Qos};
use super::sandbox::Names;
use super::site::Site;
use crate::api::chain;
use crate::file_watch::FileWatch;

#[cfg(test)]
mod tests;

/// Longest wait for processes of a group that end by themselves, and for those that are killed. Together shorter than the delay after which
/// the plan tries again.
const EMPTY_LIMIT: Duration = Duration::from_secs(1);
const KILL_LIMIT: Duration = Duration::from_millis(500);

/// Makes the group at `path` with the limits of the pod. File work: not for asynchronous threads.
///
/// # Errors
/// The kernel's, in words.
pub fn create(site: &Site, pod: &Pod, path: &str) -> Result<(), String> {
    let begun = Instant::now();
    let no_spec = PodSpec::default();
    let limits = resources::pod_cgroup_limits(pod.spec.as_ref().unwrap_or(&no_spec));
    let group = site.cgroups.group(path).map_err(|error| chain(&error))?;
    group.create().map_err(|error| chain(&error))?;
    group.apply(&limits).map_err(|error| chain(&error))?;
    site.metrics.cgroups.observe("create", begun.elapsed());
    Ok(())
}

/// Removes the pod's group; fine when it is gone.
///
/// # Errors
/// The kernel's, in words.
pub async fn remove(site: Arc<Site>, pod: Arc<Pod>) -> Result<(), String> {
    let begun = Instant::now();
    // Of a pod that the API no longer has nobody knows the class.
    for class in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
        let path = resources::cgroup_path(&site.cgroup_parent, class, Names::of(&pod).uid);
        let group = site.cgroups.group(&path).map_err(|error| chain(&error))?;
        if group.exists() {
            remove_group(group).await?;
        }
    }
    site.metrics.cgroups.observe("destroy", begun.elapsed());
    Ok(())
}

async fn remove_group(group: Group) -> Result<(), String> {
    let remove = || {
        let group = group.clone();
        blocking(move || group.remove().map_err(|error| chain(&error)))
    };
    let Err(error) = remove().await else { return Ok(()) };
    tracing::debug!(path = %group.path().display(), error, "control group is still in use");
    if let Some(directory) = group.unified_directory() {
        match tokio::time::timeout(EMPTY_LIMIT, emptied(directory)).await {
            Ok(Ok(())) if remove().await.is_ok() => return Ok(()),
            // Some are left, of which a v1 hierarchy alone may know.
            Ok(Ok(())) | Err(_) => {}
            // A container can use up what the kernel has of watches: that must keep nobody alive.
            Ok(Err(error)) => tracing::warn!(%error, "who is left in a control group is not waited for"),
        }
    }
    let orphaned = group.clone();
    blocking(move || kill(&orphaned)).await?;
    remove().await
}

/// Ends whoever outlived the pod's containers. Blocks, at most [`KILL_LIMIT`].
fn kill(group: &Group) -> Result<(), String> {
    let (path, pids) = (group.path().display(), group.processes());
    if !pids.is_empty() {
        tracing::warn!(%path, ?pids, "processes that outlived their pod are killed");
    }
    group.kill(KILL_LIMIT).map_err(|error| chain(&error))
}

/// Waits until a group of the unified tree, which has the processes that the v1 groups have, has none.
async fn emptied(directory: PathBuf) -> io::Result<()> {
    let file = directory.join("cgroup.events");
    // Watched before it is read, so that no change falls between the two.
    let watch = match FileWatch::new(&file, AddWatchFlags::IN_MODIFY) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        watch => watch?,
    };
    while is_populated(&file)? {
        watch.changed().await?;
    }
    Ok(())
}

fn is_populated(events: &Path) -> io::Result<bool> {
    match std::fs::read_to_string(events) {
        Ok(text) => Ok(text.lines().any(|line| line == "populated 1")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
