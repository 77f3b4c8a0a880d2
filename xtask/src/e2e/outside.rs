//! The stage that owns one machine: its network, QEMU, the checks, and the evidence.
//!
//! In: a [`Plan`]. Out: lines that show the progress, and a [`Report`] in `result.json`, written again after each check, so that
//! a stage that was killed leaves what it knew. Runs as pid 1 of a pid namespace: with it everything ends.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::checks::{CHECKS, Check, Scene};
use super::guest::{Call, Guest};
use super::table::{Outcome, Report, Verdict};
use super::{Plan, network, qemu};

const EVIDENCE_LIMIT: Duration = Duration::from_secs(60);

/// What is asked of a machine after a failure: the file that keeps it, and the command.
const EVIDENCE: &[(&str, &str)] = &[
    ("dmesg.log", "dmesg"),
    ("journal.log", "journalctl --no-pager --boot --output short-monotonic"),
    ("server.log", "journalctl --no-pager --boot --output cat --unit orlop-server.service"),
    ("agent.log", "journalctl --no-pager --boot --output cat --unit orlop-agent.service"),
    ("shims.log", "tail -n 1000 $(find /var/lib/orlop /run/orlop -name '*.log')"),
    ("network.log", "ip -d addr; ip route; ip rule; tc qdisc; bpftool net; bpftool cgroup tree"),
    ("processes.log", "ps -eo pid,ppid,stat,wchan:20,args --forest; systemd-cgls --no-pager --all"),
    ("pods.log", "find /var/log/pods -type f | xargs tail -n 100"),
];

pub fn result_file(evidence: &Path) -> PathBuf {
    evidence.join("result.json")
}

pub fn run(plan: &Path) -> Result<()> {
    let bytes = fs::read(plan).with_context(|| format!("read {}", plan.display()))?;
    let plan: Plan = serde_json::from_slice(&bytes).context("parse the plan")?;
    network::make()?;
    let machine = qemu::machine(&plan.qemu, &plan.kernel, plan.accelerator, &plan.disks, &plan.evidence);
    let mut guest = Guest::start(machine, plan.evidence.join("console.log"))?;
    let mut report = Report { kernel: plan.kernel.name.clone(), outcomes: Vec::new() };
    for check in CHECKS.iter().filter(|check| plan.checks.iter().any(|name| name == check.name)) {
        let outcome = run_check(check, &plan, &mut guest, &report)?;
        let failed = matches!(outcome.verdict, Verdict::Failed { .. });
        report.outcomes.push(outcome);
        fs::write(result_file(&plan.evidence), serde_json::to_vec_pretty(&report)?)
            .context("write the result")?;
        if failed {
            collect(&folder_of(&plan, check), &mut guest);
        }
    }
    if !report.failed() {
        // The packets of a machine in which nothing is wrong are of no use.
        let _ = fs::remove_file(plan.evidence.join("packets.pcap"));
    }
    Ok(())
}

fn run_check(check: &Check, plan: &Plan, guest: &mut Guest, report: &Report) -> Result<Outcome> {
    let name = check.name;
    let passed = |needed: &&&str| {
        report
            .outcomes
            .iter()
            .any(|done| done.check == **needed && matches!(done.verdict, Verdict::Passed { .. }))
    };
    let started = Instant::now();
    let verdict = match check.needs.iter().find(|needed| !passed(needed)) {
        Some(needed) => Verdict::Skipped { reason: format!("it needs {needed}") },
        None => {
            println!("[{}] {name}", plan.kernel.name);
            let path = folder_of(plan, check).with_extension("log");
            let log = File::create(&path).with_context(|| format!("create {}", path.display()))?;
            match (check.run)(&mut Scene { plan, guest, log }) {
                Ok(note) => Verdict::Passed { note },
                Err(error) => Verdict::Failed { error: format!("{error:#}") },
            }
        }
    };
    let seconds = started.elapsed().as_secs();
    let shown = match &verdict {
        Verdict::Passed { note } if note.is_empty() => format!("ok, {seconds} s"),
        Verdict::Passed { note } => format!("ok, {seconds} s: {note}"),
        Verdict::Failed { error } => format!("FAILED after {seconds} s: {error}"),
        Verdict::Skipped { reason } => format!("not run: {reason}"),
    };
    println!("[{}] {name}: {shown}", plan.kernel.name);
    Ok(Outcome { check: name.to_owned(), seconds, verdict })
}

/// Where what is kept of a failed check lies, beside its log.
fn folder_of(plan: &Plan, check: &Check) -> PathBuf {
    plan.evidence.join(check.name.replace(' ', "-"))
}

/// Keeps what explains a failure. A machine that does not answer any more has said all it will on its console.
fn collect(folder: &Path, guest: &mut Guest) {
    if let Err(error) = fs::create_dir_all(folder) {
        eprintln!("e2e: create {}: {error}", folder.display());
    }
    for (file, command) in EVIDENCE {
        let mut lines = String::new();
        let shell = ["sh", "-c", command];
        let collected = guest.run_any(&Call::new(&shell, EVIDENCE_LIMIT), |line| {
            lines.push_str(line);
            lines.push('\n');
        });
        if let Err(error) = fs::write(folder.join(file), lines) {
            eprintln!("e2e: keep {file}: {error}");
        }
        if let Err(error) = collected {
            eprintln!("e2e: {file}: {error:#}");
            return;
        }
    }
}
