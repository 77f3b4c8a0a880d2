//! How long starts and ends took. Pure.

use std::fmt;
use std::time::Duration;

use super::Life;

/// The pods of one kind that are gone.
#[derive(Debug, Default)]
pub struct Took {
    pods: usize,
    starts: Vec<Duration>,
    ends: Vec<Duration>,
}

impl Took {
    pub fn add(&mut self, life: &Life) {
        self.pods += 1;
        self.starts.extend(life.start_took());
        self.ends.extend(life.end_took());
    }
}

/// The pods, then the middle, the 99th of a hundred and the longest of each.
impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:5} pods; start {}; end {}", self.pods, Shares(&self.starts), Shares(&self.ends))
    }
}

struct Shares<'a>(&'a [Duration]);

impl fmt::Display for Shares<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted = self.0.to_vec();
        sorted.sort_unstable();
        let at = |hundredths: usize| {
            let index = sorted.len().saturating_mul(hundredths).div_ceil(100).saturating_sub(1);
            sorted.get(index).map_or_else(|| "-".to_owned(), |took| format!("{:.2} s", took.as_secs_f64()))
        };
        write!(f, "p50 {}, p99 {}, most {} of {}", at(50), at(99), at(100), sorted.len())
    }
}
