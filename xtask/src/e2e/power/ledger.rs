//! What was asked for, what was acknowledged, and whether a store that comes up after a cut keeps to it. Pure.
//!
//! An object is asked for one thing at most between two cuts. Acknowledged, it has happened; not acknowledged, it may have.

use std::collections::BTreeMap;

use super::plan::{Deed, Job, content};

#[cfg(test)]
mod tests;

/// How many violations an error names.
const NAMED: usize = 8;

/// An object of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub name: String,
    pub revision: u64,
    pub content: String,
}

/// What an object holds: what was written in `round`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    round: u64,
    revision: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Put { round: u64 },
    Delete,
}

#[derive(Debug, Default)]
struct Object {
    /// As acknowledged, or as found after the last cut.
    known: Option<Held>,
    /// What nobody has acknowledged.
    asked: Option<Asked>,
}

#[derive(Debug, Default)]
pub struct Ledger {
    objects: BTreeMap<String, Object>,
    /// The store's revision when it was looked at after the last cut.
    seen: u64,
    /// The newest revision that anybody was told of.
    told: u64,
    /// Writes that were acknowledged, in all rounds.
    pub acknowledged: u64,
    /// Writes that were not and yet have happened.
    pub unheard: u64,
}

impl Ledger {
    pub fn ask(&mut self, job: &Job, round: u64) {
        let asked = match job.deed {
            Deed::Create | Deed::Replace => Asked::Put { round },
            Deed::Delete => Asked::Delete,
        };
        for name in &job.names {
            self.objects.entry(name.clone()).or_default().asked = Some(asked);
        }
    }

    /// Takes a line that kubectl printed: `NAME REVISION` of a write, `configmap/NAME` of a deletion.
    pub fn acknowledge(&mut self, line: &str) -> Result<(), String> {
        let unexpected = || format!("kubectl printed {line:?}, which nobody asked for");
        let (name, revision) = match (line.strip_prefix("configmap/"), line.split_once(' ')) {
            (Some(name), _) => (name, None),
            (None, Some((name, revision))) => (name, Some(revision.parse().map_err(|_| unexpected())?)),
            (None, None) => return Err(unexpected()),
        };
        let object = self.objects.get_mut(name).ok_or_else(unexpected)?;
        object.known = match (object.asked.take(), revision) {
            (Some(Asked::Put { round }), Some(revision)) => Some(Held { round, revision }),
            (Some(Asked::Delete), None) => None,
            _ => return Err(unexpected()),
        };
        self.acknowledged += 1;
        if let Some(revision) = revision {
            if revision <= self.seen {
                let seen = self.seen;
                return Err(format!("{name} got revision {revision} of a store that had been at {seen}"));
            }
            self.told = self.told.max(revision);
        }
        Ok(())
    }

    /// Compares with what the store holds at `revision`, which is what is known from now on.
    pub fn compare(&mut self, revision: u64, found: Vec<Found>) -> Result<(), String> {
        let mut violations = Vec::new();
        if revision < self.told {
            violations.push(format!("the store is at revision {revision}, and had told {}", self.told));
        }
        let mut found: BTreeMap<String, Found> =
            found.into_iter().map(|found| (found.name.clone(), found)).collect();
        for (name, object) in &mut self.objects {
            match object.settle(name, found.remove(name).as_ref(), self.seen + 1..=revision) {
                Ok(unheard) => self.unheard += u64::from(unheard),
                Err(violation) => violations.push(format!("{name} {violation}")),
            }
        }
        violations.extend(found.into_keys().map(|name| format!("{name} is there, and nobody asked for it")));
        (self.seen, self.told) = (revision, revision);
        if violations.is_empty() { Ok(()) } else { Err(describe(&violations)) }
    }

    /// The objects that exist, as far as is known.
    pub fn living(&self) -> Vec<String> {
        let living = self.objects.iter().filter(|(_, object)| object.known.is_some());
        living.map(|(name, _)| name.clone()).collect()
    }
}

impl Object {
    /// Takes what was found as known; whether that is what was asked for and not acknowledged. `news` are the revisions since the
    /// last look.
    fn settle(
        &mut self,
        name: &str,
        found: Option<&Found>,
        news: std::ops::RangeInclusive<u64>,
    ) -> Result<bool, String> {
        let asked = self.asked.take();
        let holds = |found: &Found, round: u64| found.content == content(name, round);
        match (self.known, found, asked) {
            (None, None, _) => Ok(false),
            (Some(known), Some(found), _)
                if found.revision == known.revision && holds(found, known.round) =>
            {
                Ok(false)
            }
            (_, Some(found), Some(Asked::Put { round }))
                if holds(found, round) && news.contains(&found.revision) =>
            {
                self.known = Some(Held { round, revision: found.revision });
                Ok(true)
            }
            (Some(_), None, Some(Asked::Delete)) => {
                self.known = None;
                Ok(true)
            }
            (Some(known), None, _) => {
                Err(format!("is lost; its revision {} was acknowledged", known.revision))
            }
            (Some(known), Some(found), _) => Err(format!(
                "is at revision {} with {} bytes; acknowledged was revision {} with {}",
                found.revision,
                found.content.len(),
                known.revision,
                content(name, known.round).len()
            )),
            (None, Some(found), None) => {
                Err(format!("is there at revision {}; its deletion was acknowledged", found.revision))
            }
            (None, Some(found), Some(_)) => {
                Err(format!("holds at revision {} what nobody wrote: {:?}", found.revision, found.content))
            }
        }
    }
}

fn describe(violations: &[String]) -> String {
    let named = violations.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join("; ");
    match violations.len() {
        1..=NAMED => named,
        all => format!("{named}; and {} more", all - NAMED),
    }
}
