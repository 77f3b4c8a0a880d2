//! A process of clients: connections one after the other by several ways at once, and some that are held open all the time.
//!
//! In the node's control group and namespace its sockets are led; outside both, its packets are.

use std::io::{BufRead, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use linux::netns::Netns;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::process::{Process, orders};

pub const NAME: &str = "clients";
/// After which a connection counts as failed.
const LIMIT: Duration = Duration::from_secs(10);
/// After which the kernel asks the peer of a connection that is held, and after each more of it.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Connections between two words about them.
const STRIDE: u64 = 200;
/// One of so many is closed in order; the others at once, so that their ports come back soon.
const ORDERLY: u64 = 32;
/// Failures that are told in words.
const TOLD: usize = 20;

/// What all clients together have made so far.
#[derive(Default)]
pub struct Made(AtomicU64);

impl Made {
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What came of the connections of one process, or of several.
#[derive(Debug, Default, Clone)]
pub struct Outcome {
    pub made: u64,
    pub failed: u64,
    pub slowest: Duration,
    /// Without keep-alive, and with it.
    pub held: [u64; 2],
    pub broken: [u64; 2],
}

impl Outcome {
    pub fn and(self, other: &Self) -> Self {
        Self {
            made: self.made + other.made,
            failed: self.failed + other.failed,
            slowest: self.slowest.max(other.slowest),
            held: sum(self.held, other.held),
            broken: sum(self.broken, other.broken),
        }
    }

    fn words(&self) -> String {
        let Self { made, failed, slowest, held: [silent, kept], broken: [of_silent, of_kept] } = self;
        format!("outcome {made} {failed} {} {silent} {kept} {of_silent} {of_kept}", slowest.as_micros())
    }

    fn read(words: &str) -> Self {
        let numbers: Vec<u64> = words.split(' ').map(|number| number.parse().expect("a number")).collect();
        let [made, failed, slowest, silent, kept, of_silent, of_kept] = numbers[..] else {
            panic!("seven numbers: {words}")
        };
        let slowest = Duration::from_micros(slowest);
        Self { made, failed, slowest, held: [silent, kept], broken: [of_silent, of_kept] }
    }
}

fn sum([a, b]: [u64; 2], [c, d]: [u64; 2]) -> [u64; 2] {
    [a + c, b + d]
}

/// The clients, as the one who gives the orders sees them.
pub struct Clients {
    process: Process,
    answers: Receiver<String>,
}

impl Clients {
    /// Holds so many connections by each of the ways, and returns when they are open.
    pub fn start(cgroup: &str, namespace: &str, ways: &[SocketAddr], held: usize, made: Arc<Made>) -> Self {
        let ways: Vec<String> = ways.iter().map(ToString::to_string).collect();
        let held = held.to_string();
        let mut process = Process::start(NAME, &[cgroup, namespace, &ways.join(","), &held]);
        let output = process.take_output();
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                match line.split_once(' ') {
                    Some(("made", count)) => {
                        made.0.fetch_add(count.parse().expect("a number"), Ordering::Relaxed);
                    }
                    Some(("failed", how)) => eprintln!("failed after {} connections: {how}", made.count()),
                    _ => sender.send(line).expect("the run goes on"),
                }
            }
        });
        let clients = Self { process, answers };
        clients.hear();
        clients
    }

    fn hear(&self) -> String {
        self.answers.recv().expect("clients have ended")
    }

    pub fn begin(&mut self) {
        self.process.tell("begin");
    }

    /// Ends what they do, and has every connection that is held asked once more.
    pub fn end(mut self) -> Outcome {
        self.process.tell("end");
        let answer = self.hear();
        self.process.end();
        Outcome::read(answer.strip_prefix("outcome ").expect("the outcome"))
    }
}

pub fn play(arguments: &[String]) {
    let [cgroup, namespace, ways, held] = arguments else { panic!("cgroup, namespace, ways, held") };
    let own = std::process::id().to_string();
    std::fs::write(format!("{cgroup}/cgroup.procs"), own).expect("join the control group");
    let ways: Vec<SocketAddr> = ways.split(',').map(|way| way.parse().expect("an address")).collect();
    let held: usize = held.parse().expect("a number");
    let netns = match namespace.as_str() {
        "-" => Netns::current(),
        name => Netns::open(format!("/run/netns/{name}")),
    };
    netns.expect("the namespace").run(|| make(&ways, held)).expect("enter the namespace");
}

fn make(ways: &[SocketAddr], held: usize) {
    let held = [false, true].map(|keep_alive| {
        let all = ways.iter().flat_map(|way| (0..held / 2).map(move |_| hold(*way, keep_alive)));
        all.collect::<Vec<TcpStream>>()
    });
    println!("holding");
    let is_over = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        let mut orders = orders();
        assert_eq!(orders.next().as_deref(), Some("begin"));
        let threads: Vec<_> = ways.iter().map(|way| scope.spawn(|| one_by_one(*way, &is_over))).collect();
        assert_eq!(orders.next().as_deref(), Some("end"));
        is_over.store(true, Ordering::Relaxed);
        let all = threads.into_iter().map(|thread| thread.join().expect("no panic"));
        all.fold(Outcome::default(), |sum, one| sum.and(&one))
    });
    let counts = held.each_ref().map(|streams| streams.len() as u64);
    let broken = held.map(|streams| streams.into_iter().filter_map(is_broken).count() as u64);
    println!("{}", Outcome { held: counts, broken, ..outcome }.words());
}

fn hold(way: SocketAddr, keep_alive: bool) -> TcpStream {
    let stream = open(way).unwrap_or_else(|error| panic!("hold a connection to {way}: {error}"));
    let seconds = KEEP_ALIVE.as_secs() as u32;
    setsockopt(&stream, sockopt::KeepAlive, &keep_alive).expect("set SO_KEEPALIVE");
    setsockopt(&stream, sockopt::TcpKeepIdle, &seconds).expect("set TCP_KEEPIDLE");
    setsockopt(&stream, sockopt::TcpKeepInterval, &seconds).expect("set TCP_KEEPINTVL");
    stream
}

/// Asks once more.
fn is_broken(mut stream: TcpStream) -> Option<std::io::Error> {
    let error = exchange(&mut stream).err();
    close_at_once(&stream);
    error
}

fn one_by_one(way: SocketAddr, is_over: &AtomicBool) -> Outcome {
    let mut outcome = Outcome::default();
    while !is_over.load(Ordering::Relaxed) {
        for _ in 0..STRIDE {
            let begin = Instant::now();
            outcome.made += 1;
            let done = open(way);
            let took = begin.elapsed();
            outcome.slowest = outcome.slowest.max(took);
            match done {
                Ok(stream) if outcome.made.is_multiple_of(ORDERLY) => drop(stream),
                Ok(stream) => close_at_once(&stream),
                Err(error) => {
                    outcome.failed += 1;
                    if outcome.failed <= TOLD as u64 {
                        println!("failed {way} after {took:?}: {error}");
                    }
                }
            }
        }
        println!("made {STRIDE}");
    }
    outcome
}

/// A connection that was asked once and answered.
fn open(way: SocketAddr) -> std::io::Result<TcpStream> {
    let limit = TimeVal::new(LIMIT.as_secs().cast_signed(), 0);
    let client = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // Of a connection that comes about too.
    setsockopt(&client, sockopt::SendTimeout, &limit)?;
    setsockopt(&client, sockopt::ReceiveTimeout, &limit)?;
    connect(client.as_raw_fd(), &SockaddrStorage::from(way))?;
    let mut stream = TcpStream::from(client);
    exchange(&mut stream)?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut heard = [0];
    stream.write_all(b"?")?;
    stream.read_exact(&mut heard)?;
    if heard == *b"?" { Ok(()) } else { Err(std::io::Error::other("another answer")) }
}

/// With a reset, which leaves nothing that waits.
fn close_at_once(stream: &TcpStream) {
    setsockopt(stream, sockopt::Linger, &crate::AT_ONCE).expect("set SO_LINGER");
}
