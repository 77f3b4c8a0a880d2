//! Many pods made and deleted at the same time, while the agent is killed again and again: nothing hangs, nothing is lost, nothing is left.
//!
//! `ORLOP_CHURN` says for how many seconds, and makes it the whole form: 200 pods at a time, the agent killed every 30 s. Without
//! it, it is the short form of a usual run.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use e2e::churn::{Bounds, Churn, Due, LABEL, SETTINGS, Wrong};
use e2e::cluster::Cluster;
use e2e::inventory::{self, Inventory};
use e2e::kubectl::Kubectl;
use e2e::watch::{Said, Watch};
use serde_json::{Value, json};

/// For how many seconds the whole form runs.
const SECONDS: &str = "ORLOP_CHURN";
const SHORT: Form = Form { pods: 40, seconds: 60, kill_every: 15, stay: 20, start: 60, end: 60 };
const WHOLE: Form = Form { pods: 200, seconds: 600, kill_every: 30, stay: 45, start: 120, end: 90 };
/// How long connections, closed namespaces and logs may take to be put away when the last pod is gone.
const SETTLE: Duration = Duration::from_secs(120);
/// How long the loop waits for an event before it looks at its clocks.
const TICK: Duration = Duration::from_millis(50);
/// Pods that stay all the time, behind a Service.
const RESIDENTS: usize = 3;
/// Lines of the agent's log and Events that are shown of a pod.
const MOST_SHOWN: usize = 200;

/// How much, in seconds where nothing else is said.
#[derive(Debug, Clone, Copy)]
struct Form {
    /// Pods at a time.
    pods: usize,
    /// How long pods come and go.
    seconds: u64,
    /// Between two kills of the agent.
    kill_every: u64,
    /// How long long-lived pods stay: longer than that.
    stay: u64,
    /// What a pod's start may take, on two processors that all other pods' starts and ends keep busy.
    start: u64,
    /// What its end may take beyond its grace.
    end: u64,
}

/// The whole form when the environment says for how long.
fn form() -> Form {
    match std::env::var(SECONDS) {
        Ok(seconds) => {
            Form { seconds: seconds.parse().expect("ORLOP_CHURN is a number of seconds"), ..WHOLE }
        }
        Err(_) => SHORT,
    }
}

#[test]
fn pods_come_and_go_while_the_agent_dies_again_and_again() {
    let form = form();
    let cluster = if form.pods > SHORT.pods { Cluster::of_many_pods() } else { Cluster::get() };
    let kubectl = cluster.namespace("churn");
    let mut run = Run::new(&cluster, &kubectl, form);
    run.settle_in();
    let before = harness::wait::until("nothing of ended pods is left", SETTLE, || {
        let pods = kubectl.list(&["pods", "--all-namespaces"]);
        let uids = pods.iter().filter_map(|pod| pod["metadata"]["uid"].as_str().map(str::to_owned)).collect();
        let before = Inventory::of(&cluster)?;
        match before.ending(&uids).as_slice() {
            [] => Ok(before),
            ending => Err(ending.join("\n")),
        }
    });
    let (residents, memory) = (residents(&kubectl), run.memory());

    let kills = run.churn();
    run.empty();
    assert_eq!(self::residents(&kubectl), residents, "the pods that stayed are as they were");
    println!("{form:?}: {} pods made and deleted, the agent killed {kills} times", run.churn.made());
    print!("{}", run.churn.report());
    println!("warnings: {:#?}", warnings(&kubectl));
    println!("resident KiB of agent and server: {memory:?} before, {:?} after", run.memory());
    println!("before: {:?}", before.counts());
    let after = harness::wait::until("nothing is left", SETTLE, || {
        let after = Inventory::of(&cluster)?;
        match before.differences(&after) {
            none if none.is_empty() => Ok(after),
            left => Err(format!("{} things: {:#?}", left.len(), &left[..left.len().min(MOST_SHOWN)])),
        }
    });
    println!("after:  {:?}", after.counts());
    // The last may fall on the end.
    let expected = form.seconds / form.kill_every - 1;
    assert!(kills as u64 >= expected, "the agent was killed {kills} times instead of {expected}");
}

/// A run of one form.
struct Run<'a> {
    cluster: &'a Cluster,
    kubectl: &'a Kubectl,
    form: Form,
    churn: Churn,
    watch: Watch,
}

impl<'a> Run<'a> {
    fn new(cluster: &'a Cluster, kubectl: &'a Kubectl, form: Form) -> Self {
        let [start, end, stay] = [form.start, form.end, form.stay].map(Duration::from_secs);
        let bounds = Bounds { pods: form.pods, start, end, stay };
        Self { cluster, kubectl, form, churn: Churn::new(bounds), watch: Watch::start(kubectl, "pods") }
    }

    /// Makes what stays, and one pod of each kind, so that what the first pods of a node bring about is there.
    fn settle_in(&mut self) {
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "churn"},
                             "spec": {"selector": {"app": LABEL}, "ports": [{"port": 80}]}});
        let settings = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": SETTINGS},
                              "data": {"word": "word"}});
        let resident = |number| {
            let idle =
                json!({"name": "a", "image": "localhost/busybox:v1", "command": ["sleep", "infinity"]});
            json!({"apiVersion": "v1", "kind": "Pod",
                   "metadata": {"name": format!("resident-{number}"), "labels": {"app": LABEL, "stays": "true"}},
                   "spec": {"terminationGracePeriodSeconds": 1, "containers": [idle]}})
        };
        let mut all = vec![service, settings];
        all.extend((0..RESIDENTS).map(resident));
        self.create(&all);
        self.kubectl.run(&["wait", "--for=condition=Ready", "pods", "-l", "stays=true", "--timeout=60s"]);
        let first = self.churn.one_of_each(Instant::now());
        self.create(&first);
        self.empty();
    }

    /// Keeps as many pods as wanted coming and going until the time is over; how often the agent was killed.
    fn churn(&mut self) -> usize {
        let start = Instant::now();
        let (end, every) =
            (start + Duration::from_secs(self.form.seconds), Duration::from_secs(self.form.kill_every));
        let (mut kills, mut next_kill) = (0, start + every);
        while Instant::now() < end {
            let missing = self.churn.fill(Instant::now());
            self.create(&missing);
            let due = self.churn.due(Instant::now());
            self.delete(&due);
            self.look();
            if Instant::now() >= next_kill {
                let old = self.cluster.kill("orlop-agent");
                self.cluster.wait_restarted("orlop-agent", old);
                kills += 1;
                next_kill += every;
            }
        }
        kills
    }

    /// Deletes every pod that came, each when it has become what it should, and waits until all are gone.
    fn empty(&mut self) {
        while !self.churn.is_empty() {
            let due = self.churn.all_that_can(Instant::now());
            self.delete(&due);
            self.look();
        }
    }

    /// Takes note of what has happened, and fails when something is wrong or late.
    fn look(&mut self) {
        let mut limit = TICK;
        loop {
            match self.watch.next(limit) {
                Said::Event(at, event) => self.must(|churn| churn.note(at, &event)),
                Said::Nothing => break,
                Said::Ended => {
                    // The new watch begins with what there is, but does not say what went meanwhile.
                    self.watch = Watch::start(self.kubectl, "pods");
                    let pods = self.kubectl.list(&["pods"]);
                    self.must(|churn| churn.note_all(Instant::now(), &pods));
                }
            }
            limit = Duration::ZERO;
        }
        self.must(|churn| churn.check(Instant::now()));
    }

    fn must(&mut self, step: impl FnOnce(&mut Churn) -> Result<(), Wrong>) {
        if let Err(wrong) = step(&mut self.churn) {
            let history = self.history(&wrong.pod);
            panic!("{}: {}\n{history}\n{}", wrong.pod, wrong.what, self.churn.report());
        }
    }

    /// Everything that is known of a pod.
    fn history(&self, pod: &str) -> String {
        let seen = self.churn.history(pod);
        let about = format!("involvedObject.name={pod}");
        let events = self.kubectl.try_run(&["get", "events", "--field-selector", &about]);
        let now = self.kubectl.try_run(&["get", "pod", pod, "-o", "json"]);
        let uid = now.as_ref().ok().and_then(|text| {
            let pod: Value = serde_json::from_str(text).ok()?;
            pod["metadata"]["uid"].as_str().map(str::to_owned)
        });
        let log = self.cluster.agent_log().unwrap_or_default();
        let lines = log
            .lines()
            .filter(|line| line.contains(pod) || uid.as_deref().is_some_and(|uid| line.contains(uid)));
        let lines: Vec<&str> = lines.take(MOST_SHOWN).collect();
        format!(
            "--- seen\n{}\n--- now\n{}\n--- events\n{}\n--- the agent's log\n{}",
            seen.join("\n"),
            now.unwrap_or_else(|said| said),
            events.unwrap_or_else(|said| said),
            lines.join("\n")
        )
    }

    fn create(&self, objects: &[Value]) {
        if !objects.is_empty() {
            let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
            let created = self.kubectl.try_with_input(&["create", "-f", "-"], &list.to_string());
            created.unwrap_or_else(|said| panic!("kubectl create: {said}"));
        }
    }

    fn delete(&self, due: &Due) {
        for (names, how) in [
            (&due.usual, &["--wait=false"][..]),
            (&due.forced, &["--wait=false", "--force", "--grace-period=0"]),
        ] {
            if !names.is_empty() {
                let names = names.iter().map(String::as_str);
                self.kubectl.run(
                    &["delete", "pods"]
                        .into_iter()
                        .chain(names)
                        .chain(how.iter().copied())
                        .collect::<Vec<_>>(),
                );
            }
        }
    }

    fn memory(&self) -> [Option<u64>; 2] {
        ["orlop-agent", "orlop-server"].map(|program| inventory::resident(self.cluster, program))
    }
}

/// What must not change of the pods that stay.
fn residents(kubectl: &Kubectl) -> Vec<String> {
    let pods = kubectl.list(&["pods", "-l", "stays=true"]);
    let identity = |pod: &Value| {
        let container = &pod["status"]["containerStatuses"][0];
        format!(
            "{} {} {} {} {} {}",
            pod["metadata"]["name"],
            pod["metadata"]["uid"],
            pod["status"]["podIP"],
            container["containerID"],
            container["restartCount"],
            container["state"]["running"]["startedAt"]
        )
    };
    let all: Vec<String> = pods.iter().map(identity).collect();
    assert_eq!(all.len(), RESIDENTS, "{all:?}");
    all
}

/// How often the node warned of what.
fn warnings(kubectl: &Kubectl) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for event in kubectl.list(&["events", "--field-selector", "type=Warning"]) {
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let message = text("message").chars().take(MOST_SHOWN).collect::<String>();
        let kind = event["involvedObject"]["name"].as_str().and_then(|name| name.rsplit_once('-'));
        let kind = kind.map_or("", |(kind, _)| kind);
        *counts.entry(format!("{} of {kind}: {message}", text("reason"))).or_default() +=
            event["count"].as_u64().unwrap_or(1);
    }
    counts
}
