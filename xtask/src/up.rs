//! `cargo xtask up`: a cluster on this machine, in machines of its own below `target/up`.
//!
//! Sets up, builds, starts the node's machine, waits until it is Ready, and proves it with a pod and a Service. Called again
//! on a running cluster it says so; `down` takes everything away. One cluster per machine, whichever checkout it is of.
//!
//! The node reaches the host and nothing behind it: it has a default route to the host, which neither forwards nor masquerades
//! for it, so pods have no way out of the machine.

mod check;
mod network;
pub mod owner;
pub mod state;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::machine::parts::{self, Verdict};
use crate::machine::{Machine, Part};
use crate::{dist, images, process, setup};
use state::State;

/// How long the API may take to answer, and the node to become Ready.
const READY_LIMIT: Duration = Duration::from_secs(60);

const SERVICE_CIDR: &str = "10.96.0.0/16";
const POD_CIDR: &str = "10.244.0.0/16";

#[derive(clap::Args)]
pub struct Options {
    /// Stay, and show the logs of the server and the agent.
    #[arg(long)]
    foreground: bool,
    /// Run executables that are built without optimisation.
    #[arg(long)]
    debug: bool,
    /// Start without looking whether everything is installed and built.
    #[arg(long)]
    no_build: bool,
}

pub fn run(options: &Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "`up` makes namespaces and loads BPF programs: run it as root");
    let turn = owner::take_turn()?;
    let mut steps = Steps::new();
    let wanted = State::wanted(options.debug);
    let running = owner::find()?.alive;
    match State::read()? {
        Some(found) if found.options != wanted.options && state::is_here()? => {
            bail!("a cluster with other options ({}) is here: run `cargo xtask down` first", found.options);
        }
        Some(_) if running => {
            steps.step("check", || wait_ready(&kubeconfig()))?;
            println!("the cluster is up: {}", kubeconfig().display());
            drop(turn);
            return if options.foreground { follow_logs() } else { Ok(()) };
        }
        None if running => {
            bail!("a cluster runs, but {} is gone: run `cargo xtask down` first", folder().display())
        }
        _ => {}
    }
    if state::is_here()? {
        println!("the cluster's machine is dead: starting it again");
        state::clear()?;
    }
    if !options.no_build {
        steps.step("setup", setup::run)?;
        steps.step("build", || build(options.debug))?;
    }
    steps.step("machine", || start_machine(&wanted))?;
    steps.step("ready", || wait_ready(&kubeconfig()))?;
    steps.step("self-check", || check::run(&kubeconfig()))?;
    steps.print();
    println!("\n  export KUBECONFIG={}", kubeconfig().display());
    let kubectl = shown_kubectl()?;
    println!("  {kubectl} get pods -A\n  {kubectl} apply -f examples/hello.yaml\n");
    drop(turn);
    if options.foreground { follow_logs() } else { Ok(()) }
}

/// Shows the parts' logs until the user interrupts it; the cluster goes on.
fn follow_logs() -> Result<()> {
    let logs = node_folder().join("logs");
    let mut tail = Command::new("tail");
    process::run(tail.args(["-n", "+1", "-F"]).arg(logs.join("server.log")).arg(logs.join("agent.log")))
}

/// kubectl as the user has to type it.
fn shown_kubectl() -> Result<String> {
    match process::find_in_path("kubectl") {
        Some(_) => Ok("kubectl".to_owned()),
        None => Ok(setup::kubectl()?.display().to_string()),
    }
}

/// Where everything of the cluster is.
pub fn folder() -> PathBuf {
    process::target().join("up")
}

pub fn kubeconfig() -> PathBuf {
    folder().join("admin.kubeconfig")
}

pub fn node_folder() -> PathBuf {
    folder().join("nodes").join(state::NODE)
}

fn build(debug: bool) -> Result<()> {
    dist::run(&dist::Options::profile(debug))?;
    images::run().map(drop)
}

/// Makes the machine's folder, its network and its pid 1.
fn start_machine(wanted: &State) -> Result<()> {
    let folder = node_folder();
    for name in ["logs", "credentials", "var-lib-orlop", "images"] {
        fs::create_dir_all(folder.join(name))
            .with_context(|| format!("create {name} in {}", folder.display()))?;
    }
    let dist = dist::folder(if wanted.options.debug { dist::Profile::Debug } else { dist::Profile::Release });
    let machine = Machine {
        name: state::NODE.to_owned(),
        cgroup: format!("{}/{}", state::CGROUP, state::NODE),
        parts: vec![server_part(&dist), agent_part(&dist)],
    };
    machine.write(&folder)?;
    make_credentials(&dist, &folder)?;
    parts::forget(&folder)?;
    wanted.write()?;
    let started = start_init(&folder);
    if started.is_err()
        && let Err(error) = state::clear()
    {
        eprintln!("up: take the machine away again: {error:#}");
    }
    started
}

/// Runs the stage `machine start` up to the machine's pid 1, with the network made in between.
fn start_init(folder: &Path) -> Result<()> {
    let mut start = Command::new(std::env::current_exe().context("find own executable")?);
    start.args(["machine", "start"]).arg(folder).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = start.spawn().context("start the machine")?;
    let mut answers = BufReader::new(child.stdout.take().context("the machine has no output")?);
    let mut input = child.stdin.take().context("the machine has no input")?;
    let mut go = || -> Result<()> {
        ensure!(read_line(&mut answers)? == "ready", "the machine did not start: see the message above");
        network::connect(child.id())?;
        input.write_all(b"go\n").context("start the machine")?;
        let pid = read_line(&mut answers)?;
        ensure!(pid.parse::<u32>().is_ok(), "the machine did not report its pid 1: see logs/init.log");
        Ok(())
    };
    let gone = go();
    // Without its input the stage ends by itself.
    drop(input);
    child.wait().context("wait for the machine's start")?;
    gone
}

fn read_line(answers: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    answers.read_line(&mut line).context("read the machine's answer")?;
    Ok(line.trim().to_owned())
}

/// The node's certificate and kubeconfig; makes the cluster's authority when there is none.
fn make_credentials(dist: &Path, folder: &Path) -> Result<()> {
    let mut command = Command::new(dist.join("bin/orlop-server"));
    command.arg("node-credentials").arg("--data-dir").arg(folder.join("var-lib-orlop/server"));
    command.args(["--node", state::NODE, "--address", network::NODE_ADDRESS]);
    command.args(["--server", &format!("https://{}:6443", network::NODE_ADDRESS)]);
    command.arg("--out").arg(folder.join("credentials"));
    process::run_quietly("making the node's credentials", &mut command).map(drop)
}

fn server_part(dist: &Path) -> Part {
    let mut command = vec![dist.join("bin/orlop-server").display().to_string()];
    command.extend(
        [
            "--data-dir",
            "/var/lib/orlop/server",
            "--advertise-address",
            network::NODE_ADDRESS,
            "--service-cluster-ip-range",
            SERVICE_CIDR,
            "--cluster-cidr",
            POD_CIDR,
        ]
        .map(str::to_owned),
    );
    Part { name: "server".into(), command, environment: Vec::new() }
}

fn agent_part(dist: &Path) -> Part {
    let credentials = node_folder().join("credentials");
    let path = |path: PathBuf| path.display().to_string();
    let command = vec![
        path(dist.join("bin/orlop-agent")),
        "--node-name".into(),
        state::NODE.into(),
        "--node-ip".into(),
        network::NODE_ADDRESS.into(),
        "--kubeconfig".into(),
        path(credentials.join("kubeconfig")),
        "--tls-cert-file".into(),
        path(credentials.join("kubelet.crt")),
        "--tls-private-key-file".into(),
        path(credentials.join("kubelet.key")),
        "--client-ca-file".into(),
        path(credentials.join("client-ca.crt")),
        "--shim".into(),
        path(dist.join("bin/orlop-shim")),
        "--cni-bin-dir".into(),
        path(dist.join("cni")),
        "--cluster-cidr".into(),
        POD_CIDR.into(),
        "--image-archives-dir".into(),
        path(images::folder()),
    ];
    Part { name: "agent".into(), command, environment: Vec::new() }
}

/// Waits until every part runs, the API answers and the node is Ready. A part that keeps ending is not waited for.
fn wait_ready(kubeconfig: &Path) -> Result<()> {
    let deadline = Instant::now() + READY_LIMIT;
    let logs = node_folder().join("logs");
    let kubectl = setup::kubectl()?;
    let before = parts::read(&node_folder());
    loop {
        match parts::judge(&before, &parts::read(&node_folder()), parts::clock()) {
            Verdict::Healthy if is_ready(&kubectl, kubeconfig)? => return Ok(()),
            Verdict::Healthy | Verdict::Wait => {}
            Verdict::GiveUp { name, last_exit } => {
                let log = logs.join(format!("{name}.log"));
                bail!("the {name} ends again and again ({last_exit}): look into {}", log.display());
            }
        }
        if Instant::now() > deadline {
            bail!("the node is not Ready after {READY_LIMIT:?}: look into {}", logs.display());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Asks the API for the node's condition, with the kubeconfig that the server has written.
fn is_ready(kubectl: &Path, kubeconfig: &Path) -> Result<bool> {
    let source = node_folder().join("var-lib-orlop/server/admin.kubeconfig");
    if !source.is_file() {
        return Ok(false);
    }
    fs::copy(&source, kubeconfig).with_context(|| format!("copy {}", source.display()))?;
    let mut get = Command::new(kubectl);
    get.arg("--kubeconfig").arg(kubeconfig).args(["get", "node", state::NODE, "-o"]);
    get.arg("jsonpath={.status.conditions[?(@.type=='Ready')].status}");
    Ok(process::probe(&mut get).as_deref() == Some("True"))
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
