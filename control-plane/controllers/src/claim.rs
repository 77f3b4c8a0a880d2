//! How a controller gets and gives up its objects: adoption and release by label selector.
//!
//! Input: an owner, its selector, and objects that it controls or that nobody does. Output: the objects that are its own
//! now. An orphan is adopted only after the API server itself said that the owner is still there. Refuses to touch what
//! another controller owns.

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

use crate::failure::{self, Failure};
use crate::key::ObjectKey;
use crate::ownership::{self, controller_of, uid_of};
use crate::selector::Matcher;

/// How an object stands to an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    Own,
    Adopt,
    Release,
    Ignore,
}

/// Decides whether the object belongs to the owner, may be adopted, or has to be let go. Pure.
pub fn decide(owner: &ObjectMeta, selector: &Matcher, object: &ObjectMeta) -> Claim {
    let matches = selector.matches(object.labels.as_ref());
    let deleting = ownership::is_deleting(owner);
    match controller_of(object) {
        Some(controller) if controller.uid != uid_of(owner) => Claim::Ignore,
        Some(_) if matches => Claim::Own,
        Some(_) if deleting => Claim::Ignore,
        Some(_) => Claim::Release,
        None if deleting || !matches || ownership::is_deleting(object) => Claim::Ignore,
        None => Claim::Adopt,
    }
}

/// The owner's side of a claim.
pub struct Claimant<'a> {
    pub meta: &'a ObjectMeta,
    pub reference: OwnerReference,
    pub selector: &'a Matcher,
}

/// Adopts and releases among `candidates` and returns what belongs to the owner now. `may_adopt` is awaited at most once,
/// before the first adoption.
pub async fn claim<K, F>(
    api: &Api<K>,
    claimant: Claimant<'_>,
    candidates: Vec<Arc<K>>,
    may_adopt: F,
) -> Result<Vec<Arc<K>>, Failure>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    F: Future<Output = Result<bool, Failure>>,
{
    let mut asked = Some(may_adopt);
    let mut allowed = false;
    let mut claimed = Vec::new();
    for object in candidates {
        let key = ObjectKey::of(&*object);
        let decision = decide(claimant.meta, claimant.selector, object.meta());
        let patch = match decision {
            Claim::Own => {
                claimed.push(object);
                continue;
            }
            Claim::Ignore => continue,
            Claim::Release => ownership::release_patch(object.meta(), &[uid_of(claimant.meta)]),
            Claim::Adopt => {
                if let Some(question) = asked.take() {
                    allowed = question.await?;
                }
                if !allowed {
                    continue;
                }
                ownership::adopt_patch(object.meta(), &claimant.reference)
            }
        };
        match api.patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(adopted) if decision == Claim::Adopt => claimed.push(Arc::new(adopted)),
            Ok(_) => {}
            Err(error) if failure::is_not_found(&error) => {}
            Err(error) => return Err(Failure::api("claim", &key)(error)),
        }
    }
    Ok(claimed)
}
