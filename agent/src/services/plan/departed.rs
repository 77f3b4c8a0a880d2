//! Which pods of this node have come to their end, and what that makes of their endpoints. Pure.
//!
//! A pod is known by its uid, which is never given twice: whatever an address is used for next, and however late a slice with
//! an old state arrives, only endpoints that name this very pod are held back. So nothing has to be taken back when an
//! address is free again, and what is known is forgotten only to keep it bounded, the oldest first.

use std::collections::{HashMap, VecDeque};

use super::{Departure, Endpoint, Usable};

/// Pods that are remembered. A slice that is further behind than so many ends on one node is believed again.
pub const PODS: usize = 4096;

#[derive(Debug, Default)]
pub struct Departed {
    stages: HashMap<Box<str>, Departure>,
    /// In the order in which they began to end.
    order: VecDeque<Box<str>>,
}

impl Departed {
    /// Takes note of a pod's end. The pods of which something else is known now: this one, and one that was forgotten for it.
    pub fn put(&mut self, pod: &str, stage: Departure) -> [Option<Box<str>>; 2] {
        match self.stages.insert(pod.into(), stage) {
            Some(before) if before >= stage => {
                self.stages.insert(pod.into(), before);
                [None, None]
            }
            Some(_) => [Some(pod.into()), None],
            None => {
                self.order.push_back(pod.into());
                let forgotten = (self.order.len() > PODS).then(|| self.order.pop_front()).flatten();
                forgotten.iter().for_each(|oldest| {
                    self.stages.remove(oldest);
                });
                [Some(pod.into()), forgotten]
            }
        }
    }

    /// What an endpoint is worth now. `published`: its Service wants endpoints that are not ready, terminating ones too.
    pub fn usable(&self, endpoint: &Endpoint, published: bool) -> Usable {
        let stage = endpoint.pod.as_ref().and_then(|pod| self.stages.get(pod.as_str()));
        match stage {
            Some(Departure::Gone) => Usable::No,
            Some(Departure::Terminating) if !published => endpoint.departing,
            Some(Departure::Terminating) | None => endpoint.usable,
        }
    }
}
