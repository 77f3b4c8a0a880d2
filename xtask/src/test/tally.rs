//! Counting tests: reads nextest's JUnit report and the reasons that skipping tests wrote down.

use anyhow::{Context, Result};

#[cfg(test)]
mod tests;

/// What became of a set of tests.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    /// One reason for each skipped test or tier.
    pub skipped: Vec<String>,
}

impl Tally {
    pub fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.extend(other.skipped);
    }

    pub fn skip(&mut self, reason: String) {
        self.skipped.push(reason);
    }

    /// The closing lines: a reason per skip, then the counts alone on the last one.
    pub fn print(&self) {
        for reason in &self.skipped {
            println!("skipped: {reason}");
        }
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped.len());
    }
}

/// `report` is the JUnit document of one run, empty if no test matched; `skips` holds a reason per line.
pub fn read(report: &str, skips: &str) -> Result<Tally> {
    let skipped: Vec<String> = skips.lines().map(str::to_owned).collect();
    if report.is_empty() {
        return Ok(Tally { skipped, ..Tally::default() });
    }
    let head = report.lines().find(|line| line.trim_start().starts_with("<testsuites"));
    let head = head.context("the JUnit report has no <testsuites>")?;
    let tests = attribute(head, "tests")?;
    let failed = attribute(head, "failures")? + attribute(head, "errors")?;
    // A test that skipped itself has returned, so nextest counts it as passed.
    Ok(Tally { passed: (tests - failed).saturating_sub(skipped.len() as u64), failed, skipped })
}

fn attribute(tag: &str, name: &str) -> Result<u64> {
    let start = tag.find(&format!(" {name}=\"")).with_context(|| format!("<testsuites> has no {name}"))?;
    let value = &tag[start + name.len() + 3..];
    let value = value.split('"').next().unwrap_or_default();
    value.parse().with_context(|| format!("<testsuites {name}> is {value:?}, not a number"))
}
