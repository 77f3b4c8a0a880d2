//! The place where these tests run: a node with an uplink to an outside host and a pod, each in its own namespace.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use dataplane::{Dataplane, Frontend, OpenError, Options, Protocol};
use dataplane_abi::{LAYOUT_VERSION, NatValue};

pub const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);
pub const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
pub const LIMIT: Duration = Duration::from_secs(5);

fn options(uplinks: &[&str]) -> Options {
    harness::private_host::require();
    let unified = PathBuf::from("/sys/fs/cgroup/unified");
    Options {
        pin_root: "/sys/fs/bpf/orlop".into(),
        cgroup: if unified.is_dir() { unified } else { "/sys/fs/cgroup".into() },
        uplinks: uplinks.iter().map(|name| (*name).to_owned()).collect(),
    }
}

/// An opened dataplane that leaves nothing behind.
pub struct Node {
    pub dataplane: Option<Dataplane>,
    options: Options,
}

impl Node {
    /// Sockets of this test are translated.
    pub fn open() -> Self {
        Self::with(options(&[]))
    }

    /// Only packets on `uplink` are translated: all the namespaces of this test share its cgroup, so the socket programs
    /// are given an empty one.
    pub fn with_uplink() -> Self {
        let mut options = options(&["uplink"]);
        options.cgroup.push("nobody");
        std::fs::create_dir(&options.cgroup).unwrap();
        Self::with(options)
    }

    fn with(options: Options) -> Self {
        Self { dataplane: Some(Dataplane::open(&options).unwrap_or_else(|e| panic!("{e:?}"))), options }
    }

    pub fn set(&mut self, frontend: Frontend, endpoints: &[SocketAddrV4]) {
        self.dataplane.as_mut().unwrap().set(frontend, endpoints).unwrap();
    }

    pub fn counter(&self, index: u32) -> u64 {
        self.dataplane.as_ref().unwrap().counters().unwrap()[index as usize]
    }

    /// Changes the entries of one of the translation maps behind the programs' back: `change` gives the new value, or
    /// `None` to remove the entry.
    pub fn rewrite_flows(&self, map: &str, change: impl Fn(NatValue) -> Option<NatValue>) {
        let folder = self.options.pin_root.join(format!("v{LAYOUT_VERSION}"));
        let data = MapData::from_pin(folder.join(map)).unwrap();
        let mut flows: HashMap<MapData, [u8; 16], [u8; 32]> =
            HashMap::try_from(Map::LruHashMap(data)).unwrap();
        let all: Vec<_> = flows.iter().collect::<Result<_, _>>().unwrap();
        for (key, value) in all {
            match change(NatValue::from_bytes(value)) {
                Some(value) => flows.insert(key, value.to_bytes(), 0).unwrap(),
                None => flows.remove(&key).unwrap(),
            }
        }
    }

    /// As after a kill: the process's descriptors close, pins stay.
    pub fn crash(&mut self) {
        self.dataplane = None;
    }

    pub fn reopen(&mut self) -> usize {
        self.try_reopen().unwrap()
    }

    pub fn try_reopen(&mut self) -> Result<usize, OpenError> {
        self.dataplane = None;
        let dataplane = Dataplane::open(&self.options)?;
        let adopted = dataplane.adopted();
        self.dataplane = Some(dataplane);
        Ok(adopted)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.dataplane = None;
        dataplane::remove_all(&self.options.pin_root).unwrap();
        if self.options.cgroup.ends_with("nobody") {
            std::fs::remove_dir(&self.options.cgroup).unwrap();
        }
    }
}

pub fn frontend(address: [u8; 4], port: u16, protocol: Protocol) -> Frontend {
    Frontend { address: address.into(), port, protocol }
}

/// A server that answers each connection with its own name and the peer it sees.
pub fn serve_tcp(address: SocketAddrV4, name: &'static str) -> SocketAddrV4 {
    let listener = TcpListener::bind(address).unwrap();
    let std::net::SocketAddr::V4(bound) = listener.local_addr().unwrap() else { panic!("not IPv4") };
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let peer = stream.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
            let _ = stream.write_all(format!("{name} saw {peer}").as_bytes());
        }
    });
    bound
}

/// A server that answers each datagram with its own name and the peer it sees.
pub fn serve_udp(address: SocketAddrV4, name: &'static str) -> SocketAddrV4 {
    let socket = UdpSocket::bind(address).unwrap();
    let std::net::SocketAddr::V4(bound) = socket.local_addr().unwrap() else { panic!("not IPv4") };
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{name} saw {}", peer.ip()).as_bytes(), peer);
        }
    });
    bound
}

pub fn ask_tcp(address: SocketAddrV4) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address.into(), LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

pub fn ask_udp(socket: &UdpSocket, address: SocketAddrV4) -> std::io::Result<(String, String)> {
    socket.set_read_timeout(Some(LIMIT))?;
    socket.send_to(b"?", address)?;
    let mut buffer = [0; 64];
    let (length, peer) = socket.recv_from(&mut buffer)?;
    Ok((String::from_utf8_lossy(&buffer[..length]).into_owned(), peer.to_string()))
}

pub fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// The namespaces `pod` and `outside`, routed by this one, which is the node. Removed on drop.
pub struct Links;

impl Links {
    pub fn make() -> Self {
        for line in [
            "netns add pod",
            "netns add outside",
            "link add pod0 type veth peer name eth0 netns pod",
            "link add uplink type veth peer name eth0 netns outside",
            "addr add 10.244.0.1/24 dev pod0",
            "addr add 192.0.2.1/24 dev uplink",
            "link set pod0 up",
            "link set uplink up",
            "-n pod addr add 10.244.0.2/24 dev eth0",
            "-n pod link set eth0 up",
            "-n pod route add default via 10.244.0.1",
            "-n outside addr add 192.0.2.9/24 dev eth0",
            "-n outside link set eth0 up",
            "-n outside link set lo up",
        ] {
            ip(line);
        }
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        Self
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        for line in ["link del pod0", "link del uplink", "netns del pod", "netns del outside"] {
            ip(line);
        }
        // `ip netns` mounts its folder onto itself.
        nix::mount::umount("/run/netns").unwrap();
        std::fs::remove_dir("/run/netns").unwrap();
    }
}

/// Runs `work` on a thread of its own inside the named namespace.
pub fn inside<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let namespace = File::open(format!("/run/netns/{name}")).unwrap();
    std::thread::spawn(move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
}
