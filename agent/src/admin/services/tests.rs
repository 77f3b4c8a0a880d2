use dataplane::Protocol;

use super::*;

#[test]
fn ports_look_as_kubectl_shows_them() {
    let with = |node_port| Port { name: "dns".into(), port: 53, protocol: Protocol::Udp, node_port };
    assert_eq!(port(&with(None)), "53/UDP");
    assert_eq!(port(&with(Some(30053))), "53:30053/UDP");
}

#[test]
fn a_long_answer_says_how_much_is_missing() {
    let rows = (0..5).map(|number| json!(number)).collect();
    assert_eq!(limited(rows, 2), json!({"total": 5, "items": [0, 1]}));
}

#[test]
fn no_source_ranges_are_not_ranges_that_hold_nobody() {
    let mut service = Service::default();
    assert_eq!(source_ranges(&service), None);
    service.source_ranges.v6 = Some(Arc::default());
    assert_eq!(source_ranges(&service), Some(Vec::new()));
    service.source_ranges.v4 = Some([("192.0.2.0/24").parse().unwrap()].into());
    assert_eq!(source_ranges(&service), Some(vec!["192.0.2.0/24".to_owned()]));
}

#[test]
fn counts_of_a_service_are_those_of_all_its_addresses() {
    let one = ServiceCounts { led: 1, no_backend: 2, forbidden: 3 };
    assert_eq!(total([one, one].iter()), ServiceCounts { led: 2, no_backend: 4, forbidden: 6 });
}
