//! Deployments and ReplicaSets.

use serde_json::Value;

use super::{label_selector, labels, pod, selects, unchanged};
use crate::error::FieldError;
use crate::object::{items, text};

fn replicas(object: &Value, errors: &mut Vec<FieldError>) {
    for field in ["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
        if let Some(value) = object["spec"].get(field).filter(|value| value.as_i64().is_some_and(|n| n < 0)) {
            let detail = "must be greater than or equal to 0";
            errors.push(FieldError::invalid(format!("spec.{field}"), value.clone(), detail));
        }
    }
}

fn selector_and_template(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    replicas(object, &mut errors);
    let spec = &object["spec"];
    let selector = spec.get("selector").unwrap_or(&Value::Null);
    let is_empty = selector.as_object().is_none_or(serde_json::Map::is_empty);
    if selector.is_null() {
        errors.push(FieldError::required("spec.selector", ""));
    } else if is_empty {
        let detail = "empty selector is invalid for deployment";
        errors.push(FieldError::invalid("spec.selector", selector.clone(), detail));
    } else {
        label_selector(selector, "spec.selector", &mut errors);
    }
    let template = spec.get("template").unwrap_or(&Value::Null);
    let template_labels =
        template.pointer("/metadata/labels").cloned().unwrap_or_else(|| serde_json::json!({}));
    if !is_empty && !selects(selector, &template_labels) {
        let detail = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid("spec.template.metadata.labels", template_labels, detail));
    }
    labels(template, "/metadata/labels", "spec.template.metadata.labels", &mut errors);
    errors.extend(pod::spec(&template["spec"], "spec.template.spec"));
    if !items(template, "/spec/ephemeralContainers").is_empty() {
        let path = "spec.template.spec.ephemeralContainers";
        errors.push(FieldError::forbidden(path, "ephemeral containers not allowed in pod template"));
    }
    let policy = text(template, "/spec/restartPolicy");
    if policy != "Always" {
        let path = "spec.template.spec.restartPolicy";
        errors.push(FieldError::not_supported(path, policy, &["Always"]));
    }
    errors
}

pub(in crate::kinds) fn replica_set(set: &Value) -> Vec<FieldError> {
    selector_and_template(set)
}

pub(in crate::kinds) fn deployment(deployment: &Value) -> Vec<FieldError> {
    let mut errors = selector_and_template(deployment);
    let strategy = &deployment["spec"]["strategy"];
    let rolling = &strategy["rollingUpdate"];
    match text(strategy, "/type") {
        "Recreate" if !rolling.is_null() => {
            let detail = "may not be specified when strategy `type` is 'Recreate'";
            errors.push(FieldError::forbidden("spec.strategy.rollingUpdate", detail));
        }
        "Recreate" => {}
        "RollingUpdate" => {
            let path = "spec.strategy.rollingUpdate";
            for field in ["maxUnavailable", "maxSurge"] {
                amount(&rolling[field], &format!("{path}.{field}"), &mut errors);
            }
            if is_zero(&rolling["maxUnavailable"]) && is_zero(&rolling["maxSurge"]) {
                let value = rolling["maxUnavailable"].clone();
                let detail = "may not be 0 when `maxSurge` is 0";
                errors.push(FieldError::invalid(format!("{path}.maxUnavailable"), value, detail));
            }
        }
        other => {
            errors.push(FieldError::not_supported(
                "spec.strategy.type",
                other,
                &["Recreate", "RollingUpdate"],
            ));
        }
    }
    let number = |field: &str| deployment["spec"][field].as_i64().unwrap_or(0);
    if number("progressDeadlineSeconds") <= number("minReadySeconds") {
        let value = deployment["spec"]["progressDeadlineSeconds"].clone();
        let detail = "must be greater than minReadySeconds";
        errors.push(FieldError::invalid("spec.progressDeadlineSeconds", value, detail));
    }
    errors
}

fn is_zero(value: &Value) -> bool {
    value == 0 || value == "0%"
}

fn amount(value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let good = match value {
        Value::Number(number) => number.as_i64().is_some_and(|number| number >= 0),
        Value::String(text) => text.strip_suffix('%').is_some_and(|number| number.parse::<u32>().is_ok()),
        _ => true,
    };
    if !good {
        let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or \
                      '93%', regex used for validation is '[0-9]+%')";
        errors.push(FieldError::invalid(path, value.clone(), detail));
    }
}

pub(in crate::kinds) fn selector_is_immutable(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    unchanged(new, old, "/spec/selector", &mut errors);
    errors
}
