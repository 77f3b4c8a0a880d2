//! The load that the `echo` image makes, and what it counted.

use serde_json::Value;

use crate::kubectl::Kubectl;

/// A load that runs as a pod of its own, so that it outlives every part of the node that may be killed meanwhile.
pub struct Load<'a> {
    kubectl: &'a Kubectl,
    name: String,
}

impl<'a> Load<'a> {
    /// Makes 200 new connections a second, one kept-alive connection and one flow of datagrams for `seconds`. Returns when
    /// it runs.
    #[track_caller]
    pub fn start(kubectl: &'a Kubectl, name: &str, target: &str, seconds: u32) -> Self {
        let seconds = seconds.to_string();
        kubectl.run(&[
            "run",
            name,
            "--image=localhost/echo:v1",
            "--restart=Never",
            "--command",
            "--",
            "/echo",
            "load",
            target,
            &seconds,
            "200",
        ]);
        kubectl.run(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
        Self { kubectl, name: name.to_owned() }
    }

    /// Waits for the end and checks that nothing failed.
    #[track_caller]
    pub fn assert_no_failure(self) {
        let object = format!("pod/{}", self.name);
        self.kubectl.wait("the load ends", || match self.kubectl.get(&object, "{.status.phase}") {
            phase if phase == "Succeeded" => Ok(()),
            phase => Err(phase),
        });
        let text = self.kubectl.run(&["logs", &self.name]);
        let counts: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("no counts: {text}"));
        for kind in ["connections", "kept_alive", "datagrams"] {
            let count = &counts[kind];
            assert!(answers(count) > 0, "{kind}: no answer: {text}");
            assert_eq!(count["failed"], 0, "{kind}: {text}");
            assert_eq!(count["wrong_peer"], 0, "{kind}: {text}");
        }
    }
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
