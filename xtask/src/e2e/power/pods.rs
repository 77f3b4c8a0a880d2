//! What a watch says about the pods of a Deployment, and whether all of them run again after a cut. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;

#[cfg(test)]
mod tests;

/// An event of `kubectl get --watch --output-watch-events`.
#[derive(Debug, Deserialize)]
pub struct Event {
    r#type: String,
    object: Object,
}

#[derive(Debug, Deserialize)]
struct Object {
    metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    name: String,
    uid: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    conditions: Vec<Condition>,
    container_statuses: Vec<Container>,
}

#[derive(Debug, Deserialize)]
struct Condition {
    r#type: String,
    status: String,
}

#[derive(Debug, Deserialize)]
struct Container {
    #[serde(rename = "containerID", default)]
    id: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    pub name: String,
    ready: bool,
    containers: Vec<String>,
}

/// Pods by uid.
#[derive(Debug, Clone, Default)]
pub struct Pods(BTreeMap<String, Pod>);

impl Pods {
    pub fn observe(&mut self, event: Event) {
        let Event { r#type, object: Object { metadata, status } } = event;
        if r#type == "DELETED" {
            self.0.remove(&metadata.uid);
            return;
        }
        let ready = status.conditions.iter().any(|found| found.r#type == "Ready" && found.status == "True");
        let containers = status.container_statuses.into_iter().map(|container| container.id).collect();
        self.0.insert(metadata.uid, Pod { name: metadata.name, ready, containers });
    }

    /// Whether there are so many and all run, those of before the cut in new containers: what is said of the old ones was
    /// said before.
    pub fn run_again(&self, before: &Self, replicas: u64) -> bool {
        let new = |uid: &String, pod: &Pod| match before.0.get(uid) {
            Some(old) => pod.containers.iter().all(|container| !old.containers.contains(container)),
            None => true,
        };
        let all_kept = before.0.keys().all(|uid| self.0.contains_key(uid));
        let running = |(uid, pod): (&String, &Pod)| pod.ready && new(uid, pod);
        all_kept && self.0.len() as u64 == replicas && self.0.iter().all(running)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Pod> {
        self.0.values()
    }
}
