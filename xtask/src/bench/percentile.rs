//! Percentiles and means of a handful of measured times. Pure.

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

/// The mean. `None` without values.
pub fn mean(values: &[Duration]) -> Option<Duration> {
    values.iter().sum::<Duration>().checked_div(u32::try_from(values.len()).ok()?)
}
