//! Which ReplicaSet carries a Deployment's present template, and what it is called and annotated.
//!
//! Input: a Deployment and its sets. Output: the split into new and old, the name and hash of a new set, annotations.
//! Pure. The hash only has to be stable and to change with the template and the collision count: a set is recognised by
//! its template, never by its hash.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sha2::{Digest, Sha256};

use super::limits::Limits;
use crate::ownership::controller_reference;

pub const LABEL_HASH: &str = "pod-template-hash";
pub const ANNOTATION_REVISION: &str = "deployment.kubernetes.io/revision";
pub const ANNOTATION_REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub const ANNOTATION_DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub const ANNOTATION_MAX: &str = "deployment.kubernetes.io/max-replicas";
const ANNOTATION_ROLLBACK: &str = "deprecated.deployment.rollback.to";
const ANNOTATION_LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Annotations that a set does not take over from its Deployment.
const OWN_ANNOTATIONS: [&str; 6] = [
    ANNOTATION_LAST_APPLIED,
    ANNOTATION_REVISION,
    ANNOTATION_REVISION_HISTORY,
    ANNOTATION_DESIRED,
    ANNOTATION_MAX,
    ANNOTATION_ROLLBACK,
];
/// The letters of a hash: no vowels and nothing that looks like another letter, so that no word comes out.
const HASH_LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// Letters in a hash.
const HASH_LENGTH: usize = 10;
/// Bytes that the history of revisions may take in its annotation.
const REVISION_HISTORY_LIMIT: usize = 2000;

/// Whether two templates make the same pods; the label that tells sets apart does not count.
pub fn same_template(left: &PodTemplateSpec, right: &PodTemplateSpec) -> bool {
    bare(left) == bare(right)
}

/// A template without the hash label, and with empty maps left out.
fn bare(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    let meta = template.metadata.get_or_insert_default();
    if let Some(labels) = &mut meta.labels {
        labels.remove(LABEL_HASH);
    }
    meta.labels = meta.labels.take().filter(|labels| !labels.is_empty());
    meta.annotations = meta.annotations.take().filter(|annotations| !annotations.is_empty());
    template
}

/// Splits the sets into the one with the Deployment's template (of several the oldest) and the others.
pub fn split(deployment: &Deployment, mut sets: Vec<ReplicaSet>) -> (Option<ReplicaSet>, Vec<ReplicaSet>) {
    sort_by_age(&mut sets);
    let Some(template) = deployment.spec.as_ref().map(|spec| &spec.template) else { return (None, sets) };
    let place = sets.iter().position(|set| {
        let own = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
        own.is_some_and(|own| same_template(own, template))
    });
    let new = place.map(|place| sets.remove(place));
    (new, sets)
}

/// Sorts sets by age, the oldest first.
pub fn sort_by_age(sets: &mut [ReplicaSet]) {
    sets.sort_by(|left, right| {
        let age = |set: &ReplicaSet| set.metadata.creation_timestamp.clone();
        age(left).cmp(&age(right)).then_with(|| left.metadata.name.cmp(&right.metadata.name))
    });
}

/// The hash that names a new set.
pub fn hash(template: &PodTemplateSpec, collisions: i32) -> String {
    let mut hasher = Sha256::new();
    // A typed template always serialises, with its fields in one order.
    hasher.update(serde_json::to_vec(&bare(template)).unwrap_or_default());
    hasher.update(collisions.to_be_bytes());
    let letters = hasher.finalize();
    letters.iter().take(HASH_LENGTH).map(|byte| letter(*byte)).collect()
}

fn letter(byte: u8) -> char {
    char::from(HASH_LETTERS[usize::from(byte) % HASH_LETTERS.len()])
}

/// The revision of an object's annotations; 0 where there is none.
pub fn revision(meta: &ObjectMeta) -> i64 {
    annotation(meta, ANNOTATION_REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The highest revision of the sets.
pub fn last_revision(sets: &[ReplicaSet]) -> i64 {
    sets.iter().map(|set| revision(&set.metadata)).max().unwrap_or(0)
}

/// A number in an annotation.
pub fn number(meta: &ObjectMeta, name: &str) -> Option<i32> {
    annotation(meta, name).and_then(|text| text.parse().ok())
}

fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

/// A new set for the Deployment's template, without replicas yet.
pub fn new_set(deployment: &Deployment, limits: &Limits, revision: i64) -> Option<ReplicaSet> {
    let spec = deployment.spec.as_ref()?;
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    let hash = hash(&spec.template, collisions);
    let mut template = spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(LABEL_HASH.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(LABEL_HASH.to_owned(), hash.clone());
    let name = format!("{}-{hash}", deployment.metadata.name.as_deref().unwrap_or_default());
    let mut set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            min_ready_seconds: spec.min_ready_seconds,
            replicas: Some(0),
            selector,
            template: Some(template),
        }),
        status: None,
    };
    annotate(deployment, &mut set, revision);
    annotate_replicas(&mut set, limits);
    Some(set)
}

/// Brings the annotations of the set with the present template up to date: those of the Deployment and the revision.
pub fn annotate(deployment: &Deployment, set: &mut ReplicaSet, revision: i64) {
    let annotations = set.metadata.annotations.get_or_insert_default();
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !OWN_ANNOTATIONS.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    let old = annotations.get(ANNOTATION_REVISION).cloned();
    let old_number = old.as_deref().and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
    if old_number >= revision {
        return;
    }
    annotations.insert(ANNOTATION_REVISION.to_owned(), revision.to_string());
    if let Some(old) = old.filter(|_| old_number > 0) {
        remember_revision(annotations, &old);
    }
}

/// Adds a former revision to the history, dropping the oldest ones where it grows too long.
fn remember_revision(annotations: &mut BTreeMap<String, String>, old: &str) {
    let history = annotations.get(ANNOTATION_REVISION_HISTORY).cloned().unwrap_or_default();
    let mut entries: Vec<&str> = history.split(',').filter(|entry| !entry.is_empty()).collect();
    entries.push(old);
    let mut text = entries.join(",");
    while text.len() > REVISION_HISTORY_LIMIT && entries.len() > 1 {
        entries.remove(0);
        text = entries.join(",");
    }
    annotations.insert(ANNOTATION_REVISION_HISTORY.to_owned(), text);
}

/// Notes on a set how many pods its Deployment wants now, for the next proportional scaling.
pub fn annotate_replicas(set: &mut ReplicaSet, limits: &Limits) {
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.insert(ANNOTATION_DESIRED.to_owned(), limits.replicas.to_string());
    annotations.insert(ANNOTATION_MAX.to_owned(), limits.most().to_string());
}
