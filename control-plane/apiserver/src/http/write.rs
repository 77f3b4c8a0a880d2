//! The verbs that write: bodies and query parameters in, the written object out.

use http::Response;
use serde_json::json;

use super::{Body, Call, add_warnings, content_type, read_body};
use crate::error::{ApiError, FieldError};
use crate::kinds::Kind;
use crate::patch::{PATCH_MEDIA_TYPES, PatchType};
use crate::schema::protobuf;
use crate::verbs::{DeleteOptions, FieldValidation, Target, WriteOptions, decode_options};

impl Call<'_> {
    pub(super) async fn write(self, kind: &'static Kind) -> Result<Response<Body>, ApiError> {
        let form = self.form()?;
        let options = self.write_options()?;
        let media = content_type(&self.request);
        if matches!(self.verb, "delete" | "deletecollection") {
            return self.remove(kind, &media).await;
        }
        let patch = if self.verb == "patch" { Some(patch_type(&media)?) } else { None };
        if patch.is_none() {
            check_media(&media)?;
        }
        let Call { api, user, route, verb, request, .. } = self;
        let bytes = read_body(request).await?;
        let target = Target { kind, namespace: &route.namespace, name: &route.name, user };
        let written = match (verb, route.subresource.as_str(), patch) {
            ("create", "", _) => api.create(target, &bytes, options).await?,
            ("create", "binding", _) => api.bind(target, &bytes, options).await?,
            ("create", "eviction", _) => api.evict(target, &bytes, options).await?,
            ("update", subresource, _) => api.update(target, subresource, &bytes, options).await?,
            ("patch", subresource, Some(patch)) => {
                api.patch(target, subresource, patch, &bytes, options).await?
            }
            _ => return Err(ApiError::method_not_allowed()),
        };
        let object = if matches!(route.subresource.as_str(), "scale") {
            written.object
        } else {
            form.of_value(kind, written.object)
        };
        let mut response = super::json(written.code, &object);
        add_warnings(&mut response, &written.warnings);
        Ok(response)
    }

    async fn remove(self, kind: &'static Kind, media: &str) -> Result<Response<Body>, ApiError> {
        check_media(media)?;
        let form = self.form()?;
        let filter = self.filter(kind)?;
        let Call { api, user, route, verb, query, request, .. } = self;
        let bytes = read_body(request).await?;
        let body = decode_options(api, &bytes)?;
        let options =
            DeleteOptions::parse(&body, |name| query.has(name).then(|| query.get(name).to_owned()))?;
        let target = Target { kind, namespace: &route.namespace, name: &route.name, user };
        if verb == "deletecollection" {
            let deleted = api.delete_collection(target, &filter, &options).await?;
            let list = json!({"kind": kind.list_kind(), "apiVersion": kind.api_version(),
                "metadata": {"resourceVersion": api.cache.revision().to_string()}, "items": deleted});
            return Ok(super::json(200, &list));
        }
        let written = api.delete(target, &options).await?;
        Ok(super::json(written.code, &form.of_value(kind, written.object)))
    }

    fn write_options(&self) -> Result<WriteOptions, ApiError> {
        let kind = options_kind(self.verb);
        let invalid = |error: FieldError| ApiError::invalid(kind, "meta.k8s.io", "", &[error]);
        let dry_run = match self.query.get("dryRun") {
            "" => false,
            "All" => true,
            other => return Err(invalid(FieldError::not_supported("dryRun", other, &["All"]))),
        };
        let field_validation = FieldValidation::parse(self.query.get("fieldValidation")).map_err(invalid)?;
        Ok(WriteOptions { dry_run, field_validation })
    }
}

/// The type of a verb's query parameters.
fn options_kind(verb: &str) -> &'static str {
    match verb {
        "update" => "UpdateOptions",
        "patch" => "PatchOptions",
        "delete" | "deletecollection" => "DeleteOptions",
        _ => "CreateOptions",
    }
}

/// Bodies are JSON or protobuf; which of the two, their first bytes say.
fn check_media(media: &str) -> Result<(), ApiError> {
    if matches!(media, "" | "application/json" | protobuf::MEDIA_TYPE) {
        return Ok(());
    }
    Err(ApiError::unsupported_media_type("application/json, application/vnd.kubernetes.protobuf"))
}

fn patch_type(media: &str) -> Result<PatchType, ApiError> {
    let found = PATCH_MEDIA_TYPES.iter().find(|(name, _)| *name == media);
    found.map(|(_, kind)| *kind).ok_or_else(|| {
        let names: Vec<&str> = PATCH_MEDIA_TYPES.iter().map(|(name, _)| *name).collect();
        ApiError::unsupported_media_type(&names.join(", "))
    })
}
