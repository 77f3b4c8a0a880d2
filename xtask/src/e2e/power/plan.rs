//! What is asked of the API server in a round, and after how many answers the power goes. Pure: the seed decides.

use std::ops::Range;

use fastrand::Rng;
use serde_json::{Value, json};

#[cfg(test)]
mod tests;

/// How many kubectl create objects at the same time, and how many each of them.
const CREATORS: u64 = 4;
const CREATED: u64 = 500;
/// How many objects of earlier rounds are replaced, and how many others deleted, at most.
const CHANGED: usize = 200;
/// The power goes after so many answers: long before the creators are through.
const ANSWERS: Range<u64> = 40..400;
/// Repetitions of an object's text: some objects lie in one page of the store, some in two.
const REPETITIONS: u64 = 60;

/// The label of every object of this check.
pub const LABEL: &str = "power-cuts";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    Create,
    Replace,
    Delete,
}

/// What one kubectl does.
#[derive(Debug, PartialEq, Eq)]
pub struct Job {
    pub deed: Deed,
    pub names: Vec<String>,
}

/// What happens between two cuts. No object is in two jobs.
#[derive(Debug, PartialEq, Eq)]
pub struct Round {
    pub number: u64,
    pub jobs: Vec<Job>,
    /// The power goes with this answer.
    pub answers: u64,
}

/// `living` are the objects that earlier rounds left.
pub fn round(number: u64, mut living: Vec<String>, random: &mut Rng) -> Round {
    let mut jobs = Vec::new();
    for deed in [Deed::Replace, Deed::Delete] {
        let count = CHANGED.min(living.len() / 3);
        let names: Vec<String> =
            (0..count).map(|_| living.swap_remove(random.usize(..living.len()))).collect();
        if !names.is_empty() {
            jobs.push(Job { deed, names });
        }
    }
    for creator in 0..CREATORS {
        let names = (0..CREATED).map(|object| format!("round-{number}-{creator}-{object}")).collect();
        jobs.push(Job { deed: Deed::Create, names });
    }
    let answers = random.u64(ANSWERS);
    Round { number, jobs, answers }
}

/// What an object holds that was written in a round.
pub fn content(name: &str, round: u64) -> String {
    let seed = name.bytes().fold(round, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    let repetitions = Rng::with_seed(seed).u64(1..=REPETITIONS);
    format!("{name} as of round {round}; ").repeat(repetitions as usize)
}

/// The objects of a job, for kubectl.
pub fn manifest(job: &Job, round: u64) -> Value {
    let object = |name: &String| {
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "labels": {"app": LABEL}},
            "data": {"content": content(name, round)},
        })
    };
    json!({"apiVersion": "v1", "kind": "List", "items": job.names.iter().map(object).collect::<Vec<_>>()})
}
