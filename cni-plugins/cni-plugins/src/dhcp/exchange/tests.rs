//! Replies that are none, and options that the library must not see.

use linux::netlink::MacAddress;

use super::decode;

const OPTIONS: usize = 240;
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
fn options_of_wrong_lengths_do_no_harm() {
    for options in [&[81, 2, 0, 0, 255][..], &[51, 3, 0, 0, 1, 255], &[53, 9, 5], &[109, 0, 22], &[81]] {
        drop(decode(&reply(options), 7, MAC));
    }
    assert!(decode(&reply(&[81, 2, 0, 0, 255]), 7, MAC).is_none());
}
