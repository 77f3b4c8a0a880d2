//! The server: one thread per connection, at most [`MAX_CONNECTIONS`] of them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

/// How long the server goes on after SIGTERM.
const FAREWELL: Duration = Duration::from_secs(2);
const MAX_CONNECTIONS: usize = 1024;
const MAX_LINE: u64 = 8192;
/// A client that says nothing for this long is let go.
const IDLE: Duration = Duration::from_secs(60);

/// Set once SIGTERM came: answers then ask the client to open a new connection.
static LEAVING: AtomicBool = AtomicBool::new(false);

pub fn run(port: u16) -> Result<(), String> {
    let mut terminate = SigSet::empty();
    terminate.add(Signal::SIGTERM);
    terminate.add(Signal::SIGINT);
    // Blocked before any thread starts, so that only `wait` below sees it.
    terminate.thread_block().map_err(|errno| format!("block SIGTERM: {errno}"))?;
    // Of both families where there are both.
    let listener = TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)));
    let listener = listener.map_err(|error| format!("listen on TCP {port}: {error}"))?;
    let socket = UdpSocket::bind(("::", port)).or_else(|_| UdpSocket::bind(("0.0.0.0", port)));
    let socket = socket.map_err(|error| format!("listen on UDP {port}: {error}"))?;
    let name = Arc::new(pod_name());
    println!("{name} listens on {port}");
    let (tcp_name, udp_name) = (Arc::clone(&name), Arc::clone(&name));
    std::thread::spawn(move || accept(&listener, &tcp_name));
    std::thread::spawn(move || datagrams(&socket, &udp_name));
    terminate.wait().map_err(|errno| format!("wait for a signal: {errno}"))?;
    LEAVING.store(true, Ordering::Relaxed);
    println!("{name} leaves in {} s", FAREWELL.as_secs());
    std::thread::sleep(FAREWELL);
    Ok(())
}

fn pod_name() -> String {
    nix::unistd::gethostname()
        .map_or_else(|_| "unknown".to_owned(), |name| name.to_string_lossy().into_owned())
}

fn accept(listener: &TcpListener, name: &Arc<String>) {
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        if open.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (name, open) = (Arc::clone(name), Arc::clone(&open));
        std::thread::spawn(move || {
            // A client that goes away is not an error.
            let _ = connection(stream, &name);
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// HTTP if the first line looks like it, otherwise each line is answered by a line.
fn connection(mut stream: TcpStream, name: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let peer = stream.peer_addr()?.ip().to_canonical();
    loop {
        let mut line = String::new();
        if reader.by_ref().take(MAX_LINE).read_line(&mut line)? == 0 {
            return Ok(());
        }
        if !line.contains(" HTTP/1.") {
            stream.write_all(format!("{name} {peer}\n").as_bytes())?;
            continue;
        }
        let close = skip_headers(&mut reader)? || LEAVING.load(Ordering::Relaxed);
        let body = format!("{name} {peer}\n");
        let connection = if close { "close" } else { "keep-alive" };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes())?;
        if close {
            return Ok(());
        }
    }
}

/// Reads up to the empty line; `true` if the client wants the connection closed.
fn skip_headers(reader: &mut BufReader<TcpStream>) -> std::io::Result<bool> {
    let mut close = false;
    loop {
        let mut line = String::new();
        let read = reader.by_ref().take(MAX_LINE).read_line(&mut line)?;
        if read == 0 || line.trim().is_empty() {
            return Ok(close);
        }
        close |= line.to_ascii_lowercase().starts_with("connection: close");
    }
}

fn datagrams(socket: &UdpSocket, name: &str) {
    let mut buffer = [0; 2048];
    loop {
        let Ok((_, peer)) = socket.recv_from(&mut buffer) else { continue };
        let _ = socket.send_to(format!("{name} {}\n", peer.ip()).as_bytes(), peer);
    }
}
