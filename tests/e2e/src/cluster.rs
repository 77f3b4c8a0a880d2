//! The cluster under test: started by `cargo xtask up` when the first test asks for it, stopped by the test run. Where
//! `ORLOP_CLUSTER` names a kubeconfig, it is that cluster, which somebody else started, and only its API can be used.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::kubectl::Kubectl;

/// How long a killed part may take to be back.
pub const RESTART_LIMIT: Duration = Duration::from_secs(20);

/// Names the kubeconfig of a cluster that runs already.
const GIVEN: &str = "ORLOP_CLUSTER";

pub struct Cluster {
    root: PathBuf,
    kubeconfig: PathBuf,
}

impl Cluster {
    /// Starts the cluster, or finds it running.
    pub fn get() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the checkout");
        if let Some(kubeconfig) = std::env::var_os(GIVEN) {
            return Self { root, kubeconfig: kubeconfig.into() };
        }
        let output = Command::new("cargo")
            .args(["xtask", "up", "--debug", "--no-build"])
            .current_dir(&root)
            .output()
            .expect("start cargo xtask up");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "cargo xtask up: {}{errors}",
            String::from_utf8_lossy(&output.stdout)
        );
        let kubeconfig = root.join("target/up/admin.kubeconfig");
        Self { root, kubeconfig }
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

    pub fn node_address(&self) -> String {
        self.kubectl().get("node/node-1", "{.status.addresses[?(@.type=='InternalIP')].address}")
    }

    /// The pid of a part of the node's machine, as the host sees it.
    pub fn pid_of(&self, program: &str) -> Option<i32> {
        let found = fs::read_dir("/proc").expect("read /proc").flatten().filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let executable = fs::read_link(entry.path().join("exe")).ok()?;
            (executable.file_name()? == program && executable.starts_with(&self.root)).then_some(pid)
        });
        found.min()
    }

    /// Runs a shell script where the node's file systems are: what it said when it failed.
    pub fn try_in_machine(&self, script: &str) -> Result<(), String> {
        let pid = self.pid_of("orlop-agent").ok_or("the agent does not run")?.to_string();
        let output = Command::new("nsenter")
            .args(["--target", &pid, "--mount", "--", "sh", "-c", script])
            .output()
            .map_err(|error| format!("start nsenter: {error}"))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(()) } else { Err(format!("{script}: {errors}")) }
    }

    /// Waits until the agent's log has a line with all of `words`.
    #[track_caller]
    pub fn wait_agent_log(&self, words: &[&str]) {
        let log = self.root.join("target/up/nodes/node-1/logs/agent.log");
        harness::wait::until(&format!("the agent logs {words:?}"), RESTART_LIMIT, || {
            let text = fs::read_to_string(&log).map_err(|error| error.to_string())?;
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
