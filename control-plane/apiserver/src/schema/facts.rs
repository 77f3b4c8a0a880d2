//! The table of facts that JSON schemas do not carry: how lists and structs merge.
//!
//! Source of the facts: the struct tags `patchStrategy`, `patchMergeKey` and the markers `+listType`, `+listMapKey` of
//! the Kubernetes API types (v1.36). A list that is not here is replaced as a whole and owned as a whole (atomic).

/// How a list is owned under server-side apply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    Map(&'static [&'static str]),
}

/// How a field merges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merge {
    /// `patchStrategy` contains `merge`.
    pub merge: bool,
    /// `patchStrategy` contains `retainKeys`.
    pub retain_keys: bool,
    /// `patchMergeKey`; none for lists of plain values.
    pub key: Option<&'static str>,
    pub list: ListType,
}

impl Merge {
    /// `merge`, `retainKeys`, `merge,retainKeys`, or nothing.
    pub fn strategy(&self) -> Option<&'static str> {
        match (self.merge, self.retain_keys) {
            (true, true) => Some("merge,retainKeys"),
            (true, false) => Some("merge"),
            (false, true) => Some("retainKeys"),
            (false, false) => None,
        }
    }
}

const fn by(key: &'static str, keys: &'static [&'static str]) -> Merge {
    Merge { merge: true, retain_keys: false, key: Some(key), list: ListType::Map(keys) }
}

/// A list that only apply treats as a map.
const fn owned_by(keys: &'static [&'static str]) -> Merge {
    Merge { merge: false, retain_keys: false, key: None, list: ListType::Map(keys) }
}

const MERGED_SET: Merge = Merge { merge: true, retain_keys: false, key: None, list: ListType::Set };
const RETAIN: Merge = Merge { merge: false, retain_keys: true, key: None, list: ListType::Atomic };
const RETAIN_BY_NAME: Merge =
    Merge { merge: true, retain_keys: true, key: Some("name"), list: ListType::Map(&["name"]) };

/// Type (without its package's prefix), field, fact.
const FACTS: &[(&str, &str, Merge)] = &[
    ("apps.v1.DeploymentSpec", "strategy", RETAIN),
    ("apps.v1.DeploymentStatus", "conditions", by("type", &["type"])),
    ("apps.v1.ReplicaSetStatus", "conditions", by("type", &["type"])),
    ("core.v1.Container", "env", by("name", &["name"])),
    ("core.v1.Container", "ports", by("containerPort", &["containerPort", "protocol"])),
    ("core.v1.Container", "volumeDevices", by("devicePath", &["devicePath"])),
    ("core.v1.Container", "volumeMounts", by("mountPath", &["mountPath"])),
    ("core.v1.EphemeralContainer", "env", by("name", &["name"])),
    ("core.v1.EphemeralContainer", "ports", by("containerPort", &["containerPort", "protocol"])),
    ("core.v1.EphemeralContainer", "volumeDevices", by("devicePath", &["devicePath"])),
    ("core.v1.EphemeralContainer", "volumeMounts", by("mountPath", &["mountPath"])),
    ("core.v1.ContainerStatus", "volumeMounts", by("mountPath", &["mountPath"])),
    ("core.v1.NamespaceStatus", "conditions", by("type", &["type"])),
    ("core.v1.NodeSpec", "podCIDRs", MERGED_SET),
    ("core.v1.NodeStatus", "addresses", by("type", &["type"])),
    ("core.v1.NodeStatus", "conditions", by("type", &["type"])),
    ("core.v1.PodSpec", "containers", by("name", &["name"])),
    ("core.v1.PodSpec", "ephemeralContainers", by("name", &["name"])),
    ("core.v1.PodSpec", "hostAliases", by("ip", &["ip"])),
    ("core.v1.PodSpec", "imagePullSecrets", by("name", &["name"])),
    ("core.v1.PodSpec", "initContainers", by("name", &["name"])),
    ("core.v1.PodSpec", "resourceClaims", RETAIN_BY_NAME),
    ("core.v1.PodSpec", "schedulingGates", by("name", &["name"])),
    (
        "core.v1.PodSpec",
        "topologySpreadConstraints",
        by("topologyKey", &["topologyKey", "whenUnsatisfiable"]),
    ),
    ("core.v1.PodSpec", "volumes", RETAIN_BY_NAME),
    ("core.v1.PodStatus", "conditions", by("type", &["type"])),
    (
        "core.v1.PodStatus",
        "hostIPs",
        Merge { merge: true, retain_keys: false, key: Some("ip"), list: ListType::Atomic },
    ),
    ("core.v1.PodStatus", "podIPs", by("ip", &["ip"])),
    ("core.v1.PodStatus", "resourceClaimStatuses", RETAIN_BY_NAME),
    ("core.v1.ResourceRequirements", "claims", owned_by(&["name"])),
    ("core.v1.ServiceAccount", "secrets", by("name", &["name"])),
    ("core.v1.ServiceSpec", "ports", by("port", &["port", "protocol"])),
    ("core.v1.ServiceStatus", "conditions", by("type", &["type"])),
    ("meta.v1.ObjectMeta", "finalizers", MERGED_SET),
    ("meta.v1.ObjectMeta", "ownerReferences", by("uid", &["uid"])),
];

/// The fact about one field; the default when there is none.
pub fn facts_of(type_name: &str, field: &str) -> Merge {
    let short = type_name
        .trim_start_matches("io.k8s.api.")
        .trim_start_matches("io.k8s.apimachinery.pkg.apis.")
        .trim_start_matches("io.k8s.apimachinery.pkg.api.");
    let found = FACTS.iter().find(|(owner, name, _)| *owner == short && *name == field);
    found.map(|(_, _, merge)| *merge).unwrap_or_default()
}

/// Every named fact, so that a test can check that the fields exist.
#[cfg(test)]
pub(super) fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    FACTS.iter().map(|(owner, field, _)| (*owner, *field))
}
