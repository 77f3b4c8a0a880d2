//! What a dying namespace says about itself.
//!
//! Input: what was found and what failed while emptying it. Output: its status. Pure. Types, reasons and messages are
//! upstream's.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{NamespaceCondition, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Objects of one kind that are still there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remaining {
    /// "plural.group".
    pub kind: String,
    pub count: usize,
    /// How many of them wait for each finalizer.
    pub finalizers: BTreeMap<String, usize>,
}

/// What emptying a namespace came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Why the kinds could not be found out.
    pub discovery: Option<String>,
    /// What could not be deleted.
    pub errors: Vec<String>,
    pub remaining: Vec<Remaining>,
}

struct Statement {
    kind: &'static str,
    bad: Option<(&'static str, String)>,
    good: (&'static str, &'static str),
}

/// The status that a report gives; transition times change only with the status of a condition.
pub fn status(stored: Option<&NamespaceStatus>, report: &Report, now: Timestamp) -> NamespaceStatus {
    let stored = stored.cloned().unwrap_or_default();
    let mut conditions = stored.conditions.unwrap_or_default();
    for statement in statements(report) {
        state(&mut conditions, statement, now);
    }
    NamespaceStatus { phase: Some("Terminating".to_owned()), conditions: Some(conditions) }
}

fn statements(report: &Report) -> [Statement; 5] {
    let discovery = report
        .discovery
        .as_ref()
        .map(|error| ("DiscoveryFailed", format!("Discovery failed for some groups, 1 failing: {error}")));
    let content = (!report.errors.is_empty()).then(|| {
        let count = report.errors.len();
        let errors = report.errors.join(", ");
        ("ContentDeletionFailed", format!("Failed to delete all resource types, {count} remaining: {errors}"))
    });
    [
        Statement {
            kind: "NamespaceDeletionDiscoveryFailure",
            bad: discovery,
            good: ("ResourcesDiscovered", "All resources successfully discovered"),
        },
        Statement {
            kind: "NamespaceDeletionGroupVersionParsingFailure",
            bad: None,
            good: ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
        },
        Statement {
            kind: "NamespaceDeletionContentFailure",
            bad: content,
            good: ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
        },
        Statement {
            kind: "NamespaceContentRemaining",
            bad: remaining(report).map(|text| ("SomeResourcesRemain", text)),
            good: ("ContentRemoved", "All content successfully removed"),
        },
        Statement {
            kind: "NamespaceFinalizersRemaining",
            bad: finalizers(report).map(|text| ("SomeFinalizersRemain", text)),
            good: ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        },
    ]
}

fn remaining(report: &Report) -> Option<String> {
    let mut parts: Vec<String> = report
        .remaining
        .iter()
        .map(|remaining| format!("{} has {} resource instances", remaining.kind, remaining.count))
        .collect();
    parts.sort();
    (!parts.is_empty()).then(|| format!("Some resources are remaining: {}", parts.join(", ")))
}

fn finalizers(report: &Report) -> Option<String> {
    let mut totals: BTreeMap<&str, usize> = BTreeMap::new();
    for (finalizer, count) in report.remaining.iter().flat_map(|remaining| &remaining.finalizers) {
        *totals.entry(finalizer.as_str()).or_insert(0) += count;
    }
    let parts: Vec<String> = totals
        .iter()
        .map(|(finalizer, count)| format!("{finalizer} in {count} resource instances"))
        .collect();
    let text = parts.join(", ");
    (!parts.is_empty()).then(|| format!("Some content in the namespace has finalizers remaining: {text}"))
}

fn state(conditions: &mut Vec<NamespaceCondition>, statement: Statement, now: Timestamp) {
    let (status, reason, message) = match statement.bad {
        Some((reason, message)) => ("True", reason, message),
        None => ("False", statement.good.0, statement.good.1.to_owned()),
    };
    let place = conditions.iter().position(|condition| condition.type_ == statement.kind);
    let former = place.map(|place| &conditions[place]);
    let since = former
        .filter(|former| former.status == status && former.reason.as_deref() == Some(reason))
        .and_then(|former| former.last_transition_time.clone());
    let condition = NamespaceCondition {
        type_: statement.kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: Some(since.unwrap_or(Time(now))),
    };
    match place {
        Some(place) => conditions[place] = condition,
        None => conditions.push(condition),
    }
}
