use super::*;

#[test]
fn nodes_are_numbered_from_one() {
    assert_eq!((node_address(1).as_str(), node_address(3).as_str()), ("10.85.0.11", "10.85.0.13"));
    assert_eq!(node_address_v6(3), "fd00:85::13");
}

#[test]
fn a_route_of_somebody_else_is_found_and_ours_is_not() {
    let ours = "10.85.0.0/24 dev orlop-host proto kernel scope link src 10.85.0.1\n";
    assert_eq!(foreign_route(ours), None);
    assert_eq!(foreign_route(""), None);
    let theirs = format!("{ours}10.85.0.128/25 via 192.168.1.1 dev eth0\n");
    assert_eq!(foreign_route(&theirs), Some("10.85.0.128/25 via 192.168.1.1 dev eth0"));
}
