//! `cargo xtask e2e`: Orlop on stock distribution kernels, in virtual machines.
//!
//! For each kernel a QEMU machine with Debian's systemd on cgroup v2, where the whole run installs what users install, `target/dist`
//! by its `install.sh`, and a part of it the unoptimised `target/dist-debug`, which is built sooner. [`checks`] says what is checked.
//! Everything is unpacked or made below `target/`; the machine that this runs on is not changed.
//!
//! ```text
//! e2e ── setpriv, unshare (network, mounts, pids) ──▶ vm outside ── virtio port over stdio ──▶ QEMU: vm inside
//!                                                       │ kubectl, test executables ── tap ──▶   server, agent
//! ```
//!
//! When this process dies the kernel ends the pid namespace, and with it QEMU and all else. `target/e2e/<kernel>/` keeps the
//! console and a log of each check; of a check that failed also the kernel's log, the units' logs and the packets.

mod checks;
mod guest;
mod image;
mod inside;
mod kernel;
mod network;
mod outside;
mod power;
mod qemu;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::{dist, images, process, setup, test};
use image::Payload;
use kernel::Kernel;
use qemu::{Accelerator, Disks, RootWrites};
use table::{Outcome, Report};

/// The one kernel of `--smoke` without `--kernel`: what the oldest supported release has.
const SMOKE_KERNEL: &str = "6.1";

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// A kernel to boot, more than once for several; without it all of them, or 6.1 alone with --smoke.
    #[arg(long = "kernel", value_name = "VERSION", value_parser = clap::builder::PossibleValuesParser::new(kernel::names()))]
    kernels: Vec<String>,
    /// The fast part alone.
    #[arg(long)]
    smoke: bool,
    /// A check to run with those that it needs, more than once for several; without it all of them, or the fast part.
    #[arg(
        long = "check",
        value_name = "NAME",
        conflicts_with = "smoke",
        value_parser = clap::builder::PossibleValuesParser::new(checks::names())
    )]
    checks: Vec<String>,
    /// Of the tests inside, only those of this nextest expression, such as 'test(firewall)'.
    #[arg(long = "tests", value_name = "EXPRESSION", conflicts_with = "smoke")]
    tests: Option<String>,
    /// Build no executables but the tests.
    #[arg(long)]
    no_build: bool,
}

impl Options {
    /// The fast part, of executables and tests that are built already.
    pub fn smoke_of_built() -> Self {
        Self { kernels: Vec::new(), smoke: true, checks: Vec::new(), tests: None, no_build: true }
    }

    /// Everything on every kernel.
    pub fn everything() -> Self {
        Self { kernels: Vec::new(), smoke: false, checks: Vec::new(), tests: None, no_build: false }
    }

    /// What is installed: a part of the checks does not wait for a release build.
    fn profile(&self) -> dist::Profile {
        if self.smoke || !self.checks.is_empty() { dist::Profile::Debug } else { dist::Profile::Release }
    }

    fn kernels(&self) -> Vec<String> {
        match (self.kernels.is_empty(), self.smoke) {
            (false, _) => self.kernels.clone(),
            (true, true) => vec![SMOKE_KERNEL.to_owned()],
            (true, false) => kernel::names().into_iter().map(str::to_owned).collect(),
        }
    }
}

#[derive(clap::Subcommand)]
pub enum Stage {
    /// Run a machine and check it, in private namespaces.
    Outside { plan: PathBuf },
    /// Serve commands in the machine.
    Inside,
}

/// Everything that the stage outside of a machine needs to know.
#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    kernel: Kernel,
    accelerator: Accelerator,
    disks: Disks,
    qemu: PathBuf,
    kubectl: PathBuf,
    /// The executable of the cluster tier's tests, run outside.
    cluster_tests: PathBuf,
    /// What is installed.
    dist: PathBuf,
    /// What tests inside run besides our own programs, by variable.
    peers: Vec<(String, PathBuf)>,
    /// Where logs and the result go.
    evidence: PathBuf,
    /// The names of the checks to run.
    checks: Vec<String>,
    /// Which tests of theirs; none: all.
    tests: Option<String>,
    /// The bench to run, with its arguments.
    bench: Option<(PathBuf, Vec<String>)>,
}

pub fn run(options: &Options) -> Result<()> {
    let mut tally = test::Tally::default();
    let end = checks(options, &mut tally);
    test::close(tally, end)
}

/// Runs the machines one after the other, prints the table, and counts each check as a test.
pub fn checks(options: &Options, tally: &mut test::Tally) -> Result<()> {
    if let Some(obstacle) = obstacle() {
        bail!("e2e: {obstacle}");
    }
    let mut reports = Vec::new();
    for plan in &prepare(options)? {
        let report = run_machine(plan);
        reports.push(report.unwrap_or_else(|error| {
            println!("[{}] {error:#}", plan.kernel.name);
            Report::of_failed_stage(&plan.kernel.name, format!("{error:#}"))
        }));
    }
    println!("\n{}", table::print(&reports));
    for report in &reports {
        report.count(tally);
    }
    if reports.iter().any(Report::failed) {
        println!("e2e: logs are in {}", folder().display());
    }
    Ok(())
}

/// The stock kernels.
pub fn kernels() -> Vec<&'static str> {
    kernel::names()
}

/// Why this machine cannot run virtual machines, if so.
pub fn obstacle() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        Some("it makes namespaces and file systems, which needs root")
    } else if !cfg!(target_arch = "x86_64") {
        Some("it knows the kernels of x86-64 alone")
    } else {
        None
    }
}

pub fn stage(stage: &Stage) -> Result<()> {
    match stage {
        Stage::Outside { plan } => outside::run(plan),
        Stage::Inside => inside::run(),
    }
}

fn folder() -> PathBuf {
    process::target().join("e2e")
}

/// What tests need inside besides themselves.
fn tools() -> PathBuf {
    folder().join("tools")
}

/// Runs the load balancer's bench in a virtual machine; what it prints goes through.
pub fn bench(kernel: &str, program: PathBuf, arguments: Vec<String>) -> Result<()> {
    if let Some(obstacle) = obstacle() {
        bail!("bench: {obstacle}");
    }
    let host = Host::prepare(&[kernel.to_owned()])?;
    let debug = process::target().join("debug");
    let xtask = debug.join("xtask");
    let executables = vec![xtask, test::private_host()?, program.clone()];
    let disks = host.disks(&Payload { executables, files: Vec::new() })?;
    let checks = [checks::BOOT, checks::BENCH, checks::POWER_OFF].map(str::to_owned).to_vec();
    let [kernel] = &host.kernels[..] else { bail!("one kernel was asked for") };
    let report = run_machine(&Plan {
        kernel: kernel.clone(),
        accelerator: host.accelerator,
        disks,
        qemu: host.qemu.clone(),
        kubectl: PathBuf::new(),
        cluster_tests: PathBuf::new(),
        dist: PathBuf::new(),
        peers: Vec::new(),
        evidence: folder().join(format!("bench-{}", kernel.name)),
        checks,
        tests: None,
        bench: Some((program, arguments)),
    })?;
    ensure!(!report.failed(), "the bench failed: logs are in {}", folder().display());
    Ok(())
}

/// What all machines are made of.
struct Host {
    /// The tree of the root disk, whose tools are used.
    root: PathBuf,
    qemu: PathBuf,
    kernels: Vec<Kernel>,
    accelerator: Accelerator,
}

impl Host {
    /// Downloads.
    fn prepare(kernels: &[String]) -> Result<Self> {
        let (root, qemu) = (image::unpack_root()?, qemu::unpack()?);
        let kernels: Vec<Kernel> =
            kernels.iter().map(|name| kernel::prepare(name, &root)).collect::<Result<_>>()?;
        let first = kernels.first().context("there is no kernel to boot")?;
        let accelerator = qemu::probe(&qemu, first, &folder().join("probe.log"))?;
        println!("e2e: machines run by {}", accelerator.name());
        Ok(Self { root, qemu, kernels, accelerator })
    }

    fn disks(&self, payload: &Payload) -> Result<Disks> {
        let payload = image::payload(&self.root, payload)?;
        Ok(Disks { root: image::root(&self.root)?, root_writes: RootWrites::Forgotten, payload })
    }
}

/// Downloads, builds, and makes the disks.
fn prepare(options: &Options) -> Result<Vec<Plan>> {
    let host = Host::prepare(&options.kernels())?;
    if !options.no_build {
        // Tests take executables from where cargo builds them, without optimisation.
        dist::run(&dist::Options::for_tests())?;
        if options.profile() == dist::Profile::Release {
            dist::run(&dist::Options::profile(false))?;
        }
        images::run()?;
        test::private_host()?;
    }
    let dist = dist::folder(options.profile());
    let tests = find_tests()?;
    let cluster_tests = tests.iter().find(|path| named(path, "cluster")).cloned();
    let cluster_tests = cluster_tests.context("the cluster tier was not built")?;
    let peers = test::peers()?;
    let mut payload = payload(tests, &dist)?;
    for (_, peer) in &peers {
        payload.files.extend(if peer.is_dir() { files(peer)? } else { vec![peer.clone()] });
    }
    let disks = host.disks(&payload)?;
    let checks: Vec<String> =
        checks::chosen(&options.checks, options.smoke).into_iter().map(str::to_owned).collect();
    let plan = |kernel: &Kernel| -> Result<Plan> {
        Ok(Plan {
            evidence: folder().join(&kernel.name),
            kernel: kernel.clone(),
            accelerator: host.accelerator,
            disks: disks.clone(),
            qemu: host.qemu.clone(),
            kubectl: setup::kubectl()?,
            cluster_tests: cluster_tests.clone(),
            dist: dist.clone(),
            peers: peers.iter().map(|(name, path)| ((*name).to_owned(), path.clone())).collect(),
            checks: checks.clone(),
            tests: options.tests.clone(),
            bench: None,
        })
    };
    host.kernels.iter().map(plan).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Binaries {
    rust_binaries: std::collections::BTreeMap<String, Binary>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Binary {
    binary_path: PathBuf,
}

/// Builds the test executables of the root tiers, and writes down for the nextest inside which there are.
fn find_tests() -> Result<Vec<PathBuf>> {
    fs::create_dir_all(tools()).with_context(|| format!("create {}", tools().display()))?;
    let mut list = process::cargo();
    list.args(["nextest", "list", "--workspace", "--list-type", "binaries-only", "--message-format", "json"]);
    for name in ["host", "bpf", "cluster"] {
        list.args(["--test", name]);
    }
    let binaries = process::run_quietly("building the tests", &mut list)?;
    fs::write(tools().join("binaries.json"), &binaries).context("write binaries.json")?;
    let metadata = process::run_quietly(
        "reading the dependency graph",
        process::cargo().args(["metadata", "--format-version", "1"]),
    )?;
    fs::write(tools().join("metadata.json"), metadata).context("write metadata.json")?;
    let nextest = process::find_tool("cargo-nextest")
        .context("cargo-nextest is not installed: run `cargo xtask setup`")?;
    fs::copy(&nextest, tools().join("cargo-nextest"))
        .with_context(|| format!("copy {}", nextest.display()))?;
    let parsed: Binaries = serde_json::from_str(&binaries).context("parse nextest's list")?;
    Ok(parsed.rust_binaries.into_values().map(|binary| binary.binary_path).collect())
}

/// Whether a path is `<name>-<hash>`, as cargo names executables of tests.
fn named(path: &Path, name: &str) -> bool {
    let file = path.file_name().and_then(|file| file.to_str()).unwrap_or_default();
    file.rsplit_once('-').is_some_and(|(stem, _)| stem == name)
}

fn payload(tests: Vec<PathBuf>, dist: &Path) -> Result<Payload> {
    let debug = process::target().join("debug");
    let mut executables: Vec<PathBuf> = tests.into_iter().filter(|path| !named(path, "cluster")).collect();
    let (programs, plugins) = (files(&dist.join("bin"))?, files(&dist.join("cni"))?);
    executables.extend(["xtask", "private-host", "cni-plugins"].map(|name| debug.join(name)));
    executables.extend(programs.iter().filter_map(|program| Some(debug.join(program.file_name()?))));
    executables.extend(programs.into_iter().chain(plugins));
    let mut others = files(&images::folder())?;
    others.extend(files(&dist.join("deploy"))?);
    others.extend(files(&tools())?);
    Ok(Payload { executables, files: others })
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect())
}

/// Runs the stage that owns a machine, in namespaces that end with it, and reads what it found.
fn run_machine(plan: &Plan) -> Result<Report> {
    println!("\n== kernel {}", plan.kernel.name);
    image::make_empty(&plan.evidence)?;
    let path = plan.evidence.join("plan.json");
    fs::write(&path, serde_json::to_vec_pretty(plan)?)
        .with_context(|| format!("write {}", path.display()))?;
    let mut stage = Command::new("setpriv");
    stage.args(["--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--mount-proc", "--fork"]);
    stage.arg("--kill-child=KILL").arg(std::env::current_exe().context("find own executable")?);
    stage.args(["vm", "outside"]).arg(&path);
    let status = stage.status().context("start setpriv")?;
    let result = outside::result_file(&plan.evidence);
    let bytes = fs::read(&result).with_context(|| format!("the machine's stage ended with {status}"))?;
    let mut report: Report = serde_json::from_slice(&bytes).context("parse the result")?;
    if !status.success() {
        report.outcomes.push(Outcome::of_stage(format!("the stage ended with {status}")));
    }
    Ok(report)
}
