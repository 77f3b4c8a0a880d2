//! Pods to measure with: made all at once in a namespace of their own, watched through kubectl, and deleted with the default grace.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::{process, setup, up};

#[cfg(test)]
mod tests;

const NAMESPACE: &str = "orlop-bench";
/// How long a batch of pods may take to run, or to go.
const LIMIT: Duration = Duration::from_secs(120);
/// How often it is looked whether the nodes have finished taking pods down.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Lines that nobody has taken yet; kubectl waits when there are more, and their moments are late then.
const UNREAD: usize = 10_000;
/// One line per change of a pod.
const LINE: &str = "jsonpath={.type},{.object.metadata.name},{.object.spec.nodeName},{.object.status.phase},\
                    {.object.metadata.deletionTimestamp}{\"\\n\"}";

/// When a pod was first seen, bound to a node, seen running, seen to be deleted, and gone.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Times {
    created: Option<Instant>,
    scheduled: Option<Instant>,
    running: Option<Instant>,
    deleted: Option<Instant>,
    gone: Option<Instant>,
}

impl Times {
    pub fn to_scheduled(self) -> Option<Duration> {
        Some(self.scheduled?.duration_since(self.created?))
    }

    pub fn to_running(self) -> Option<Duration> {
        Some(self.running?.duration_since(self.created?))
    }

    pub fn to_gone(self) -> Option<Duration> {
        Some(self.gone?.duration_since(self.deleted?))
    }

    /// Takes note of a line of [`LINE`].
    fn note(pods: &mut HashMap<String, Times>, at: Instant, line: &str) {
        let words: Vec<&str> = line.split(',').collect();
        let [event, name, node, phase, deletion] = words.as_slice() else { return };
        let times = pods.entry((*name).to_owned()).or_default();
        times.created.get_or_insert(at);
        if !node.is_empty() {
            times.scheduled.get_or_insert(at);
        }
        if *phase == "Running" {
            times.running.get_or_insert(at);
        }
        if !deletion.is_empty() {
            times.deleted.get_or_insert(at);
        }
        if *event == "DELETED" {
            times.gone.get_or_insert(at);
        }
    }
}

/// The namespace, and a watch of its pods. Dropping it removes the pods.
pub struct Bench {
    watch: Child,
    lines: Receiver<(Instant, String)>,
    pods: HashMap<String, Times>,
}

impl Bench {
    pub fn start() -> Result<Self> {
        // A run that was interrupted leaves its namespace.
        run(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s"])?;
        run(&["create", "namespace", NAMESPACE])?;
        let mut command = kubectl()?;
        command.args([
            "get",
            "pods",
            "--namespace",
            NAMESPACE,
            "--watch",
            "--output-watch-events",
            "-o",
            LINE,
        ]);
        let mut watch = command.stdout(Stdio::piped()).spawn().context("start kubectl")?;
        let output = watch.stdout.take().context("kubectl has no output")?;
        let (sender, lines) = sync_channel(UNREAD);
        // The moment counts at which a line arrives, so nothing else is done here.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { watch, lines, pods: HashMap::new() })
    }

    /// Makes `count` pods with one call and waits until all of them run.
    pub fn create(&mut self, count: usize) -> Result<()> {
        self.pods.clear();
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
        self.wait(count, "run", |times| times.running.is_some())
    }

    /// Deletes the pods, waits until their objects are gone and the nodes have nothing left of them; gives what was seen of each.
    pub fn clear(&mut self) -> Result<Vec<Times>> {
        run(&["delete", "pods", "--all", "--namespace", NAMESPACE, "--wait=false"])?;
        self.wait(self.pods.len(), "are gone", |times| times.gone.is_some())?;
        settle()?;
        Ok(self.pods.drain().map(|(_, times)| times).collect())
    }

    fn wait(&mut self, count: usize, what: &str, reached: impl Fn(&Times) -> bool) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while self.pods.values().filter(|times| reached(times)).count() < count {
            let rest = deadline.saturating_duration_since(Instant::now());
            let (at, line) = match self.lines.recv_timeout(rest) {
                Ok(said) => said,
                Err(RecvTimeoutError::Timeout) => bail!("not all of {count} pods {what} after {LIMIT:?}"),
                Err(RecvTimeoutError::Disconnected) => bail!("kubectl stopped watching pods"),
            };
            Times::note(&mut self.pods, at, &line);
        }
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

/// Waits until the nodes' runtimes have taken everything down that they do after a pod's object is gone. The folder of a sandbox goes last.
fn settle() -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    for node in up::nodes::folders() {
        let folder = node.join("var-lib-orlop/runtime/sandboxes");
        while fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?.next().is_some() {
            ensure!(Instant::now() < deadline, "sandboxes are left after {LIMIT:?} in {}", folder.display());
            std::thread::sleep(LOOK_AGAIN);
        }
    }
    Ok(())
}

/// Pods with nothing but one container that ends when it is told to.
fn manifest(count: usize) -> String {
    let pod = |number: usize| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: pod-{number}}}\nspec:\n  containers:\n  - name: a\n    \
             image: localhost/busybox:v1\n    \
             command: [sh, -c, 'trap \"exit 0\" TERM; sleep infinity & wait']\n"
        )
    };
    (0..count).map(pod).collect::<Vec<_>>().join("---\n")
}

pub fn kubectl() -> Result<Command> {
    let mut command = Command::new(setup::kubectl()?);
    command.arg("--kubeconfig").arg(up::kubeconfig());
    Ok(command)
}

fn run(arguments: &[&str]) -> Result<()> {
    let mut command = kubectl()?;
    process::run_quietly(&format!("kubectl {}", arguments.join(" ")), command.args(arguments)).map(drop)
}
