use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;

use super::headers::{HeaderError, HeaderReader, HeaderWriter, dictionary};
use super::{
    Decoder, Error, Frame, MAX_CONTROL_BYTES, MAX_DATA_BYTES, Reset, data, end, go_away, ping, reset,
    syn_reply,
};

/// A client's SYN_STREAM.
fn syn_stream(id: u32, pairs: &[(&str, &str)], headers: &mut HeaderWriter) -> Bytes {
    let mut content = BytesMut::new();
    content.put_u32(id);
    content.put_u32(0);
    content.put_u16(0);
    content.put_slice(&headers.write(pairs));
    super::control(super::SYN_STREAM, &content)
}

fn decode(bytes: &[u8]) -> Result<Vec<Frame>, Error> {
    let mut decoder = Decoder::new();
    decoder.push(bytes);
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next_frame()? {
        frames.push(frame);
    }
    Ok(frames)
}

#[test]
fn the_dictionary_is_the_one_of_spdy_3() {
    let dictionary = dictionary();
    assert_eq!(dictionary.len(), 1423);
    // The id that every SPDY/3 stream begins with (after 78 bb).
    let folded = HeaderWriter::new().write(&[]);
    assert_eq!(&folded[2..6], &[0xe3, 0xc6, 0xa7, 0xc2]);
}

#[test]
fn frames_are_read_as_they_are_written() {
    let mut writer = HeaderWriter::new();
    let mut bytes = Vec::new();
    let pairs = [("streamtype", "data"), ("port", "80"), ("requestid", "0")];
    for id in [1, 3] {
        bytes.extend_from_slice(&syn_stream(id, &pairs, &mut writer));
    }
    let others = [data(3, b"abc"), end(1), reset(3, Reset::RefusedStream), ping(7), go_away(3)];
    others.iter().for_each(|frame| bytes.extend_from_slice(frame));
    bytes.extend_from_slice(&syn_reply(5, &mut writer));
    let frames = decode(&bytes).expect("frames");
    for (frame, id) in frames.iter().zip([1, 3]) {
        let Frame::SynStream { id: found, fin: false, headers } = frame else { panic!("{frame:?}") };
        assert_eq!((*found, headers.get("port"), headers.get("requestid")), (id, Some("80"), Some("0")));
    }
    assert_eq!(
        frames[2..],
        [
            Frame::Data { id: 3, fin: false, data: Bytes::from_static(b"abc") },
            Frame::Data { id: 1, fin: true, data: Bytes::new() },
            Frame::Reset { id: 3 },
            Frame::Ping { id: 7 },
            Frame::GoAway,
            Frame::Other { kind: super::SYN_REPLY },
        ]
    );
}

#[test]
fn what_a_peer_must_not_send_ends_the_connection() {
    let control =
        |kind: u32, length: u32| [(0x8003_0000 | kind).to_be_bytes(), length.to_be_bytes()].concat();
    let long = MAX_DATA_BYTES as u32 + 1;
    let cases = [
        (vec![0x80, 2, 0, 1, 0, 0, 0, 0], Error::Version { version: 2 }),
        (control(6, 0), Error::Short { kind: 6 }),
        ([control(3, 4), vec![0; 4]].concat(), Error::NoStream),
        (vec![0; 8], Error::NoStream),
        (
            [1_u32.to_be_bytes(), long.to_be_bytes()].concat(),
            Error::TooLong { length: MAX_DATA_BYTES + 1, limit: MAX_DATA_BYTES },
        ),
        (
            control(1, MAX_CONTROL_BYTES as u32 + 1),
            Error::TooLong { length: MAX_CONTROL_BYTES + 1, limit: MAX_CONTROL_BYTES },
        ),
        (
            [control(1, 14), vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0, b'n', b'o', b'n', b'e']].concat(),
            Error::Headers(HeaderError::Compression),
        ),
    ];
    for (bytes, error) in cases {
        assert_eq!(decode(&bytes), Err(error), "{bytes:?}");
    }
}

#[test]
fn a_block_that_unfolds_to_too_much_is_refused() {
    let value = "a".repeat(64 * 1024);
    let folded = HeaderWriter::new().write(&[("a", &value)]);
    assert!(folded.len() < 1024, "it is small before: {}", folded.len());
    assert_eq!(HeaderReader::new().read(&folded), Err(HeaderError::TooLong));
    let pairs = vec![("a", "b"); 65];
    assert_eq!(HeaderReader::new().read(&HeaderWriter::new().write(&pairs)), Err(HeaderError::TooLong));
}

proptest! {
    #[test]
    fn pieces_of_any_size_give_the_same_frames(sizes in prop::collection::vec(1_usize..40, 1..80)) {
        let mut writer = HeaderWriter::new();
        let mut bytes = Vec::new();
        for id in [1, 3, 5] {
            bytes.extend_from_slice(&syn_stream(id, &[("port", "80")], &mut writer));
            bytes.extend_from_slice(&data(id, &[7; 100]));
        }
        let whole = decode(&bytes).expect("frames");
        let (mut decoder, mut frames, mut rest) = (Decoder::new(), Vec::new(), bytes.as_slice());
        for size in sizes.iter().cycle() {
            let (piece, after) = rest.split_at((*size).min(rest.len()));
            decoder.push(piece);
            while let Some(frame) = decoder.next_frame().expect("a frame") {
                frames.push(frame);
            }
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(frames, whole);
    }

    #[test]
    fn foreign_bytes_are_frames_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0_u8..12) {
        let _any = decode(&bytes);
        // The same bytes as the content of a well-formed control frame.
        let mut frame = vec![0x80, 3, 0, kind, 0, 0];
        frame.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
        frame.extend_from_slice(&bytes);
        let _any = decode(&frame);
    }

    #[test]
    fn headers_survive(pairs in prop::collection::vec(("[a-z-]{1,20}", ".{0,40}"), 0..20)) {
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let folded = HeaderWriter::new().write(&pairs);
        let read = HeaderReader::new().read(&folded).expect("headers");
        let read: Vec<(&str, &str)> = read.0.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        prop_assert_eq!(read, pairs);
    }
}
