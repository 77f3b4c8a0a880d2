//! One client address and port that asks many services of one backend at the same time: how many of them answer.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use dataplane::{Frontend, Protocol, Target};
use nix::errno::Errno;
use nix::sys::socket::{SockaddrIn, SockaddrStorage, bind, connect, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::{Bench, Pods, row};

const SERVICES: u16 = 100;
const FIRST_PORT: u16 = 30_000;
const CLIENT_PORT: u16 = 4000;
const LIMIT: Duration = Duration::from_secs(3);

/// Node ports, from a client outside.
pub fn hundred_services() {
    let pods = Pods::make("ports", 40);
    let mut bench = Bench::on(&["ports0"]);
    let node: IpAddr = Ipv4Addr::new(10, 9, 40, 1).into();
    let ports = FIRST_PORT..FIRST_PORT + SERVICES;
    for port in ports.clone() {
        bench.set(Frontend { address: node, port, protocol: Protocol::Tcp }, &Target::all([pods.server()]));
    }
    let sockets = pods.sockets(usize::from(SERVICES));
    let mut open: Vec<_> = ports
        .zip(sockets)
        .filter_map(|(port, socket)| {
            let client = from_one_port(socket, SocketAddr::new(node, port)).ok()?;
            Some((client, pods.listener.accept().expect("accept").0))
        })
        .collect();
    let is_answered = |(client, server): &mut (TcpStream, TcpStream)| {
        let mut heard = [0];
        client.write_all(b"?").and_then(|()| server.read_exact(&mut heard)).is_ok()
            && server.write_all(b"!").and_then(|()| client.read_exact(&mut heard)).is_ok()
    };
    let worked = open.iter_mut().map(is_answered).filter(|answered| *answered).count();
    row(
        &format!(
            "one client address and port at {SERVICES} node ports of one backend, all open at once: that work"
        ),
        [&SERVICES.to_string(), &worked.to_string(), "not measured", "-"],
    );
    drop((open, bench));
    pods.remove();
}

fn from_one_port(socket: OwnedFd, to: SocketAddr) -> Result<TcpStream, Errno> {
    let limit = TimeVal::new(LIMIT.as_secs().cast_signed(), 0);
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::SendTimeout, &limit)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &limit)?;
    bind(socket.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, CLIENT_PORT))?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(socket.into())
}
