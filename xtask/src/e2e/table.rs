//! What became of each check on each kernel, as a table. Pure.

use serde::{Deserialize, Serialize};

use crate::test::Tally;

#[cfg(test)]
mod tests;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    Passed {
        note: String,
    },
    Failed {
        error: String,
    },
    /// Something before it failed, so that it could not run.
    Skipped {
        reason: String,
    },
}

/// One check on one kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub check: String,
    pub seconds: u64,
    pub verdict: Verdict,
}

impl Outcome {
    /// That the stage itself failed, beside what it reported.
    pub fn of_stage(error: String) -> Self {
        Self { check: "stage".to_owned(), seconds: 0, verdict: Verdict::Failed { error } }
    }
}

/// Everything that was checked on one kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub kernel: String,
    pub outcomes: Vec<Outcome>,
}

impl Report {
    /// Of a machine whose stage ended without saying what became of it.
    pub fn of_failed_stage(kernel: &str, error: String) -> Self {
        Self { kernel: kernel.to_owned(), outcomes: vec![Outcome::of_stage(error)] }
    }

    pub fn failed(&self) -> bool {
        self.outcomes.iter().any(|outcome| !matches!(outcome.verdict, Verdict::Passed { .. }))
    }

    /// Adds each check as a test.
    pub fn count(&self, tally: &mut Tally) {
        for Outcome { check, verdict, .. } in &self.outcomes {
            match verdict {
                Verdict::Passed { .. } => tally.passed += 1,
                Verdict::Failed { .. } => tally.failed += 1,
                Verdict::Skipped { reason } => {
                    tally.skip(format!("kernel {}: {check}: {reason}", self.kernel));
                }
            }
        }
    }
}

/// A row for each check in the order of their first appearance and one for all together, a column for each kernel.
pub fn print(reports: &[Report]) -> String {
    let mut checks: Vec<&str> = Vec::new();
    for outcome in reports.iter().flat_map(|report| &report.outcomes) {
        if !checks.contains(&outcome.check.as_str()) {
            checks.push(&outcome.check);
        }
    }
    let mut rows = vec![vec!["check".to_owned()]];
    rows[0].extend(reports.iter().map(|report| report.kernel.clone()));
    for check in checks {
        let mut row = vec![check.to_owned()];
        row.extend(reports.iter().map(|report| cell(report, check)));
        rows.push(row);
    }
    let mut total = vec!["total".to_owned()];
    total.extend(reports.iter().map(|report| {
        let seconds: u64 = report.outcomes.iter().map(|outcome| outcome.seconds).sum();
        format!("{} {seconds} s", if report.failed() { "FAILED" } else { "ok" })
    }));
    rows.push(total);
    align(&rows)
}

fn cell(report: &Report, check: &str) -> String {
    let Some(outcome) = report.outcomes.iter().find(|outcome| outcome.check == check) else {
        return "-".to_owned();
    };
    let seconds = outcome.seconds;
    match &outcome.verdict {
        Verdict::Passed { note } if note.is_empty() => format!("ok {seconds} s"),
        Verdict::Passed { note } => format!("ok {seconds} s, {note}"),
        Verdict::Failed { .. } => format!("FAILED {seconds} s"),
        Verdict::Skipped { .. } => "not run".to_owned(),
    }
}

fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}
