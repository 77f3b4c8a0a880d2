//! Reviews of the client itself: who am I, may I.

use http::Response;
use serde_json::{Value, json};

use super::{Body, Call, read_body};
use crate::auth::{self, Attributes};
use crate::error::ApiError;
use crate::kinds::{Review, VERBS, api_version};
use crate::object::text;
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
            "SelfSubjectRulesReview" => rules(user),
            _ => {
                let attributes = attributes(&body);
                match auth::authorize(user, &attributes, api.known()) {
                    Ok(()) => json!({"allowed": true}),
                    Err(reason) => json!({"allowed": false, "reason": reason}),
                }
            }
        };
        let answer = json!({"kind": review.kind, "apiVersion": api_version(review.group, review.version),
            "metadata": {"creationTimestamp": null}, "spec": body["spec"], "status": status});
        Ok(super::json(201, &answer))
    }
}

/// The verb, as one of the names that rules know; any other is allowed to nobody but administrators.
fn known_verb(verb: &str) -> &'static str {
    VERBS.iter().copied().find(|known| *known == verb).unwrap_or("use")
}

fn attributes(review: &Value) -> Attributes {
    let field = |name: &str| text(review, &format!("/spec/resourceAttributes/{name}")).to_owned();
    Attributes {
        verb: known_verb(&field("verb")),
        group: field("group"),
        resource: field("resource"),
        subresource: field("subresource"),
        namespace: field("namespace"),
        name: field("name"),
        field_selector: String::new(),
    }
}

fn rules(user: &auth::User) -> Value {
    let all = json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]);
    if user.is_in("system:masters") {
        return json!({"resourceRules": all, "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            "incomplete": false});
    }
    json!({"resourceRules": [], "nonResourceRules": [], "incomplete": true,
        "evaluationError": "rules of this identity are a fixed table"})
}
