use jiff::Timestamp;

use super::{LogOptions, Stream, StreamOptions, log_options, ports, stream_options};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("time")
}

#[test]
fn log_parameters() {
    let query = "follow=true&timestamps=1&tailLines=5&limitBytes=10&sinceSeconds=60&pretty=true&previous=";
    let expected = LogOptions {
        follow: true,
        timestamps: true,
        tail_lines: Some(5),
        limit_bytes: Some(10),
        since: Some(at(940)),
        ..LogOptions::default()
    };
    assert_eq!(log_options(query, at(1000)), Ok(expected));
    let since = log_options("sinceTime=1970-01-01T00%3A00%3A07Z&stream=Stderr", at(0)).expect("valid");
    assert_eq!((since.since, since.stream), (Some(at(7)), Some(Stream::Stderr)));
}

#[test]
fn wrong_log_parameters_are_named() {
    let cases = [
        ("tailLines=-1", "tailLines: Invalid value: \"-1\": must be a number from 0 on"),
        ("limitBytes=0", "limitBytes: Invalid value: \"0\": must be a number from 1 on"),
        ("sinceTime=yesterday", "sinceTime: Invalid value: \"yesterday\": must be an RFC 3339 time"),
        (
            "stream=out",
            "stream: Unsupported value: \"out\": supported values: \"All\", \"Stderr\", \"Stdout\"",
        ),
    ];
    for (query, message) in cases {
        assert_eq!(log_options(query, at(0)).expect_err(query).to_string(), message);
    }
}

#[test]
fn streams_in_both_spellings() {
    let expected = StreamOptions {
        command: vec!["sh".into(), "-c".into(), "echo a b".into()],
        stdin: true,
        stdout: true,
        stderr: false,
        tty: true,
    };
    let api =
        "command=sh&command=-c&command=echo+a%20b&stdin=true&stdout=true&stderr=true&tty=true&container=c";
    let kubelet = "command=sh&command=-c&command=echo+a%20b&input=1&output=1&error=1&tty=1";
    assert_eq!(stream_options(api), Ok(expected.clone()));
    assert_eq!(stream_options(kubelet), Ok(expected));
    let error = stream_options("command=sh").expect_err("no stream");
    assert_eq!(error.to_string(), "you must specify at least 1 of stdin, stdout, stderr");
}

#[test]
fn forwarded_ports() {
    assert_eq!(ports("port=80&port=81"), Ok(vec![80, 81]));
    assert_eq!(ports("ports=80,81"), Ok(vec![80, 81]));
    for wrong in ["", "port=0", "port=x", "port=70000"] {
        assert!(ports(wrong).is_err(), "{wrong}");
    }
    let many: Vec<String> = (1..=17).map(|port| port.to_string()).collect();
    assert!(ports(&format!("ports={}", many.join(","))).is_err());
}
