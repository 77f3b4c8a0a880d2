//! `cargo xtask test [TIER]`: the tests that this machine can run, a tier at a time, with one closing line.
//!
//! Tier 0 needs nothing, root neither (I9): where root runs it, its tests have no capability. Tier 1 (`host` test
//! binaries) and tier 2 (`bpf`) run each test as root in a private host: fresh mount, network, pid, uts, ipc and cgroup
//! namespaces made by `private-host`, which also fails a test that leaves something behind. Tier 4 (`cluster`) starts a cluster with `up` and drives it with kubectl.
//! Tier 3 (virtual machines) is `cargo xtask e2e`; it is not part of a run without a number, since it takes its time.
//!
//! A test skips by saying why in the file that `ORLOP_SKIPS` names; such a test is counted as skipped, with its reason.

pub mod tally;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{build_ebpf, debian, dist, down, e2e, images, process, setup, up};
pub use tally::Tally;

/// What nextest exits with when nothing matches the filter (its NO_TESTS_RUN).
const NO_TESTS: i32 = 4;

/// Names a real registry to tests.
const REGISTRY: &str = "ORLOP_DOCKER_REGISTRY";

/// What tier 0 runs under where root tests: the same user, whose files it may read, with no capability at all.
const WITHOUT_PRIVILEGES: &str = "setpriv --bounding-set=-all --inh-caps=-all --";

#[derive(clap::Args)]
pub struct Options {
    /// 0 pure, 1 private host, 2 BPF, 3 virtual machines, 4 cluster; without a number all but the machines.
    #[arg(value_parser = clap::value_parser!(u8).range(0..=4))]
    tier: Option<u8>,
    /// Run only tests whose name contains this.
    #[arg(long)]
    filter: Option<String>,
    /// Collect failures of all tests instead of stopping a tier at the first.
    #[arg(long)]
    no_fail_fast: bool,
}

impl Options {
    /// Every tier, every test, all failures.
    pub fn everything() -> Self {
        Self { tier: None, filter: None, no_fail_fast: true }
    }
}

struct Tier {
    number: u8,
    name: &'static str,
    /// The nextest filter set that picks the tier's test binaries.
    binaries: &'static str,
    /// Whether each test process starts in a private host.
    private_host: bool,
    /// How many tests run at a time; `None` leaves it to nextest.
    threads: Option<u8>,
    /// What has to be built before.
    needs: Needs,
}

/// What a tier runs besides its test binaries.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Needs {
    Nothing,
    /// The BPF object, which a build script embeds.
    Object,
    /// The executables of a node, and with them the object: in `target/debug` and `target/dist-debug`. And the test images.
    Executables,
}

const TIERS: &[Tier] = &[
    Tier {
        number: 0,
        name: "pure",
        binaries: "not binary(/^(host|bpf|cluster)$/)",
        private_host: false,
        threads: None,
        needs: Needs::Nothing,
    },
    Tier {
        number: 1,
        name: "private host",
        binaries: "binary(/^host$/)",
        private_host: true,
        threads: Some(2),
        needs: Needs::Executables,
    },
    Tier {
        number: 2,
        name: "bpf",
        binaries: "binary(/^bpf$/)",
        private_host: true,
        threads: Some(2),
        needs: Needs::Object,
    },
    Tier {
        number: 4,
        name: "cluster",
        binaries: "binary(/^cluster$/)",
        private_host: false,
        threads: Some(1),
        needs: Needs::Executables,
    },
];

pub fn run(options: &Options) -> Result<()> {
    let mut tally = Tally::default();
    let end = tiers(options, &mut tally);
    close(tally, end)
}

/// Prints the closing lines of a run, whatever became of it: what stopped it counts as one more failure, and nothing is printed after.
pub fn close(mut tally: Tally, end: Result<()>) -> Result<()> {
    if let Err(error) = end {
        println!("xtask: {error:#}");
        tally.failed += 1;
    }
    tally.print();
    if tally.failed > 0 { Err(process::Told.into()) } else { Ok(()) }
}

/// Runs the chosen tiers and adds up what became of their tests, up to the tier that could not be run.
pub fn tiers(options: &Options, tally: &mut Tally) -> Result<()> {
    if options.tier == Some(3) {
        return e2e::checks(&e2e::Options::everything(), tally);
    }
    let chosen: Vec<&Tier> =
        TIERS.iter().filter(|tier| options.tier.is_none_or(|n| n == tier.number)).collect();
    let root = nix::unistd::geteuid().is_root();
    match chosen.iter().filter(|tier| root || tier.number == 0).map(|tier| tier.needs).max() {
        Some(Needs::Executables) => {
            dist::run(&dist::Options::for_tests())?;
            images::run()?;
        }
        Some(Needs::Object) => build_ebpf::run()?,
        Some(Needs::Nothing) | None => {}
    }
    for tier in chosen {
        if tier.number > 0 && !root {
            tally.skip(format!("tier {} ({}): needs root", tier.number, tier.name));
            continue;
        }
        tally.add(if tier.number == 4 { run_cluster_tier(tier, options)? } else { run_tier(tier, options)? });
    }
    Ok(())
}

/// The tests start the cluster. Afterwards it is stopped, and that nothing is left on the machine is one more test.
fn run_cluster_tier(tier: &Tier, options: &Options) -> Result<Tally> {
    if up::folder().exists() || up::state::is_here()? {
        bail!("a cluster is up, and the cluster tests start their own: run `cargo xtask down` first");
    }
    let leaks = harness_binary("leaks")?;
    let saved = process::target().join("before-up");
    process::run(Command::new(&leaks).arg("save").arg(&saved))?;
    let tally = run_tier(tier, options);
    if tally.as_ref().map_or(true, |tally| tally.failed > 0) {
        keep_logs();
    }
    down::run()?;
    let mut tally = tally?;
    match process::run(Command::new(&leaks).arg("compare").arg(&saved)) {
        Ok(()) => tally.passed += 1,
        Err(_) => tally.failed += 1,
    }
    Ok(tally)
}

/// The logs of a failed run stay in `target/up-logs`, a folder for each node.
fn keep_logs() {
    let kept = process::target().join("up-logs");
    let _ = std::fs::remove_dir_all(&kept);
    for node in up::nodes::folders() {
        let name = node.file_name().unwrap_or_default();
        let copied = std::fs::create_dir_all(&kept).context("create target/up-logs").and_then(|()| {
            process::run(Command::new("cp").arg("-rT").arg(node.join("logs")).arg(kept.join(name)))
        });
        if let Err(error) = copied {
            eprintln!("keep the logs: {error:#}");
        }
    }
}

fn run_tier(tier: &Tier, options: &Options) -> Result<Tally> {
    println!("\ntier {}: {}", tier.number, tier.name);
    let skips = process::target().join(format!("skips-{}", tier.number));
    std::fs::write(&skips, "").with_context(|| format!("write {}", skips.display()))?;
    let mut command = process::cargo();
    // `--ignore-default-filter`: .config/nextest.toml keeps the root tiers out of a plain `cargo nextest run`.
    command.args(["nextest", "run", "--workspace", "--ignore-default-filter"]);
    // A name that matches in one tier only is fine; a whole tier without tests is a mistake.
    command.arg(if options.filter.is_some() { "--no-tests=pass" } else { "--no-tests=fail" });
    command.args(["-E", &filter(tier, options)]).env("ORLOP_SKIPS", &skips);
    match tier.number {
        1 => drop(command.envs(peers()?)),
        4 => drop(command.env("ORLOP_KUBECTL", setup::kubectl()?).env(REGISTRY, registry()?)),
        _ => {}
    }
    if options.no_fail_fast {
        command.arg("--no-fail-fast");
    }
    if let Some(threads) = tier.threads {
        command.args(["--test-threads", &threads.to_string()]);
    }
    let runner = match (tier.number, tier.private_host) {
        (_, true) => Some(private_host()?.into_os_string()),
        (0, _) if nix::unistd::geteuid().is_root() => Some(WITHOUT_PRIVILEGES.into()),
        _ => None,
    };
    if let Some(runner) = runner {
        for architecture in ["X86_64", "AARCH64"] {
            command.env(format!("CARGO_TARGET_{architecture}_UNKNOWN_LINUX_GNU_RUNNER"), &runner);
        }
    }
    let report = process::target().join("nextest/default/junit.xml");
    let _ = std::fs::remove_file(&report);
    let status = command.status().context("start cargo nextest: run `cargo xtask setup`")?;
    let text = std::fs::read_to_string(&report);
    if status.code() == Some(NO_TESTS) {
        bail!("tier {} ({}) has no tests", tier.number, tier.name);
    }
    if !status.success() && text.is_err() {
        bail!("tier {} did not build", tier.number);
    }
    let tally = tally::read(&text.unwrap_or_default(), &std::fs::read_to_string(&skips)?)?;
    if !status.success() && tally.failed == 0 {
        bail!("tier {}: nextest failed without a failed test: {status}", tier.number);
    }
    Ok(tally)
}

/// What the tests in private hosts run besides this repository's own programs: a program or a folder, by the variable that names it.
pub fn peers() -> Result<Vec<(&'static str, PathBuf)>> {
    Ok(vec![
        (REGISTRY, registry()?),
        ("ORLOP_REFERENCE_PLUGINS", reference_plugins()?),
        ("ORLOP_CONTAINERD", containerd(None)?),
        ("ORLOP_CONTAINERD_SID", containerd(Some("sid"))?),
        ("ORLOP_RUNC", runc()?),
        ("ORLOP_IMAGES", images::folder()),
    ])
}

/// A real registry for the tests that pull.
fn registry() -> Result<PathBuf> {
    let package = debian::Package { name: "docker-registry", version: None, suite: None };
    Ok(debian::unpack(&package)?.join("usr/bin/docker-registry"))
}

/// The CNI project's plugins, which ours are compared with: a folder of executables.
pub fn reference_plugins() -> Result<PathBuf> {
    let name = "containernetworking-plugins";
    let package = debian::Package { name, version: Some("1.9.1+ds1-1"), suite: Some("sid") };
    Ok(debian::unpack(&package)?.join("usr/lib/cni"))
}

/// A container runtime that uses the plugins, of this machine's release or of another suite: a folder of executables.
fn containerd(suite: Option<&str>) -> Result<PathBuf> {
    let package = debian::Package { name: "containerd", version: None, suite };
    Ok(debian::unpack(&package)?.join("usr/bin"))
}

/// What containerd runs containers with: a folder of one executable. Always this machine's release, since a newer one needs its C library.
fn runc() -> Result<PathBuf> {
    let package = debian::Package { name: "runc", version: None, suite: None };
    Ok(debian::unpack(&package)?.join("usr/sbin"))
}

fn filter(tier: &Tier, options: &Options) -> String {
    match &options.filter {
        Some(name) => format!("({}) & test({name})", tier.binaries),
        None => tier.binaries.to_owned(),
    }
}

/// Builds the runner of the private tiers.
pub fn private_host() -> Result<PathBuf> {
    harness_binary("private-host")
}

fn harness_binary(name: &str) -> Result<PathBuf> {
    let mut build = process::cargo();
    build.args(["build", "--quiet", "--package", "harness", "--bin", name]);
    process::run_quietly(&format!("building {name}"), &mut build)?;
    Ok(process::target().join("debug").join(name))
}

/// Whether cargo and nextest can be started at all, with a clear sentence if not.
pub fn check_tools() -> Result<()> {
    process::probe(process::tool("cargo-nextest").arg("--version"))
        .map(drop)
        .context("cargo-nextest is not installed: run `cargo xtask setup`")
}
