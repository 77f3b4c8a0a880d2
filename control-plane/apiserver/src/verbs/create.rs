//! Create: decode, name, default, admit, validate, allocate, commit.

use serde_json::{Value, json};

use super::body::{Expected, check_namespace, decode};
use super::restriction::ObjectWrite;
use super::{MAX_RACES, Target, WriteOptions, Written, set_revision};
use crate::allocators::Bookkeeping;
use crate::api::Api;
use crate::error::{ApiError, FieldError};
use crate::kinds::{self, Kind};
use crate::names;
use crate::object::{self, text};
use crate::storage::{Compare, Expect, StorageError, Transaction, Write};

impl Kind {
    pub(super) fn expected(&self) -> Expected<'static> {
        Expected { group: self.group, version: self.version, kind: self.kind, type_name: self.type_name }
    }

    /// From the served form to the stored form.
    pub(super) fn to_storage(&self, object: &mut Value) {
        if let Some(conversion) = self.conversion {
            (conversion.to_storage)(object);
        }
    }

    /// From the stored form to the served form.
    pub fn from_storage(&self, object: &mut Value) {
        if let Some(conversion) = self.conversion {
            (conversion.from_storage)(object);
        }
    }

    pub(super) fn invalid(&self, name: &str, errors: &[FieldError]) -> ApiError {
        ApiError::invalid(self.kind, self.group, name, errors)
    }
}

impl Api {
    /// Creates an object from a request body.
    pub async fn create(
        &self,
        target: Target<'_>,
        bytes: &[u8],
        options: WriteOptions,
    ) -> Result<Written, ApiError> {
        let (mut object, warnings) =
            decode(&self.registry, target.kind.expected(), bytes, options.field_validation)?;
        check_metadata(&target, &mut object)?;
        target.kind.to_storage(&mut object);
        let object = self.create_decoded(target, object, options.dry_run).await?;
        Ok(Written { object, code: 201, warnings })
    }

    /// Creates an object that is decoded already; the server's own objects come this way.
    pub async fn create_decoded(
        &self,
        target: Target<'_>,
        mut object: Value,
        dry_run: bool,
    ) -> Result<Value, ApiError> {
        let kind = target.kind;
        let generated = generate_name(&mut object);
        system_fields(kind, &mut object);
        (kind.default)(&mut object);
        (kind.prepare_create)(&mut object);
        if kind.storage == "pods" {
            self.tolerations.add(&mut object);
        }
        self.admit(&target, object::name(&object), ObjectWrite::Create(&object))?;
        let mut errors = kinds::validate_metadata(kind, &object);
        errors.extend((kind.validate)(&object));
        let name = object::name(&object).to_owned();
        if !errors.is_empty() {
            return Err(kind.invalid(&name, &errors));
        }
        let reservation = if kind.storage == "services" {
            Some(self.allocators.allocate(&mut object, None).map_err(|errors| kind.invalid(&name, &errors))?)
        } else {
            None
        };
        let bookkeeping = reservation
            .map(|reservation| Bookkeeping::new(&self.allocators, Some(reservation), None, Some(&object)));
        let revision =
            self.insert(&target, &object, bookkeeping, dry_run).await.map_err(|error| match error {
                Some(error) => error,
                None if generated => {
                    let mut error = ApiError::already_exists(kind.resource(), &name);
                    error
                        .message
                        .push_str(", the server was not able to generate a unique name for the object");
                    error
                }
                None => ApiError::already_exists(kind.resource(), &name),
            })?;
        if let Some(revision) = revision {
            set_revision(&mut object, revision);
        }
        kind.from_storage(&mut object);
        Ok(object)
    }

    /// Commits a new object. `Err(None)` says that it exists already; `Ok(None)` that nothing was written.
    async fn insert(
        &self,
        target: &Target<'_>,
        object: &Value,
        mut bookkeeping: Option<Bookkeeping>,
        dry_run: bool,
    ) -> Result<Option<u64>, Option<ApiError>> {
        let name = object::name(object);
        let key = Api::key(target.kind, target.namespace, name);
        let value = super::encode(object, 0).map_err(Some)?;
        for _ in 0..MAX_RACES {
            let mut compares = vec![Compare { key: key.clone(), expect: Expect::Absent }];
            if target.kind.namespaced {
                let (namespace, revision) =
                    self.open_namespace(target.kind, target.namespace, name).map_err(Some)?;
                compares.push(Compare { key: namespace, expect: Expect::At(revision) });
            }
            if self.cache.get(&key).is_some() {
                return Err(None);
            }
            if dry_run {
                return Ok(None);
            }
            let writes = vec![Write::Put { key: key.clone(), value: value.clone() }];
            match self.commit(Transaction { compares, writes }, bookkeeping).await {
                Ok(revision) => return Ok(Some(revision)),
                Err(refused) => match refused.error {
                    StorageError::Conflict { key: lost } if lost == key => return Err(None),
                    StorageError::Conflict { .. } => bookkeeping = refused.bookkeeping,
                    error => return Err(Some(error.into())),
                },
            }
        }
        Err(Some(super::race_lost(target)))
    }
}

/// The namespace is the path's, and the version is the server's to give.
fn check_metadata(target: &Target<'_>, object: &mut Value) -> Result<(), ApiError> {
    check_namespace(target, object)?;
    if !text(object, "/metadata/resourceVersion").is_empty() {
        return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    Ok(())
}

fn generate_name(object: &mut Value) -> bool {
    let prefix = text(object, "/metadata/generateName").to_owned();
    if prefix.is_empty() || !object::name(object).is_empty() {
        return false;
    }
    object::metadata(object).insert("name".into(), names::generate(&prefix).into());
    true
}

/// What the server alone decides.
fn system_fields(kind: &Kind, object: &mut Value) {
    let metadata = object::metadata(object);
    for field in [
        "resourceVersion",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "generation",
        "managedFields",
    ] {
        metadata.remove(field);
    }
    metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".into(), object::timestamp(jiff::Timestamp::now()).into());
    if kind.has_generation {
        metadata.insert("generation".into(), json!(1));
    }
}
