//! The client: asks a Service and counts who answered and what failed. Prints one JSON document, at its end or on SIGTERM.

use std::collections::BTreeMap;
use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};

/// A request that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(2);
/// Distinct errors that are kept.
const MAX_ERRORS: usize = 20;

/// Set once SIGTERM came: the load ends before its time.
static STOP: AtomicBool = AtomicBool::new(false);

/// What became of one kind of traffic.
#[derive(Default)]
struct Count {
    answered: BTreeMap<String, u64>,
    failed: u64,
    /// Connections whose peer was not the address that was asked for.
    wrong_peer: u64,
    errors: BTreeMap<String, u64>,
    /// When the first and the last request that failed were begun, in milliseconds since 1970.
    failures: Option<(u128, u128)>,
}

impl Count {
    /// Counts what became of a request that was begun at `begun`.
    fn add(&mut self, begun: SystemTime, answer: Result<String, String>) {
        match answer {
            Ok(pod) => *self.answered.entry(pod).or_default() += 1,
            Err(error) => {
                self.failed += 1;
                let at = begun.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
                let (first, last) = self.failures.unwrap_or((at, at));
                self.failures = Some((first.min(at), last.max(at)));
                if self.errors.len() < MAX_ERRORS || self.errors.contains_key(&error) {
                    *self.errors.entry(error).or_default() += 1;
                }
            }
        }
    }

    fn json(&self) -> String {
        let map = |map: &BTreeMap<String, u64>| {
            let entries: Vec<String> = map.iter().map(|(name, count)| format!("{name:?}:{count}")).collect();
            format!("{{{}}}", entries.join(","))
        };
        let failures = self.failures.map_or("null".to_owned(), |(first, last)| format!("[{first},{last}]"));
        format!(
            "{{\"answered\":{},\"failed\":{},\"wrong_peer\":{},\"errors\":{},\"failures\":{failures}}}",
            map(&self.answered),
            self.failed,
            self.wrong_peer,
            map(&self.errors)
        )
    }
}

/// `count` requests, each on a connection of its own.
pub fn ask(target: &str, count: &str) -> Result<(), String> {
    let address = resolve(target)?;
    let count: u32 = count.parse().map_err(|_| format!("{count:?} is not a count"))?;
    let mut seen = Count::default();
    for _ in 0..count {
        let begun = SystemTime::now();
        let answer = new_connection(address, &mut seen.wrong_peer);
        seen.add(begun, answer);
    }
    println!("{}", seen.json());
    Ok(())
}

/// One request: what the answer says, which is who answered and the address that it was asked from.
pub fn get(target: &str) -> Result<(), String> {
    let mut reader = BufReader::new(connect(resolve(target)?)?);
    println!("{}", request(&mut reader, "close")?.0);
    Ok(())
}

/// New connections at a rate, one kept-alive connection, one flow of datagrams and one of a connected socket, all at once, for
/// `seconds` at the most.
pub fn run(target: &str, seconds: &str, rate: &str) -> Result<(), String> {
    let address = resolve(target)?;
    let seconds: u64 = seconds.parse().map_err(|_| format!("{seconds:?} is not a number of seconds"))?;
    let rate: u32 =
        rate.parse().ok().filter(|rate| *rate > 0).ok_or_else(|| format!("{rate:?} is not a rate"))?;
    stop_on_signals()?;
    let end = Instant::now() + Duration::from_secs(seconds);
    let connections = std::thread::spawn(move || new_connections(address, rate, end));
    let kept = std::thread::spawn(move || kept_alive(address, end));
    let datagrams = std::thread::spawn(move || datagrams(address, end));
    let connected = std::thread::spawn(move || connected_datagrams(address, end));
    let (connections, time) = joined(connections)?;
    let (kept, datagrams, connected) = (joined(kept)?, joined(datagrams)?, joined(connected)?);
    println!(
        "{{\"seconds\":{:.3},\"rate\":{rate},\"connections\":{},\"kept_alive\":{},\"datagrams\":{},\"connected_datagrams\":{}}}",
        time.as_secs_f64(),
        connections.json(),
        kept.json(),
        datagrams.json(),
        connected.json()
    );
    Ok(())
}

fn joined<T>(thread: JoinHandle<T>) -> Result<T, String> {
    thread.join().map_err(|_| "a client thread panicked".to_owned())
}

/// Called before any thread starts, so that all of them block what only the waiting one takes.
fn stop_on_signals() -> Result<(), String> {
    let mut terminate = SigSet::empty();
    terminate.add(Signal::SIGTERM);
    terminate.add(Signal::SIGINT);
    terminate.thread_block().map_err(|errno| format!("block SIGTERM: {errno}"))?;
    std::thread::spawn(move || {
        if terminate.wait().is_ok() {
            STOP.store(true, Ordering::Relaxed);
        }
    });
    Ok(())
}

fn goes_on(end: Instant) -> bool {
    !STOP.load(Ordering::Relaxed) && Instant::now() < end
}

fn resolve(target: &str) -> Result<SocketAddr, String> {
    let found = target.to_socket_addrs().map_err(|error| format!("resolve {target}: {error}"))?;
    let found: Vec<SocketAddr> = found.collect();
    let first = found.iter().find(|address| address.is_ipv4()).or(found.first());
    first.copied().ok_or_else(|| format!("resolve {target}: no address"))
}

/// What was counted, and in which time.
fn new_connections(address: SocketAddr, rate: u32, end: Instant) -> (Count, Duration) {
    let mut count = Count::default();
    let step = Duration::from_secs(1) / rate;
    let start = Instant::now();
    let mut next = start;
    while goes_on(end) {
        let begun = SystemTime::now();
        let answer = new_connection(address, &mut count.wrong_peer);
        count.add(begun, answer);
        next += step;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    (count, start.elapsed())
}

fn new_connection(address: SocketAddr, wrong_peer: &mut u64) -> Result<String, String> {
    let stream = connect(address)?;
    if stream.peer_addr().ok() != Some(address) {
        *wrong_peer += 1;
    }
    let mut reader = BufReader::new(stream);
    request(&mut reader, "close").map(|(body, _)| first_word(&body))
}

fn kept_alive(address: SocketAddr, end: Instant) -> Count {
    let mut count = Count::default();
    let mut open: Option<BufReader<TcpStream>> = None;
    while goes_on(end) {
        let begun = SystemTime::now();
        let answer = match open.take() {
            Some(mut reader) => request(&mut reader, "keep-alive").map(|answer| (answer, reader)),
            None => connect(address)
                .map(BufReader::new)
                .and_then(|mut reader| request(&mut reader, "keep-alive").map(|answer| (answer, reader))),
        };
        match answer {
            Ok(((body, keep), reader)) => {
                count.add(begun, Ok(first_word(&body)));
                open = keep.then_some(reader);
            }
            Err(error) => count.add(begun, Err(error)),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    count
}

fn datagrams(address: SocketAddr, end: Instant) -> Count {
    let mut count = Count::default();
    let socket = match UdpSocket::bind(any(address)).and_then(|socket| {
        socket.set_read_timeout(Some(LIMIT))?;
        Ok(socket)
    }) {
        Ok(socket) => socket,
        Err(error) => {
            count.add(SystemTime::now(), Err(format!("bind: {error}")));
            return count;
        }
    };
    let mut buffer = [0; 2048];
    while goes_on(end) {
        let begun = SystemTime::now();
        let answer = socket.send_to(b"?", address).and_then(|_| socket.recv_from(&mut buffer));
        let answer = match answer {
            Ok((length, peer)) => {
                count.wrong_peer += u64::from(peer != address);
                Ok(first_word(&String::from_utf8_lossy(&buffer[..length])))
            }
            Err(error) => Err(format!("datagram: {error}")),
        };
        count.add(begun, answer);
        std::thread::sleep(Duration::from_millis(20));
    }
    count
}

/// A connected socket. One that is told that its peer has gone connects again at once, as programs do that stay connected.
fn connected_datagrams(address: SocketAddr, end: Instant) -> Count {
    let mut count = Count::default();
    let mut socket = connected_socket(address);
    while goes_on(end) {
        let begun = SystemTime::now();
        let mut answer = socket.as_ref().map_err(copy).and_then(exchange);
        if answer.as_ref().is_err_and(is_told) {
            socket = connected_socket(address);
            answer = socket.as_ref().map_err(copy).and_then(exchange);
        }
        let peer = socket.as_ref().ok().and_then(|socket| socket.peer_addr().ok());
        count.wrong_peer += u64::from(answer.is_ok() && peer != Some(address));
        count.add(begun, answer.map_err(|error| format!("connected datagram: {error}")));
        std::thread::sleep(Duration::from_millis(20));
    }
    count
}

/// The peer has gone; after that the socket has none.
fn is_told(error: &io::Error) -> bool {
    matches!(error.kind(), ConnectionAborted | ConnectionRefused)
        || error.raw_os_error() == Some(Errno::EDESTADDRREQ as i32)
}

/// Any port of any address, of the family of another one.
fn any(address: SocketAddr) -> SocketAddr {
    if address.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() }
}

fn connected_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(any(address))?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.connect(address)?;
    Ok(socket)
}

/// Who answers.
fn exchange(socket: &UdpSocket) -> io::Result<String> {
    let mut buffer = [0; 2048];
    socket.send(b"?")?;
    let length = socket.recv(&mut buffer)?;
    Ok(first_word(&String::from_utf8_lossy(&buffer[..length])))
}

fn copy(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    let failed = |error: std::io::Error| format!("connect: {error}");
    let stream = TcpStream::connect_timeout(&address, LIMIT).map_err(failed)?;
    stream.set_read_timeout(Some(LIMIT)).map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    Ok(stream)
}

/// One HTTP request: the body of the answer, and whether the connection stays open.
fn request(reader: &mut BufReader<TcpStream>, connection: &str) -> Result<(String, bool), String> {
    let failed = |error: std::io::Error| format!("request: {error}");
    let ask = format!("GET / HTTP/1.1\r\nHost: echo\r\nConnection: {connection}\r\n\r\n");
    reader.get_mut().write_all(ask.as_bytes()).map_err(failed)?;
    let (mut length, mut keep) = (0, true);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).map_err(failed)? == 0 {
            return Err("request: the server closed the connection".to_owned());
        }
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().map_err(|_| format!("request: content length {value:?}"))?;
        }
        keep &= line != "connection: close";
    }
    let mut body = String::new();
    reader.take(length).read_to_string(&mut body).map_err(failed)?;
    Ok((body.trim_end().to_owned(), keep))
}

fn first_word(text: &str) -> String {
    text.split_whitespace().next().unwrap_or_default().to_owned()
}
