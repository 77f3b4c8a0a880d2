//! Tables for silence, taints and the pace of evictions.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeSpec, NodeStatus, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::plan::{Heard, Patience, Plan, View, Zone, eviction_pause, find, plan};

fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_000_000 + seconds)
}

fn node(ready: Option<&str>, taints: &[(&str, &str)]) -> Node {
    let condition = ready.map(|status| NodeCondition {
        type_: "Ready".into(),
        status: status.into(),
        ..NodeCondition::default()
    });
    Node {
        metadata: ObjectMeta { name: Some("n".into()), ..ObjectMeta::default() },
        spec: Some(NodeSpec {
            taints: Some(taints.iter().map(|(key, effect)| taint(key, effect)).collect()),
            ..NodeSpec::default()
        }),
        status: Some(NodeStatus {
            conditions: Some(condition.into_iter().collect()),
            ..NodeStatus::default()
        }),
    }
}

fn taint(key: &str, effect: &str) -> Taint {
    Taint { key: key.into(), effect: effect.into(), ..Taint::default() }
}

fn pass(node: &Node, silent: i64, may_evict: bool) -> Plan {
    plan(&View {
        node,
        heard: Heard { at: at(0) },
        patience: Patience {
            silence: Duration::from_secs(40),
            startup: Duration::from_secs(60),
            recheck: Duration::from_secs(5),
        },
        may_evict,
        now: at(silent),
    })
}

fn texts(plan: &Plan) -> Vec<String> {
    let taints = plan.taints.as_deref().unwrap_or_default();
    let mut texts: Vec<String> = taints
        .iter()
        .map(|taint| format!("{}:{}", taint.key.trim_start_matches("node.kubernetes.io/"), taint.effect))
        .collect();
    texts.sort();
    texts
}

#[test]
fn a_node_that_is_heard_is_left_alone() {
    let decided = pass(&node(Some("True"), &[]), 39, true);
    assert_eq!((decided.conditions.clone(), decided.taints.clone(), decided.unready), (None, None, false));
    assert_eq!(decided.recheck, Some(Duration::from_secs(1)));
}

#[test]
fn a_silent_node_becomes_unknown_and_unreachable() {
    let decided = pass(&node(Some("True"), &[]), 40, true);
    let conditions = decided.conditions.clone().unwrap();
    let ready = find(&conditions, "Ready").unwrap();
    assert_eq!(ready.status, "Unknown");
    assert_eq!(ready.reason.as_deref(), Some("NodeStatusUnknown"));
    assert_eq!(ready.message.as_deref(), Some("Kubelet stopped posting node status."));
    let memory = find(&conditions, "MemoryPressure").unwrap();
    assert_eq!(memory.reason.as_deref(), Some("NodeStatusNeverUpdated"));
    assert_eq!(texts(&decided), ["unreachable:NoExecute", "unreachable:NoSchedule"]);
    assert!(decided.taints.unwrap().iter().all(|taint| taint.time_added.is_some()));
    assert!(decided.unready && decided.evicts);
    assert_eq!(decided.recheck, None);
}

#[test]
fn a_node_that_never_reported_has_longer() {
    let silent = node(None, &[]);
    let decided = pass(&silent, 45, true);
    assert_eq!(decided.conditions, None);
    assert_eq!(texts(&decided), ["not-ready:NoSchedule"]);
    assert_eq!(decided.recheck, Some(Duration::from_secs(15)));
    let decided = pass(&silent, 60, true);
    let conditions = decided.conditions.unwrap();
    assert_eq!(find(&conditions, "Ready").unwrap().reason.as_deref(), Some("NodeStatusNeverUpdated"));
}

#[test]
fn evictions_wait_for_leave() {
    let decided = pass(&node(Some("False"), &[]), 1, false);
    assert_eq!(texts(&decided), ["not-ready:NoSchedule"]);
    assert!(!decided.evicts && decided.unready);
    assert_eq!(decided.recheck, Some(Duration::from_secs(5)));
    let decided = pass(&node(Some("False"), &[("node.kubernetes.io/not-ready", "NoSchedule")]), 1, true);
    assert_eq!(texts(&decided), ["not-ready:NoExecute", "not-ready:NoSchedule"]);
    assert!(decided.evicts);
}

#[test]
fn the_reason_may_change_without_leave_and_recovery_takes_all_away() {
    let evicted = [
        ("node.kubernetes.io/not-ready", "NoSchedule"),
        ("node.kubernetes.io/not-ready", "NoExecute"),
        ("example.com/own", "NoExecute"),
    ];
    let decided = pass(&node(Some("Unknown"), &evicted), 100, false);
    assert_eq!(
        texts(&decided),
        ["example.com/own:NoExecute", "unreachable:NoExecute", "unreachable:NoSchedule"]
    );
    assert!(!decided.evicts, "it was evicted before");
    let decided = pass(&node(Some("True"), &evicted), 1, false);
    assert_eq!(texts(&decided), ["example.com/own:NoExecute"]);
}

#[test]
fn pressure_and_cordon_are_taints() {
    let mut pressed = node(Some("True"), &[]);
    pressed.spec.as_mut().unwrap().unschedulable = Some(true);
    pressed.status.as_mut().unwrap().conditions.as_mut().unwrap().push(NodeCondition {
        type_: "DiskPressure".into(),
        status: "True".into(),
        ..NodeCondition::default()
    });
    assert_eq!(texts(&pass(&pressed, 1, true)), ["disk-pressure:NoSchedule", "unschedulable:NoSchedule"]);
}

#[test]
fn the_pace_of_evictions() {
    let zone = |ready, unready| Zone { ready, unready };
    for (zone, all_dead, expected) in [
        (zone(3, 1), false, Some(10)),
        (zone(0, 1), true, None),
        (zone(0, 5), false, Some(10)),
        (zone(3, 7), false, None),
        (zone(20, 60), false, Some(100)),
        (zone(1, 2), false, Some(10)),
    ] {
        assert_eq!(eviction_pause(zone, all_dead), expected.map(Duration::from_secs), "{zone:?}");
    }
}
