//! Our status of a pod together with what others say in theirs. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::PodStatus;

use super::conditions::OWN;

/// Our status with what others may set in it.
pub fn merge(mut ours: PodStatus, theirs: PodStatus) -> PodStatus {
    let mut conditions = ours.conditions.take().unwrap_or_default();
    conditions.retain(|condition| OWN.contains(&condition.type_.as_str()));
    let foreign = theirs.conditions.into_iter().flatten();
    conditions.extend(foreign.filter(|condition| {
        !OWN.contains(&condition.type_.as_str())
            || (condition.type_ == "PodScheduled" && !condition.status.is_empty())
    }));
    let mut seen = BTreeSet::new();
    conditions.reverse();
    conditions.retain(|condition| seen.insert(condition.type_.clone()));
    conditions.reverse();
    ours.conditions = Some(conditions);
    let is_over = |phase: Option<&str>| matches!(phase, Some("Failed" | "Succeeded"));
    if is_over(theirs.phase.as_deref()) && !is_over(ours.phase.as_deref()) {
        ours.phase = theirs.phase;
        ours.reason = theirs.reason;
        ours.message = theirs.message;
    }
    ours.start_time = ours.start_time.or(theirs.start_time);
    ours.nominated_node_name = theirs.nominated_node_name;
    ours
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn merged(ours: Value, theirs: Value) -> Value {
        let status = |value| serde_json::from_value(value).unwrap();
        serde_json::to_value(merge(status(ours), status(theirs))).unwrap()
    }

    #[test]
    fn conditions_are_each_their_owners() {
        let condition = |kind: &str, status: &str| json!({"type": kind, "status": status});
        let ours = json!({"conditions": [condition("Ready", "True"), condition("gate", "False"), condition("old", "True")]});
        let theirs = json!({"conditions": [condition("Ready", "False"), condition("gate", "True")]});
        let expected = json!([condition("Ready", "True"), condition("gate", "True")]);
        assert_eq!(merged(ours, theirs)["conditions"], expected);
    }

    #[test]
    fn an_end_that_others_decided_counts_and_is_never_taken_back() {
        let evicted = json!({"phase": "Failed", "reason": "Evicted", "message": "m"});
        assert_eq!(merged(json!({"phase": "Running"}), evicted.clone())["reason"], "Evicted");
        let ours = json!({"phase": "Succeeded"});
        assert_eq!(merged(ours.clone(), evicted)["phase"], "Succeeded");
        assert_eq!(merged(ours, json!({"phase": "Running"}))["phase"], "Succeeded");
    }
}
