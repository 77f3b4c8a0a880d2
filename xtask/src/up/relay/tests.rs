use std::io::Read;

use super::*;

#[test]
fn only_mirrors_that_nodes_cannot_reach_are_passed_on_and_each_once() {
    let mirror = |text: &str| text.parse().expect("a mirror");
    let wanted = Wanted {
        debug: false,
        nodes: 1,
        dual_stack: false,
        no_egress: false,
        mirrors: vec![
            mirror("docker.io=http://127.0.0.1:5000"),
            mirror("quay.io=http://127.0.0.1:5000"),
            mirror("ghcr.io=https://mirror.example"),
            mirror("a.example=http://localhost:5001"),
        ],
        server_flags: Vec::new(),
        agent_flags: Vec::new(),
    };
    assert_eq!(targets(&wanted), ["127.0.0.1:5000", "localhost:5001"]);
}

#[test]
fn both_ways_are_passed_on_until_both_sides_have_ended() {
    let server = TcpListener::bind("127.0.0.1:0").expect("listen");
    let target = server.local_addr().expect("its address").to_string();
    let front = TcpListener::bind("127.0.0.1:0").expect("listen");
    let address = front.local_addr().expect("its address");
    thread::spawn(move || accept(&front, &target, &Arc::default()));
    let answering = thread::spawn(move || {
        let (mut stream, _) = server.accept().expect("a connection");
        let mut asked = String::new();
        // The end of the question must come through, or this waits for ever.
        stream.read_to_string(&mut asked).expect("the question");
        stream.write_all(format!("answer to {asked}").as_bytes()).expect("answer");
    });
    let mut client = TcpStream::connect(address).expect("connect");
    client.write_all(b"question").expect("ask");
    client.shutdown(Shutdown::Write).expect("end the question");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("the answer");
    assert_eq!(answer, "answer to question");
    answering.join().expect("the server");
}
