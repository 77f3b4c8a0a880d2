//! Snapshots for tests: a pod from JSON, and what the runtime has of it, said in few words.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use runtime::{
    ContainerConfig, ContainerId, ContainerState, ContainerStatus, SandboxConfig, SandboxId, SandboxState,
    SandboxStatus,
};
use serde_json::{Value, json};

use super::{ImageState, NodeFacts, Observed, Record, Sandbox, VolumeState};
use crate::services::Departure;

/// Seconds after the beginning of the test's time.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

fn nanos(seconds: i64) -> i64 {
    i64::try_from(at(seconds).as_nanosecond()).unwrap()
}

/// A pod `p` in `ns` with uid `u` and this spec: nothing has been done for it.
pub fn fresh(spec: Value) -> Observed {
    with_pod(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u", "generation": 3},
        "spec": spec,
    }))
}

/// A pod of which nothing has been done.
pub fn with_pod(pod: Value) -> Observed {
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let node = NodeFacts { name: "n1".into(), ips: vec!["10.0.0.1".parse().unwrap()], memory: 1 << 30 };
    Observed { status_written: true, ..Observed::new(Arc::new(pod), Arc::new(node), at(0)) }
}

impl Observed {
    /// Changes the pod's metadata.
    pub fn metadata(mut self, key: &str, value: Value) -> Observed {
        let mut pod = serde_json::to_value(self.pod.as_ref()).unwrap();
        pod["metadata"][key] = value;
        self.pod = Arc::new(serde_json::from_value(pod).unwrap());
        self
    }

    /// With the status that the API server has.
    pub fn reported_status(mut self, status: Value) -> Observed {
        Arc::make_mut(&mut self.pod).status = Some(serde_json::from_value(status).unwrap());
        self
    }

    /// With volumes and a sandbox that is ready.
    pub fn ready(mut self, sandbox: &str) -> Observed {
        self.volumes = VolumeState::Ready;
        self.sandbox(sandbox, SandboxState::Ready)
    }

    /// With one more sandbox.
    pub fn sandbox(mut self, id: &str, state: SandboxState) -> Observed {
        let attempt = u32::try_from(self.sandboxes.len()).unwrap();
        let status = SandboxStatus {
            id: SandboxId::from(id.to_owned()),
            config: SandboxConfig { attempt, ..SandboxConfig::default() },
            state,
            created_at: nanos(i64::from(attempt)),
            ips: vec!["10.1.0.2".parse().unwrap()],
            netns: None,
            shim_pid: None,
        };
        self.sandboxes.push(Sandbox { status, settled: false });
        self
    }

    /// With one more container in the newest sandbox: its name, id, how often it was started before, and its end as (second, exit code).
    pub fn container(mut self, name: &str, id: &str, restarts: u32, end: Option<(i64, i32)>) -> Observed {
        let sandbox = self.sandboxes.last().unwrap().status.id.clone();
        let status = ContainerStatus {
            id: ContainerId::from(id.to_owned()),
            sandbox,
            config: ContainerConfig {
                name: name.into(),
                attempt: restarts,
                image: "busybox".into(),
                ..ContainerConfig::default()
            },
            state: if end.is_some() { ContainerState::Exited } else { ContainerState::Running },
            pid: None,
            created_at: nanos(1),
            started_at: nanos(2),
            finished_at: end.map_or(0, |(second, _)| nanos(second)),
            exit_code: end.map_or(0, |(_, code)| code),
            reason: String::new(),
            message: String::new(),
            image_id: "sha256:0".into(),
            image_ref: "busybox@sha256:0".into(),
            log_path: "/log".into(),
        };
        self.records.push(Record { status, removed: false, message: String::new() });
        self
    }

    /// With the images of these containers present.
    pub fn images(mut self, names: &[&str]) -> Observed {
        self.images.extend(names.iter().map(|name| ((*name).to_owned(), ImageState::Present)));
        self
    }

    /// The services of the node know that nothing of it runs.
    pub fn left_services(mut self) -> Observed {
        self.left_services = Some(Departure::Gone);
        self
    }

    /// Everything of it is taken down.
    pub fn taken_down(mut self) -> Observed {
        self.sandboxes.iter_mut().for_each(|sandbox| sandbox.settled = true);
        self.volumes = VolumeState::Removed;
        self
    }
}
