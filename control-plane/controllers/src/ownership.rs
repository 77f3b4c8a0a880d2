//! Owner references: who controls what, and the patches that adopt and release.
//!
//! Input: object metadata. Output: owner references and merge patches. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use serde_json::{Value, json};

/// The reference to the object's managing controller.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.as_deref().unwrap_or_default().iter().find(|owner| owner.controller == Some(true))
}

/// The uid of the object's managing controller.
pub fn controller_uid(meta: &ObjectMeta) -> Option<&str> {
    controller_of(meta).map(|owner| owner.uid.as_str())
}

/// Whether `uid` is the object's managing controller.
pub fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    controller_uid(meta) == Some(uid)
}

/// Whether the object is on its way out.
pub fn is_deleting(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some()
}

/// The uid, empty where the API server never set one.
pub fn uid_of(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or_default()
}

/// The reference that makes `owner` the managing controller of what carries it; deleting the owner in the foreground
/// waits for it.
pub fn controller_reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The merge patch that makes `owner` the controller of `object`; the uid makes the API server refuse another object of
/// the same name.
pub fn adopt_patch(object: &ObjectMeta, owner: &OwnerReference) -> Value {
    let mut owners = object.owner_references.clone().unwrap_or_default();
    owners.retain(|existing| existing.uid != owner.uid);
    owners.push(owner.clone());
    owners_patch(object, &owners)
}

/// The merge patch that takes `uids` out of the object's owners.
pub fn release_patch(object: &ObjectMeta, uids: &[&str]) -> Value {
    let mut owners = object.owner_references.clone().unwrap_or_default();
    owners.retain(|owner| !uids.contains(&owner.uid.as_str()));
    owners_patch(object, &owners)
}

/// The merge patch that replaces the whole list; it names the uid and the resource version that it was made from, so
/// that a list that changed meanwhile is a conflict and not a loss.
pub fn owners_patch(object: &ObjectMeta, owners: &[OwnerReference]) -> Value {
    json!({ "metadata": {
        "uid": object.uid,
        "resourceVersion": object.resource_version,
        "ownerReferences": owners,
    }})
}
