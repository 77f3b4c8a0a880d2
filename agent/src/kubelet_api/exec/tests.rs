use std::pin::pin;

use futures::stream;
use tokio::io::{AsyncReadExt, duplex};

use super::*;

const INPUT: &[u8] = b"more than the process takes";

fn input(data: &[u8]) -> Result<Message, tungstenite::Error> {
    Ok(Message::Binary(channels::encode(channels::STDIN, data)))
}

#[tokio::test]
async fn a_process_that_does_not_read_hides_no_client_that_is_gone() {
    let (stdin, _unread) = duplex(1);
    let mut frames = stream::iter([input(INPUT), input(INPUT), Ok(Message::Close(None))]);
    let reading = read_frames(&mut frames, Protocol::V5, Some(stdin), None);
    assert!(timeout(Duration::from_secs(5), reading).await.is_ok());
}

#[tokio::test]
async fn input_arrives_in_order_and_ends_when_the_client_closes_it() {
    let (stdin, mut process) = duplex(4);
    let close = Ok(Message::Binary(Bytes::from_static(&[255, channels::STDIN])));
    let mut frames = stream::iter([input(b"first "), input(b"second"), close]).chain(stream::pending());
    let mut reading = pin!(read_frames(&mut frames, Protocol::V5, Some(stdin), None));
    let mut read = Vec::new();
    let count = tokio::select! {
        () = &mut reading => panic!("the client is still there"),
        count = process.read_to_end(&mut read) => count.unwrap(),
    };
    assert_eq!((count, read.as_slice()), (12, &b"first second"[..]));
}
