//! How long connected UDP sockets wait until they are told that their backend has gone.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use dataplane::{Ended, Frontend, Protocol, Target};
use linux::netns::{self, Netns};

use crate::{Bench, OURS, ROUTES, V4, median, row, run, shown};

const SOCKETS: usize = 10_000;
const NAMESPACES: usize = 100;
const TIMES: usize = 3;

pub fn in_one_namespace() {
    told("of one namespace", |to, count| (0..count).map(|_| connected(to)).collect());
}

pub fn in_many_namespaces() {
    let pods: Vec<Pod> = (0..NAMESPACES).map(Pod::make).collect();
    told(&format!("of {NAMESPACES} namespaces"), |to, count| {
        let share = count / NAMESPACES;
        let of = |pod: &Pod| pod.netns.run(|| (0..share).map(|_| connected(to)).collect::<Vec<_>>());
        pods.iter().flat_map(|pod| of(pod).expect("enter the namespace")).collect()
    });
    pods.into_iter().for_each(Pod::remove);
}

/// `connect` gives so many sockets that are connected to an address.
fn told(whose: &str, connect: impl Fn(SocketAddr, usize) -> Vec<UdpSocket>) {
    let times: Vec<Duration> = (0..TIMES).map(|_| once(&connect)).collect();
    row(
        &format!("{SOCKETS} connected UDP sockets {whose} are told that their backend has gone"),
        ["50 ms", &shown(median(&times)), "not at all", "-"],
    );
}

fn once(connect: impl Fn(SocketAddr, usize) -> Vec<UdpSocket>) -> Duration {
    let mut bench = Bench::open();
    let servers = [(); 2].map(|()| UdpSocket::bind((V4.endpoint, 0)).expect("bind"));
    let [old, new] = servers.each_ref().map(|server| server.local_addr().expect("its address"));
    let vip = SocketAddr::new(V4.vip(OURS), 53);
    let frontend = Frontend { address: vip.ip(), port: 53, protocol: Protocol::Udp };
    bench.set(frontend, &Target::all([old]));
    let sockets = connect(vip, SOCKETS);
    let direct = connect(old, SOCKETS / 10);
    let begin = Instant::now();
    bench.set(frontend, &Target::all([new]));
    dataplane::wait_for_readers().expect("a grace period");
    let dataplane = bench.0.as_mut().expect("open");
    let orphans = dataplane.orphans().expect("read the map");
    let Ended { ended, failure } = dataplane::end(&orphans);
    let took = begin.elapsed();
    assert!(failure.is_none() && ended.len() == SOCKETS, "{} ended, {failure:?}", ended.len());
    assert!(direct.iter().all(|socket| socket.take_error().expect("an answer").is_none()), "none too many");
    assert!(sockets.iter().all(|socket| socket.take_error().expect("an answer").is_some()), "all are told");
    took
}

fn connected(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bind");
    socket.connect(to).expect("connect");
    socket
}

/// A namespace with a process in it, by which it is found.
struct Pod {
    netns: Netns,
    process: Child,
}

impl Pod {
    fn make(number: usize) -> Self {
        let netns = netns::create(format!("/run/netns/pod{number}")).expect("make a namespace");
        let started = netns.run(|| {
            run("ip", "link set lo up");
            ROUTES[..2].iter().for_each(|line| run("ip", line));
            Command::new("sleep").arg("infinity").spawn().expect("start sleep")
        });
        Self { netns, process: started.expect("enter the namespace") }
    }

    fn remove(mut self) {
        self.process.kill().and_then(|()| self.process.wait()).expect("end sleep");
        netns::remove(self.netns.path()).expect("remove the namespace");
    }
}
