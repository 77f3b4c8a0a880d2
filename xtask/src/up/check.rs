//! The self-check: a pod and a Service that answer, and are removed again.
//!
//! Each step has a deadline of its own and nothing of an earlier, interrupted check is trusted. Whatever went wrong first is what is
//! reported; the objects are removed either way.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::{process, setup};

const MANIFEST: &str = include_str!("check.yaml");
/// How long the Service may take to answer once its endpoint is known: the agent learns of both by watching.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(200);

pub fn run(kubeconfig: &Path) -> Result<()> {
    let kubectl = Kubectl { program: setup::kubectl()?, kubeconfig: kubeconfig.to_path_buf() };
    kubectl.delete("removing what an earlier self-check left")?;
    let checked = kubectl.apply().and_then(|()| kubectl.ask());
    let removed = kubectl.delete("removing the self-check");
    checked.and(removed)
}

struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    fn call(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        command
    }

    fn apply(&self) -> Result<()> {
        let mut apply = self.call(&["apply", "-f", "-"]);
        apply.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = apply.spawn().context("start kubectl")?;
        let mut input = child.stdin.take().context("kubectl has no input")?;
        let written = input.write_all(MANIFEST.as_bytes());
        drop(input);
        // What kubectl says is worth more than that it did not read everything.
        let output = child.wait_with_output().context("wait for kubectl")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl apply of the self-check failed: {}", errors.trim());
        written.context("write to kubectl")
    }

    fn ask(&self) -> Result<()> {
        process::run_quietly(
            "waiting for the self-check's pod",
            &mut self.call(&["wait", "--for=condition=Ready", "pod/orlop-self-check", "--timeout=60s"]),
        )?;
        let address = process::run_quietly(
            "reading the self-check's address",
            &mut self.call(&["get", "service", "orlop-self-check", "-o", "jsonpath={.spec.clusterIP}"]),
        )?;
        let endpoint = "--for=jsonpath={.subsets[0].addresses[0].ip}";
        process::run_quietly(
            "waiting for the self-check's endpoint",
            &mut self.call(&["wait", "endpoints/orlop-self-check", endpoint, "--timeout=20s"]),
        )?;
        self.ask_until_answered(&format!("{}:80", address.trim()))
    }

    /// Asks again while some requests fail: the endpoint may not have reached the node.
    fn ask_until_answered(&self, target: &str) -> Result<()> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            let mut ask = self.call(&["exec", "orlop-self-check", "--", "/echo", "ask", target, "3"]);
            let answers = process::run_quietly("asking the self-check's Service", &mut ask);
            match answers {
                Ok(answers) if answers.contains("\"failed\":0") => return Ok(()),
                _ if Instant::now() < deadline => std::thread::sleep(PAUSE),
                Ok(answers) => bail!("the self-check's Service did not answer: {answers}"),
                Err(error) => return Err(error),
            }
        }
    }

    fn delete(&self, what: &str) -> Result<()> {
        let objects = ["pod/orlop-self-check", "service/orlop-self-check"];
        let mut delete = self.call(&["delete", "--ignore-not-found", "--timeout=60s"]);
        process::run_quietly(what, delete.args(objects)).map(drop)
    }
}
