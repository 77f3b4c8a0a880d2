//! Frames arrive in pieces, too long, and as nonsense.

use super::*;
use crate::{Call, Request};

#[test]
fn frames_arrive_in_pieces_and_in_bunches() {
    let first = encode(&Call { id: 1, request: Request::List }).unwrap();
    let second = encode(&Call { id: 2, request: Request::Shutdown }).unwrap();
    let all: Vec<u8> = first.iter().chain(&second).copied().collect();
    let mut buffer = Vec::new();
    let mut ids = Vec::new();
    for byte in all {
        buffer.push(byte);
        while let Some(call) = take_frame::<Call>(&mut buffer).unwrap() {
            ids.push(call.id);
        }
    }
    assert_eq!(ids, [1, 2]);
    assert!(buffer.is_empty());
}

#[test]
fn a_length_that_is_a_lie_is_refused_before_it_is_waited_for() {
    let mut buffer = u32::MAX.to_be_bytes().to_vec();
    assert!(matches!(take_frame::<Call>(&mut buffer), Err(FrameError::TooLong { .. })));
    let mut buffer = vec![0, 0, 0, 2, b'{', b'{'];
    assert!(matches!(take_frame::<Call>(&mut buffer), Err(FrameError::Malformed { .. })));
}
