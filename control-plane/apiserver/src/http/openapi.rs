//! The OpenAPI documents, made on request from the schema source and the table of facts.
//!
//! Output: v3 per group version with an index of hashes, v2 as one document. Only the hashes are kept in memory.

pub(super) mod gnostic;

use std::collections::BTreeSet;
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use crate::api::GIT_VERSION;
use crate::kinds::{Kind, REVIEWS, Registry};
use crate::schema::source::{REFERENCE_PREFIX, definitions};
use crate::schema::{ListType, facts_of};

const V2_PREFIX: &str = "#/definitions/";

/// What is kept of the documents: their hashes.
#[derive(Default)]
pub struct Documents {
    index: OnceLock<Value>,
}

impl Documents {
    /// `/openapi/v3`.
    pub(super) fn index(&self, registry: &Registry) -> &Value {
        self.index.get_or_init(|| {
            let mut paths = Map::new();
            for (group, version) in registry.group_versions() {
                let path = path_of(group, version);
                let Some(document) = v3(registry, group, version) else { continue };
                let hash = super::discovery::hash(document.to_string().as_bytes());
                let url = format!("/openapi/v3/{path}?hash={hash}");
                paths.insert(path, json!({"serverRelativeURL": url}));
            }
            json!({"paths": paths})
        })
    }
}

fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// A kind or a review that a document describes.
struct Described {
    kind: &'static str,
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    type_name: &'static str,
    row: Option<&'static Kind>,
}

fn described(registry: &Registry, group: &str, version: &str) -> Vec<Described> {
    let kinds = registry.kinds.iter().filter(|kind| kind.group == group && kind.version == version);
    let mut list: Vec<Described> = kinds
        .map(|kind| Described {
            kind: kind.kind,
            group: kind.group,
            version: kind.version,
            plural: kind.plural,
            type_name: kind.type_name,
            row: Some(kind),
        })
        .collect();
    let reviews = REVIEWS.iter().filter(|review| review.group == group && review.version == version);
    list.extend(reviews.map(|review| Described {
        kind: review.kind,
        group: review.group,
        version: review.version,
        plural: review.plural,
        type_name: review.type_name,
        row: None,
    }));
    list
}

/// The v3 document of one group version.
pub(super) fn v3(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let described = described(registry, group, version);
    if described.is_empty() {
        return None;
    }
    let mut all = definitions();
    let mut wanted: BTreeSet<String> = BTreeSet::new();
    let roots = described.iter().map(|one| one.type_name).chain(registry_roots());
    for root in roots {
        collect(&all, root, &mut wanted);
    }
    let mut schemas = Map::new();
    for name in wanted {
        let Some(mut schema) = all.remove(&name) else { continue };
        annotate(&name, &mut schema);
        wrap_references(&mut schema);
        schemas.insert(name, schema);
    }
    for one in &described {
        add_kind(&mut schemas, one.type_name, one);
        if one.row.is_some() {
            let list = list_schema(one, REFERENCE_PREFIX);
            schemas.insert(format!("{}List", one.type_name), list);
        }
    }
    let mut paths = Map::new();
    for one in &described {
        add_paths(&mut paths, one);
    }
    Some(json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": GIT_VERSION}, "paths": paths,
        "components": {"schemas": schemas}}))
}

/// Types of every document.
fn registry_roots() -> impl Iterator<Item = &'static str> {
    [
        crate::kinds::DELETE_OPTIONS,
        "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
        "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta",
    ]
    .into_iter()
}

/// The v2 document: definitions and the paths' kinds.
pub(super) fn v2(registry: &Registry) -> Value {
    let mut schemas = Map::new();
    for (name, mut schema) in definitions() {
        annotate(&name, &mut schema);
        rename_references(&mut schema);
        if schema.get("x-kubernetes-int-or-string").is_some() {
            schema["type"] = "string".into();
        }
        schemas.insert(name, schema);
    }
    for (group, version) in registry.group_versions() {
        for one in described(registry, group, version) {
            add_kind(&mut schemas, one.type_name, &one);
            if one.row.is_some() {
                schemas.insert(format!("{}List", one.type_name), list_schema(&one, V2_PREFIX));
            }
        }
    }
    json!({"swagger": "2.0", "info": {"title": "Kubernetes", "version": GIT_VERSION}, "paths": {},
        "definitions": schemas})
}

fn add_kind(schemas: &mut Map<String, Value>, name: &str, one: &Described) {
    let Some(schema) = schemas.get_mut(name) else { return };
    schema["x-kubernetes-group-version-kind"] =
        json!([{"group": one.group, "version": one.version, "kind": one.kind}]);
    // The schema source requires metadata; the API does not.
    if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|field| field != "metadata");
        if required.is_empty()
            && let Some(map) = schema.as_object_mut()
        {
            map.remove("required");
        }
    }
}

fn list_schema(one: &Described, prefix: &str) -> Value {
    let reference = |name: &str| json!({"$ref": format!("{prefix}{name}")});
    json!({"type": "object", "description": format!("{}List is a list of {}.", one.kind, one.kind),
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"}, "kind": {"type": "string"},
            "items": {"type": "array", "items": reference(one.type_name)},
            "metadata": reference("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"),
        },
        "x-kubernetes-group-version-kind":
            [{"group": one.group, "version": one.version, "kind": format!("{}List", one.kind)}]})
}

/// Adds the names of a type and of all that it refers to.
fn collect(all: &Map<String, Value>, name: &str, wanted: &mut BTreeSet<String>) {
    let Some(schema) = all.get(name) else { return };
    if !wanted.insert(name.to_owned()) {
        return;
    }
    let mut references = Vec::new();
    find_references(schema, &mut references);
    for reference in references {
        collect(all, &reference, wanted);
    }
}

fn find_references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
                found.push(reference.rsplit('/').next().unwrap_or(reference).to_owned());
            }
            map.values().for_each(|value| find_references(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| find_references(value, found)),
        _ => {}
    }
}

/// Writes the facts of our table into a type's fields.
fn annotate(name: &str, schema: &mut Value) {
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else { return };
    for (field, schema) in properties.iter_mut() {
        let facts = facts_of(name, field);
        if let Some(strategy) = facts.strategy() {
            schema["x-kubernetes-patch-strategy"] = strategy.into();
        }
        if let Some(key) = facts.key {
            schema["x-kubernetes-patch-merge-key"] = key.into();
        }
        if schema["type"] != "array" {
            continue;
        }
        match facts.list {
            ListType::Atomic => schema["x-kubernetes-list-type"] = "atomic".into(),
            ListType::Set => schema["x-kubernetes-list-type"] = "set".into(),
            ListType::Map(keys) => {
                schema["x-kubernetes-list-type"] = "map".into();
                schema["x-kubernetes-list-map-keys"] = json!(keys);
            }
        }
    }
}

/// A reference with siblings is not OpenAPI 3.0: it goes into `allOf`.
fn wrap_references(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.len() > 1
                && let Some(reference) = map.remove("$ref")
            {
                map.insert("allOf".into(), json!([{"$ref": reference}]));
            }
            map.values_mut().for_each(wrap_references);
        }
        Value::Array(list) => list.iter_mut().for_each(wrap_references),
        _ => {}
    }
}

fn rename_references(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get_mut("$ref") {
                *reference = reference.replace(REFERENCE_PREFIX, V2_PREFIX);
            }
            map.values_mut().for_each(rename_references);
        }
        Value::Array(list) => list.iter_mut().for_each(rename_references),
        _ => {}
    }
}

fn parameter(name: &str, kind: &str) -> Value {
    json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}})
}

fn operation(
    one: &Described,
    action: &str,
    parameters: &[(&str, &str)],
    media: &[&str],
    schema: &str,
) -> Value {
    let reference = json!({"$ref": format!("{REFERENCE_PREFIX}{schema}")});
    let body = json!({"$ref": format!("{REFERENCE_PREFIX}{}", one.type_name)});
    let mut operation = json!({
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": one.group, "version": one.version, "kind": one.kind},
        "parameters": parameters.iter().map(|(name, kind)| parameter(name, kind)).collect::<Vec<_>>(),
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": reference}}}},
    });
    if !media.is_empty() {
        let content: Map<String, Value> =
            media.iter().map(|media| ((*media).to_owned(), json!({"schema": body}))).collect();
        operation["requestBody"] = json!({"required": true, "content": content});
    }
    operation
}

const LIST: &[(&str, &str)] = &[
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const WRITE: &[(&str, &str)] =
    &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const PATCH: &[(&str, &str)] =
    &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")];
const DELETE: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];
const JSON_BODY: &[&str] = &["application/json"];
const PATCH_BODY: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];
const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";

fn add_paths(paths: &mut Map<String, Value>, one: &Described) {
    let root = format!("/{}", path_of(one.group, one.version));
    let Some(kind) = one.row else {
        let create = operation(one, "post", WRITE, JSON_BODY, one.type_name);
        paths.insert(format!("{root}/{}", one.plural), json!({"post": create}));
        return;
    };
    let list_type = format!("{}List", one.type_name);
    let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
    let mut collection = json!({
        "get": operation(one, "list", LIST, &[], &list_type),
        "post": operation(one, "post", WRITE, JSON_BODY, one.type_name),
    });
    if kind.verbs.contains(&"deletecollection") {
        collection["delete"] = operation(one, "deletecollection", DELETE, &[], STATUS);
    }
    let item = json!({
        "get": operation(one, "get", &[], &[], one.type_name),
        "put": operation(one, "put", WRITE, JSON_BODY, one.type_name),
        "patch": operation(one, "patch", PATCH, PATCH_BODY, one.type_name),
        "delete": operation(one, "delete", DELETE, &[], STATUS),
    });
    let base = format!("{root}{scope}/{}", one.plural);
    paths.insert(format!("{base}/{{name}}"), with_path_parameters(item, kind, true));
    paths.insert(base.clone(), with_path_parameters(collection, kind, false));
    if kind.namespaced {
        let all = json!({"get": operation(one, "list", LIST, &[], &list_type)});
        paths.insert(format!("{root}/{}", one.plural), all);
    }
    if kind.has_status() {
        let status = json!({
            "get": operation(one, "get", &[], &[], one.type_name),
            "put": operation(one, "put", WRITE, JSON_BODY, one.type_name),
            "patch": operation(one, "patch", PATCH, PATCH_BODY, one.type_name),
        });
        paths.insert(format!("{base}/{{name}}/status"), with_path_parameters(status, kind, true));
    }
}

fn with_path_parameters(mut path: Value, kind: &Kind, named: bool) -> Value {
    let one =
        |name: &str| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}});
    let mut parameters = Vec::new();
    if named {
        parameters.push(one("name"));
    }
    if kind.namespaced {
        parameters.push(one("namespace"));
    }
    path["parameters"] = parameters.into();
    path
}
