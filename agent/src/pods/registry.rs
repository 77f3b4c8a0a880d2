//! What others may look up about this node's pods: a table that each pod's task keeps current.
//!
//! In: snapshots of the tasks. Out: pods with their current status, and containers by name for logs, exec, attach and port-forward. Error
//! texts are the kubelet's.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::observed::{Observed, Record};
use super::sandbox::Names;
use super::status::CONTAINER_ID_SCHEME;
use super::{ContainerRef, LookupError};

#[cfg(test)]
mod tests;

/// The annotation that names the container to take when none is named.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// One pod.
#[derive(Clone, Debug)]
struct Entry {
    pod: Arc<Pod>,
    containers: BTreeMap<String, ContainerRef>,
    netns: Option<PathBuf>,
}

/// The table, by uid. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    entries: Arc<RwLock<BTreeMap<String, Entry>>>,
}

impl Registry {
    /// Takes a snapshot over.
    pub fn put(&self, observed: &Observed) {
        let containers =
            observed.records.iter().map(|record| (record.status.id.to_string(), reference(record)));
        let entry = Entry {
            pod: observed.pod.clone(),
            containers: containers.collect(),
            netns: observed.ready_sandbox().and_then(|sandbox| sandbox.status.netns.clone()),
        };
        let uid = Names::of(&observed.pod).uid.to_owned();
        self.entries.write().unwrap_or_else(PoisonError::into_inner).insert(uid, entry);
    }

    /// A pod is gone.
    pub fn remove(&self, uid: &str) {
        self.entries.write().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// All pods.
    pub fn list(&self) -> Vec<Arc<Pod>> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.values().map(|entry| entry.pod.clone()).collect()
    }

    /// Where the network namespace of a pod is bound; `None` without one of its own.
    pub fn sandbox_netns(&self, namespace: &str, pod: &str) -> Option<PathBuf> {
        self.find(namespace, pod)?.netns
    }

    /// A container of a pod; `previous`: the one before the last restart.
    ///
    /// # Errors
    /// [`LookupError`].
    pub fn container(
        &self,
        namespace: &str,
        pod: &str,
        container: Option<&str>,
        previous: bool,
    ) -> Result<ContainerRef, LookupError> {
        let entry = self
            .find(namespace, pod)
            .ok_or_else(|| LookupError::NoPod { namespace: namespace.into(), pod: pod.into() })?;
        let name = container_name(&entry.pod, container)?;
        let status = container_status(&entry.pod, &name).ok_or_else(|| LookupError::Waiting {
            container: name.clone(),
            pod: pod.into(),
            what: "ContainerCreating".into(),
        })?;
        let id = container_id(status, pod, previous)?;
        let id = id.strip_prefix(CONTAINER_ID_SCHEME).unwrap_or(&id);
        entry.containers.get(id).cloned().ok_or(LookupError::NotLocated { container: name, pod: pod.into() })
    }

    /// The newest pod of a name: one that is being replaced may still be there under another uid.
    fn find(&self, namespace: &str, pod: &str) -> Option<Entry> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let ours = entries.values().filter(|entry| {
            let names = Names::of(&entry.pod);
            names.namespace == namespace && names.name == pod
        });
        ours.max_by_key(|entry| entry.pod.metadata.creation_timestamp.clone()).cloned()
    }
}

fn reference(record: &Record) -> ContainerRef {
    ContainerRef {
        id: record.status.id.clone(),
        name: record.name().to_owned(),
        log_path: record.status.log_path.clone(),
        running: record.is_running(),
        tty: record.status.config.tty,
        stdin: record.status.config.stdin,
    }
}

/// The name that is meant, when the pod has such a container.
fn container_name(pod: &Pod, container: Option<&str>) -> Result<String, LookupError> {
    let pod_name = Names::of(pod).name;
    let Some(spec) = &pod.spec else {
        return Err(LookupError::NotValid { container: String::new(), pod: pod_name.into() });
    };
    let has = |name: &str| super::resources::all_containers(spec).any(|container| container.name == name);
    if let Some(name) = container.filter(|name| !name.is_empty()) {
        return if has(name) {
            Ok(name.to_owned())
        } else {
            Err(LookupError::NotValid { container: name.into(), pod: pod_name.into() })
        };
    }
    let annotation = pod.metadata.annotations.as_ref().and_then(|map| map.get(DEFAULT_CONTAINER));
    match (annotation.filter(|name| has(name)), spec.containers.as_slice()) {
        (Some(name), _) => Ok(name.clone()),
        (None, [only]) => Ok(only.name.clone()),
        (None, several) => Err(LookupError::Ambiguous {
            pod: pod_name.into(),
            choices: several.iter().map(|container| container.name.as_str()).collect::<Vec<_>>().join(" "),
        }),
    }
}

fn container_status<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let lists = [&status.init_container_statuses, &status.container_statuses];
    lists.into_iter().flatten().flatten().find(|status| status.name == name)
}

/// The id that logs are asked from: `validateContainerLogStatus` of the kubelet.
fn container_id(status: &ContainerStatus, pod: &str, previous: bool) -> Result<String, LookupError> {
    let container = || status.name.clone();
    let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let last_id = last.and_then(|terminated| terminated.container_id.clone()).filter(|id| !id.is_empty());
    if previous {
        return last_id.ok_or_else(|| LookupError::NoPrevious { container: container(), pod: pod.into() });
    }
    let state = status.state.as_ref();
    let is_waiting = state.and_then(|state| state.waiting.as_ref());
    let Some(waiting) = is_waiting else {
        let terminated = state.and_then(|state| state.terminated.as_ref());
        let id = terminated.and_then(|terminated| terminated.container_id.clone());
        return id
            .or_else(|| status.container_id.clone())
            .ok_or_else(|| LookupError::NotLocated { container: container(), pod: pod.into() });
    };
    last_id.ok_or_else(|| {
        let what = match waiting.reason.as_deref().unwrap_or_default() {
            "ErrImagePull" => "image can't be pulled",
            "ImagePullBackOff" => "trying and failing to pull image",
            reason => reason,
        };
        LookupError::Waiting { container: container(), pod: pod.into(), what: what.into() }
    })
}
