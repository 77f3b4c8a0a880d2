use super::*;

#[test]
fn the_first_sight_of_each_step_counts() {
    let begin = Instant::now();
    let at = |milliseconds| begin + Duration::from_millis(milliseconds);
    let mut pods = HashMap::new();
    for (moment, line) in [
        (0, "ADDED,a,,Pending,"),
        (5, "MODIFIED,a,n,Pending,"),
        (9, "MODIFIED,a,n,Pending,"),
        (80, "MODIFIED,a,n,Running,"),
        (90, "MODIFIED,a,n,Running,"),
        (100, "MODIFIED,a,n,Running,2026-01-01T00:00:00Z"),
        (130, "MODIFIED,a,n,Running,2026-01-01T00:00:00Z"),
        (150, "DELETED,a,n,Succeeded,2026-01-01T00:00:00Z"),
        (160, "not a line of ours"),
    ] {
        Times::note(&mut pods, at(moment), line);
    }
    assert_eq!(pods.len(), 1);
    let times = pods["a"];
    assert_eq!(times.to_scheduled(), Some(Duration::from_millis(5)));
    assert_eq!(times.to_running(), Some(Duration::from_millis(80)));
    assert_eq!(times.to_gone(), Some(Duration::from_millis(50)));
}
