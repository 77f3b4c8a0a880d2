//! The messages, byte by byte, as `bridge vlan` sends them.

use rtnetlink::packet_core::Emitable;

use super::{PortVlan, info, message};

/// `struct ifinfomsg` of `AF_BRIDGE`, index 3, and the head of `IFLA_AF_SPEC` (26).
fn head(length: u8) -> Vec<u8> {
    let mut bytes = vec![7, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend([length, 0, 26, 0]);
    bytes
}

#[test]
fn each_vlan_is_an_attribute_with_its_flags() {
    let vlans = [PortVlan { id: 100, untagged: true }, PortVlan { id: 4094, untagged: false }];
    let message = message(3, vlans.iter().map(info));
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    // Length 8, type IFLA_BRIDGE_VLAN_INFO (2); flags PVID (2) and UNTAGGED (4).
    let expected = [head(20), vec![8, 0, 2, 0, 6, 0, 100, 0], vec![8, 0, 2, 0, 0, 0, 0xfe, 0x0f]].concat();
    assert_eq!(bytes, expected);
}
