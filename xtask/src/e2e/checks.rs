//! What is checked on each kernel, in order, and how. The stage that runs it is [`super::outside`].
//!
//! A check that needs another one does not run when that one failed. What a check says is in the evidence folder, one log each.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::guest::{Call, Guest, last_lines};
use super::qemu::Accelerator;
use super::{Plan, network, power};
use crate::process;
use crate::test::tally;

#[cfg(test)]
mod tests;

/// From QEMU's start to the first command, and until systemd has started everything.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
const INSTALL_LIMIT: Duration = Duration::from_secs(60);
pub const READY_LIMIT: Duration = Duration::from_secs(60);
const DEMO_LIMIT: Duration = Duration::from_secs(300);
pub const COMMAND_LIMIT: Duration = Duration::from_secs(30);
const OFF_LIMIT: Duration = Duration::from_secs(60);
/// Connections a second under load: two emulated processors manage some 70.
const EMULATED_RATE: &str = "20";
pub const PAUSE: Duration = Duration::from_millis(200);

pub const NODE: &str = "node-1";

/// Which run a check belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Always,
    /// A shorter form of what the whole run does.
    SmokeAlone,
    WholeAlone,
    /// What is measured, not checked: only when it is asked for.
    Asked,
}

impl Part {
    pub fn is_in(self, smoke: bool) -> bool {
        match self {
            Self::Always => true,
            Self::SmokeAlone => smoke,
            Self::WholeAlone => !smoke,
            Self::Asked => false,
        }
    }
}

pub struct Check {
    pub name: &'static str,
    pub part: Part,
    pub needs: &'static [&'static str],
    /// What it has to say about its success.
    pub run: fn(&mut Scene<'_>) -> Result<String>,
}

pub const BOOT: &str = "boot";
pub const BENCH: &str = "bench";
pub const POWER_OFF: &str = "power off";

pub const CHECKS: &[Check] = &[
    Check { name: BOOT, part: Part::Always, needs: &[], run: boot },
    Check { name: "install", part: Part::Always, needs: &[BOOT], run: install },
    Check { name: "node ready", part: Part::Always, needs: &["install"], run: ready },
    Check { name: "demo", part: Part::Always, needs: &["node ready"], run: demo },
    Check { name: "node port", part: Part::WholeAlone, needs: &["node ready"], run: node_port },
    Check { name: "agent killed", part: Part::Always, needs: &["node ready"], run: agent_killed },
    Check { name: "uplink tests", part: Part::SmokeAlone, needs: &[BOOT], run: uplink_tests },
    Check { name: "bpf tests", part: Part::WholeAlone, needs: &[BOOT], run: bpf_tests },
    Check { name: "host tests", part: Part::WholeAlone, needs: &[BOOT], run: host_tests },
    Check { name: "kernel log", part: Part::Always, needs: &[BOOT], run: kernel_log },
    Check { name: BENCH, part: Part::Asked, needs: &[BOOT], run: bench },
    Check { name: POWER_OFF, part: Part::Always, needs: &[BOOT], run: power_off },
    // In a machine of its own.
    Check { name: "power cuts", part: Part::WholeAlone, needs: &["node ready"], run: power::cuts },
];

/// Those that can be asked for by name.
pub fn names() -> Vec<&'static str> {
    CHECKS.iter().map(|check| check.name).filter(|name| *name != BENCH).collect()
}

/// The checks of a run: those with a name from `names` and what they need, or those of the whole run or its fast part.
pub fn chosen(names: &[String], smoke: bool) -> Vec<&'static str> {
    if names.is_empty() {
        return CHECKS.iter().filter(|check| check.part.is_in(smoke)).map(|check| check.name).collect();
    }
    let mut wanted: Vec<&str> = names.iter().map(String::as_str).collect();
    // What a check needs stands before it.
    for check in CHECKS.iter().rev() {
        if wanted.contains(&check.name) {
            wanted.extend(check.needs);
        }
    }
    CHECKS.iter().map(|check| check.name).filter(|name| wanted.contains(name)).collect()
}

/// What a check works with.
pub struct Scene<'a> {
    pub plan: &'a Plan,
    pub guest: &'a mut Guest,
    pub log: File,
}

impl Scene<'_> {
    /// Runs a command inside that must succeed.
    pub fn inside(&mut self, command: &[&str], limit: Duration) -> Result<String> {
        let log = &mut self.log;
        self.guest.run(&Call::new(command, limit), |line| note(log, line))
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.plan.evidence.join("admin.kubeconfig")
    }

    /// kubectl on the outside.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.plan.kubectl);
        command.arg("--kubeconfig").arg(self.kubeconfig()).arg("--request-timeout=20s").args(arguments);
        let output = command.stdin(Stdio::null()).output().context("start kubectl")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {}: {}", arguments.join(" "), errors.trim());
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

/// The evidence is for people: that it could not be written does not fail a check.
pub fn note(mut log: &File, line: &str) {
    let _ = writeln!(log, "{line}");
}

pub fn boot(scene: &mut Scene<'_>) -> Result<String> {
    let kernel = scene.guest.wait_hello(BOOT_LIMIT)?;
    let state = scene.inside(&["systemctl", "is-system-running", "--wait"], BOOT_LIMIT);
    if let Err(error) = state {
        let failed = scene.inside(&["systemctl", "--failed", "--no-legend", "--plain"], COMMAND_LIMIT)?;
        bail!("systemd could not start everything: {failed}: {error:#}");
    }
    scene.inside(
        &["/lib/systemd/systemd-networkd-wait-online", "--interface=eth0", "--timeout=30"],
        BOOT_LIMIT,
    )?;
    let mounts = scene.inside(&["cat", "/proc/self/mounts"], COMMAND_LIMIT)?;
    let v1 = mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup"));
    ensure!(!v1, "the machine has cgroups of version 1");
    Ok(kernel)
}

pub fn install(scene: &mut Scene<'_>) -> Result<String> {
    let script = scene.plan.dist.join("deploy/install.sh");
    let images = crate::images::folder();
    let command = ["sh", text(&script)?, "--node-name", NODE, "--images", text(&images)?, "server", "agent"];
    scene.inside(&command, INSTALL_LIMIT)?;
    let units = ["orlop-server.service", "orlop-agent.service"];
    for unit in units {
        scene.inside(&["systemctl", "is-active", unit], COMMAND_LIMIT)?;
    }
    Ok(String::new())
}

pub fn ready(scene: &mut Scene<'_>) -> Result<String> {
    let kubeconfig = scene.inside(&["cat", "/var/lib/orlop/server/admin.kubeconfig"], COMMAND_LIMIT)?;
    fs::write(scene.kubeconfig(), kubeconfig).context("keep the kubeconfig")?;
    let deadline = Instant::now() + READY_LIMIT;
    let path = "jsonpath={.status.conditions[?(@.type=='Ready')].status} {.status.addresses[0].address}";
    let wanted = format!("True {}", network::MACHINE);
    loop {
        let found = scene.kubectl(&["get", "node", NODE, "-o", path]);
        match found {
            Ok(found) if found == wanted => return Ok(String::new()),
            found if Instant::now() > deadline => bail!("the node is not Ready: {found:?}"),
            _ => std::thread::sleep(PAUSE),
        }
    }
}

fn demo(scene: &mut Scene<'_>) -> Result<String> {
    cluster_test(scene, "demo::hello_runs_answers_scales_under_load_and_goes")
}

fn node_port(scene: &mut Scene<'_>) -> Result<String> {
    cluster_test(scene, "demo::a_node_port_answers_from_outside_the_pod_network")
}

/// One test of the cluster tier, against this machine.
fn cluster_test(scene: &mut Scene<'_>, name: &str) -> Result<String> {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", &DEMO_LIMIT.as_secs().to_string()]);
    command.arg(&scene.plan.cluster_tests).args(["--exact", name, "--nocapture"]);
    if scene.plan.accelerator == Accelerator::Tcg {
        command.env("ORLOP_LOAD_RATE", EMULATED_RATE);
    }
    command.env("ORLOP_CLUSTER", scene.kubeconfig()).env("ORLOP_KUBECTL", &scene.plan.kubectl);
    let output = command.stdin(Stdio::null()).output().context("start the cluster tests")?;
    let printed =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    note(&scene.log, &printed);
    ensure!(output.status.success(), "{name}: {}", last_lines(&printed));
    // A name that matches nothing succeeds too.
    ensure!(printed.contains("test result: ok. 1 passed"), "{name} is not a test of the cluster tier");
    Ok(String::new())
}

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: survivor}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: one, image: 'localhost/echo:v1', command: [sleep, infinity]}
  - {name: two, image: 'localhost/echo:v1', command: [sleep, infinity]}
";
const PROCESSES: &str = "cat $(find /sys/fs/cgroup/orlop/kubepods -name cgroup.procs) | sort -n";

/// The agent is killed; the pod's processes stay the same, and the new agent serves it.
fn agent_killed(scene: &mut Scene<'_>) -> Result<String> {
    let manifest = scene.plan.evidence.join("survivor.yaml");
    fs::write(&manifest, PODS).context("write the pod")?;
    scene.kubectl(&["apply", "-f", text(&manifest)?])?;
    scene.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "pod/survivor",
        "--timeout=60s",
        "--request-timeout=0",
    ])?;
    let before = scene.inside(&["sh", "-c", PROCESSES], COMMAND_LIMIT)?;
    ensure!(before.lines().count() >= 2, "the pod's two processes are not in its cgroups: {before:?}");
    let main_pid = ["systemctl", "show", "--property=MainPID", "--value", "orlop-agent.service"];
    let old = scene.inside(&main_pid, COMMAND_LIMIT)?;
    scene.inside(&["kill", "-KILL", old.trim()], COMMAND_LIMIT)?;
    let restarted = format!(
        "until [ \"$(systemctl show --property=MainPID --value orlop-agent.service)\" -gt 0 ] && \
         [ \"$(systemctl show --property=MainPID --value orlop-agent.service)\" != {} ] && \
         systemctl is-active orlop-agent.service; do sleep 0.2; done",
        old.trim()
    );
    scene.inside(&["sh", "-c", &restarted], READY_LIMIT)?;
    let after = scene.inside(&["sh", "-c", PROCESSES], COMMAND_LIMIT)?;
    ensure!(before == after, "the pod's processes were {before:?} and are {after:?}");
    let said = exec_until(scene, &["exec", "survivor", "-c", "two", "--", "echo", "alive"])?;
    ensure!(said == "alive", "exec said {said:?}");
    scene.kubectl(&["delete", "pod/survivor", "--timeout=60s", "--request-timeout=0"])?;
    let left = scene.inside(&["sh", "-c", PROCESSES], COMMAND_LIMIT)?;
    ensure!(left.trim().is_empty(), "processes of the deleted pod: {left}");
    Ok(String::new())
}

/// The new agent may not have found its pods yet.
fn exec_until(scene: &Scene<'_>, arguments: &[&str]) -> Result<String> {
    let deadline = Instant::now() + READY_LIMIT;
    loop {
        match scene.kubectl(arguments) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(PAUSE),
            ended => return ended,
        }
    }
}

/// What differs most between kernels: programs on links, packet by packet and with real ones.
fn uplink_tests(scene: &mut Scene<'_>) -> Result<String> {
    tier(scene, "binary(/^bpf$/) & test(/^(packets|uplink)::/)", Duration::from_secs(600))
}

/// On a machine with nothing else to do emulated processors need half an hour.
fn bpf_tests(scene: &mut Scene<'_>) -> Result<String> {
    tier(scene, "binary(/^bpf$/)", Duration::from_secs(5400))
}

fn host_tests(scene: &mut Scene<'_>) -> Result<String> {
    tier(scene, "binary(/^host$/)", Duration::from_secs(2400))
}

/// The tests of a root tier inside, each in a private host.
fn tier(scene: &mut Scene<'_>, filter: &str, limit: Duration) -> Result<String> {
    let root = process::root();
    let target = process::target();
    let skips = "/run/orlop-skips";
    let runner = text(&target.join("debug/private-host"))?.to_owned();
    let mut environment = vec![
        ("ORLOP_SKIPS", skips.to_owned()),
        ("ORLOP_ONLY_NEEDY_ROWS", "yes".to_owned()),
        ("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", runner),
        ("INSTA_WORKSPACE_ROOT", root.display().to_string()),
        ("INSTA_UPDATE", "no".to_owned()),
    ];
    let peers = scene.plan.peers.iter();
    environment.extend(peers.map(|(name, path)| (name.as_str(), path.display().to_string())));
    let tools = super::tools();
    let filter = match &scene.plan.tests {
        Some(tests) if tests.contains('\'') => bail!("--tests {tests:?}: no expression with a quote in it"),
        Some(tests) => format!("({filter}) & ({tests})"),
        None => filter.to_owned(),
    };
    let command = format!(
        "cd {root} && : > {skips} && {nextest} nextest run --profile vm --binaries-metadata {binaries} --cargo-metadata {metadata} \
         --ignore-default-filter -E '{filter}' --no-fail-fast --test-threads 2 --status-level pass --color never",
        root = root.display(),
        nextest = tools.join("cargo-nextest").display(),
        binaries = tools.join("binaries.json").display(),
        metadata = tools.join("metadata.json").display(),
    );
    let call = Call { command: &["sh", "-c", &command], environment: &environment, limit };
    let (log, kernel) = (&mut scene.log, &scene.plan.kernel.name);
    let code = scene.guest.run_any(&call, |line| {
        note(log, line);
        if line.trim_start().starts_with("FAIL") {
            println!("[{kernel}]   {}", line.trim());
        }
    })?;
    let report = target.join("nextest/vm/junit.xml");
    let report = scene.guest.run(&Call::new(&["cat", text(&report)?], COMMAND_LIMIT), |_| {});
    let report = report.with_context(|| format!("the tests did not run (nextest ended with {code:?})"))?;
    let skipped = scene.inside(&["cat", skips], COMMAND_LIMIT)?;
    let tally = tally::read(&report, &skipped)?;
    ensure!(tally.failed == 0, "{} of {} tests failed", tally.failed, tally.failed + tally.passed);
    ensure!(code == Some(0), "nextest ended with {code:?}");
    ensure!(tally.passed > 0, "no test ran");
    // These kernels are here for what others lack.
    ensure!(tally.skipped.is_empty(), "tests skipped themselves: {}", tally.skipped.join("; "));
    Ok(format!("{} tests", tally.passed))
}

/// The load balancer's bench, beside what the development kernel lacks. Its table goes through line by line.
fn bench(scene: &mut Scene<'_>) -> Result<String> {
    let (program, groups) = scene.plan.bench.as_ref().context("there is nothing to measure")?;
    let runner = process::target().join("debug/private-host");
    let mut command = vec![text(&runner)?, text(program)?];
    command.extend(groups.iter().map(String::as_str));
    let environment = [("ORLOP_BENCH_PEERS", "IPVS".to_owned())];
    let call = Call { command: &command, environment: &environment, limit: Duration::from_secs(1800) };
    let log = &mut scene.log;
    scene.guest.run(&call, |line| {
        note(log, line);
        println!("{line}");
    })?;
    Ok(String::new())
}

/// What the kernel says when something is wrong with it, whoever caused that.
const TROUBLE: &[&str] = &[
    "BUG:",
    "Oops",
    "WARNING:",
    "general protection fault",
    "unregister_netdevice: waiting",
    "blocked for more than",
    "soft lockup",
    "rcu_preempt detected stalls",
    "rcu_preempt self-detected stall",
];

pub fn kernel_log(scene: &mut Scene<'_>) -> Result<String> {
    let log = scene.inside(&["dmesg"], COMMAND_LIMIT)?;
    let trouble: Vec<&str> =
        log.lines().filter(|line| TROUBLE.iter().any(|word| line.contains(word))).collect();
    ensure!(trouble.is_empty(), "the kernel complains: {}", trouble.join("; "));
    Ok(String::new())
}

fn power_off(scene: &mut Scene<'_>) -> Result<String> {
    // The machine may be off before it has said that it does so.
    let asked = scene.inside(&["systemctl", "--no-block", "poweroff"], COMMAND_LIMIT);
    if let Err(error) = asked {
        note(&scene.log, &format!("{error:#}"));
    }
    scene.guest.wait_off(OFF_LIMIT)?;
    Ok(String::new())
}

pub fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
