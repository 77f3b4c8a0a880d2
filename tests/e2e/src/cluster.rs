//! The cluster under test: started by `cargo xtask up` when the first test asks for it, stopped by the test run. Where
//! `ORLOP_CLUSTER` names a kubeconfig, it is that cluster, which somebody else started, and only its API can be used.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::kubectl::Kubectl;
use crate::processes;

/// How long a killed part may take to be back.
pub const RESTART_LIMIT: Duration = Duration::from_secs(20);

/// What every cluster of the tests is started with: the machine that runs them is left as it is.
const USUAL: [&str; 3] = ["--debug", "--no-build", "--no-egress"];
/// Three nodes that are found silent fast, so that a test need not wait for minutes.
const FAST: [&str; 6] = [
    "--nodes=3",
    "--agent-flag=--node-lease-duration-seconds=4",
    "--server-flag=--node-monitor-grace-period=8s",
    "--server-flag=--node-monitor-period=1s",
    "--server-flag=--default-not-ready-toleration-seconds=5",
    "--server-flag=--default-unreachable-toleration-seconds=5",
];
/// What [`FAST`] says: how long a dead node goes unnoticed, and how long its pods stay from then on.
pub const FAST_GRACE: Duration = Duration::from_secs(8);
pub const FAST_TOLERATION: Duration = Duration::from_secs(5);
/// Two nodes that wrap packets to each other, and everything of both families.
const WRAPPED: [&str; 3] = ["--nodes=2", "--dual-stack", "--agent-flag=--network-backend=vxlan"];
/// The address of this host that such nodes have a link to.
pub const HOST_V6: &str = "fd00:85::1";
/// More pods on one node than its default allows (110).
const MANY_PODS: [&str; 1] = ["--agent-flag=--max-pods=250"];
/// What `up` says when it finds another cluster.
const OTHER_OPTIONS: &str = "a cluster with other options";

/// What makes a node a machine of its own.
const NAMESPACES: [&str; 6] = ["--mount", "--net", "--pid", "--cgroup", "--uts", "--ipc"];

/// The cgroup of the first node's machine.
pub const GROUP: &str = "/orlop-up/node-1/";

/// Names the kubeconfig of a cluster that runs already.
const GIVEN: &str = "ORLOP_CLUSTER";

pub struct Cluster {
    root: PathBuf,
    kubeconfig: PathBuf,
    options: &'static [&'static str],
}

impl Cluster {
    /// Starts the cluster of one node, or finds it running.
    pub fn get() -> Self {
        match std::env::var_os(GIVEN) {
            Some(kubeconfig) => Self { root: root(), kubeconfig: kubeconfig.into(), options: &[] },
            None => Self::with(&[]),
        }
    }

    /// Starts the cluster of three nodes, or finds it running.
    pub fn of_three() -> Self {
        Self::with(&FAST)
    }

    /// Starts the cluster of two nodes with an overlay, or finds it running.
    pub fn of_two_wrapped() -> Self {
        Self::with(&WRAPPED)
    }

    /// Starts the cluster of one node that takes 250 pods, or finds it running.
    pub fn of_many_pods() -> Self {
        Self::with(&MANY_PODS)
    }

    /// One cluster at a time: that of another test goes first.
    fn with(options: &'static [&'static str]) -> Self {
        let root = root();
        let kubeconfig = root.join("target/up/admin.kubeconfig");
        let cluster = Self { root, kubeconfig, options };
        if let Err(said) = cluster.try_up() {
            assert!(said.contains(OTHER_OPTIONS), "cargo xtask up: {said}");
            down();
            cluster.up();
        }
        cluster
    }

    /// Starts what has died of the cluster.
    #[track_caller]
    pub fn up(&self) {
        if let Err(said) = self.try_up() {
            panic!("cargo xtask up: {said}");
        }
    }

    fn try_up(&self) -> Result<(), String> {
        let mut up = xtask("up");
        said(up.args(USUAL).args(self.options)).map(drop)
    }

    pub fn kubectl(&self) -> Kubectl {
        Kubectl::new(self.kubeconfig.clone())
    }

    /// A kubectl that works in a fresh namespace, which is deleted when it is dropped.
    pub fn namespace(&self, name: &str) -> Kubectl {
        self.kubectl().in_new_namespace(name)
    }

    pub fn file(&self, path: &str) -> String {
        self.root.join(path).display().to_string()
    }

    /// The first of its addresses.
    pub fn node_address(&self, node: &str) -> String {
        self.node_addresses(node).swap_remove(0)
    }

    pub fn node_addresses(&self, node: &str) -> Vec<String> {
        let path = "{.status.addresses[?(@.type=='InternalIP')].address}";
        let found = self.kubectl().get(&format!("node/{node}"), path);
        found.split_whitespace().map(str::to_owned).collect()
    }

    /// Kills a node's pid 1, and with it everything that runs there, without warning.
    pub fn kill_node(&self, node: &str) {
        let folder = self.root.join("target/up/nodes").join(node).display().to_string();
        let all = fs::read_dir("/proc").expect("read /proc").flatten();
        let pid = all.filter_map(|entry| {
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
            words
                .windows(3)
                .any(|words| words == [b"machine", &b"init"[..], folder.as_bytes()])
                .then_some(())?;
            entry.file_name().to_str()?.parse().ok()
        });
        let pid = pid.min().unwrap_or_else(|| panic!("{node} does not run"));
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill");
    }

    /// The pid of a part of the first node's machine, as the host sees it.
    pub fn pid_of(&self, program: &str) -> Option<i32> {
        let found = processes::in_group(GROUP).into_iter().filter(|pid| {
            let executable = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            executable.starts_with(&self.root) && executable.file_name().is_some_and(|name| name == program)
        });
        found.min()
    }

    /// Runs a shell script in the first node's machine: what it said when it failed.
    pub fn try_in_machine(&self, script: &str) -> Result<(), String> {
        self.ask_in_machine(&["sh", "-c", script]).map(drop)
    }

    /// Runs a command in the first node's machine: what it says.
    pub fn ask_in_machine(&self, command: &[&str]) -> Result<String, String> {
        let pid = self.pid_of("orlop-agent").ok_or("the agent does not run")?.to_string();
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &pid]).args(NAMESPACES).arg("--").args(command);
        said(&mut nsenter).map_err(|said| format!("{}: {said}", command.join(" ")))
    }

    /// What the first node's agent has logged.
    pub fn agent_log(&self) -> std::io::Result<String> {
        let log = fs::read(self.root.join("target/up/nodes/node-1/logs/agent.log"))?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    /// Waits until the agent's log has a line with all of `words`.
    #[track_caller]
    pub fn wait_agent_log(&self, words: &[&str]) {
        harness::wait::until(&format!("the agent logs {words:?}"), RESTART_LIMIT, || {
            let text = self.agent_log().map_err(|error| error.to_string())?;
            let has_all = |line: &str| words.iter().all(|word| line.contains(word));
            if text.lines().any(has_all) { Ok(()) } else { Err("no such line".to_owned()) }
        });
    }

    /// Kills a part without warning and gives its pid.
    pub fn kill(&self, program: &str) -> i32 {
        let pid = self.pid_of(program).unwrap_or_else(|| panic!("{program} is not running"));
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill");
        pid
    }

    /// Waits until another process than `old` runs the part.
    pub fn wait_restarted(&self, program: &str, old: i32) {
        harness::wait::until(&format!("{program} starts again"), RESTART_LIMIT, || {
            match self.pid_of(program) {
                Some(pid) if pid != old => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the checkout")
}

fn xtask(command: &str) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.args(["xtask", command]).current_dir(root());
    cargo
}

/// Ends whatever cluster there is.
#[track_caller]
pub fn down() {
    said(&mut xtask("down")).unwrap_or_else(|said| panic!("cargo xtask down: {said}"));
}

/// What a command says on its standard output, or all it says when it fails.
fn said(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("start {command:?}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}
