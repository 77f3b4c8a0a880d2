//! Parsing of /proc/PID/stat, and the refusal to fork a threaded process.

use super::*;

#[test]
fn start_time_survives_odd_names() {
    let stat = "12 (a) b (c) S 1 12 12 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
    assert_eq!(parse_start_time(stat), Some(4711));
    assert_eq!(parse_start_time(&stat.replace(") S", ") Z")), None);
    assert_eq!(parse_start_time("garbage"), None);
    assert!(start_time(std::process::id() as i32).is_some());
}

#[test]
fn a_threaded_process_is_not_forked() {
    let (send, receive) = std::sync::mpsc::channel::<()>();
    let other = std::thread::spawn(move || receive.recv());
    let error = SingleThreaded::verify().unwrap_err();
    assert_eq!(error.errno(), Some(libc::EDEADLK));
    drop(send);
    let _ = other.join();
}
