//! Reviews: who am I, may I, may they.
//!
//! Input: the body of a review, and who sends it. Output: the same with its status. Refuses a review of everything and nothing:
//! exactly one of a resource and a path is reviewed, of at least a user or a group.

use http::Response;
use serde_json::{Value, json};

use super::{Body, Call, read_body};
use crate::api::Api;
use crate::auth::rbac::{Rule, everything};
use crate::auth::{self, Attributes, User};
use crate::error::{ApiError, FieldError};
use crate::kinds::{Review, api_version};
use crate::object::{items, text};
use crate::verbs::decode_review;

impl Call<'_> {
    pub(super) async fn review(self, review: &'static Review) -> Result<Response<Body>, ApiError> {
        if self.verb != "create" {
            return Err(ApiError::method_not_allowed());
        }
        let Call { api, user, request, .. } = self;
        let bytes = read_body(request).await?;
        let body = decode_review(api, review, &bytes)?;
        let status = match review.kind {
            "SelfSubjectReview" => json!({"userInfo": {"username": user.name, "groups": user.groups}}),
            "SelfSubjectRulesReview" => rules(api, user, &body)?,
            "SubjectAccessReview" => access(api, review, &subject(&body), &body)?,
            _ => access(api, review, user, &body)?,
        };
        let answer = json!({"kind": review.kind, "apiVersion": api_version(review.group, review.version),
            "metadata": {"creationTimestamp": null}, "spec": body["spec"], "status": status});
        Ok(super::json(201, &answer))
    }
}

/// Whom a SubjectAccessReview is about.
fn subject(review: &Value) -> User {
    let groups = items(review, "/spec/groups").iter().filter_map(Value::as_str);
    User { name: text(review, "/spec/user").to_owned(), groups: groups.map(str::to_owned).collect() }
}

fn access(api: &Api, review: &Review, user: &User, body: &Value) -> Result<Value, ApiError> {
    let spec = &body["spec"];
    let mut errors = Vec::new();
    match (spec["resourceAttributes"].is_null(), spec["nonResourceAttributes"].is_null()) {
        (false, false) => {
            let detail = "cannot be specified in combination with resourceAttributes";
            let given = spec["nonResourceAttributes"].clone();
            errors.push(FieldError::invalid("spec.nonResourceAttributes", given, detail));
        }
        (true, true) => {
            let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            errors.push(FieldError::invalid("spec.resourceAttributes", Value::Null, detail));
        }
        _ => {}
    }
    if user.name.is_empty() && user.groups.is_empty() {
        errors.push(FieldError::invalid("spec.user", "", "at least one of user or group must be specified"));
    }
    if !errors.is_empty() {
        return Err(ApiError::invalid(review.kind, review.group, "", &errors));
    }
    let known = api.known();
    let decision = if spec["nonResourceAttributes"].is_null() {
        auth::authorize(user, &attributes(body), known)
    } else {
        let field = |name: &str| text(spec, &format!("/nonResourceAttributes/{name}")).to_owned();
        auth::authorize_path(user, &field("verb"), &field("path"), known)
    };
    let mut status = json!({"allowed": decision.is_ok()});
    let (Ok(reason) | Err(reason)) = decision;
    if !reason.is_empty() {
        status["reason"] = reason.into();
    }
    Ok(status)
}

fn attributes(review: &Value) -> Attributes {
    let field = |name: &str| text(review, &format!("/spec/resourceAttributes/{name}")).to_owned();
    Attributes {
        verb: field("verb").into(),
        group: field("group"),
        resource: field("resource"),
        subresource: field("subresource"),
        namespace: field("namespace"),
        name: field("name"),
        field_selector: String::new(),
    }
}

/// What the user may in a namespace. What nodes are due stands in no rule.
fn rules(api: &Api, user: &User, review: &Value) -> Result<Value, ApiError> {
    let namespace = text(review, "/spec/namespace");
    if namespace.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    let all = match user.is_in(auth::MASTERS) {
        true => everything().to_vec(),
        false => api.rbac.rules_of(user, namespace),
    };
    let of = |is_path: bool| {
        let rules = all.iter().filter(|rule| rule.paths.is_empty() != is_path);
        rules.map(Rule::to_value).collect::<Vec<_>>()
    };
    let mut status = json!({"resourceRules": of(false), "nonResourceRules": of(true), "incomplete": false});
    if user.node().is_some() {
        status["incomplete"] = true.into();
        status["evaluationError"] = "node authorizer does not support user rule resolution".into();
    }
    Ok(status)
}
