//! `kubectl port-forward`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr};
use std::time::Duration;

use e2e::cluster::Cluster;
use e2e::kubectl::Kubectl;

const LIMIT: Duration = Duration::from_secs(20);

/// A kubectl that forwards a port, until it is dropped.
struct Forward {
    child: Child,
    port: u16,
}

impl Forward {
    fn start(kubectl: &Kubectl, pod_port: u16) -> Self {
        let mut child = kubectl.spawn(&["port-forward", "pod/s", &format!("0:{pod_port}")]);
        let mut line = String::new();
        let said = BufReader::new(child.stdout.as_mut().expect("its output")).read_line(&mut line);
        said.expect("read from kubectl");
        // "Forwarding from 127.0.0.1:40123 -> 8080"
        let address = line.strip_prefix("Forwarding from ").and_then(|rest| rest.split_whitespace().next());
        let port = address.and_then(|address| address.rsplit(':').next()?.parse().ok());
        Self { port: port.unwrap_or_else(|| panic!("kubectl says {line:?}")), child }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("connect to kubectl");
        stream.set_read_timeout(Some(LIMIT)).expect("set a limit");
        stream
    }

    fn stderr(&mut self) -> ChildStderr {
        self.child.stderr.take().expect("its errors")
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

fn answer(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read the answer");
    answer
}

#[test]
fn connections_are_forwarded_side_by_side_and_refusals_are_told() {
    let cluster = Cluster::get();
    let kubectl = cluster.namespace("forward");
    kubectl.run(&["run", "s", "--image=localhost/echo:v1"]);
    kubectl.run(&["wait", "--for=condition=Ready", "pod/s", "--timeout=60s"]);
    let forward = Forward::start(&kubectl, 8080);
    let request = b"GET / HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n";
    // Both are open before either is asked.
    let (mut first, mut second) = (forward.connect(), forward.connect());
    first.write_all(&request[..10]).expect("half a request");
    second.write_all(request).expect("a request");
    let from_second = answer(second);
    assert!(
        from_second.starts_with("HTTP/1.1 200") && from_second.ends_with("s 127.0.0.1\n"),
        "{from_second}"
    );
    first.write_all(&request[10..]).expect("the other half");
    assert_eq!(answer(first), from_second);
    // A client that goes in the middle of a connection leaves the pod as it was.
    let open = forward.connect();
    drop(forward);
    drop(open);
    let mut refused = Forward::start(&kubectl, 81);
    assert_eq!(answer(refused.connect()), "");
    let mut errors = String::new();
    // kubectl gives up when a port cannot be reached.
    refused.stderr().read_to_string(&mut errors).expect("read kubectl's errors");
    assert!(errors.contains("error forwarding port 81 to pod forward/s: "), "{errors}");
    assert!(errors.contains("Connection refused"), "{errors}");
    let again = Forward::start(&kubectl, 8080);
    let mut third = again.connect();
    third.write_all(request).expect("a request");
    assert_eq!(answer(third), from_second);
}
