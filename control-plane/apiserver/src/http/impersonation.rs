//! Requests in another user's name (`kubectl --as`): refused, for they would be done, or answered, with the caller's own rights.
//!
//! Input: the headers. The error is upstream's for somebody who may not impersonate, and says why.

use http::HeaderMap;

use crate::auth::{Attributes, User};
use crate::error::{ApiError, Resource};

/// Upstream's group for all of an identity but names of users and groups.
const GROUP: &str = "authentication.k8s.io";
const EXTRA: &str = "impersonate-extra-";

pub(super) fn refuse(user: &User, headers: &HeaderMap) -> Result<(), ApiError> {
    // Names of headers are in lower case here, however they were sent.
    for (header, value) in headers {
        let (group, resource, subresource) = match header.as_str() {
            "impersonate-user" => ("", "users", ""),
            "impersonate-group" => ("", "groups", ""),
            "impersonate-uid" => (GROUP, "uids", ""),
            other => match other.strip_prefix(EXTRA) {
                Some(key) => (GROUP, "userextras", key),
                None => continue,
            },
        };
        let attributes = Attributes {
            verb: "impersonate".into(),
            group: group.to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            name: String::from_utf8_lossy(value.as_bytes()).into_owned(),
            ..Attributes::default()
        };
        let denial = attributes.denial(user, "impersonation is not served");
        return Err(ApiError::forbidden(Resource { group, name: resource }, &attributes.name, &denial));
    }
    Ok(())
}
