use std::io::{Read, Write};

use super::*;

/// Of a node whose Services and pods are others' business.
fn bystander(shutdown: &CancellationToken) -> Context {
    Context {
        runtime: None,
        dataplane: None,
        directory: Directory::default(),
        policies: Guard::none(),
        shutdown: shutdown.clone(),
    }
}

/// What the socket answers to a line.
fn say(socket: &Path, line: &[u8]) -> Value {
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    // One that says too much is not heard to its end.
    let _ = stream.write_all(line);
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    serde_json::from_str(&text).unwrap_or(Value::Null)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_question_is_answered_or_refused_with_a_reason() {
    let shutdown = CancellationToken::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let running = tokio::spawn(run(bind(&path).unwrap(), bystander(&shutdown)));
    let asked = tokio::task::spawn_blocking(move || {
        let refused = |question: Question| ask(&path, &question).unwrap_err().to_string();
        let service = || "default/web".parse::<ServiceName>().unwrap();
        for question in [
            Question::Drops,
            Question::Counters,
            Question::Services { namespace: None },
            Question::Service { of: service() },
            Question::Backends { of: Some(service()) },
            Question::Affinity { of: None },
            Question::Trace { to: "10.96.0.1:443".parse().unwrap(), from: Client::Node },
        ] {
            let said = refused(question);
            assert!(said.starts_with("this agent leads no Services (--service-proxy none)"), "{said}");
        }
        assert!(refused(Question::Images).starts_with("this is the service proxy alone"));
        let error = |line: &[u8]| say(&path, line)["error"].as_str().map(ToOwned::to_owned);
        assert!(error(b"images\n").unwrap().starts_with("this question is not understood"));
        assert!(error(b"\n").is_some());
        let long = [b"\"".as_slice(), &[b'x'; 2 * question::MAX_BYTES]].concat();
        assert!(error(&long).is_none_or(|said| said.contains("at most 1024 bytes")));
        assert!(error(b"\"drops\"\n").is_some(), "the next one is heard");
    });
    asked.await.unwrap();
    shutdown.cancel();
    running.await.unwrap();
}
