//! Replies that are none, and options that the library must not see.

use linux::netlink::MacAddress;

use super::{OPTIONS, decode, has_short_fqdn};

const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const COOKIE: [u8; 4] = [99, 130, 83, 99];

fn reply(options: &[u8]) -> Vec<u8> {
    let mut payload = vec![0; OPTIONS];
    payload[..4].copy_from_slice(&[2, 1, 6, 0]);
    payload[4..8].copy_from_slice(&7_u32.to_be_bytes());
    payload[28..34].copy_from_slice(&MAC.0);
    payload[OPTIONS - 4..].copy_from_slice(&COOKIE);
    payload.extend(options);
    payload
}

#[test]
fn only_the_answer_to_the_question_is_decoded() {
    let payload = reply(&[53, 1, 5, 255]);
    assert!(decode(&payload, 7, MAC).is_some());
    assert!(decode(&payload, 8, MAC).is_none());
    assert!(decode(&payload, 7, MacAddress([2, 0, 0, 0, 0, 2])).is_none());
    let mut question = payload.clone();
    question[0] = 1;
    assert!(decode(&question, 7, MAC).is_none());
    for length in 0..OPTIONS {
        assert!(decode(&payload[..length], 7, MAC).is_none(), "{length}");
    }
}

#[test]
fn a_name_without_its_head_is_found_also_in_parts() {
    for (options, short) in [
        (&[81, 2, 0, 0, 255][..], true),
        (&[0, 53, 1, 5, 81, 0], true),
        (&[81, 1, 0, 81, 1, 0, 255], true),
        (&[81, 1, 0, 81, 2, 0, 0, 255], false),
        (&[81, 3, 0, 0, 0, 255], false),
        (&[255, 81, 0], false),
        (&[53, 9, 81, 0], false),
        (&[81], false),
        (&[], false),
    ] {
        assert_eq!(has_short_fqdn(options), short, "{options:?}");
    }
    assert!(decode(&reply(&[81, 2, 0, 0, 255]), 7, MAC).is_none());
}
