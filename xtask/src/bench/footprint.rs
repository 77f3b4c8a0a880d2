//! What the node's and the server's processes cost: resident, proportional and private memory, and CPU while nothing happens.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::pods::Bench;

const PODS: usize = 50;
/// How long CPU time is watched.
const IDLE: Duration = Duration::from_secs(10);
/// Clock ticks a second, as /proc counts (USER_HZ).
const TICKS: f64 = 100.0;

#[derive(Debug, Clone, Copy, Default)]
struct Usage {
    processes: usize,
    resident_kib: u64,
    proportional_kib: u64,
    private_kib: u64,
    ticks: u64,
}

pub fn run() -> Result<()> {
    let mut bench = Bench::start()?;
    let empty = measure()?;
    bench.create(PODS)?;
    let full = measure()?;
    println!("| program | pods | processes | resident | proportional | private | CPU of one core |");
    println!("|---|---|---|---|---|---|---|");
    for (pods, usages) in [(0, empty), (PODS, full)] {
        for (program, (usage, cpu)) in usages {
            let mib = |kib: u64| format!("{:.1} MiB", kib as f64 / 1024.0);
            println!(
                "| {program} | {pods} | {} | {} | {} | {} | {:.2} % |",
                usage.processes,
                mib(usage.resident_kib),
                mib(usage.proportional_kib),
                mib(usage.private_kib),
                cpu * 100.0
            );
        }
    }
    bench.clear().map(drop)
}

/// Each program's usage and its share of a core while nothing is asked of it.
fn measure() -> Result<BTreeMap<String, (Usage, f64)>> {
    let before = read()?;
    std::thread::sleep(IDLE);
    let after = read()?;
    let share = |name: &String, usage: &Usage| {
        let earlier = before.get(name).map_or(usage.ticks, |usage| usage.ticks);
        usage.ticks.saturating_sub(earlier) as f64 / TICKS / IDLE.as_secs_f64()
    };
    Ok(after.into_iter().map(|(name, usage)| (name.clone(), (usage, share(&name, &usage)))).collect())
}

fn read() -> Result<BTreeMap<String, Usage>> {
    let mut found: BTreeMap<String, Usage> = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("read /proc")?.flatten() {
        let Ok(command) = fs::read(entry.path().join("cmdline")) else { continue };
        let program = command.split(|byte| *byte == 0).next().unwrap_or_default();
        let program = String::from_utf8_lossy(program);
        let name = Path::new(program.as_ref()).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !["orlop-server", "orlop-agent", "orlop-shim"].contains(&name) {
            continue;
        }
        // A process that has ended meanwhile costs nothing.
        if let Some(one) = read_one(&entry.path()) {
            let usage = found.entry(name.to_owned()).or_default();
            usage.processes += 1;
            usage.resident_kib += one.resident_kib;
            usage.proportional_kib += one.proportional_kib;
            usage.private_kib += one.private_kib;
            usage.ticks += one.ticks;
        }
    }
    Ok(found)
}

fn read_one(process: &Path) -> Option<Usage> {
    let memory = fs::read_to_string(process.join("smaps_rollup")).ok()?;
    let kib = |key: &str| {
        let line = memory.lines().find(|line| line.starts_with(key))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Usage {
        processes: 1,
        resident_kib: kib("Rss:")?,
        proportional_kib: kib("Pss:")?,
        private_kib: kib("Private_Clean:")? + kib("Private_Dirty:")?,
        ticks: ticks(11)? + ticks(12)?,
    })
}
