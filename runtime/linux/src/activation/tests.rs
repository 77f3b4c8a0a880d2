//! Whom the variables are for, and which descriptors are listeners.

use std::net::TcpListener;
use std::os::unix::net::{UnixDatagram, UnixStream};

use super::*;

#[test]
fn variables_count_for_the_process_that_they_name() {
    for (pid, count, expected) in [
        (None, None, Ok(0)),
        (Some("7"), None, Ok(0)),
        (None, Some("1"), Ok(0)),
        (Some("8"), Some("1"), Ok(0)),
        (Some("x"), Some("1"), Ok(0)),
        (Some("7"), Some("0"), Ok(0)),
        (Some("7"), Some("1"), Ok(1)),
        (Some("7"), Some("2"), Ok(2)),
        (
            Some("7"),
            Some("many"),
            Err("sd_listen_fds of systemd: LISTEN_FDS=\"many\": expected a number".to_owned()),
        ),
    ] {
        let found = handed_over(pid, count, 7).map_err(|error| error.to_string());
        assert_eq!(found, expected, "{pid:?} {count:?}");
    }
}

#[test]
fn other_descriptors_than_listening_unix_streams_are_refused() {
    let folder = std::env::temp_dir().join(format!("activation-{}", std::process::id()));
    let listener = UnixListener::bind(&folder).expect("a listener");
    std::fs::remove_file(&folder).expect("its file");
    check(&OwnedFd::from(listener)).expect("a listener");
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let connected = UnixStream::pair().expect("two sockets").0;
    let datagram = UnixDatagram::pair().expect("two sockets").0;
    let file = std::fs::File::open("/dev/null").expect("a file");
    for fd in [OwnedFd::from(tcp), connected.into(), datagram.into(), file.into()] {
        let error = check(&fd).expect_err("no listener").to_string();
        assert!(error.contains("expected a listening unix stream socket"), "{error}");
    }
}
