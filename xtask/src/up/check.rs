//! The self-check: a pod and a Service that answer, and are removed again.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{process, setup};

const MANIFEST: &str = include_str!("check.yaml");

pub fn run(kubeconfig: &Path) -> Result<()> {
    let kubectl = setup::kubectl()?;
    let call = |arguments: &[&str]| {
        let mut command = Command::new(&kubectl);
        command.arg("--kubeconfig").arg(kubeconfig).args(arguments);
        command
    };
    let mut apply = call(&["apply", "-f", "-"]);
    apply.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = apply.spawn().context("start kubectl")?;
    let mut input = child.stdin.take().context("kubectl has no input")?;
    std::io::Write::write_all(&mut input, MANIFEST.as_bytes()).context("write to kubectl")?;
    drop(input);
    ensure!(child.wait()?.success(), "kubectl apply of the self-check failed");
    let checked = ask(&call);
    // Removed even when the check failed.
    process::run_quietly(
        "removing the self-check",
        &mut call(&["delete", "pod/orlop-self-check", "service/orlop-self-check", "--timeout=60s"]),
    )?;
    checked
}

fn ask(call: &impl Fn(&[&str]) -> Command) -> Result<()> {
    process::run_quietly(
        "waiting for the self-check's pod",
        &mut call(&["wait", "--for=condition=Ready", "pod/orlop-self-check", "--timeout=60s"]),
    )?;
    let address = process::run_quietly(
        "reading the self-check's address",
        &mut call(&["get", "service", "orlop-self-check", "-o", "jsonpath={.spec.clusterIP}"]),
    )?;
    let target = format!("{}:80", address.trim());
    let endpoint = "jsonpath={.subsets[0].addresses[0].ip}";
    process::run_quietly(
        "waiting for the self-check's endpoint",
        &mut call(&["wait", "endpoints/orlop-self-check", &format!("--for={endpoint}"), "--timeout=20s"]),
    )?;
    let answers = process::run_quietly(
        "asking the self-check's Service",
        &mut call(&["exec", "orlop-self-check", "--", "/echo", "ask", &target, "3"]),
    )?;
    ensure!(answers.contains("\"failed\":0"), "the self-check's Service did not answer: {answers}");
    Ok(())
}
