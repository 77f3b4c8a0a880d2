//! From the moment a watcher sees a pod to the moment it sees it Running, and from its deletion to the end of its object, as a user of kubectl
//! sees them; where the time of a start goes, as the nodes measured it; and what a pod costs in CPU time.

mod shares;

use std::time::Duration;

use anyhow::Result;

use super::cpu;
use super::node_metrics::Nodes;
use super::percentile::{mean, percentile};
use super::pods::{Bench, Times};
use shares::Shares;

/// Pods at once, and how often.
const BATCHES: &[(usize, usize)] = &[(1, 20), (10, 5), (50, 3)];

/// What was measured for one number of pods at once.
struct Batch {
    count: usize,
    times: Vec<Times>,
    shares: Shares,
    /// CPU time of all pods until they ran, and until nothing was left of them.
    cpu: [Duration; 2],
}

pub fn run() -> Result<()> {
    let nodes = Nodes::find()?;
    let mut bench = Bench::start()?;
    // One pod first: what happens only once is not what is measured.
    bench.create(1)?;
    bench.clear()?;
    let batches =
        BATCHES.iter().map(|batch| measure(&mut bench, &nodes, *batch)).collect::<Result<Vec<Batch>>>()?;
    print(&batches);
    Ok(())
}

fn measure(bench: &mut Bench, nodes: &Nodes, (count, rounds): (usize, usize)) -> Result<Batch> {
    let mut times = Vec::new();
    let mut cpu = [Duration::ZERO; 2];
    let before = nodes.read()?;
    let mut after = before.clone();
    for round in 1..=rounds {
        let begin = cpu::spent()?;
        bench.create(count)?;
        let started = cpu::spent()?.saturating_sub(begin);
        // What the question costs is not the pods'.
        after = nodes.read_after(&before, count * round)?;
        let begin = cpu::spent()?;
        times.extend(bench.clear()?);
        cpu[0] += started;
        cpu[1] += started + cpu::spent()?.saturating_sub(begin);
    }
    let shares = Shares::of(&times, &before, &after);
    Ok(Batch { count, times, shares, cpu })
}

impl Batch {
    fn all(&self, time: fn(Times) -> Option<Duration>) -> Vec<Duration> {
        self.times.iter().copied().filter_map(time).collect()
    }
}

fn print(batches: &[Batch]) {
    println!(
        "| pods at once | samples | created to Running p50 | p99 | deleted to gone p50 | p99 | CPU a pod to Running | its whole life |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for batch in batches {
        let (start, end) = (batch.all(Times::to_running), batch.all(Times::to_gone));
        let pods = u32::try_from(batch.times.len()).unwrap_or(u32::MAX);
        let cells = [
            percentile(&start, 50),
            percentile(&start, 99),
            percentile(&end, 50),
            percentile(&end, 99),
            batch.cpu[0].checked_div(pods),
            batch.cpu[1].checked_div(pods),
        ]
        .map(shown);
        println!("| {} | {pods} | {} |", batch.count, cells.join(" | "));
    }
    println!("\nMean time of a pod's start by what it was spent on, and its share:\n");
    print_shares(batches);
}

fn print_shares(batches: &[Batch]) {
    let heads: Vec<String> = batches.iter().map(|batch| format!("{} at once", batch.count)).collect();
    println!("| phase | {} |\n|---{}|", heads.join(" | "), "|---".repeat(batches.len()));
    let columns: Vec<Vec<(&str, f64)>> = batches.iter().map(|batch| batch.shares.rows()).collect();
    for (index, (name, _)) in columns.first().into_iter().flatten().enumerate() {
        let cells: Vec<String> = columns.iter().map(|rows| shares::cell(rows, index)).collect();
        println!("| {name} | {} |", cells.join(" | "));
    }
    let means: Vec<String> = batches.iter().map(|batch| shown(mean(&batch.all(Times::to_running)))).collect();
    println!("| **whole** | {} |", means.join(" | "));
}

fn shown(time: Option<Duration>) -> String {
    time.map_or("-".to_owned(), |time| format!("{:.0} ms", time.as_secs_f64() * 1000.0))
}
