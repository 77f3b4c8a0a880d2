//! `cargo xtask up`: a cluster on this machine, in machines of its own below `target/up`.
//!
//! Sets up, builds, makes the network, starts the nodes' machines, waits until they are Ready, and proves the cluster with a pod
//! and a Service. Called again on a running cluster it starts what has died of it and says so; asked for another cluster than the
//! one that runs, it refuses. `down` takes everything away. One cluster per machine, whichever checkout it is of.
//!
//! The nodes reach the host, and through it (`egress`) what the host reaches, unless `--no-egress` says otherwise or the host
//! forbids it; a registry on the host's loopback is reached through a relay.

mod check;
mod egress;
mod network;
pub mod nodes;
pub mod owner;
mod ready;
pub mod relay;
pub mod state;
mod wanted;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;

use crate::{dist, images, process, setup};
use nodes::Node;
use wanted::Wanted;

#[derive(clap::Args)]
pub struct Options {
    /// Stay, and show the logs of the server and the agents.
    #[arg(long)]
    foreground: bool,
    /// Start without looking whether everything is installed and built.
    #[arg(long)]
    no_build: bool,
    #[command(flatten)]
    wanted: Wanted,
}

pub fn run(options: &Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "`up` makes namespaces and loads BPF programs: run it as root");
    let turn = owner::take_turn()?;
    let mut steps = Steps::new();
    let wanted = &options.wanted;
    let alive = owner::find()?.machines;
    refuse_another(wanted, !alive.is_empty())?;
    ensure!(
        alive.is_empty() || network::is_whole(),
        "the cluster's machines run, but its network is gone: run `cargo xtask down` first"
    );
    let all = nodes::all(wanted);
    let dead: Vec<Node> = all.iter().filter(|node| !alive.contains(&node.name)).cloned().collect();
    if alive.is_empty() {
        if state::is_here()? {
            println!("the cluster's machines are dead: starting them again");
            state::clear()?;
        }
        if !options.no_build {
            steps.step("setup", setup::run)?;
            steps.step("build", || build(wanted.debug))?;
        }
    } else if !dead.is_empty() {
        let names: Vec<&str> = dead.iter().map(|node| node.name.as_str()).collect();
        println!("dead: {}: starting again", names.join(", "));
    }
    let since = Timestamp::now();
    steps.step("machines", || start(wanted, &dead, alive.is_empty()))?;
    let wish = ready::Wish { nodes: &all, started: &dead, since };
    steps.step("ready", || ready::wait(&wish, &kubeconfig()))?;
    if dead.is_empty() {
        println!("the cluster is up: {}", kubeconfig().display());
    } else {
        steps.step("self-check", || check::run(&kubeconfig()))?;
        steps.print();
        say_what_next()?;
    }
    drop(turn);
    if options.foreground { follow_logs(&all) } else { Ok(()) }
}

/// A cluster that runs is only ever completed, never changed.
fn refuse_another(wanted: &Wanted, alive: bool) -> Result<()> {
    match state::read()? {
        Some(found) if found != *wanted && state::is_here()? => {
            bail!("a cluster with other options ({found}) is here: run `cargo xtask down` first")
        }
        None if alive => {
            bail!("a cluster runs, but {} is gone: run `cargo xtask down` first", folder().display())
        }
        _ => Ok(()),
    }
}

/// Starts what is missing: the network, the way out, the relay, machines. Of a cluster that is made anew nothing stays when it fails.
fn start(wanted: &Wanted, dead: &[Node], anew: bool) -> Result<()> {
    state::write(wanted)?;
    let started = try_start(wanted, dead);
    if started.is_err()
        && anew
        && let Err(error) = state::clear()
    {
        eprintln!("up: take the cluster away again: {error:#}");
    }
    started
}

fn try_start(wanted: &Wanted, dead: &[Node]) -> Result<()> {
    network::make_switch(wanted.dual_stack)?;
    if !wanted.no_egress
        && let Err(error) = egress::open()
    {
        println!("up: no way out of this machine for nodes and pods: {error:#}");
    }
    relay::start(wanted)?;
    dead.iter().try_for_each(|node| nodes::start(node, wanted))
}

fn say_what_next() -> Result<()> {
    println!("\n  export KUBECONFIG={}", kubeconfig().display());
    let kubectl = shown_kubectl()?;
    println!("  {kubectl} get pods -A\n  {kubectl} apply -f examples/hello.yaml\n");
    Ok(())
}

/// kubectl as the user has to type it.
fn shown_kubectl() -> Result<String> {
    match process::find_in_path("kubectl") {
        Some(_) => Ok("kubectl".to_owned()),
        None => Ok(setup::kubectl()?.display().to_string()),
    }
}

/// Shows the parts' logs until the user interrupts it; the cluster goes on.
fn follow_logs(nodes: &[Node]) -> Result<()> {
    let mut tail = Command::new("tail");
    tail.args(["-n", "+1", "-F"]);
    for node in nodes {
        if node.runs_server {
            tail.arg(node.logs().join("server.log"));
        }
        tail.arg(node.logs().join("agent.log"));
    }
    process::run(&mut tail)
}

/// Where everything of the cluster is.
pub fn folder() -> PathBuf {
    process::target().join("up")
}

pub fn kubeconfig() -> PathBuf {
    folder().join("admin.kubeconfig")
}

fn build(debug: bool) -> Result<()> {
    dist::run(&dist::Options::profile(debug))?;
    images::run().map(drop)
}

/// How long each step took.
struct Steps(Vec<(&'static str, Duration)>);

impl Steps {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn step<T>(&mut self, name: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = work().with_context(|| format!("up: {name}"))?;
        self.0.push((name, start.elapsed()));
        Ok(result)
    }

    fn print(&self) {
        for (name, time) in &self.0 {
            println!("{name:>12} {:6.2} s", time.as_secs_f64());
        }
    }
}
