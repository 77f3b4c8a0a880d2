//! Kinds whose rows are a few fields.

use serde_json::Value;

use super::{AGE, Column, NAME, age, column, since, wide};
use crate::object::{entries, items, name, text};

pub(in crate::kinds) const CONFIG_MAP: &[Column] = &[NAME, column("Data", "string"), AGE];

pub(in crate::kinds) fn config_map(map: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let count = entries(map, "/data").count() + entries(map, "/binaryData").count();
    vec![name(map).into(), count.into(), age(map, now)]
}

pub(in crate::kinds) const SECRET: &[Column] =
    &[NAME, column("Type", "string"), column("Data", "string"), AGE];

pub(in crate::kinds) fn secret(secret: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let count = entries(secret, "/data").count();
    vec![name(secret).into(), text(secret, "/type").into(), count.into(), age(secret, now)]
}

pub(in crate::kinds) const SERVICE_ACCOUNT: &[Column] = &[NAME, column("Secrets", "string"), AGE];

pub(in crate::kinds) fn service_account(account: &Value, now: jiff::Timestamp) -> Vec<Value> {
    vec![name(account).into(), items(account, "/secrets").len().into(), age(account, now)]
}

pub(in crate::kinds) const NAMESPACE: &[Column] = &[NAME, column("Status", "string"), AGE];

pub(in crate::kinds) fn namespace(namespace: &Value, now: jiff::Timestamp) -> Vec<Value> {
    vec![name(namespace).into(), text(namespace, "/status/phase").into(), age(namespace, now)]
}

pub(in crate::kinds) const LEASE: &[Column] = &[NAME, column("Holder", "string"), AGE];

pub(in crate::kinds) fn lease(lease: &Value, now: jiff::Timestamp) -> Vec<Value> {
    vec![name(lease).into(), text(lease, "/spec/holderIdentity").into(), age(lease, now)]
}

pub(in crate::kinds) const EVENT: &[Column] = &[
    column("Last Seen", "string"),
    column("Type", "string"),
    column("Reason", "string"),
    column("Object", "string"),
    wide("Subobject", "string"),
    wide("Source", "string"),
    column("Message", "string"),
    wide("First Seen", "string"),
    wide("Count", "integer"),
    Column { priority: 1, ..NAME },
];

pub(in crate::kinds) fn event(event: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let pick = |pointers: &[&str]| {
        pointers
            .iter()
            .map(|pointer| text(event, pointer))
            .find(|value| !value.is_empty())
            .unwrap_or("")
            .to_owned()
    };
    let first = since(&pick(&["/firstTimestamp", "/eventTime"]), now);
    let last = match pick(&["/series/lastObservedTime", "/lastTimestamp"]) {
        none if none.is_empty() => first.clone(),
        last => since(&last, now),
    };
    let series = event["series"]["count"].as_i64();
    let count = series.or(event["count"].as_i64()).unwrap_or(1);
    let object = format!(
        "{}/{}",
        text(event, "/involvedObject/kind").to_lowercase(),
        text(event, "/involvedObject/name")
    );
    let component = pick(&["/source/component", "/reportingComponent"]);
    let host = pick(&["/source/host", "/reportingInstance"]);
    let source = if host.is_empty() { component } else { format!("{component}, {host}") };
    vec![
        last.into(),
        text(event, "/type").into(),
        text(event, "/reason").into(),
        object.into(),
        text(event, "/involvedObject/fieldPath").into(),
        source.into(),
        text(event, "/message").trim().into(),
        first.into(),
        count.into(),
        name(event).into(),
    ]
}
