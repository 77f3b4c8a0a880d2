use jiff::Timestamp;

use super::super::query::LogOptions;
use super::{Entry, Filter, Stream, parse};

const LOG: &[&str] = &[
    "1970-01-01T00:00:01.5Z stdout F one",
    "1970-01-01T00:00:02.000000001Z stderr F two",
    "1970-01-01T00:00:03Z stdout P thr",
    "1970-01-01T00:00:03Z stderr F between",
    "1970-01-01T00:00:04Z stdout F ee",
    "not a log line",
    "1970-01-01T00:00:05Z stdout F ",
    "1970-01-01T01:00:06+01:00 stdout F:x six seven",
];

fn read(options: &LogOptions) -> String {
    let mut filter = Filter::new(options);
    let mut out = Vec::new();
    for line in LOG {
        filter.feed(line.as_bytes(), &mut out);
    }
    String::from_utf8(out).expect("text")
}

#[test]
fn lines() {
    let entry = |time, stream, partial, text| Some(Entry { time, stream, partial, text });
    let cases: [(&[u8], _); 8] = [
        (b"t stdout F a b", entry("t", Stream::Stdout, false, b"a b".as_slice())),
        (b"t stderr P ", entry("t", Stream::Stderr, true, b"".as_slice())),
        (b"t stdout F", entry("t", Stream::Stdout, false, b"".as_slice())),
        (b"t stdout P:more \xff", entry("t", Stream::Stdout, true, b"\xff".as_slice())),
        (b"t stdin F a", None),
        (b"t stdout X a", None),
        (b"t", None),
        (b"", None),
    ];
    for (line, expected) in cases {
        assert_eq!(parse(line), expected, "{}", String::from_utf8_lossy(line));
    }
}

#[test]
fn everything() {
    assert_eq!(read(&LogOptions::default()), "one\ntwo\nthrbetween\nee\n\nsix seven\n");
}

#[test]
fn one_stream_with_times_at_line_starts() {
    let options = LogOptions { stream: Some(Stream::Stdout), timestamps: true, ..LogOptions::default() };
    let expected = "\
1970-01-01T00:00:01.500000000Z one
1970-01-01T00:00:03.000000000Z three
1970-01-01T00:00:05.000000000Z 
1970-01-01T00:00:06.000000000Z six seven
";
    assert_eq!(read(&options), expected);
}

#[test]
fn since_a_time() {
    let since = Timestamp::from_second(5).expect("time");
    assert_eq!(read(&LogOptions { since: Some(since), ..LogOptions::default() }), "\nsix seven\n");
}

#[test]
fn a_limit_cuts_inside_a_line() {
    for (limit, expected) in
        [(1, "o"), (4, "one\n"), (6, "one\ntw"), (10_000, "one\ntwo\nthrbetween\nee\n\nsix seven\n")]
    {
        assert_eq!(read(&LogOptions { limit_bytes: Some(limit), ..LogOptions::default() }), expected);
    }
    let mut filter = Filter::new(&LogOptions { limit_bytes: Some(4), ..LogOptions::default() });
    filter.feed(LOG[0].as_bytes(), &mut Vec::new());
    assert!(filter.is_full());
}
