//! Keys, and messages as the kernel sends them.

use super::*;

#[test]
fn keys_are_read_and_shown_in_base64() {
    let text = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";
    assert_eq!(text.parse::<PublicKey>().unwrap().to_string(), text);
    let zeros = STANDARD.encode([0; KEY_LENGTH]);
    for wrong in ["", "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8yk==", &text[1..], "not a key", &zeros] {
        let error = wrong.parse::<PublicKey>().unwrap_err();
        let expected = format!("invalid key {wrong:?}: expected 32 bytes in base64, not all of them zero");
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn a_device_without_a_key_has_none() {
    assert_eq!(key(&[0; KEY_LENGTH]), None);
    assert_eq!(key(&[1; KEY_LENGTH]), Some(PublicKey([1; KEY_LENGTH])));
    assert_eq!(key(&[1; 31]), None);
}

#[test]
fn a_message_is_read_as_it_is_written() {
    let networks: BTreeSet<IpNetwork> =
        ["10.244.1.0/24", "fd00:244:0:1::/64"].map(|text| text.parse().unwrap()).into();
    let mut body = Vec::new();
    let device = wire::OpGetDeviceDump::encode_request(&mut body).push_ifindex(3);
    let device = device.push_public_key(&[7; KEY_LENGTH]).push_listen_port(51820);
    let peer = device.array_peers().entry_nested().push_public_key(&[9; KEY_LENGTH]);
    let mut allowed = peer.push_endpoint("192.0.2.1:51820".parse().unwrap()).array_allowedips();
    for network in &networks {
        let entry = allowed.entry_nested().push_ipaddr(network.ip());
        allowed = entry.push_cidr_mask(network.prefix()).end_nested();
    }
    drop(allowed);
    let message = Message { kind: 30, flags: 0, sequence: 1, body: &body };
    let tunnel = Tunnel { endpoint: Some("192.0.2.1:51820".parse().unwrap()), networks };
    let expected = Device {
        public_key: Some(PublicKey([7; KEY_LENGTH])),
        port: 51820,
        peers: BTreeMap::from([(PublicKey([9; KEY_LENGTH]), tunnel)]),
    };
    assert_eq!(read(&message).unwrap(), expected);
    let message = Message { body: &body[..3], ..message };
    assert!(read(&message).is_err());
}
