use super::*;

#[test]
fn a_nodes_hardware_address_stays_and_is_of_one_station() {
    let first = hardware_address("node-1");
    assert_eq!(first, hardware_address("node-1"));
    assert_ne!(first, hardware_address("node-2"));
    for name in ["node-1", "node-2", "a", ""] {
        assert_eq!(hardware_address(name).0[0] & 0x03, 0x02, "{name}");
    }
}
