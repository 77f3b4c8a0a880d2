use super::*;

fn milliseconds(values: &[u64]) -> Vec<Duration> {
    values.iter().copied().map(Duration::from_millis).collect()
}

#[test]
fn nearest_rank() {
    let values = milliseconds(&[50, 10, 40, 20, 30]);
    assert_eq!(percentile(&values, 50), Some(Duration::from_millis(30)));
    assert_eq!(percentile(&values, 99), Some(Duration::from_millis(50)));
    assert_eq!(percentile(&values, 1), Some(Duration::from_millis(10)));
    assert_eq!(percentile(&[], 50), None);
}

#[test]
fn mean_of_values() {
    assert_eq!(mean(&milliseconds(&[10, 20, 60])), Some(Duration::from_millis(30)));
    assert_eq!(mean(&[]), None);
}
