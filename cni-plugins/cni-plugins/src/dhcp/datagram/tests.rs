//! Packets there and back.

use super::{checksum, unwrap, wrap};

#[test]
fn a_payload_survives() {
    let (from, to) = ("10.0.0.9:68".parse().expect("it"), "255.255.255.255:67".parse().expect("it"));
    let packet = wrap(from, to, b"hello").expect("it fits");
    assert_eq!(packet.len(), 33);
    // A right header sums up to nothing.
    assert_eq!(checksum(&packet[..20]), 0);
    assert_eq!(unwrap(&packet), Some(([10, 0, 0, 9].into(), b"hello".as_slice())));
    assert_eq!(wrap(from, to, &vec![0; 65_536]), None);
}

#[test]
fn other_packets_are_none() {
    let packet =
        wrap("1.2.3.4:1".parse().expect("it"), "1.2.3.5:2".parse().expect("it"), b"x").expect("it fits");
    for length in 0..packet.len() {
        assert_eq!(unwrap(&packet[..length]), None, "{length}");
    }
    for (at, byte) in [(0, 0x65), (0, 0x41), (0, 0x4f), (9, 6), (25, 7), (25, 200)] {
        let mut broken = packet.clone();
        broken[at] = byte;
        assert_eq!(unwrap(&broken), None, "{at}");
    }
}
