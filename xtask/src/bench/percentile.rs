//! Percentiles of a handful of measured times. Pure.

use std::time::Duration;

#[cfg(test)]
mod tests;

/// The smallest value that at least `percent` of the values do not exceed (nearest rank). `None` without values.
pub fn percentile(values: &[Duration], percent: usize) -> Option<Duration> {
    let mut sorted = values.to_vec();
    sorted.sort();
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}
