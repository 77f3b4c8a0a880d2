//! From the moment a watcher sees the pod to the moment it sees it Running, as a user of kubectl sees it.

use std::time::Duration;

use anyhow::Result;

use super::percentile::percentile;
use super::pods::{Bench, Times};

/// Pods at once, and how often.
const BATCHES: &[(usize, usize)] = &[(1, 20), (10, 5), (50, 3)];

pub fn run() -> Result<()> {
    let bench = Bench::start()?;
    // One pod first: what happens only once is not what is measured.
    bench.create(1)?;
    bench.clear()?;
    let mut rows = Vec::new();
    for (count, rounds) in BATCHES {
        let mut times = Vec::new();
        for _ in 0..*rounds {
            times.extend(bench.create(*count)?);
            bench.clear()?;
        }
        rows.push(row(*count, &times));
    }
    println!("| pods at once | samples | created to scheduled p50 | created to Running p50 | p99 |");
    println!("|---|---|---|---|---|");
    for row in rows {
        println!("{row}");
    }
    Ok(())
}

fn row(count: usize, times: &[Times]) -> String {
    let scheduled: Vec<Duration> = times.iter().copied().filter_map(Times::to_scheduled).collect();
    let running: Vec<Duration> = times.iter().copied().filter_map(Times::to_running).collect();
    let shown =
        |value: Option<Duration>| value.map_or("-".to_owned(), |value| format!("{} ms", value.as_millis()));
    format!(
        "| {count} | {} | {} | {} | {} |",
        times.len(),
        shown(percentile(&scheduled, 50)),
        shown(percentile(&running, 50)),
        shown(percentile(&running, 99))
    )
}
