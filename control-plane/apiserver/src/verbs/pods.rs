//! Binding and eviction of pods.

use serde_json::{Value, json};

use super::body::{Expected, decode};
use super::change::Part;
use super::{DeleteOptions, Target, WriteOptions, Written};
use crate::api::Api;
use crate::error::ApiError;
use crate::kinds::{BINDING, EVICTION};
use crate::object::{self, child, text};

fn success(code: u16) -> Written {
    let object =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code});
    Written { object, code, warnings: Vec::new() }
}

impl Api {
    /// Binds a pod to a node: sets its nodeName once, and the condition PodScheduled.
    pub async fn bind(
        &self,
        target: Target<'_>,
        bytes: &[u8],
        options: WriteOptions,
    ) -> Result<Written, ApiError> {
        let expected = Expected { group: "", version: "v1", kind: "Binding", type_name: BINDING };
        let (binding, _) = decode(&self.registry, expected, bytes, options.field_validation)?;
        let node = text(&binding, "/target/name").to_owned();
        let kind = text(&binding, "/target/kind");
        if !matches!(kind, "" | "Node") {
            let known = crate::error::FieldError::not_supported("target.kind", kind, &["Node", "<empty>"]);
            return Err(ApiError::invalid("Binding", "", target.name, &[known]));
        }
        if node.is_empty() {
            let missing = crate::error::FieldError::required("target.name", "");
            return Err(ApiError::invalid("Binding", "", target.name, &[missing]));
        }
        let uid = object::uid(&binding).to_owned();
        let now = object::timestamp(jiff::Timestamp::now());
        self.change(target, Part::Internal, options, |old| {
            Ok((bound(target, old, &node, &uid, &now)?, vec![]))
        })
        .await?;
        Ok(success(201))
    }

    /// Evicts a pod: a delete with the eviction's options. There are no disruption budgets yet.
    pub async fn evict(
        &self,
        target: Target<'_>,
        bytes: &[u8],
        options: WriteOptions,
    ) -> Result<Written, ApiError> {
        let expected = Expected { group: "policy", version: "v1", kind: "Eviction", type_name: EVICTION };
        let (eviction, _) = decode(&self.registry, expected, bytes, options.field_validation)?;
        let given = eviction.get("deleteOptions").cloned().unwrap_or_else(|| json!({}));
        let mut delete = DeleteOptions::parse(&given, |_| None)?;
        delete.dry_run |= options.dry_run;
        self.delete(target, &delete).await?;
        Ok(success(201))
    }
}

fn bound(target: Target<'_>, old: &Value, node: &str, uid: &str, now: &str) -> Result<Value, ApiError> {
    let conflict = |reason: &str| Err(ApiError::conflict(target.kind.resource(), target.name, reason));
    if !uid.is_empty() && uid != object::uid(old) {
        return conflict(&format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            object::uid(old)
        ));
    }
    if object::is_deleting(old) {
        return conflict(&format!("pod {} is being deleted, cannot be assigned to a host", target.name));
    }
    let current = text(old, "/spec/nodeName");
    if !current.is_empty() {
        return conflict(&format!("pod {} is already assigned to node {current:?}", target.name));
    }
    let mut new = old.clone();
    child(&mut new, "spec").insert("nodeName".into(), node.into());
    let conditions = child(&mut new, "status").entry("conditions").or_insert_with(|| json!([]));
    if let Some(list) = conditions.as_array_mut() {
        list.retain(|condition| condition["type"] != "PodScheduled");
        list.push(json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now}));
    }
    Ok(new)
}
