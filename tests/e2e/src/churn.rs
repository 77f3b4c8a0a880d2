//! Pods that come and go at the same time: which to make, which to delete, and whether each does what its kind should. Pure.
//!
//! In: the moment, and what a watch says of each pod. Out: names to create and to delete, the first thing that is wrong, and how long
//! everything took. Nothing here talks to a cluster.

mod kinds;
mod life;
mod took;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

pub use kinds::{KINDS, Kind, LABEL, SETTINGS};
pub use life::Life;
pub use took::Took;

#[cfg(test)]
mod tests;

/// How much there is at the same time, and how long a step of a pod may take.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Pods whose objects exist at the same time.
    pub pods: usize,
    /// From the request to create it until the pod is what its kind should become.
    pub start: Duration,
    /// From the request to delete it until its object is gone, beyond its grace.
    pub end: Duration,
    /// How long pods of a long-lived kind stay.
    pub stay: Duration,
}

/// What is to be deleted now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// With the grace of their own.
    pub usual: Vec<String>,
    /// At once, without waiting for the node.
    pub forced: Vec<String>,
}

/// All pods of a run.
#[derive(Debug)]
pub struct Churn {
    bounds: Bounds,
    /// The pods whose objects exist, as far as is known.
    lives: BTreeMap<String, Life>,
    made: usize,
    took: BTreeMap<&'static str, Took>,
}

impl Churn {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, lives: BTreeMap::new(), made: 0, took: BTreeMap::new() }
    }

    /// Takes note that as many pods as are missing are asked for now; their manifests.
    pub fn fill(&mut self, now: Instant) -> Vec<Value> {
        let missing = self.bounds.pods.saturating_sub(self.lives.len());
        (0..missing).map(|_| self.one_more(now)).collect()
    }

    /// As [`Self::fill`], one of each kind.
    pub fn one_of_each(&mut self, now: Instant) -> Vec<Value> {
        KINDS.iter().map(|_| self.one_more(now)).collect()
    }

    fn one_more(&mut self, now: Instant) -> Value {
        let kind = &KINDS[self.made % KINDS.len()];
        let name = format!("{}-{}", kind.name, self.made);
        self.made += 1;
        let manifest = kind.manifest(&name);
        self.lives.insert(name, Life::new(kind, now));
        manifest
    }

    /// The pods whose time has come; takes note that they are asked to be deleted now.
    pub fn due(&mut self, now: Instant) -> Due {
        self.delete(now, |life, stay| life.is_due(now, stay))
    }

    /// As [`Self::due`], without any stay.
    pub fn all_that_can(&mut self, now: Instant) -> Due {
        self.delete(now, |life, _| life.is_due(now, Duration::ZERO))
    }

    fn delete(&mut self, now: Instant, wanted: impl Fn(&Life, Duration) -> bool) -> Due {
        let mut due = Due::default();
        for (name, life) in &mut self.lives {
            if life.is_asked_to_go() || !wanted(life, self.bounds.stay) {
                continue;
            }
            life.ask_to_go(now);
            let names = if life.kind.is_forced() { &mut due.forced } else { &mut due.usual };
            names.push(name.clone());
        }
        due
    }

    /// Takes note of one event of the watch, `{type, object}`.
    ///
    /// # Errors
    /// The pod's name, and what is wrong with it.
    pub fn note(&mut self, at: Instant, event: &Value) -> Result<(), Wrong> {
        let pod = &event["object"];
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let Some(life) = self.lives.get_mut(name) else { return Ok(()) };
        let wrong = |what| Wrong { pod: name.to_owned(), what };
        life.note(at, event).map_err(wrong)?;
        let (address, keeps) = (life.address().to_owned(), life.keeps_address());
        if event["type"] == "DELETED" {
            self.gone(name);
            return Ok(());
        }
        let other = self
            .lives
            .iter()
            .find(|(other, life)| *other != name && life.keeps_address() && life.address() == address);
        match other {
            Some((other, _)) if keeps => Err(wrong(format!("it has {address}, which {other} has too"))),
            _ => Ok(()),
        }
    }

    /// Takes note of every pod that there is, after a gap in the watch: what was asked to go and is not there is gone.
    ///
    /// # Errors
    /// As [`Self::note`].
    pub fn note_all(&mut self, at: Instant, pods: &[Value]) -> Result<(), Wrong> {
        for pod in pods {
            self.note(at, &serde_json::json!({"type": "LISTED", "object": pod}))?;
        }
        let present = |name: &str| pods.iter().any(|pod| pod["metadata"]["name"] == name);
        let missing: Vec<String> = self.lives.keys().filter(|name| !present(name)).cloned().collect();
        for pod in missing {
            if let Some(life) = self.lives.get_mut(&pod) {
                life.went(at).map_err(|what| Wrong { pod: pod.clone(), what })?;
            }
            self.gone(&pod);
        }
        Ok(())
    }

    fn gone(&mut self, name: &str) {
        if let Some(life) = self.lives.remove(name) {
            self.took.entry(life.kind.name).or_default().add(&life);
        }
    }

    /// The first pod that is late.
    ///
    /// # Errors
    /// As [`Self::note`].
    pub fn check(&self, now: Instant) -> Result<(), Wrong> {
        for (name, life) in &self.lives {
            if let Some(what) = life.late(now, &self.bounds) {
                return Err(Wrong { pod: name.clone(), what });
            }
        }
        Ok(())
    }

    /// Everything that was seen of a pod that is not gone.
    pub fn history(&self, name: &str) -> Vec<String> {
        self.lives.get(name).map(|life| life.history().to_vec()).unwrap_or_default()
    }

    /// How many pods there are.
    pub fn len(&self) -> usize {
        self.lives.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lives.is_empty()
    }

    /// How many pods were made.
    pub fn made(&self) -> usize {
        self.made
    }

    /// How long what took, a line for each kind.
    pub fn report(&self) -> String {
        self.took.iter().map(|(kind, took)| format!("{kind:14} {took}\n")).collect()
    }
}

/// A pod that does not do what it should.
#[derive(Debug, PartialEq, Eq)]
pub struct Wrong {
    pub pod: String,
    pub what: String,
}
