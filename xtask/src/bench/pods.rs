//! Pods to measure with: made all at once in a namespace of their own, watched through kubectl, and removed.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::{process, setup, up};

const NAMESPACE: &str = "orlop-bench";
/// How long a batch of pods may take to run, or to go.
const LIMIT: Duration = Duration::from_secs(120);
/// One line per change of a pod: name, node, phase.
const LINE: &str = "jsonpath={.metadata.name} {.spec.nodeName} {.status.phase}{\"\\n\"}";

/// When a pod was first seen, bound to a node, and seen running.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    created: Option<Instant>,
    scheduled: Option<Instant>,
    running: Option<Instant>,
}

impl Times {
    pub fn to_scheduled(self) -> Option<Duration> {
        Some(self.scheduled?.duration_since(self.created?))
    }

    pub fn to_running(self) -> Option<Duration> {
        Some(self.running?.duration_since(self.created?))
    }
}

/// The namespace, and a watch of its pods. Dropping it removes the pods.
pub struct Bench {
    watch: Child,
    lines: Receiver<(Instant, String)>,
}

impl Bench {
    pub fn start() -> Result<Self> {
        run(&["create", "namespace", NAMESPACE])?;
        let mut command = kubectl()?;
        command.args(["get", "pods", "--namespace", NAMESPACE, "--watch", "-o", LINE]);
        let mut watch = command.stdout(Stdio::piped()).spawn().context("start kubectl")?;
        let output = watch.stdout.take().context("kubectl has no output")?;
        let (sender, lines) = channel();
        // The moment counts at which a line arrives, so nothing else is done here.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { watch, lines })
    }

    /// Makes `count` pods with one call and waits until all of them run.
    pub fn create(&self, count: usize) -> Result<Vec<Times>> {
        let mut command = kubectl()?;
        command
            .args(["create", "--namespace", NAMESPACE, "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        let mut child = command.spawn().context("start kubectl")?;
        let mut input = child.stdin.take().context("kubectl has no input")?;
        input.write_all(manifest(count).as_bytes()).context("write to kubectl")?;
        drop(input);
        ensure!(child.wait()?.success(), "kubectl create failed");
        self.wait_running(count)
    }

    fn wait_running(&self, count: usize) -> Result<Vec<Times>> {
        let deadline = Instant::now() + LIMIT;
        let mut pods: HashMap<String, Times> = HashMap::new();
        while pods.values().filter(|times| times.running.is_some()).count() < count {
            let rest = deadline.saturating_duration_since(Instant::now());
            let Ok((at, line)) = self.lines.recv_timeout(rest) else {
                bail!("not all of {count} pods run after {LIMIT:?}");
            };
            note(&mut pods, at, &line);
        }
        Ok(pods.into_values().collect())
    }

    /// Removes the pods and waits until they are gone.
    pub fn clear(&self) -> Result<()> {
        run(&["delete", "pods", "--all", "--namespace", NAMESPACE, "--timeout=120s"])?;
        while self.lines.try_recv().is_ok() {}
        Ok(())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.watch.kill();
        let _ = self.watch.wait();
        if let Err(error) = run(&["delete", "namespace", NAMESPACE, "--timeout=120s"]) {
            eprintln!("bench: {error:#}");
        }
    }
}

fn note(pods: &mut HashMap<String, Times>, at: Instant, line: &str) {
    let mut words = line.split(' ');
    let (Some(name), Some(node), Some(phase)) = (words.next(), words.next(), words.next()) else { return };
    let times = pods.entry(name.to_owned()).or_default();
    times.created.get_or_insert(at);
    if !node.is_empty() {
        times.scheduled.get_or_insert(at);
    }
    if phase == "Running" {
        times.running.get_or_insert(at);
    }
}

fn manifest(count: usize) -> String {
    let pod = |number: usize| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: pod-{number}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
             containers: [{{name: a, image: 'localhost/busybox:v1', command: [sleep, infinity]}}]\n"
        )
    };
    (0..count).map(pod).collect::<Vec<_>>().join("---\n")
}

fn kubectl() -> Result<Command> {
    let mut command = Command::new(setup::kubectl()?);
    command.arg("--kubeconfig").arg(up::kubeconfig());
    Ok(command)
}

fn run(arguments: &[&str]) -> Result<()> {
    let mut command = kubectl()?;
    process::run_quietly(&format!("kubectl {}", arguments.join(" ")), command.args(arguments)).map(drop)
}
