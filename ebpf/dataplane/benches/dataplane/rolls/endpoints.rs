//! The process behind all endpoints: listeners in the namespaces of pods, and one thread that gives every byte back.
//!
//! A listener that is closed is gone: a connection that is led there is refused. What it had accepted goes on.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;

use linux::netns::Netns;
use rustix::event::epoll::{self, EventData, EventFlags};

use super::process::{Process, orders};

pub const NAME: &str = "endpoints";
const EVENTS: usize = 256;

/// As the one who gives the orders sees it.
pub struct Endpoints(Process);

impl Endpoints {
    pub fn start() -> Self {
        Self(Process::start(NAME, &[]))
    }

    pub fn open(&mut self, namespace: &str, at: SocketAddr) {
        self.0.ask(&format!("open {namespace} {at}"));
    }

    pub fn close(&mut self, at: SocketAddr) {
        self.0.ask(&format!("close {at}"));
    }

    pub fn end(self) {
        self.0.kill();
    }
}

/// Everything that is open, by descriptor.
struct Server {
    epoll: OwnedFd,
    open: Mutex<HashMap<i32, Open>>,
}

enum Open {
    Listener(TcpListener),
    Connection(TcpStream),
}

pub fn play() {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("make an epoll instance");
    let server: &Server = Box::leak(Box::new(Server { epoll, open: Mutex::default() }));
    std::thread::spawn(|| server.serve());
    let mut listeners = HashMap::new();
    for order in orders() {
        let words: Vec<&str> = order.split(' ').collect();
        match words[..] {
            ["open", namespace, at] => {
                let at: SocketAddr = at.parse().expect("an address");
                let netns = Netns::open(format!("/run/netns/{namespace}")).expect("open the namespace");
                let listener = netns.run(|| TcpListener::bind(at).expect("listen"));
                let listener = listener.expect("enter the namespace");
                listener.set_nonblocking(true).expect("set O_NONBLOCK");
                listeners.insert(at, listener.as_raw_fd());
                server.add(Open::Listener(listener));
            }
            ["close", at] => {
                let at: SocketAddr = at.parse().expect("an address");
                server.close(listeners.remove(&at).expect("it listens"));
            }
            _ => panic!("the endpoints know nothing of {order}"),
        }
        println!("ok");
    }
}

impl Server {
    fn add(&self, added: Open) {
        let fd = match &added {
            Open::Listener(listener) => listener.as_raw_fd(),
            Open::Connection(stream) => stream.as_raw_fd(),
        };
        let mut open = self.open.lock().expect("no panic");
        let watched = match &added {
            Open::Listener(listener) => self.watch(listener, fd),
            Open::Connection(stream) => self.watch(stream, fd),
        };
        watched.expect("watch a socket");
        open.insert(fd, added);
    }

    fn watch(&self, socket: &impl std::os::fd::AsFd, fd: i32) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, socket, EventData::new_u64(fd as u64), EventFlags::IN)
    }

    /// What waits to be accepted was led here in time.
    fn close(&self, listener: i32) {
        self.accept(listener);
        self.open.lock().expect("no panic").remove(&listener);
    }

    fn accept(&self, listener: i32) {
        let mut accepted = Vec::new();
        if let Some(Open::Listener(listener)) = self.open.lock().expect("no panic").get(&listener) {
            accepted.extend(std::iter::from_fn(|| listener.accept().ok()));
        }
        for (stream, _) in accepted {
            stream.set_nonblocking(true).expect("set O_NONBLOCK");
            stream.set_nodelay(true).expect("set TCP_NODELAY");
            self.add(Open::Connection(stream));
        }
    }

    fn serve(&self) {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Err(rustix::io::Errno::INTR) => continue,
                waited => drop(waited.expect("wait for sockets")),
            }
            for event in events.drain(..) {
                self.attend(event.data.u64() as i32);
            }
        }
    }

    fn attend(&self, fd: i32) {
        let mut open = self.open.lock().expect("no panic");
        match open.get(&fd) {
            Some(Open::Listener(_)) => {
                drop(open);
                self.accept(fd);
            }
            Some(Open::Connection(stream)) if !give_back(stream) => drop(open.remove(&fd)),
            _ => {}
        }
    }
}

/// Whether the connection goes on.
fn give_back(mut stream: &TcpStream) -> bool {
    let mut bytes = [0; 16];
    match stream.read(&mut bytes) {
        Ok(0) => false,
        Ok(length) => stream.write_all(&bytes[..length]).is_ok(),
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}
