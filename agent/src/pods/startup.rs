//! Where the time of a pod's start goes. Pure: moments are arguments.
//!
//! From the first sight of a pod until the API server has it as Running, every moment belongs to exactly one [`Phase`]: the furthest thing on the
//! pod's way that is under way. So the phases of one pod add up to the whole, whatever went on side by side.
//!
//! ```text
//! Wait ──▶ Volumes | Image | Sandbox ──▶ Create ──▶ Start ──▶ Status ──▶ (told)
//!   ▲                                                 │
//!   └── nothing under way: a delay, an init container ┘
//! ```

use std::time::{Duration, Instant};

use super::observed::{ImageState, Observed, Operation, VolumeState};

#[cfg(test)]
mod tests;

/// What a pod that starts waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// For nothing that is under way: its first pass, a delay after a failure, its own init containers.
    Wait,
    /// For volumes alone.
    Volumes,
    /// For images, the sandbox is there.
    Image,
    /// For the sandbox with its network.
    Sandbox,
    /// For the creation of a container.
    Create,
    /// For the start of a container.
    Start,
    /// For the API server to take the news.
    Status,
}

impl Phase {
    const ALL: [Phase; 7] = [
        Phase::Wait,
        Phase::Volumes,
        Phase::Image,
        Phase::Sandbox,
        Phase::Create,
        Phase::Start,
        Phase::Status,
    ];

    /// Its name in the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Wait => "wait",
            Phase::Volumes => "volumes",
            Phase::Image => "image",
            Phase::Sandbox => "sandbox",
            Phase::Create => "create",
            Phase::Start => "start",
            Phase::Status => "status",
        }
    }
}

/// Where a pod is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// On it.
    At(Phase),
    /// The API server has it as Running.
    Told,
    /// It ends without having been Running.
    Abandoned,
}

/// Where the pod is.
pub fn step(observed: &Observed) -> Step {
    let phase = observed.pod.status.as_ref().and_then(|status| status.phase.as_deref());
    match phase {
        Some("Failed" | "Succeeded") => Step::Abandoned,
        _ if observed.is_deleting() => Step::Abandoned,
        Some("Running") if observed.status_written => Step::Told,
        Some("Running") => Step::At(Phase::Status),
        _ => Step::At(before_running(observed)),
    }
}

fn before_running(observed: &Observed) -> Phase {
    let starting = || observed.busy.iter().filter(|(_, operation)| **operation == Operation::Start);
    if starting().any(|(name, _)| !observed.current(name).is_some_and(|record| record.is_live())) {
        Phase::Create
    } else if starting().next().is_some() {
        Phase::Start
    } else if observed.sandbox_creating {
        Phase::Sandbox
    } else if observed.images.values().any(|state| *state == ImageState::Pulling) {
        Phase::Image
    } else if observed.volumes == VolumeState::Preparing {
        Phase::Volumes
    } else {
        Phase::Wait
    }
}

/// The times of one start.
#[derive(Clone, Debug)]
pub struct Startup {
    seen: Instant,
    since: Instant,
    phase: Phase,
    spent: [Duration; Phase::ALL.len()],
}

/// What came of a look at a start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It goes on.
    Starting,
    /// The pod runs since this moment: so long after it was seen.
    Runs(Duration),
}

impl Startup {
    /// A pod that was seen at this moment.
    pub fn new(seen: Instant) -> Startup {
        Startup { seen, since: seen, phase: Phase::Wait, spent: Default::default() }
    }

    /// The pod is in this phase from now on.
    pub fn advance(&mut self, phase: Phase, now: Instant) -> Progress {
        self.spent[self.phase as usize] += now.saturating_duration_since(self.since);
        self.since = now;
        let before = std::mem::replace(&mut self.phase, phase);
        if phase == Phase::Status && before != Phase::Status {
            Progress::Runs(now.saturating_duration_since(self.seen))
        } else {
            Progress::Starting
        }
    }

    /// The start is over: what each phase took, zeros too.
    pub fn finish(mut self, now: Instant) -> impl Iterator<Item = (Phase, Duration)> {
        self.spent[self.phase as usize] += now.saturating_duration_since(self.since);
        Phase::ALL.into_iter().zip(self.spent)
    }
}
