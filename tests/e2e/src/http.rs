//! HTTP from the host, as somebody outside of the cluster asks.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(5);

/// One request on a connection of its own: the body of the answer.
#[track_caller]
pub fn get(address: &str, port: u16) -> String {
    let target = SocketAddr::new(address.parse().expect("an address"), port);
    let mut stream = TcpStream::connect_timeout(&target, LIMIT).expect("connect");
    stream.set_read_timeout(Some(LIMIT)).expect("set a time limit");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: hello\r\nConnection: close\r\n\r\n").expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read the answer");
    answer.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned()
}
