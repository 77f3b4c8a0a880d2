use super::*;

const PAGE: &str = "# HELP a Help.\n# TYPE a histogram\na_sum{phase=\"x\"} 0.5\na_count{phase=\"x\"} 2\n\
                    a_bucket{le=\"1\",phase=\"x\"} 2\nb 7\n# EOF\n";

#[test]
fn pages_of_several_nodes_are_added_up_without_their_buckets() {
    let mut metrics = NodeMetrics::default();
    metrics.add(PAGE);
    metrics.add("a_sum{phase=\"x\"} 0.25\n");
    let expected = [("a_sum{phase=\"x\"}", 0.75), ("a_count{phase=\"x\"}", 2.0), ("b", 7.0)];
    assert_eq!(metrics.0, expected.map(|(series, value)| (series.to_owned(), value)).into());
}

#[test]
fn what_was_spent_is_the_difference_of_sums() {
    let (mut before, mut after) = (NodeMetrics::default(), NodeMetrics::default());
    before.add(PAGE);
    after.add("a_sum{phase=\"x\"} 0.75\n");
    assert_eq!(after.spent_since(&before, "a", "phase=\"x\""), Duration::from_millis(250));
    assert_eq!(after.spent_since(&before, "a", "phase=\"y\""), Duration::ZERO);
    // An agent that was restarted counts from zero again.
    assert_eq!(before.spent_since(&after, "a", "phase=\"x\""), Duration::ZERO);
}
