//! Delete: preconditions, finalizers by propagation policy, grace periods, namespaces.
//!
//! ```text
//! no finalizers, no grace            -> removed
//! finalizers, or a namespace         -> deletionTimestamp set; removed by the write that takes the last finalizer
//! a bound pod                        -> deletionTimestamp = now + grace; removed by its node with grace 0
//! ```

use serde_json::{Value, json};

use super::change::is_finished;
use super::restriction::ObjectWrite;
use super::{MAX_RACES, Target, Written, race_lost, set_revision};
use crate::allocators::Bookkeeping;
use crate::api::Api;
use crate::cache::{Filter, Page};
use crate::error::ApiError;
use crate::kinds::Kind;
use crate::metrics::Metrics;
use crate::object::{self, child, text};
use crate::storage::{Compare, Expect, StorageError, Transaction, Write};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
const DEFAULT_GRACE: i64 = 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// The options of a delete, from its body and its query.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub grace: Option<i64>,
    pub propagation: Option<Propagation>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub dry_run: bool,
}

impl DeleteOptions {
    /// `query` gives the value of a query parameter; the body wins.
    pub fn parse(body: &Value, query: impl Fn(&str) -> Option<String>) -> Result<Self, ApiError> {
        let field = |name: &str| match body.get(name) {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Null) | None => query(name),
            Some(other) => Some(other.to_string()),
        };
        let grace =
            match field("gracePeriodSeconds") {
                Some(text) => {
                    let parsed = text.parse::<i64>();
                    Some(parsed.map_err(|_| {
                        ApiError::bad_request(format!("invalid gracePeriodSeconds: {text:?}"))
                    })?)
                }
                None => None,
            };
        let propagation = match (field("propagationPolicy").as_deref(), field("orphanDependents").as_deref())
        {
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (Some("Background"), _) | (None, Some("false")) => Some(Propagation::Background),
            (Some("Orphan"), _) | (None, Some("true")) => Some(Propagation::Orphan),
            (Some(other), _) => {
                let known = ["Foreground", "Background", "Orphan", "nil"];
                let error = crate::error::FieldError::not_supported("propagationPolicy", other, &known);
                return Err(ApiError::invalid("DeleteOptions", "meta.k8s.io", "", &[error]));
            }
            (None, _) => None,
        };
        let dry_run = query("dryRun").is_some_and(|value| !value.is_empty())
            || !object::items(body, "/dryRun").is_empty();
        let precondition = |name: &str| {
            let value = text(body, &format!("/preconditions/{name}"));
            (!value.is_empty()).then(|| value.to_owned())
        };
        Ok(DeleteOptions {
            grace,
            propagation,
            uid: precondition("uid"),
            resource_version: precondition("resourceVersion"),
            dry_run,
        })
    }
}

/// What a delete comes to.
enum Step {
    /// Nothing changes: it is being deleted already.
    Wait,
    Mark(Value),
    Remove(Value),
}

impl Api {
    pub async fn delete(&self, target: Target<'_>, options: &DeleteOptions) -> Result<Written, ApiError> {
        let kind = target.kind;
        let key = Api::key(kind, target.namespace, target.name);
        for _ in 0..MAX_RACES {
            let entry = self.find(kind, target.namespace, target.name)?;
            let old = entry.value();
            check_preconditions(&target, &old, options)?;
            protect(&target)?;
            self.admit(&target, target.name, ObjectWrite::Delete(&old))?;
            let (mut new, remove) = match step(kind, &old, options, jiff::Timestamp::now()) {
                Step::Wait => return Ok(answer(kind, old, false)),
                Step::Mark(new) => (new, false),
                Step::Remove(new) => (new, true),
            };
            if options.dry_run {
                return Ok(answer(kind, new, remove));
            }
            let value = object::encode(&new);
            let write = if remove {
                Write::Delete { key: key.clone(), last: value }
            } else {
                Write::Put { key: key.clone(), value }
            };
            let compares = vec![Compare { key: key.clone(), expect: Expect::At(entry.revision) }];
            let bookkeeping = (remove && kind.storage == "services")
                .then(|| Bookkeeping::new(&self.allocators, None, Some(&old), None));
            match self.commit(Transaction { compares, writes: vec![write] }, bookkeeping).await {
                Ok(revision) => {
                    set_revision(&mut new, revision);
                    return Ok(answer(kind, new, remove));
                }
                Err(refused) => match refused.error {
                    StorageError::Conflict { .. } => Metrics::add(&self.cache.metrics.conflicts),
                    error => return Err(error.into()),
                },
            }
        }
        Err(race_lost(&target))
    }

    /// Deletes every object of a list; the answer is the list as it was.
    pub async fn delete_collection(
        &self,
        target: Target<'_>,
        filter: &Filter,
        options: &DeleteOptions,
    ) -> Result<Vec<Value>, ApiError> {
        let listed = self.cache.list(target.kind.storage, filter, &Page::default());
        let listed = listed.map_err(|_| ApiError::expired("the list is too old"))?;
        let mut deleted = Vec::new();
        for entry in listed.entries {
            let (_, namespace, name) = entry.key.parts();
            match self.delete(Target { namespace, name, ..target }, options).await {
                Ok(_) => {}
                Err(error) if error.code == 404 => continue,
                Err(error) => return Err(error),
            }
            let mut value = entry.value();
            target.kind.from_storage(&mut value);
            deleted.push(value);
        }
        Ok(deleted)
    }
}

fn check_preconditions(target: &Target<'_>, old: &Value, options: &DeleteOptions) -> Result<(), ApiError> {
    let conflict = |what: &str, wanted: &str, found: &str| {
        let reason =
            format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}");
        Err(ApiError::conflict(target.kind.resource(), target.name, &reason))
    };
    let revision = text(old, "/metadata/resourceVersion");
    match (&options.uid, &options.resource_version) {
        (Some(uid), _) if uid != object::uid(old) => conflict("UID", uid, object::uid(old)),
        (_, Some(wanted)) if wanted != revision => conflict("ResourceVersion", wanted, revision),
        _ => Ok(()),
    }
}

/// The namespaces that every cluster has stay.
fn protect(target: &Target<'_>) -> Result<(), ApiError> {
    let protected = ["default", "kube-system", "kube-public"];
    if target.kind.storage == "namespaces" && protected.contains(&target.name) {
        return Err(ApiError::forbidden(
            target.kind.resource(),
            target.name,
            "this namespace may not be deleted",
        ));
    }
    Ok(())
}

fn step(kind: &Kind, old: &Value, options: &DeleteOptions, now: jiff::Timestamp) -> Step {
    let mut new = old.clone();
    set_finalizers(&mut new, options.propagation);
    let grace = grace_of(kind, old, options);
    let was_deleting = object::is_deleting(old);
    if was_deleting {
        let current =
            old.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
        if grace < current {
            mark(kind, &mut new, grace, now);
        }
    } else {
        mark(kind, &mut new, grace, now);
    }
    if kind.storage == "namespaces" && !was_deleting {
        child(&mut new, "status").insert("phase".into(), "Terminating".into());
    }
    if is_finished(kind, &new) {
        Step::Remove(new)
    } else if new == *old {
        Step::Wait
    } else {
        Step::Mark(new)
    }
}

fn mark(kind: &Kind, object: &mut Value, grace: i64, now: jiff::Timestamp) {
    let when = now.checked_add(jiff::SignedDuration::from_secs(grace)).unwrap_or(now);
    let metadata = object::metadata(object);
    metadata.insert("deletionTimestamp".into(), object::timestamp(when).into());
    metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
    if kind.has_generation {
        let generation = metadata.get("generation").and_then(Value::as_i64).unwrap_or(0) + 1;
        metadata.insert("generation".into(), generation.into());
    }
}

/// Seconds until the object may be removed without its node's word. Only pods have any.
fn grace_of(kind: &Kind, old: &Value, options: &DeleteOptions) -> i64 {
    if !kind.is_graceful() {
        return 0;
    }
    let finished = matches!(text(old, "/status/phase"), "Succeeded" | "Failed");
    if finished || text(old, "/spec/nodeName").is_empty() {
        return 0;
    }
    let own =
        old.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(DEFAULT_GRACE);
    match options.grace.unwrap_or(own) {
        negative if negative < 0 => 1,
        grace => grace,
    }
}

/// The finalizers that the garbage collector acts on. No policy leaves what is there.
fn set_finalizers(object: &mut Value, propagation: Option<Propagation>) {
    let Some(propagation) = propagation else { return };
    let mut list: Vec<Value> = object::finalizers(object)
        .filter(|name| *name != FOREGROUND && *name != ORPHAN)
        .map(Value::from)
        .collect();
    match propagation {
        Propagation::Background => {}
        Propagation::Foreground => list.push(FOREGROUND.into()),
        Propagation::Orphan => list.push(ORPHAN.into()),
    }
    let metadata = object::metadata(object);
    if list.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), list.into());
    }
}

/// A pod and whatever still lives is answered as an object, the rest with a Status.
fn answer(kind: &Kind, mut object: Value, removed: bool) -> Written {
    if removed && !kind.is_graceful() {
        let details = json!({
            "name": object::name(&object), "group": kind.group, "kind": kind.plural, "uid": object::uid(&object),
        });
        let mut status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"});
        status["details"] = details;
        if kind.group.is_empty()
            && let Some(details) = status["details"].as_object_mut()
        {
            details.remove("group");
        }
        return Written::ok(status);
    }
    kind.from_storage(&mut object);
    Written::ok(object)
}
