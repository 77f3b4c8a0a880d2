//! The labels and annotations that sandboxes and containers carry in the runtime, so that a restarted agent knows whose they are.
//!
//! Only names and readers. The names are the kubelet's where it has them.

use std::collections::BTreeMap;

/// The pod's name.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// The pod's namespace.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// The pod's uid.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// The container's name in the pod.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";

/// Hash of the parts of the container's spec that need a new container when they change.
pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
/// How often the container was started before.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Path of the termination message inside the container.
pub const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// File on the node that is mounted at that path.
pub const MESSAGE_FILE: &str = "dev.orlop.container.terminationMessageFile";
/// `File` or `FallbackToLogsOnError`.
pub const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// The pod's terminationGracePeriodSeconds when the container was made.
pub const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";

/// The value of a label or annotation; empty when it is not there.
pub fn get<'a>(map: &'a BTreeMap<String, String>, key: &str) -> &'a str {
    map.get(key).map_or("", String::as_str)
}

/// The labels of a sandbox of a pod: the pod's own, and who it is.
pub fn of_pod(
    pod_labels: Option<&BTreeMap<String, String>>,
    namespace: &str,
    name: &str,
    uid: &str,
) -> BTreeMap<String, String> {
    let mut labels = pod_labels.cloned().unwrap_or_default();
    labels.insert(POD_NAME.into(), name.into());
    labels.insert(POD_NAMESPACE.into(), namespace.into());
    labels.insert(POD_UID.into(), uid.into());
    labels
}
