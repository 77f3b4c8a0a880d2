//! The documents that say what is served: versions, groups, resources (plain and aggregated), paths.
//!
//! Input: the registry. Output: JSON with an ETag, OpenAPI v2 in protobuf as well. Pure but for the OpenAPI documents, which are made on request.

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::openapi::gnostic;
use super::route::Document;
use super::{Body, JSON, respond};
use crate::api::{Api, GIT_VERSION, VERSION_MAJOR, VERSION_MINOR};
use crate::error::ApiError;
use crate::kinds::{Kind, REVIEWS, Registry, api_version};

const AGGREGATED_V2: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const AGGREGATED_V2BETA1: &str = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";

pub(super) fn answer(api: &Api, document: Document, headers: &HeaderMap) -> Result<Response<Body>, ApiError> {
    let registry = &api.registry;
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
    let (content_type, body) = match document {
        Document::Version => (JSON, version().to_string()),
        Document::Paths => (JSON, paths(registry).to_string()),
        Document::CoreVersions | Document::Groups => {
            let core = document == Document::CoreVersions;
            match aggregated_type(accept) {
                Some((media, version)) => (media, aggregated(registry, version, core).to_string()),
                None if core => (JSON, core_versions().to_string()),
                None => (JSON, groups(registry).to_string()),
            }
        }
        Document::Group(name) => match registry.group_versions().iter().any(|(group, _)| *group == name) {
            true => (JSON, group(registry, &name, true).to_string()),
            false => return Err(ApiError::no_such_path()),
        },
        Document::Resources { group, version } => match resources(registry, &group, &version) {
            Some(list) => (JSON, list.to_string()),
            None => return Err(ApiError::no_such_path()),
        },
        Document::OpenApiV2 => return open_api_v2(registry, headers, accept),
        Document::OpenApiV3Index => (JSON, api.documents.index(registry).to_string()),
        Document::OpenApiV3 { .. } if !accepts_json(accept) => return Err(ApiError::not_acceptable(JSON)),
        Document::OpenApiV3 { group, version } => match super::openapi::v3(registry, &group, &version) {
            Some(document) => (JSON, document.to_string()),
            None => return Err(ApiError::no_such_path()),
        },
    };
    Ok(with_etag(headers, content_type, body.into_bytes()))
}

/// JSON or protobuf, as the client prefers.
fn open_api_v2(registry: &Registry, headers: &HeaderMap, accept: &str) -> Result<Response<Body>, ApiError> {
    let Some(media_type) = open_api_v2_type(accept) else {
        return Err(ApiError::not_acceptable(&format!("{JSON}, {}", gnostic::MEDIA_TYPE)));
    };
    let document = super::openapi::v2(registry);
    let body = match media_type {
        JSON => document.to_string().into(),
        _ => gnostic::encode(&document).map_err(ApiError::internal)?,
    };
    Ok(with_etag(headers, media_type, body))
}

/// The media type for an `Accept` header: the first of those that the client likes best.
fn open_api_v2_type(accept: &str) -> Option<&'static str> {
    if accept.trim().is_empty() {
        return Some(JSON);
    }
    let mut best: Option<(f32, &'static str)> = None;
    for clause in accept.split(',') {
        let mut parts = clause.split(';').map(str::trim);
        let served = match parts.next().unwrap_or("") {
            JSON | "application/*" | "*/*" => JSON,
            gnostic::MEDIA_TYPE | gnostic::OLD_MEDIA_TYPE => gnostic::MEDIA_TYPE,
            _ => continue,
        };
        let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0);
        if quality > best.map_or(0.0, |(quality, _)| quality) {
            best = Some((quality, served));
        }
    }
    best.map(|(_, served)| served)
}

fn accepts_json(accept: &str) -> bool {
    accept.is_empty() || accept.contains("json") || accept.contains("*/*")
}

fn with_etag(headers: &HeaderMap, content_type: &'static str, body: Vec<u8>) -> Response<Body> {
    let etag = format!("\"{}\"", hash(&body));
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let mut response = if known == Some(etag.as_str()) {
        let mut response = respond(200, content_type, "");
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        respond(200, content_type, body)
    };
    if let Ok(value) = HeaderValue::from_str(&etag) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

pub(super) fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02X}")).collect()
}

fn version() -> Value {
    json!({"major": VERSION_MAJOR, "minor": VERSION_MINOR, "gitVersion": GIT_VERSION,
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "",
        "compiler": "rustc", "platform": concat!("linux/", "amd64")})
}

fn paths(registry: &Registry) -> Value {
    let mut paths: Vec<String> = [
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/openapi/v2",
        "/openapi/v3",
        "/readyz",
        "/version",
    ]
    .map(str::to_owned)
    .into();
    for (group, version) in registry.group_versions().into_iter().filter(|(group, _)| !group.is_empty()) {
        paths.push(format!("/apis/{group}"));
        paths.push(format!("/apis/{group}/{version}"));
    }
    paths.sort();
    paths.dedup();
    json!({"paths": paths})
}

fn core_versions() -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
}

fn group_names(registry: &Registry) -> Vec<&'static str> {
    let mut names = Vec::new();
    for (group, _) in registry.group_versions() {
        if !group.is_empty() && !names.contains(&group) {
            names.push(group);
        }
    }
    names
}

fn groups(registry: &Registry) -> Value {
    let groups: Vec<Value> =
        group_names(registry).into_iter().map(|name| group(registry, name, false)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn group(registry: &Registry, name: &str, alone: bool) -> Value {
    let versions: Vec<Value> = registry
        .group_versions()
        .into_iter()
        .filter(|(group, _)| *group == name)
        .map(|(group, version)| json!({"groupVersion": api_version(group, version), "version": version}))
        .collect();
    let mut group = json!({"name": name, "preferredVersion": versions.first(), "versions": versions});
    if alone {
        group["kind"] = "APIGroup".into();
        group["apiVersion"] = "v1".into();
    }
    group
}

fn kinds_of<'a>(
    registry: &'a Registry,
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = &'static Kind> + 'a {
    registry.kinds.iter().filter(move |kind| kind.group == group && kind.version == version)
}

fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for kind in kinds_of(registry, group, version) {
        let mut resource = json!({"name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
            "kind": kind.kind, "verbs": kind.verbs});
        if !kind.short_names.is_empty() {
            resource["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            resource["categories"] = json!(kind.categories);
        }
        list.push(resource);
        for sub in kind.subresources {
            let mut resource = json!({"name": format!("{}/{}", kind.plural, sub.name), "singularName": "",
                "namespaced": kind.namespaced, "kind": sub.kind, "verbs": sub.verbs});
            if (sub.group, sub.version) != (kind.group, kind.version) {
                resource["group"] = sub.group.into();
                resource["version"] = sub.version.into();
            }
            list.push(resource);
        }
    }
    for review in REVIEWS.iter().filter(|review| review.group == group && review.version == version) {
        list.push(json!({"name": review.plural, "singularName": review.singular, "namespaced": false,
            "kind": review.kind, "verbs": ["create"]}));
    }
    if list.is_empty() {
        return None;
    }
    Some(
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version(group, version), "resources": list}),
    )
}

fn aggregated_type(accept: &str) -> Option<(&'static str, &'static str)> {
    accept.split(',').find_map(|range| {
        let wanted = |text: &str| range.split(';').any(|part| part.trim() == text);
        if !wanted("as=APIGroupDiscoveryList") || !wanted("g=apidiscovery.k8s.io") {
            return None;
        }
        if wanted("v=v2") {
            return Some((AGGREGATED_V2, "v2"));
        }
        wanted("v=v2beta1").then_some((AGGREGATED_V2BETA1, "v2beta1"))
    })
}

fn aggregated(registry: &Registry, version: &str, core: bool) -> Value {
    let names = if core { vec![""] } else { group_names(registry) };
    let items: Vec<Value> = names
        .into_iter()
        .map(|name| {
            let versions: Vec<Value> = registry
                .group_versions()
                .into_iter()
                .filter(|(group, _)| *group == name)
                .map(|(group, version)| {
                    json!({"version": version, "freshness": "Current",
                        "resources": aggregated_resources(registry, group, version)})
                })
                .collect();
            let metadata = if name.is_empty() {
                json!({"creationTimestamp": null})
            } else {
                json!({"name": name, "creationTimestamp": null})
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": items})
}

fn aggregated_resources(registry: &Registry, group: &str, version: &str) -> Vec<Value> {
    let response_kind =
        |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut list: Vec<Value> = kinds_of(registry, group, version)
        .map(|kind| {
            let mut resource = json!({"resource": kind.plural, "singularResource": kind.singular,
                "responseKind": response_kind(kind.group, kind.version, kind.kind),
                "scope": if kind.namespaced { "Namespaced" } else { "Cluster" }, "verbs": kind.verbs});
            if !kind.short_names.is_empty() {
                resource["shortNames"] = json!(kind.short_names);
            }
            if !kind.categories.is_empty() {
                resource["categories"] = json!(kind.categories);
            }
            let subresources: Vec<Value> = kind
                .subresources
                .iter()
                .map(|sub| {
                    json!({"subresource": sub.name, "verbs": sub.verbs,
                        "responseKind": response_kind(sub.group, sub.version, sub.kind)})
                })
                .collect();
            if !subresources.is_empty() {
                resource["subresources"] = subresources.into();
            }
            resource
        })
        .collect();
    let reviews = REVIEWS.iter().filter(|review| review.group == group && review.version == version);
    list.extend(reviews.map(|review| {
        json!({"resource": review.plural, "singularResource": review.singular, "scope": "Cluster",
            "responseKind": response_kind(review.group, review.version, review.kind), "verbs": ["create"]})
    }));
    list
}

#[cfg(test)]
mod tests;
