//! The load that the `echo` image makes, and what it counted.

use serde_json::Value;

use crate::kubectl::Kubectl;

/// A load that runs as a pod of its own, so that it outlives every part of the node that may be killed meanwhile.
pub struct Load<'a> {
    kubectl: &'a Kubectl,
    name: String,
}

/// What it counts.
pub const KINDS: [&str; 4] = ["connections", "kept_alive", "datagrams", "connected_datagrams"];
/// New connections per second, unless `ORLOP_LOAD_RATE` says another number: an emulated processor is slow.
const RATE: u32 = 200;
/// How much of the rate must have been reached: the machine is shared with the cluster.
const LEAST: f64 = 0.9;
/// The load ends by itself after this many seconds, when a test forgot it.
const MOST_SECONDS: u32 = 600;

impl<'a> Load<'a> {
    /// Makes new connections at the rate, one kept-alive connection and two flows of datagrams until
    /// [`Self::assert_no_failure`]. Returns when it runs.
    #[track_caller]
    pub fn start(kubectl: &'a Kubectl, name: &str, target: &str) -> Self {
        Self::start_where(kubectl, name, target, "{}")
    }

    /// As [`Self::start`], on a node of the caller's choice.
    #[track_caller]
    pub fn start_on(kubectl: &'a Kubectl, name: &str, target: &str, node: &str) -> Self {
        Self::start_where(kubectl, name, target, &format!("{{\"spec\":{{\"nodeName\":\"{node}\"}}}}"))
    }

    /// As [`Self::start`], with a part of the pod's own, in JSON.
    #[track_caller]
    pub fn start_where(kubectl: &'a Kubectl, name: &str, target: &str, overrides: &str) -> Self {
        let (seconds, rate) = (MOST_SECONDS.to_string(), rate().to_string());
        kubectl.run(&[
            "run",
            name,
            "--image=localhost/echo:v1",
            "--restart=Never",
            &format!("--overrides={overrides}"),
            "--command",
            "--",
            "/echo",
            "load",
            target,
            &seconds,
            &rate,
        ]);
        kubectl.run(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
        Self { kubectl, name: name.to_owned() }
    }

    /// Checks that it still runs, ends it, and checks that it kept its rate and that nothing failed.
    #[track_caller]
    pub fn assert_no_failure(self) {
        let counts = self.end();
        for kind in KINDS {
            let count = &counts[kind];
            assert!(answers(count) > 0, "{kind}: no answer: {counts}");
            assert_eq!(count["failed"], 0, "{kind}: {counts}");
            assert_eq!(count["wrong_peer"], 0, "{kind}: {counts}");
        }
        let seconds = counts["seconds"].as_f64().expect("how long the load ran");
        let wanted = f64::from(rate()) * seconds * LEAST;
        assert!(
            answers(&counts["connections"]) as f64 >= wanted,
            "too slow for {} a second: {counts}",
            rate()
        );
    }

    /// Checks that it still runs, and ends it: what it counted.
    #[track_caller]
    pub fn end(self) -> Value {
        let object = format!("pod/{}", self.name);
        let phase = self.kubectl.get(&object, "{.status.phase}");
        assert_eq!(phase, "Running", "the load ended before it was told to");
        // The container may end before it has said how `kill` went.
        let told = self.kubectl.try_run(&["exec", &self.name, "--", "kill", "-TERM", "1"]);
        self.kubectl.wait("the load ends", || match self.kubectl.get(&object, "{.status.phase}") {
            phase if phase == "Succeeded" => Ok(()),
            phase => Err(format!("{phase}, having been told: {told:?}")),
        });
        let text = self.kubectl.run(&["logs", &self.name]);
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("no counts: {text}"))
    }
}

fn rate() -> u32 {
    std::env::var("ORLOP_LOAD_RATE").map_or(RATE, |rate| rate.parse().expect("ORLOP_LOAD_RATE is a number"))
}

/// How many requests were answered.
pub fn answers(count: &Value) -> u64 {
    let pods = count["answered"].as_object().cloned().unwrap_or_default();
    pods.values().filter_map(Value::as_u64).sum()
}

/// Asks a target from a pod; the counts.
#[track_caller]
pub fn ask(kubectl: &Kubectl, pod: &str, target: &str, count: u32) -> Value {
    let text = kubectl.run(&["exec", pod, "--", "/echo", "ask", target, &count.to_string()]);
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("no counts: {text}"))
}
