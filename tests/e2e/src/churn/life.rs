//! One pod from the request to make it until its object is gone: what was seen, and whether that is as it should be. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Bounds;
use super::kinds::{Kind, Until};

/// Lines that are kept of a pod; a pod that says more is in trouble, which its first lines tell.
const MOST_LINES: usize = 100;
/// terminationGracePeriodSeconds where the manifest has none.
const DEFAULT_GRACE: u64 = 30;

/// What has been seen of a pod.
#[derive(Debug)]
pub struct Life {
    pub kind: &'static Kind,
    asked: Instant,
    seen: Option<Instant>,
    /// Became what its kind should.
    reached: Option<Instant>,
    asked_to_go: Option<Instant>,
    going: Option<Instant>,
    gone: Option<Instant>,
    grace: Duration,
    /// Its containers end, or have ended.
    over: bool,
    address: String,
    /// Container name to container id.
    containers: BTreeMap<String, String>,
    history: Vec<String>,
}

impl Life {
    pub fn new(kind: &'static Kind, asked: Instant) -> Self {
        Self {
            kind,
            asked,
            seen: None,
            reached: None,
            asked_to_go: None,
            going: None,
            gone: None,
            grace: Duration::from_secs(DEFAULT_GRACE),
            over: false,
            address: String::new(),
            containers: BTreeMap::new(),
            history: Vec::new(),
        }
    }

    pub fn is_due(&self, now: Instant, stay: Duration) -> bool {
        match self.kind.until {
            Until::Created => true,
            Until::Ready | Until::Succeeded => self.reached.is_some(),
            Until::Stayed => self.reached.is_some_and(|at| now.duration_since(at) >= stay),
        }
    }

    pub fn is_asked_to_go(&self) -> bool {
        self.asked_to_go.is_some()
    }

    pub fn ask_to_go(&mut self, now: Instant) {
        self.asked_to_go.get_or_insert(now);
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether nobody else may have its address: its network is not taken down yet.
    pub fn keeps_address(&self) -> bool {
        !self.address.is_empty() && !self.over && self.asked_to_go.is_none()
    }

    pub fn history(&self) -> &[String] {
        &self.history
    }

    /// From being seen until it became what it should.
    pub fn start_took(&self) -> Option<Duration> {
        Some(self.reached?.duration_since(self.seen?))
    }

    /// From being seen to be deleted until it was gone.
    pub fn end_took(&self) -> Option<Duration> {
        Some(self.gone?.duration_since(self.going?))
    }

    /// Takes note of one event of the watch.
    ///
    /// # Errors
    /// What should not be.
    pub fn note(&mut self, at: Instant, event: &Value) -> Result<(), String> {
        let pod = &event["object"];
        if self.history.len() < MOST_LINES {
            let line = line(event);
            self.history.push(format!("{:8.3} s {line}", at.duration_since(self.asked).as_secs_f64()));
        }
        self.seen.get_or_insert(at);
        if let Some(grace) = pod["spec"]["terminationGracePeriodSeconds"].as_u64() {
            self.grace = Duration::from_secs(grace);
        }
        if event["type"] == "DELETED" {
            return self.went(at);
        }
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            self.going.get_or_insert(at);
            if self.asked_to_go.is_none() {
                return Err("it is being deleted by somebody else".to_owned());
            }
        }
        self.note_phase(at, &pod["status"])?;
        self.note_address(&pod["status"])?;
        for list in ["initContainerStatuses", "containerStatuses"] {
            for status in pod["status"][list].as_array().into_iter().flatten() {
                self.note_container(status)?;
            }
        }
        Ok(())
    }

    /// Takes note that its object is gone.
    ///
    /// # Errors
    /// Nobody asked for that.
    pub fn went(&mut self, at: Instant) -> Result<(), String> {
        self.gone = Some(at);
        if self.asked_to_go.is_some() { Ok(()) } else { Err("it is gone, and nobody deleted it".to_owned()) }
    }

    fn note_phase(&mut self, at: Instant, status: &Value) -> Result<(), String> {
        let phase = status["phase"].as_str().unwrap_or_default();
        let ended = matches!(phase, "Succeeded" | "Failed");
        self.over |= ended;
        if ended && self.asked_to_go.is_none() && (phase == "Failed" || self.kind.runs_on()) {
            return Err(format!("its phase is {phase}: {} {}", status["reason"], status["message"]));
        }
        let ready = || {
            let conditions = status["conditions"].as_array();
            conditions
                .into_iter()
                .flatten()
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
        };
        let reached = match self.kind.until {
            Until::Created => !phase.is_empty(),
            Until::Succeeded => phase == "Succeeded",
            Until::Ready | Until::Stayed => phase == "Running" && ready(),
        };
        if reached {
            self.reached.get_or_insert(at);
        }
        Ok(())
    }

    fn note_address(&mut self, status: &Value) -> Result<(), String> {
        let address = status["podIP"].as_str().unwrap_or_default();
        if self.address.is_empty() {
            address.clone_into(&mut self.address);
        } else if self.address != address && !self.over && self.asked_to_go.is_none() {
            return Err(format!("its address {} became {address:?}", self.address));
        }
        Ok(())
    }

    /// No container is ever started twice: none fails, and the agent's end is not theirs.
    fn note_container(&mut self, status: &Value) -> Result<(), String> {
        let name = status["name"].as_str().unwrap_or_default();
        if status["restartCount"].as_u64() != Some(0) {
            return Err(format!("container {name} was started again: {status}"));
        }
        // One that was made when the agent died, and never ran, is made again.
        let state = &status["state"];
        if state["running"].is_null() && state["terminated"].is_null() {
            return Ok(());
        }
        let id = status["containerID"].as_str().unwrap_or_default();
        match self.containers.insert(name.to_owned(), id.to_owned()) {
            Some(before) if before != id => Err(format!("container {name} was {before} and is {id}")),
            _ => Ok(()),
        }
    }

    /// What it should have become by now.
    pub fn late(&self, now: Instant, bounds: &Bounds) -> Option<String> {
        if let Some(asked) = self.asked_to_go {
            let limit = self.grace + bounds.end;
            let late = now.duration_since(asked) > limit;
            return late.then(|| format!("it is not gone {limit:?} after it was deleted"));
        }
        let late = self.reached.is_none() && now.duration_since(self.asked) > bounds.start;
        late.then(|| format!("it is not {:?} after {:?}", self.kind.until, bounds.start))
    }
}

/// What an event says, in one line.
fn line(event: &Value) -> String {
    let (pod, status) = (&event["object"], &event["object"]["status"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut words = vec![
        text(&event["type"]),
        text(&pod["metadata"]["uid"]),
        format!("version={}", text(&pod["metadata"]["resourceVersion"])),
        text(&pod["spec"]["nodeName"]),
        text(&status["phase"]),
        text(&status["podIP"]),
    ];
    if let Some(at) = pod["metadata"]["deletionTimestamp"].as_str() {
        words.push(format!("deleted={at}"));
    }
    for condition in status["conditions"].as_array().into_iter().flatten() {
        if condition["status"] != "True" {
            words.push(format!(
                "{}={}({})",
                text(&condition["type"]),
                text(&condition["status"]),
                text(&condition["reason"])
            ));
        }
    }
    for list in ["initContainerStatuses", "containerStatuses"] {
        for container in status[list].as_array().into_iter().flatten() {
            words.push(format!("{}={}", text(&container["name"]), container["state"]));
        }
    }
    words.join(" ")
}
