//! What a plugin reads where no answer comes.

use std::{io::Read, os::unix::net::UnixListener, path::Path, thread};

use cni::json::DOCUMENT_LIMIT;

use super::{Options, PROTOCOL, Question, ask};

fn question(options: Options) -> Question {
    Question {
        protocol: PROTOCOL,
        verb: "STATUS".to_owned(),
        network: "lan".to_owned(),
        container_id: String::new(),
        ifname: String::new(),
        netns: None,
        options,
        priority: None,
        valid: Vec::new(),
    }
}

fn error(socket: &Path, options: Options) -> String {
    ask(socket, &question(options)).expect_err("no answer").to_string()
}

#[test]
fn only_who_finds_no_listener_is_told_to_start_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("dhcp.sock");
    let hint = "start it with `dhcp daemon`";
    assert!(error(&socket, Options::default()).contains(hint));
    drop(UnixListener::bind(&socket).expect("a listener"));
    assert!(error(&socket, Options::default()).contains(hint), "nobody listens");
    let below_a_file = error(&socket.join("x"), Options::default());
    assert!(!below_a_file.contains(hint), "{below_a_file}");
}

#[test]
fn a_daemon_that_ends_is_not_one_of_another_release() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("dhcp.sock");
    let listener = UnixListener::bind(&socket).expect("a listener");
    let daemon = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.read_to_end(&mut Vec::new()).expect("a question");
    });
    let error = error(&socket, Options::default());
    assert!(error.contains("before it answered"), "{error}");
    daemon.join().expect("its thread");
}

#[test]
fn a_question_above_the_limit_is_not_asked() {
    let provided = vec![(12, "x".repeat(DOCUMENT_LIMIT))];
    let error = error(Path::new("/nonexistent"), Options { provided, ..Options::default() });
    assert!(
        error.contains(&format!("the question: a larger document: expected at most {DOCUMENT_LIMIT}")),
        "{error}"
    );
}
