//! The load balancer beside nftables and iptables as kube-proxy writes them: builds `ebpf/dataplane/benches/dataplane.rs` as a release is built,
//! and runs it in a private host; or beside IPVS, which not every kernel has, in a virtual machine.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::debian::{self, Tree};
use crate::{build_ebpf, e2e, process, test};

/// What runs `iptables-restore` in the bench: one word a line.
const IPTABLES: &str = "ORLOP_BENCH_IPTABLES";

/// The group that needs an agent with an API server, and the program that has them.
const ROLLS: &str = "rolls";
const OWNER: &str = "ORLOP_BENCH_OWNER";

#[derive(clap::Args)]
pub struct Options {
    /// Beside IPVS, in a virtual machine with this stock kernel: ratios hold there, times do not.
    #[arg(long, value_name = "VERSION", value_parser = clap::builder::PossibleValuesParser::new(e2e::kernels()))]
    kernel: Option<String>,
    /// Measure these groups alone; the bench names those that there are when it does not know one.
    groups: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "bench dataplane loads BPF programs, which needs root");
    build_ebpf::run()?;
    let executable = build_bench("dataplane", "dataplane")?;
    if let Some(kernel) = &options.kernel {
        return e2e::bench(kernel, executable, options.groups.clone());
    }
    let mut bench = Command::new(test::private_host()?);
    bench.arg(executable).args(&options.groups);
    if options.groups.is_empty() || options.groups.iter().any(|group| group == ROLLS) {
        bench.env(OWNER, owner()?);
    }
    match iptables() {
        Ok(words) => drop(bench.env(IPTABLES, words)),
        // The bench goes on, and says in its table what it did not measure.
        Err(error) => eprintln!("iptables is not measured: {error:#}"),
    }
    process::run(&mut bench)
}

/// Debian's own iptables, unpacked: installed, it would be found by whatever looks for one.
fn iptables() -> Result<String> {
    let packages = ["iptables"];
    let tree = debian::unpack_tree(&Tree {
        name: "iptables",
        packages: &packages,
        suites: &[],
        dependencies: true,
    })?;
    // Of its two, the one that does not go through nftables: it loads the rules forty times as fast, and they take half as long.
    let program = debian::program(&tree, "usr/sbin/xtables-legacy-multi", "xtables-legacy-multi");
    let plugins = tree.join("usr/lib/x86_64-linux-gnu/xtables");
    let mut words = vec!["env".to_owned(), format!("XTABLES_LIBDIR={}", plugins.display())];
    words.push(program.get_program().to_string_lossy().into_owned());
    words.extend(program.get_args().map(|word| word.to_string_lossy().into_owned()));
    Ok(words.join("\n"))
}

/// An agent and an API server as they are released, and what starts them.
fn owner() -> Result<PathBuf> {
    let mut server = process::cargo();
    server.args(["build", "--release", "--quiet", "--package", "server"]);
    process::run_quietly("building the API server", &mut server)?;
    build_bench("agent", "owner")
}

/// As a release is built; gives the executable.
fn build_bench(package: &str, name: &str) -> Result<PathBuf> {
    let mut build = process::cargo();
    build.args(["bench", "--no-run", "--quiet", "--package", package, "--bench", name]);
    let what = format!("building the bench {name} of {package}");
    let messages = process::run_quietly(&what, build.args(["--message-format", "json"]))?;
    executable(&messages)
}

/// What cargo says that it built as the bench: it builds the package's programs with it.
fn executable(messages: &str) -> Result<PathBuf> {
    let built = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut benches = built.filter(|message| message["target"]["kind"][0] == "bench");
    let path = benches.find_map(|message| message["executable"].as_str().map(PathBuf::from));
    path.context("cargo named no executable of the bench")
}
