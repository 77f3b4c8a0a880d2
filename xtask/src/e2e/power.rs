//! The check "power cuts": a machine of its own whose power is cut again and again while kubectl writes.
//!
//! ```text
//! copy of the root disk ─▶ boot, install ─▶ round: several kubectl write ── after so many answers ──▶ SIGKILL to QEMU
//!                                             ▲                                                          │
//!                                             └── contents, node and pods are right ◀── boot again ◀─────┘
//! ```
//!
//! After each cut the same disk is booted and the units start by themselves. Then every acknowledged write must be there with its
//! content and revision, every acknowledged deletion stay done, no revision be given twice, the node report from the new boot, and the
//! pods of a Deployment, which grows in each round, run again. At the end `store check` must call the store sound. After a failure
//! the disk stays in the evidence folder, as the failed round left it.
//!
//! What such a cut loses: everything that the guest's kernel had not written to the disk when QEMU died, its page cache above all,
//! and any part of the writes that were on their way. What it does not lose: QEMU hands the guest's writes to this machine's page cache
//! (`cache=writeback` on a raw file) as they come, and that survives QEMU, so what the guest wrote and did not flush is kept here.
//! A disk that loses its own cache is the matter of the store's tests (`apiserver`, `storage/embedded/tests/power.rs`).
//!
//! The seed, which is printed, decides on the requests and on the answer with which the power goes; which commits that hits is up to the
//! schedulers of two machines. `ORLOP_POWER_SEED` sets it.

mod ledger;
mod plan;
mod pods;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail, ensure};
use fastrand::Rng;
use serde::Deserialize;

use super::checks::{self, COMMAND_LIMIT, NODE, PAUSE, READY_LIMIT, Scene, note, text};
use super::guest::{Guest, last_lines};
use super::qemu::{self, Disks, RootWrites};
use ledger::{Found, Ledger};
use plan::{Deed, Job, LABEL, Round};
use pods::{Event, Pods};

const ROUNDS: u64 = 5;
/// From a round's first request to the answer with which the power goes.
const ANSWERS_LIMIT: Duration = Duration::from_secs(120);
/// Until the pods run again.
const PODS_LIMIT: Duration = Duration::from_secs(120);
/// Lines of kubectl that wait to be looked at; then it waits.
const WAITING_LINES: usize = 1024;

/// kubectl prints it for each object when the API server has answered.
const WRITTEN: &str = r#"--output=jsonpath={.metadata.name} {.metadata.resourceVersion}{"\n"}"#;

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: @LABEL@}
spec:
  replicas: 1
  selector: {matchLabels: {app: @LABEL@}}
  template:
    metadata: {labels: {app: @LABEL@}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: one, image: 'localhost/echo:v1', command: [sleep, infinity]}
";

pub fn cuts(scene: &mut Scene<'_>) -> Result<String> {
    let seed = seed()?;
    println!("[{}]   seed {seed}", scene.plan.kernel.name);
    let folder = scene.plan.evidence.join("power-cuts");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let mut series = Series {
        disks: copy_disks(scene, &folder)?,
        scene,
        folder,
        starts: 0,
        ledger: Ledger::default(),
        pods: Pods::default(),
    };
    series.run(&mut Rng::with_seed(seed)).with_context(|| format!("with ORLOP_POWER_SEED={seed}"))?;
    fs::remove_file(&series.disks.root).context("remove the disk")?;
    series.forget_packets();
    let Ledger { acknowledged, unheard, .. } = series.ledger;
    Ok(format!("{ROUNDS} cuts, {acknowledged} acknowledged writes, {unheard} others that happened"))
}

fn seed() -> Result<u64> {
    match std::env::var("ORLOP_POWER_SEED") {
        Ok(text) => text.parse().with_context(|| format!("ORLOP_POWER_SEED={text} is not a number")),
        Err(_) => Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.subsec_nanos().into()),
    }
}

/// The root disk, as it was made, in a file that all rounds share.
fn copy_disks(scene: &Scene<'_>, folder: &Path) -> Result<Disks> {
    let original = &scene.plan.disks;
    let root = folder.join("root.ext4");
    let mut copy = Command::new("cp");
    let status = copy.args(["--sparse=always", "--reflink=auto"]).arg(&original.root).arg(&root).status();
    ensure!(status.context("start cp")?.success(), "copy {}", original.root.display());
    Ok(Disks { root, root_writes: RootWrites::Kept, payload: original.payload.clone() })
}

/// The machine over its cuts.
struct Series<'a, 'b> {
    scene: &'a mut Scene<'b>,
    disks: Disks,
    folder: PathBuf,
    starts: u64,
    ledger: Ledger,
    /// As they ran before the cut.
    pods: Pods,
}

impl Series<'_, '_> {
    fn run(&mut self, random: &mut Rng) -> Result<()> {
        self.start()?;
        checks::install(self.scene)?;
        checks::ready(self.scene)?;
        self.make_deployment()?;
        for number in 1..=ROUNDS {
            let round = plan::round(number, self.ledger.living(), random);
            self.round(&round).with_context(|| format!("round {number}"))?;
        }
        self.examine()
    }

    fn round(&mut self, round: &Round) -> Result<()> {
        let name = &self.scene.plan.kernel.name;
        println!("[{name}]   cut {} of {ROUNDS}, with answer {}", round.number, round.answers);
        let replicas = round.number + 1;
        self.scene.kubectl(&["scale", "deployment", LABEL, "--replicas", &replicas.to_string()])?;
        self.write_and_cut(round)?;
        self.start()?;
        self.wait_server()?;
        self.compare()?;
        self.wait_node()?;
        self.wait_pods(replicas)?;
        checks::kernel_log(self.scene).map(drop)
    }

    /// Boots the disk. Console and packets of each start are kept apart.
    fn start(&mut self) -> Result<()> {
        self.scene.guest.cut()?;
        self.starts += 1;
        let folder = self.folder.join(format!("start-{}", self.starts));
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let plan = self.scene.plan;
        let machine = qemu::machine(&plan.qemu, &plan.kernel, plan.accelerator, &self.disks, &folder);
        *self.scene.guest = Guest::start(machine, folder.join("console.log"))?;
        checks::boot(self.scene).map(drop)
    }

    fn make_deployment(&mut self) -> Result<()> {
        let manifest = self.folder.join("deployment.yaml");
        fs::write(&manifest, DEPLOYMENT.replace("@LABEL@", LABEL)).context("write the Deployment")?;
        self.scene.kubectl(&["create", "-f", text(&manifest)?])?;
        self.wait_pods(1)
    }

    /// Writes until so many answers came; whatever came before QEMU died counts.
    fn write_and_cut(&mut self, round: &Round) -> Result<()> {
        let (sender, lines) = mpsc::sync_channel(WAITING_LINES);
        let mut writers = Vec::new();
        for (number, job) in round.jobs.iter().enumerate() {
            self.ledger.ask(job, round.number);
            writers.push(self.start_writer(number, job, round, &sender)?);
        }
        drop(sender);
        let written = self.take_answers(&lines, round.answers);
        let cut = self.scene.guest.cut();
        // They would wait long for a machine that is gone.
        drop(writers);
        for line in lines {
            self.take_answer(&line)?;
        }
        written.and(cut)
    }

    fn take_answers(&mut self, lines: &Receiver<String>, count: u64) -> Result<()> {
        let deadline = Instant::now() + ANSWERS_LIMIT;
        for got in 0..count {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.take_answer(&line)?,
                Err(RecvTimeoutError::Timeout) => bail!("{got} of {count} answers in {ANSWERS_LIMIT:?}"),
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("every kubectl ended after {got} of {count} answers; see its log")
                }
            }
        }
        Ok(())
    }

    fn take_answer(&mut self, line: &str) -> Result<()> {
        note(&self.scene.log, line);
        self.ledger.acknowledge(line).map_err(|violation| anyhow!(violation))
    }

    fn start_writer(
        &self,
        number: usize,
        job: &Job,
        round: &Round,
        lines: &SyncSender<String>,
    ) -> Result<Kubectl> {
        let name = format!("round-{}-{number}", round.number);
        let manifest = self.folder.join(format!("{name}.json"));
        fs::write(&manifest, plan::manifest(job, round.number).to_string())
            .with_context(|| format!("write {}", manifest.display()))?;
        let log = self.folder.join(format!("{name}.log"));
        let log = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let mut kubectl = Command::new(&self.scene.plan.kubectl);
        kubectl.arg("--kubeconfig").arg(self.scene.kubeconfig());
        match job.deed {
            Deed::Create => kubectl.args(["create", "--validate=false", WRITTEN]),
            Deed::Replace => kubectl.args(["replace", "--validate=false", WRITTEN]),
            Deed::Delete => kubectl.args(["delete", "--wait=false", "--output=name"]),
        };
        kubectl.arg("-f").arg(&manifest).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut writer = Kubectl(kubectl.spawn().context("start kubectl")?);
        let (output, lines) = (writer.0.stdout.take().context("kubectl has no output")?, lines.clone());
        std::thread::spawn(move || whole_lines(output, &lines));
        Ok(writer)
    }

    fn wait_server(&self) -> Result<()> {
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            match self.scene.kubectl(&["get", "--raw", "/readyz"]) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context("the server does not come up"));
                }
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Looks at every object of the rounds.
    fn compare(&mut self) -> Result<()> {
        let path = format!("/api/v1/namespaces/default/configmaps?labelSelector=app%3D{LABEL}");
        let list = self.scene.kubectl(&["get", "--raw", &path])?;
        let list: List = serde_json::from_str(&list).context("parse the ConfigMaps")?;
        let (revision, found) = list.read()?;
        let (count, acknowledged) = (found.len(), self.ledger.acknowledged);
        note(&self.scene.log, &format!("-- {count} objects, {acknowledged} acknowledged, at {revision}"));
        self.ledger.compare(revision, found).map_err(|violations| anyhow!(violations))
    }

    /// What the API server says of the node is of before the cut until the new boot's agent has spoken.
    fn wait_node(&mut self) -> Result<()> {
        let boot = self.scene.inside(&["cat", "/proc/sys/kernel/random/boot_id"], COMMAND_LIMIT)?;
        let node = format!("node/{NODE}");
        let limit = format!("--timeout={}s", READY_LIMIT.as_secs());
        let new_boot = format!("--for=jsonpath={{.status.nodeInfo.bootID}}={}", boot.trim());
        for condition in [new_boot.as_str(), "--for=condition=Ready"] {
            self.scene.kubectl(&["wait", &node, condition, &limit, "--request-timeout=0"])?;
        }
        Ok(())
    }

    /// Waits until all pods run, those of before the cut in new containers, and asks each of them.
    fn wait_pods(&mut self, replicas: u64) -> Result<()> {
        let watch = self.watch_pods()?;
        let deadline = Instant::now() + PODS_LIMIT;
        let mut pods = Pods::default();
        while !pods.run_again(&self.pods, replicas) {
            match watch.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(event) => pods.observe(event?),
                Err(_) => bail!("the {replicas} pods were {:?} and are {pods:?}", self.pods),
            }
        }
        drop(watch);
        for pod in pods.iter() {
            let said = self.scene.kubectl(&["exec", &pod.name, "--", "echo", "alive"])?;
            ensure!(said == "alive", "exec in {} said {said:?}", pod.name);
        }
        self.pods = pods;
        Ok(())
    }

    fn watch_pods(&self) -> Result<Watch> {
        let mut kubectl = Command::new(&self.scene.plan.kubectl);
        kubectl.arg("--kubeconfig").arg(self.scene.kubeconfig()).args(["get", "pods", "--selector"]);
        kubectl.arg(format!("app={LABEL}"));
        kubectl.args(["--watch", "--output-watch-events", "--output=json"]);
        let mut kubectl = Kubectl(kubectl.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?);
        let output = kubectl.0.stdout.take().context("kubectl has no output")?;
        let (sender, events) = mpsc::sync_channel(WAITING_LINES);
        std::thread::spawn(move || {
            for event in serde_json::Deserializer::from_reader(output).into_iter() {
                if sender.send(event.context("parse an event")).is_err() {
                    return;
                }
            }
        });
        Ok(Watch { _kubectl: kubectl, events })
    }

    /// The store as the last cut and the last start left it.
    fn examine(&mut self) -> Result<()> {
        self.scene.inside(&["systemctl", "stop", "orlop-server.service"], COMMAND_LIMIT)?;
        let command = ["orlop-server", "store", "check", "/var/lib/orlop/server/store.redb"];
        let said = self.scene.inside(&command, COMMAND_LIMIT)?;
        ensure!(said.contains(": sound"), "the store's check says {}", last_lines(&said));
        Ok(())
    }

    /// The packets of machines in which nothing is wrong are of no use.
    fn forget_packets(&self) {
        for start in 1..=self.starts {
            let _ = fs::remove_file(self.folder.join(format!("start-{start}/packets.pcap")));
        }
    }
}

/// A kubectl that ends with this.
struct Kubectl(Child);

impl Drop for Kubectl {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Watch {
    _kubectl: Kubectl,
    events: Receiver<Result<Event>>,
}

/// Passes lines on. One that kubectl did not finish is no answer.
fn whole_lines(output: ChildStdout, lines: &SyncSender<String>) {
    let mut output = BufReader::new(output);
    let mut line = String::new();
    while output.read_line(&mut line).is_ok_and(|read| read > 0) && line.ends_with('\n') {
        line.pop();
        if lines.send(std::mem::take(&mut line)).is_err() {
            return;
        }
    }
}

#[derive(Deserialize)]
struct List {
    metadata: ListMetadata,
    items: Vec<Item>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    resource_version: String,
}

#[derive(Deserialize)]
struct Item {
    metadata: Metadata,
    data: Data,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    resource_version: String,
}

#[derive(Deserialize)]
struct Data {
    content: String,
}

impl List {
    fn read(self) -> Result<(u64, Vec<Found>)> {
        let number = |text: &str| text.parse().with_context(|| format!("{text:?} is not a revision"));
        let read = |Item { metadata: Metadata { name, resource_version }, data: Data { content } }| {
            Ok(Found { revision: number(&resource_version)?, name, content })
        };
        let found = self.items.into_iter().map(read).collect::<Result<_>>()?;
        Ok((number(&self.metadata.resource_version)?, found))
    }
}
