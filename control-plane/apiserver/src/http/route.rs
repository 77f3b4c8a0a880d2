//! Paths: which resource, or which document, a request is about.
//!
//! Pure. Unknown paths have no route.

use http::Method;

use super::Query;
use crate::auth::Attributes;
use crate::error::{ApiError, Resource};
use crate::kinds::{Kind, REVIEWS, Review};

/// A document that describes the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Document {
    /// `/`
    Paths,
    /// `/version`
    Version,
    /// `/api`
    CoreVersions,
    /// `/apis`
    Groups,
    /// `/apis/GROUP`
    Group(String),
    /// `/api/v1`, `/apis/GROUP/VERSION`
    Resources { group: String, version: String },
    /// `/openapi/v2`
    OpenApiV2,
    /// `/openapi/v3`
    OpenApiV3Index,
    /// `/openapi/v3/api/v1`, `/openapi/v3/apis/GROUP/VERSION`
    OpenApiV3 { group: String, version: String },
}

/// A resource path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResourceRoute {
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub name: String,
    pub subresource: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Document(Document),
    Resource(ResourceRoute),
}

pub(crate) fn parse(path: &str) -> Option<Route> {
    let parts: Vec<String> =
        path.split('/').filter(|part| !part.is_empty()).map(super::decode_percent).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let document = |document| Some(Route::Document(document));
    match parts.as_slice() {
        [] => document(Document::Paths),
        ["version"] => document(Document::Version),
        ["api"] => document(Document::CoreVersions),
        ["apis"] => document(Document::Groups),
        ["apis", group] => document(Document::Group((*group).to_owned())),
        ["openapi", "v2"] => document(Document::OpenApiV2),
        ["openapi", "v3"] => document(Document::OpenApiV3Index),
        ["openapi", "v3", "api", version] => {
            document(Document::OpenApiV3 { group: String::new(), version: (*version).to_owned() })
        }
        ["openapi", "v3", "apis", group, version] => {
            document(Document::OpenApiV3 { group: (*group).to_owned(), version: (*version).to_owned() })
        }
        ["api", version] => {
            document(Document::Resources { group: String::new(), version: (*version).to_owned() })
        }
        ["apis", group, version] => {
            document(Document::Resources { group: (*group).to_owned(), version: (*version).to_owned() })
        }
        ["api", version, rest @ ..] => resource("", version, rest),
        ["apis", group, version, rest @ ..] => resource(group, version, rest),
        _ => None,
    }
}

fn resource(group: &str, version: &str, rest: &[&str]) -> Option<Route> {
    let mut route =
        ResourceRoute { group: group.to_owned(), version: version.to_owned(), ..ResourceRoute::default() };
    let rest = match rest {
        // The subresources of a namespace look like resources in it.
        ["namespaces", name, subresource @ ("status" | "finalize")] => {
            route.subresource = (*subresource).to_owned();
            &["namespaces", name][..]
        }
        ["namespaces", namespace, inner @ ..] if !inner.is_empty() => {
            route.namespace = (*namespace).to_owned();
            inner
        }
        other => other,
    };
    match rest {
        [resource] => route.resource = (*resource).to_owned(),
        [resource, name] => {
            route.resource = (*resource).to_owned();
            route.name = (*name).to_owned();
        }
        [resource, name, subresource] => {
            route.resource = (*resource).to_owned();
            route.name = (*name).to_owned();
            route.subresource = (*subresource).to_owned();
        }
        _ => return None,
    }
    Some(Route::Resource(route))
}

/// The review that a path posts to. None is in a namespace.
pub(crate) fn review(route: &ResourceRoute) -> Option<&'static Review> {
    let mut reviews = REVIEWS.iter().filter(|_| route.namespace.is_empty());
    reviews.find(|review| {
        review.group == route.group && review.version == route.version && review.plural == route.resource
    })
}

/// Whether a kind is served at a path with a verb.
pub(crate) fn check_served(kind: &Kind, route: &ResourceRoute, verb: &str) -> Result<(), ApiError> {
    if !kind.namespaced && !route.namespace.is_empty() {
        return Err(ApiError::no_such_path());
    }
    let verbs = match route.subresource.as_str() {
        "" => kind.verbs,
        name => kind.subresource(name).ok_or_else(ApiError::no_such_path)?.verbs,
    };
    // Only lists reach over all namespaces.
    let no_namespace = kind.namespaced && route.namespace.is_empty();
    if !verbs.contains(&verb) || (no_namespace && !matches!(verb, "list" | "watch")) {
        return Err(ApiError::method_not_allowed());
    }
    Ok(())
}

impl ResourceRoute {
    /// What a request does.
    pub(crate) fn verb(&self, method: &Method, query: &Query) -> Result<&'static str, ApiError> {
        let collection = self.name.is_empty();
        Ok(match *method {
            Method::GET | Method::HEAD if collection && query.is_set("watch") => "watch",
            Method::GET | Method::HEAD if collection => "list",
            Method::GET | Method::HEAD => "get",
            Method::POST if collection || !self.subresource.is_empty() => "create",
            Method::PUT if !collection => "update",
            Method::PATCH if !collection => "patch",
            Method::DELETE if collection => "deletecollection",
            Method::DELETE => "delete",
            _ => {
                let resource = Resource { group: &self.group, name: &self.resource };
                return Err(ApiError::method_not_supported(resource, method.as_str()));
            }
        })
    }

    /// What a request does to what, for authorization.
    pub(crate) fn attributes(&self, verb: &'static str, query: &Query) -> Attributes {
        // Upstream's request info: a namespace itself is in its own namespace.
        let namespace =
            if self.resource == "namespaces" { self.name.clone() } else { self.namespace.clone() };
        Attributes {
            verb: verb.into(),
            group: self.group.clone(),
            resource: self.resource.clone(),
            subresource: self.subresource.clone(),
            namespace,
            name: self.name.clone(),
            field_selector: query.get("fieldSelector").to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    //! Paths.

    use super::*;
    use crate::kinds::Registry;

    fn route(path: &str) -> String {
        match parse(path) {
            Some(Route::Resource(r)) => {
                format!(
                    "{}|{}|{}|{}|{}|{}",
                    r.group, r.version, r.namespace, r.resource, r.name, r.subresource
                )
            }
            Some(Route::Document(document)) => format!("{document:?}"),
            None => "none".into(),
        }
    }

    #[test]
    fn paths() {
        for (path, expected) in [
            ("/", "Paths"),
            ("/api/v1/namespaces", "|v1||namespaces||"),
            ("/api/v1/namespaces/a", "|v1||namespaces|a|"),
            ("/api/v1/namespaces/a/finalize", "|v1||namespaces|a|finalize"),
            ("/api/v1/namespaces/a/pods", "|v1|a|pods||"),
            ("/api/v1/namespaces/a/pods/b/log", "|v1|a|pods|b|log"),
            ("/apis/apps/v1/namespaces/a/deployments/d/scale", "apps|v1|a|deployments|d|scale"),
            ("/apis/apps/v1/deployments", "apps|v1||deployments||"),
            ("/api/v1/nodes/n%2F1", "|v1||nodes|n/1|"),
            ("/api/v1/nodes/a+b%20c%2Bd", "|v1||nodes|a+b c+d|"),
            ("/apis/apps", "Group(\"apps\")"),
            ("/metrics", "none"),
            ("/api/v1/a/b/c/d", "none"),
        ] {
            assert_eq!(route(path), expected, "{path}");
        }
    }

    #[test]
    fn kinds_are_served_in_their_scope_with_their_verbs() {
        let registry = Registry::build().unwrap();
        for (method, path, code) in [
            ("POST", "/api/v1/nodes", 200),
            ("POST", "/api/v1/namespaces/x/nodes", 404),
            ("GET", "/api/v1/namespaces/x/nodes/n", 404),
            ("GET", "/api/v1/namespaces/x/nodes", 404),
            ("POST", "/api/v1/namespaces/x/namespaces", 404),
            ("PUT", "/api/v1/namespaces/x/nodes/n/status", 404),
            ("GET", "/api/v1/pods", 200),
            ("POST", "/api/v1/pods", 405),
            ("POST", "/api/v1/namespaces/x/pods/p/binding", 200),
            ("GET", "/api/v1/namespaces/x/pods/p/binding", 405),
            ("GET", "/api/v1/namespaces/x/pods/p/nothing", 404),
            ("DELETE", "/api/v1/namespaces/x/pods", 200),
            ("DELETE", "/api/v1/nodes", 200),
            ("DELETE", "/api/v1/namespaces", 405),
            ("DELETE", "/api/v1/namespaces/x", 200),
        ] {
            let Some(Route::Resource(route)) = parse(path) else { panic!("{path}") };
            let kind = registry.find(&route.group, &route.version, &route.resource).unwrap();
            let method = method.parse().unwrap();
            let verb = route.verb(&method, &Query::default()).unwrap();
            let answer = check_served(kind, &route, verb).map_or_else(|error| error.code, |()| 200);
            assert_eq!(answer, code, "{method} {path}");
        }
    }
}
