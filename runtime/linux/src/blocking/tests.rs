//! Framing.

use super::{Request, frame, messages};

fn request(body: &[u8]) -> Request {
    Request { operation: "ask", object: "nobody".to_owned(), kind: 0x0a01, flags: 4, body: body.to_vec() }
}

#[test]
fn messages_read_back() {
    let mut bytes = Vec::new();
    frame(&mut bytes, &request(&[1, 2, 3, 4, 5]), 1, 7);
    frame(&mut bytes, &request(&[]), 0, 8);
    assert_eq!(bytes.len(), 24 + 16);
    let read: Vec<_> = messages(&bytes).map(|m| (m.kind, m.flags, m.sequence, m.body.to_vec())).collect();
    assert_eq!(read, [(0x0a01, 5, 7, vec![1, 2, 3, 4, 5]), (0x0a01, 4, 8, vec![])]);
}

#[test]
fn what_does_not_fit_ends_a_datagram() {
    let mut bytes = Vec::new();
    frame(&mut bytes, &request(&[0; 8]), 0, 1);
    assert_eq!(messages(&bytes[..20]).count(), 0);
    bytes[0] = 3;
    assert_eq!(messages(&bytes).count(), 0);
}

#[test]
fn verdicts_are_error_numbers() {
    let mut bytes = Vec::new();
    let body = (-libc::ENOENT).to_ne_bytes();
    frame(&mut bytes, &Request { kind: libc::NLMSG_ERROR as u16, ..request(&body) }, 0, 1);
    assert_eq!(messages(&bytes).next().and_then(|message| message.verdict()), Some(libc::ENOENT));
    frame(&mut bytes, &request(&body), 0, 2);
    assert_eq!(messages(&bytes).nth(1).and_then(|message| message.verdict()), None);
}
