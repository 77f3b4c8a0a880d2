//! Command lines of the daemon.

use std::{path::Path, time::Duration};

use super::Flags;

fn parse(line: &str) -> Result<Flags, String> {
    Flags::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
}

#[test]
fn flags_are_spelled_in_every_way_of_the_reference() {
    let defaults = parse("").expect("no flags");
    assert_eq!(defaults.socket, Path::new("/run/cni/dhcp.sock"));
    assert_eq!(defaults.on_host(Path::new("/run/x")), Path::new("/run/x"));
    let flags = parse(
        "-pidfile /run/d.pid --hostprefix=/host -broadcast -timeout 1m30s --resendmax 20s -resendtimeout=500ms",
    );
    let flags = flags.expect("flags");
    assert_eq!(flags.pid_file.as_deref(), Some(Path::new("/run/d.pid")));
    assert_eq!(flags.on_host(Path::new("/run/x")), Path::new("/host/run/x"));
    assert!(flags.broadcast && !parse("-broadcast=false").expect("flags").broadcast);
    assert_eq!(
        (flags.limits.wait, flags.limits.acquire),
        (Duration::from_secs(20), Duration::from_millis(500))
    );
}

#[test]
fn what_is_wrong_is_named() {
    for (line, message) in [
        ("-what", "unknown argument \"-what\""),
        ("socketpath", "unknown argument \"socketpath\""),
        ("-socketpath", "argument \"-socketpath\" lacks its value"),
        ("-timeout soon", "invalid duration \"soon\""),
        ("-timeout 10", "invalid duration \"10\""),
        ("-timeout 0s", "invalid duration \"0s\""),
        ("-broadcast=maybe", "invalid value of \"-broadcast=maybe\""),
        ("-pidfile d.pid", "-pidfile: expected an absolute path"),
    ] {
        let error = parse(line).expect_err(message);
        assert!(error.starts_with(message), "{error}");
    }
}
