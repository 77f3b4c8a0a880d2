//! Events have two served forms and one stored form (core v1).

use serde_json::Value;

/// Field of `events.k8s.io/v1`, field of `v1`.
const RENAMED: &[(&str, &str)] = &[
    ("deprecatedCount", "count"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedSource", "source"),
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
];

pub(super) fn event_to_storage(event: &mut Value) {
    let Some(map) = event.as_object_mut() else { return };
    for (served, stored) in RENAMED {
        if let Some(value) = map.remove(*served) {
            map.insert((*stored).into(), value);
        }
    }
    map.insert("apiVersion".into(), "v1".into());
}

pub(super) fn event_from_storage(event: &mut Value) {
    let Some(map) = event.as_object_mut() else { return };
    for (served, stored) in RENAMED {
        if let Some(value) = map.remove(*stored) {
            map.insert((*served).into(), value);
        }
    }
    map.insert("apiVersion".into(), "events.k8s.io/v1".into());
}
