//! Get and list.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Response;
use serde_json::{Value, json};

use super::form::Form;
use super::{Body, Call, JSON, respond};
use crate::cache::{Filter, Page, ReadError};
use crate::error::ApiError;
use crate::kinds::Kind;
use crate::selectors::{FieldSelector, LabelSelector};
use crate::storage::{Key, Revision};
use crate::verbs::Target;

const CONTINUE_VERSION: &str = "meta.k8s.io/v1";

impl Call<'_> {
    pub(super) fn target(&self, kind: &'static Kind) -> Target<'_> {
        Target { kind, namespace: &self.route.namespace, name: &self.route.name, user: self.user }
    }

    pub(super) fn form(&self) -> Result<Form, ApiError> {
        Form::negotiate(self.request.headers(), self.query.get("includeObject"))
    }

    pub(super) fn get(&self, kind: &'static Kind) -> Result<Response<Body>, ApiError> {
        let form = self.form()?;
        if self.route.subresource == "scale" {
            return Ok(super::json(200, &self.api.get_scale(self.target(kind))?));
        }
        let entry = self.api.find(kind, &self.route.namespace, &self.route.name)?;
        Ok(respond(200, JSON, form.one(kind, &entry)))
    }

    /// The filter that namespace and selectors make.
    pub(super) fn filter(&self, kind: &Kind) -> Result<Filter, ApiError> {
        let labels = LabelSelector::parse(self.query.get("labelSelector"))
            .map_err(|error| ApiError::bad_request(format!("unable to parse requirement: {error}")))?;
        let fields = FieldSelector::parse(self.query.get("fieldSelector")).map_err(ApiError::bad_request)?;
        for term in &fields.0 {
            let known = matches!(term.field.as_str(), "metadata.name" | "metadata.namespace")
                || kind.field_names.contains(&term.field.as_str());
            if !known {
                let message = format!("field label not supported: {}", term.field);
                return Err(ApiError::bad_request(message));
            }
        }
        Ok(Filter { namespace: self.route.namespace.clone(), labels, fields })
    }

    pub(super) fn list(&self, kind: &'static Kind) -> Result<Response<Body>, ApiError> {
        let form = self.form()?;
        let filter = self.filter(kind)?;
        let page = self.page()?;
        let listed =
            self.api.cache.list(kind.storage, &filter, &page).map_err(|error| list_error(error, &page))?;
        let mut metadata = json!({"resourceVersion": listed.revision.to_string()});
        if let (Some(rest), Some(last)) = (listed.more, listed.entries.last()) {
            metadata["continue"] = token(listed.revision, &last.key).into();
            if filter.labels.0.is_empty() && filter.fields.0.is_empty() {
                metadata["remainingItemCount"] = rest.into();
            }
        }
        Ok(respond(200, JSON, form.list(kind, metadata, &listed.entries)))
    }

    /// Which part of the list, at which revision, is asked for.
    fn page(&self) -> Result<Page, ApiError> {
        let limit = match self.query.get("limit") {
            "" => 0,
            text => text.parse().map_err(|_| ApiError::bad_request(format!("invalid limit: {text:?}")))?,
        };
        let (version, matching) = (self.query.get("resourceVersion"), self.query.get("resourceVersionMatch"));
        let revision = parse_revision(version)?;
        let next = self.query.get("continue");
        if !next.is_empty() {
            if !matching.is_empty() {
                return Err(invalid_list(
                    "resourceVersionMatch",
                    "Forbidden: resourceVersionMatch is forbidden when continue is provided",
                ));
            }
            let (at, after) = parse_token(next).ok_or_else(|| {
                ApiError::bad_request("continue key is not valid: encoding is not understood")
            })?;
            return Ok(Page { at: Some(at), after: Some(after), limit });
        }
        match (matching, revision) {
            ("", None) => Ok(Page { limit, ..Page::default() }),
            ("", Some(0)) | ("NotOlderThan", Some(0)) => Ok(Page { limit, ..Page::default() }),
            ("" | "NotOlderThan", Some(wanted)) => self.not_older(wanted, limit),
            ("Exact", Some(0)) => Err(invalid_list(
                "resourceVersionMatch",
                "Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            )),
            ("Exact", Some(wanted)) => Ok(Page { at: Some(wanted), after: None, limit }),
            (_, None) => Err(invalid_list(
                "resourceVersionMatch",
                "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
            )),
            (other, _) => Err(invalid_list(
                "resourceVersionMatch",
                &format!("Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\", \"\""),
            )),
        }
    }

    fn not_older(&self, wanted: Revision, limit: usize) -> Result<Page, ApiError> {
        let current = self.api.cache.revision();
        if wanted > current {
            return Err(ApiError::version_too_large(wanted, current));
        }
        Ok(Page { limit, ..Page::default() })
    }
}

fn invalid_list(field: &str, body: &str) -> ApiError {
    ApiError::unprocessable(format!("ListOptions.meta.k8s.io \"\" is invalid: {field}: {body}"))
}

pub(super) fn parse_revision(text: &str) -> Result<Option<Revision>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = text.parse();
    parsed.map(Some).map_err(|_| {
        let message = format!(
            "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        );
        ApiError::bad_request(message)
    })
}

fn list_error(error: ReadError, page: &Page) -> ApiError {
    match error {
        ReadError::TooNew { wanted, current } => ApiError::version_too_large(wanted, current),
        ReadError::TooOld { .. } if page.after.is_some() => ApiError::expired(
            "The provided continue parameter is too old to display a consistent list result. You must start a new \
             list without the continue parameter.",
        ),
        ReadError::TooOld { .. } => {
            ApiError::expired("The resourceVersion for the provided list is too old.")
        }
    }
}

fn token(revision: Revision, last: &Key) -> String {
    let token = json!({"v": CONTINUE_VERSION, "rv": revision, "start": last.0});
    URL_SAFE_NO_PAD.encode(token.to_string())
}

fn parse_token(text: &str) -> Option<(Revision, Key)> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let token: Value = serde_json::from_slice(&bytes).ok()?;
    if token["v"] != CONTINUE_VERSION {
        return None;
    }
    Some((token["rv"].as_u64()?, Key(token["start"].as_str()?.into())))
}
