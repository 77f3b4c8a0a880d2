//! Update and patch, of the object and of its status.
//!
//! ```text
//! old --(body or patch)--> proposed --settle()--> Unchanged | Write(new) | Remove(last)
//! ```
//! `settle` is pure. An object that is being deleted and loses its last finalizer is removed by the same write.

use serde_json::Value;

use super::body::{Expected, check_name, check_namespace, conform, decode};
use super::restriction::ObjectWrite;
use super::{FieldValidation, MAX_RACES, Target, WriteOptions, Written, race_lost, set_revision};
use crate::allocators::Bookkeeping;
use crate::api::Api;
use crate::auth::{self, Attributes};
use crate::error::{ApiError, FieldError};
use crate::kinds::{self, Kind};
use crate::metrics::Metrics;
use crate::object::{self, child, text};
use crate::patch::{self, PatchType};
use crate::storage::{Compare, Expect, StorageError, Transaction, Write};

/// Which part of an object a write may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Everything but the status.
    Main,
    Status,
    /// A namespace's finalizers.
    Finalize,
    /// A change of the server's own: binding, eviction.
    Internal,
}

impl Part {
    fn of(subresource: &str) -> Part {
        match subresource {
            "status" => Part::Status,
            "finalize" => Part::Finalize,
            _ => Part::Main,
        }
    }
}

/// What a write comes to.
#[derive(Debug, PartialEq)]
pub(super) enum Settled {
    Unchanged,
    Write(Value),
    Remove(Value),
}

impl Api {
    /// Replaces an object, or one of its parts, by a request body.
    pub async fn update(
        &self,
        target: Target<'_>,
        subresource: &str,
        bytes: &[u8],
        options: WriteOptions,
    ) -> Result<Written, ApiError> {
        if subresource == "scale" {
            return self.update_scale(target, bytes, options).await;
        }
        let (mut body, warnings) =
            decode(&self.registry, target.kind.expected(), bytes, options.field_validation)?;
        check_namespace(&target, &mut body)?;
        check_name(&target, &body)?;
        target.kind.to_storage(&mut body);
        if subresource.is_empty() && self.creates(&target, &body) {
            self.may_create(&target)?;
            let object = self.create_decoded(target, body, options.dry_run).await?;
            return Ok(Written { object, code: 201, warnings });
        }
        let propose = |_: &Value| Ok((body.clone(), Vec::new()));
        let mut written = self.change(target, Part::of(subresource), options, propose).await?;
        written.warnings = warnings;
        Ok(written)
    }

    /// Whether an update is of an object that does not exist, and makes it: not where the client has seen it.
    fn creates(&self, target: &Target<'_>, body: &Value) -> bool {
        let unseen = |field| text(body, field).is_empty();
        target.kind.create_on_update
            && ["/metadata/uid", "/metadata/resourceVersion"].into_iter().all(unseen)
            && self.find(target.kind, target.namespace, target.name).is_err()
    }

    /// Whether the user, who may update the object, may create it, too.
    fn may_create(&self, target: &Target<'_>) -> Result<(), ApiError> {
        let kind = target.kind;
        let attributes = Attributes {
            verb: "create".into(),
            group: kind.group.to_owned(),
            resource: kind.plural.to_owned(),
            namespace: target.namespace.to_owned(),
            name: target.name.to_owned(),
            ..Attributes::default()
        };
        let allowed = auth::authorize(target.user, &attributes, self.known());
        allowed.map(drop).map_err(|reason| {
            ApiError::forbidden(kind.resource(), target.name, &attributes.denial(target.user, &reason))
        })
    }

    /// Patches an object, or one of its parts.
    pub async fn patch(
        &self,
        target: Target<'_>,
        subresource: &str,
        kind: PatchType,
        bytes: &[u8],
        options: WriteOptions,
    ) -> Result<Written, ApiError> {
        let patch = parse_patch(bytes)?;
        if subresource == "scale" {
            return self.patch_scale(target, kind, &patch, options).await;
        }
        self.change(target, Part::of(subresource), options, |old| {
            let mut current = old.clone();
            target.kind.from_storage(&mut current);
            self.patched(target.kind.expected(), &target, kind, &current, &patch, options.field_validation)
                .map(|(mut object, warnings)| {
                    target.kind.to_storage(&mut object);
                    (object, warnings)
                })
        })
        .await
    }

    /// Applies a patch and checks the result against the schema.
    pub(super) fn patched(
        &self,
        expected: Expected<'_>,
        target: &Target<'_>,
        kind: PatchType,
        current: &Value,
        patch: &Value,
        validation: FieldValidation,
    ) -> Result<(Value, Vec<String>), ApiError> {
        let Some(root) = self.registry.type_of(expected.type_name) else {
            return Err(ApiError::no_such_path());
        };
        let mut object = patch::apply(&self.registry.schemas, root, kind, current, patch)?;
        for field in ["apiVersion", "kind"] {
            if object.get(field) != current.get(field) {
                let message = format!("a patch cannot change {field}");
                return Err(ApiError::bad_request(message));
            }
        }
        let problems = conform(&self.registry, expected, &mut object)?;
        check_name(target, &object)?;
        match validation {
            FieldValidation::Strict if !problems.is_empty() => {
                let detail = format!("strict decoding error: {}", problems.join(", "));
                let error = FieldError::invalid("patch", patch.to_string(), &detail);
                Err(ApiError::invalid(expected.kind, expected.group, target.name, &[error]))
            }
            FieldValidation::Ignore => Ok((object, Vec::new())),
            _ => Ok((object, problems)),
        }
    }

    /// Reads, proposes, settles and commits, until no other writer was faster.
    pub(super) async fn change(
        &self,
        target: Target<'_>,
        part: Part,
        options: WriteOptions,
        propose: impl Fn(&Value) -> Result<(Value, Vec<String>), ApiError>,
    ) -> Result<Written, ApiError> {
        let kind = target.kind;
        let key = Api::key(kind, target.namespace, target.name);
        for _ in 0..MAX_RACES {
            let entry = self.find(kind, target.namespace, target.name)?;
            let old = entry.value();
            let (proposed, warnings) = propose(&old)?;
            let settled = settle(kind, part, &old, proposed)?;
            let answer = |mut object: Value, revision: u64| {
                set_revision(&mut object, revision);
                kind.from_storage(&mut object);
                Written { warnings: warnings.clone(), ..Written::ok(object) }
            };
            let (mut new, remove) = match settled {
                Settled::Unchanged => return Ok(answer(old, entry.revision)),
                Settled::Write(new) => (new, false),
                Settled::Remove(last) => (last, true),
            };
            self.admit(&target, target.name, ObjectWrite::Update { old: &old, new: &new })?;
            let reservation = if kind.storage == "services" && part == Part::Main && !remove {
                let allocated = self.allocators.allocate(&mut new, Some(&old));
                Some(allocated.map_err(|errors| kind.invalid(target.name, &errors))?)
            } else {
                None
            };
            if options.dry_run {
                return Ok(answer(new, entry.revision));
            }
            let value = super::encode(&new, entry.size())?;
            let write = if remove {
                Write::Delete { key: key.clone(), last: value }
            } else {
                Write::Put { key: key.clone(), value }
            };
            let compares = vec![Compare { key: key.clone(), expect: Expect::At(entry.revision) }];
            let bookkeeping = (kind.storage == "services").then(|| {
                let left = (!remove).then_some(&new);
                Bookkeeping::new(&self.allocators, reservation, Some(&old), left)
            });
            match self.commit(Transaction { compares, writes: vec![write] }, bookkeeping).await {
                Ok(revision) => return Ok(answer(new, revision)),
                Err(refused) => match refused.error {
                    // Again from the newest state, where a client that named the old revision is refused.
                    StorageError::Conflict { .. } => Metrics::add(&self.cache.metrics.conflicts),
                    error => return Err(error.into()),
                },
            }
        }
        Err(race_lost(&target))
    }
}

fn parse_patch(bytes: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(bytes)
        .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))
}

/// Decides what a proposed object comes to.
pub(super) fn settle(kind: &Kind, part: Part, old: &Value, mut new: Value) -> Result<Settled, ApiError> {
    let name = object::name(old);
    system_fields(kind, old, &mut new)?;
    match part {
        Part::Main => {
            (kind.default)(&mut new);
            (kind.prepare_update)(&mut new, old);
        }
        Part::Status => new = with_status(kind, old, &new),
        Part::Finalize => new = with_finalizers(old, &new),
        Part::Internal => {}
    }
    if kind.has_generation && part != Part::Status && spec_changed(&new, old) {
        let generation = old.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0) + 1;
        object::metadata(&mut new).insert("generation".into(), generation.into());
    }
    let mut errors = kinds::validate_metadata(kind, &new);
    errors.extend(kinds::validate_metadata_update(&new, old));
    if part == Part::Main {
        errors.extend(new_problems(kind, &new, old));
        errors.extend((kind.validate_update)(&new, old));
    }
    if !errors.is_empty() {
        return Err(kind.invalid(name, &errors));
    }
    set_revision(&mut new, text(old, "/metadata/resourceVersion").parse().unwrap_or(0));
    if is_finished(kind, &new) {
        return Ok(Settled::Remove(new));
    }
    Ok(if new == *old { Settled::Unchanged } else { Settled::Write(new) })
}

/// What is wrong with the new object and was not with the old one: what was stored before a rule came must still be writable,
/// were it only to let it go.
fn new_problems(kind: &Kind, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = (kind.validate)(new);
    if !errors.is_empty() {
        let known = (kind.validate)(old);
        errors.retain(|error| !known.contains(error));
    }
    errors
}

/// Whether nothing keeps an object that is being deleted any longer.
pub(super) fn is_finished(kind: &Kind, object: &Value) -> bool {
    if !object::is_deleting(object) || object::finalizers(object).next().is_some() {
        return false;
    }
    if kind.storage == "namespaces" {
        return object::items(object, "/spec/finalizers").is_empty();
    }
    object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0) == 0
}

/// Keeps what only the server changes; checks uid and resourceVersion.
fn system_fields(kind: &Kind, old: &Value, new: &mut Value) -> Result<(), ApiError> {
    let name = object::name(old).to_owned();
    let (wanted, current) = (text(new, "/metadata/resourceVersion"), text(old, "/metadata/resourceVersion"));
    if !wanted.is_empty() && wanted != "0" && wanted != current {
        return Err(ApiError::modified(kind.resource(), &name));
    }
    let uid = object::uid(new);
    if !uid.is_empty() && uid != object::uid(old) {
        let reason = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            object::uid(old)
        );
        return Err(ApiError::conflict(kind.resource(), &name, &reason));
    }
    let kept = old["metadata"].clone();
    let metadata = object::metadata(new);
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
    ] {
        match kept.get(field) {
            Some(value) => metadata.insert(field.into(), value.clone()),
            None => metadata.remove(field),
        };
    }
    metadata.remove("managedFields");
    metadata.remove("selfLink");
    Ok(())
}

/// The old object with the new status. Labels and annotations of nodes and pods may come with it.
fn with_status(kind: &Kind, old: &Value, new: &Value) -> Value {
    let mut result = old.clone();
    if matches!(kind.storage, "nodes" | "pods") {
        for field in ["labels", "annotations"] {
            let given = new["metadata"].get(field).cloned();
            let metadata = object::metadata(&mut result);
            match given {
                Some(value) => metadata.insert(field.into(), value),
                None => metadata.remove(field),
            };
        }
    }
    if let Some(map) = result.as_object_mut() {
        map.insert("status".into(), new.get("status").cloned().unwrap_or_else(|| serde_json::json!({})));
    }
    if kind.storage == "nodes" {
        (kind.default)(&mut result);
    }
    result
}

fn with_finalizers(old: &Value, new: &Value) -> Value {
    let mut result = old.clone();
    let finalizers = new.pointer("/spec/finalizers").cloned();
    let spec = child(&mut result, "spec");
    match finalizers {
        Some(finalizers) => spec.insert("finalizers".into(), finalizers),
        None => spec.remove("finalizers"),
    };
    result
}

fn spec_changed(new: &Value, old: &Value) -> bool {
    let rest = |object: &Value| {
        let mut rest = object.clone();
        if let Some(map) = rest.as_object_mut() {
            map.remove("metadata");
            map.remove("status");
        }
        rest
    };
    rest(new) != rest(old)
}

#[cfg(test)]
mod tests;
