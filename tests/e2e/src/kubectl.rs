//! kubectl, as a user types it.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

/// How long a thing of the cluster may take to come about.
pub const LIMIT: Duration = Duration::from_secs(60);

pub struct Kubectl {
    kubeconfig: PathBuf,
    namespace: Option<String>,
}

impl Kubectl {
    pub fn new(kubeconfig: PathBuf) -> Self {
        Self { kubeconfig, namespace: None }
    }

    pub(crate) fn in_new_namespace(self, name: &str) -> Self {
        self.run(&["create", "namespace", name]);
        Self { kubeconfig: self.kubeconfig.clone(), namespace: Some(name.to_owned()) }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        if let Some(namespace) = &self.namespace {
            command.args(["--namespace", namespace]);
        }
        command.args(arguments);
        command
    }

    /// Runs a call that may fail: its output.
    pub fn try_run(&self, arguments: &[&str]) -> Result<String, String> {
        checked(self.command(arguments).stdin(Stdio::null()).output().expect("start kubectl"))
    }

    /// Runs a call that must succeed: its output.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> String {
        self.try_run(arguments).unwrap_or_else(|error| panic!("kubectl {}: {error}", arguments.join(" ")))
    }

    /// Runs a call that must fail: what it says.
    #[track_caller]
    pub fn fail(&self, arguments: &[&str]) -> String {
        match self.try_run(arguments) {
            Ok(output) => panic!("kubectl {} succeeded: {output}", arguments.join(" ")),
            Err(error) => error,
        }
    }

    /// Runs a call with a manifest on its standard input.
    pub fn try_with_input(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("start kubectl");
        child.stdin.take().expect("its input").write_all(input.as_bytes()).expect("write to kubectl");
        checked(child.wait_with_output().expect("wait for kubectl"))
    }

    /// Applies a manifest from text.
    #[track_caller]
    pub fn apply(&self, manifest: &str) -> String {
        self.try_with_input(&["apply", "-f", "-"], manifest)
            .unwrap_or_else(|error| panic!("kubectl apply: {error}"))
    }

    /// Runs a pod that does nothing, and ends when it is told to: as pid 1, `sleep` alone would ignore SIGTERM. Waits until it
    /// is Ready.
    #[track_caller]
    pub fn run_idle(&self, name: &str) {
        let script = "trap 'exit 0' TERM; sleep infinity & wait";
        self.run(&["run", name, "--image=localhost/busybox:v1", "--", "sh", "-c", script]);
        self.run(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
    }

    /// Starts a call and leaves it running.
    pub fn spawn(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("start kubectl")
    }

    /// One value of an object.
    #[track_caller]
    pub fn get(&self, object: &str, path: &str) -> String {
        self.run(&["get", object, "-o", &format!("jsonpath={path}")])
    }

    /// Objects as JSON.
    #[track_caller]
    pub fn list(&self, arguments: &[&str]) -> Vec<Value> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(arguments);
        let list: Value = serde_json::from_str(&self.run(&all)).expect("kubectl prints JSON");
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// Waits until `look` finds what it wants.
    #[track_caller]
    pub fn wait<T>(&self, what: &str, look: impl FnMut() -> Result<T, String>) -> T {
        harness::wait::until(what, LIMIT, look)
    }
}

/// The kubectl that `cargo xtask test` found or unpacked, else the one in `PATH`.
fn program() -> OsString {
    std::env::var_os("ORLOP_KUBECTL").unwrap_or_else(|| "kubectl".into())
}

impl Drop for Kubectl {
    fn drop(&mut self) {
        let Some(namespace) = self.namespace.take() else { return };
        let deleted = self.try_run(&["delete", "namespace", &namespace, "--timeout=90s"]);
        if let Err(error) = deleted
            && !std::thread::panicking()
        {
            panic!("delete namespace {namespace}: {error}");
        }
    }
}

fn checked(output: Output) -> Result<String, String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}
