use bytes::Bytes;

use super::{Ending, Input, Protocol, TerminalSize, decode, decode_size, encode};

#[test]
fn messages_of_the_client() {
    let data =
        |channel, text: &'static str| Input::Data { channel, data: Bytes::from_static(text.as_bytes()) };
    let cases: [(Protocol, &'static [u8], Input); 7] = [
        (Protocol::V5, b"\x00hello", data(0, "hello")),
        (Protocol::V5, b"\x00", data(0, "")),
        (Protocol::V5, b"", Input::Nothing),
        (Protocol::V5, b"\xff\x00", Input::Closed { channel: 0 }),
        (Protocol::V5, b"\xff", Input::Nothing),
        (Protocol::V4, b"\xff\x00", data(255, "\x00")),
        (Protocol::V4, b"\x04{}", data(4, "{}")),
    ];
    for (protocol, message, expected) in cases {
        assert_eq!(decode(protocol, Bytes::from_static(message)), expected, "{message:?}");
    }
}

#[test]
fn terminal_sizes() {
    let size = TerminalSize { width: 120, height: 40 };
    assert_eq!(decode_size(br#"{"Width":120,"Height":40}"#), Input::Resize(size));
    assert_eq!(decode_size(br#"{"Width":-1,"Height":40}"#), Input::Nothing);
    assert_eq!(decode_size(b"nonsense"), Input::Nothing);
}

#[test]
fn endings() {
    let command = ["sh".to_owned(), "-c".to_owned(), "exit 3".to_owned()];
    let read = |ending: Ending<'_>| {
        let message = ending.encode();
        assert_eq!(message[0], 3);
        serde_json::from_slice::<serde_json::Value>(&message[1..]).expect("JSON")
    };
    let success = read(Ending::Exited { command: &command, code: 0 });
    assert_eq!(success, serde_json::json!({"metadata": {}, "status": "Success"}));
    let failure = read(Ending::Exited { command: &command, code: 3 });
    assert_eq!(failure["reason"], "NonZeroExitCode");
    assert_eq!(failure["details"]["causes"][0], serde_json::json!({"reason": "ExitCode", "message": "3"}));
    let message =
        "command terminated with non-zero exit code: error executing command [sh -c exit 3], exit code 3";
    assert_eq!(failure["message"], message);
    let broken = read(Ending::Failed { reason: "no shell".into() });
    assert_eq!((broken["status"].as_str(), broken["code"].as_u64()), (Some("Failure"), Some(500)));
}

#[test]
fn messages_of_ours() {
    assert_eq!(encode(1, b"ab"), Bytes::from_static(b"\x01ab"));
    assert_eq!(encode(2, b""), Bytes::from_static(b"\x02"));
}
