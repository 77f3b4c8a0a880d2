use super::*;

#[test]
fn a_route_of_somebody_else_is_found_and_ours_is_not() {
    let ours = "10.85.0.0/24 dev orlop-host proto kernel scope link src 10.85.0.1\n";
    assert_eq!(foreign_route(ours), None);
    assert_eq!(foreign_route(""), None);
    let theirs = format!("{ours}10.85.0.128/25 via 192.168.1.1 dev eth0\n");
    assert_eq!(foreign_route(&theirs), Some("10.85.0.128/25 via 192.168.1.1 dev eth0"));
}
