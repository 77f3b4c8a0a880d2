//! Nine pods on one bridge, each in a network namespace of its own, with servers that the test holds all sockets of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use dataplane::policy::PodLink;
use dataplane::{Options, UplinkHook};
use linux::netlink::Netlink;
use linux::netns::{self, Netns};
use socket2::{Domain, Protocol, Socket, Type};

pub const LIMIT: Duration = Duration::from_secs(10);
pub const PORTS: [u16; 2] = [80, 81];
pub const PODS: usize = 9;
const BACKLOG: i32 = 128;
const BRIDGE: &str = "pods";

/// The node's address on the bridge.
fn gateway(is_ipv4: bool) -> IpAddr {
    address(1, is_ipv4)
}

fn address(host: u8, is_ipv4: bool) -> IpAddr {
    if is_ipv4 {
        Ipv4Addr::new(10, 9, 0, host).into()
    } else {
        Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, host.into()).into()
    }
}

pub struct Pod {
    pub number: usize,
    netns: Netns,
    pub link: PodLink,
    /// By the family (IPv4 first), and by [`PORTS`].
    pub listeners: [[Socket; 2]; 2],
    pub datagrams: [[UdpSocket; 2]; 2],
}

impl Pod {
    pub fn address(number: usize, is_ipv4: bool) -> IpAddr {
        address(10 + number as u8, is_ipv4)
    }

    /// Of its network namespace.
    pub fn cookie(&self) -> u64 {
        self.netns.cookie().unwrap()
    }

    /// Sockets of a client in the pod's namespace.
    pub fn clients(&self, count: usize, is_ipv4: bool) -> Vec<Socket> {
        let own = SocketAddr::new(Self::address(self.number, is_ipv4), 0);
        self.netns.run(|| (0..count).map(|_| bound(Type::STREAM, own)).collect()).unwrap()
    }

    /// What sends and hears packets of SCTP without knowing more of it.
    pub fn raw_sctp(&self) -> Socket {
        self.netns.run(|| raw_sctp(Self::address(self.number, true))).unwrap()
    }

    pub fn datagram_client(&self, is_ipv4: bool) -> UdpSocket {
        let own = SocketAddr::new(Self::address(self.number, is_ipv4), 0);
        self.netns.run(|| bound(Type::DGRAM, own)).unwrap().into()
    }
}

pub fn raw_sctp(own: IpAddr) -> Socket {
    let socket = Socket::new(
        Domain::IPV4,
        Type::from(nix::libc::SOCK_RAW),
        Some(Protocol::from(nix::libc::IPPROTO_SCTP)),
    );
    let socket = socket.unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.bind(&SocketAddr::new(own, 0).into()).unwrap();
    socket
}

fn bound(kind: Type, own: SocketAddr) -> Socket {
    let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
    let socket = Socket::new(Domain::for_address(own), kind, Some(protocol)).unwrap();
    socket.set_nonblocking(true).unwrap();
    if kind == Type::STREAM {
        // Nothing is said later about a connection that a test is done with.
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    }
    socket.bind(&own.into()).unwrap();
    socket
}

pub struct Place {
    pub pods: Vec<Pod>,
}

impl Place {
    pub fn make() -> Self {
        harness::private_host::require();
        ip(&format!("link add {BRIDGE} type bridge"));
        ip(&format!("addr add {}/24 dev {BRIDGE}", gateway(true)));
        ip(&format!("addr add {}/64 dev {BRIDGE} nodad", gateway(false)));
        ip(&format!("link set {BRIDGE} up"));
        Self { pods: (0..PODS).map(pod).collect() }
    }
}

impl Place {
    /// Lets a pod ask one more address of the node, which forwards; what it asks there arrives at the socket.
    pub fn route(&self, pod: usize, address: SocketAddr) -> UdpSocket {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        self.route_more(pod);
        ip(&format!("addr add {}/32 dev {BRIDGE}", address.ip()));
        bound(Type::DGRAM, address).into()
    }

    /// Lets another pod ask it too.
    pub fn route_more(&self, pod: usize) {
        ip(&format!("-n pod-{pod} route add default via {}", gateway(true)));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for number in 0..PODS {
            ip(&format!("link del pod-{number}"));
            ip(&format!("netns del pod-{number}"));
        }
        ip(&format!("link del {BRIDGE}"));
        // `ip netns` mounts its folder onto itself.
        nix::mount::umount("/run/netns").unwrap();
        std::fs::remove_dir("/run/netns").unwrap();
    }
}

fn pod(number: usize) -> Pod {
    let name = format!("pod-{number}");
    ip(&format!("netns add {name}"));
    ip(&format!("link add {name} type veth peer name eth0 netns {name}"));
    ip(&format!("link set {name} master {BRIDGE} up"));
    for (is_ipv4, rest) in [(true, "/24 dev eth0"), (false, "/64 dev eth0 nodad")] {
        ip(&format!("-n {name} addr add {}{rest}", Pod::address(number, is_ipv4)));
    }
    ip(&format!("-n {name} link set eth0 up"));
    ip(&format!("-n {name} link set lo up"));
    let netns = Netns::open(format!("/run/netns/{name}")).unwrap();
    // The route to an IPv6 address of a link comes up in the background.
    harness::wait::until("the pod's addresses", LIMIT, || {
        let own = SocketAddr::new(Pod::address(number, false), 0);
        let found = netns.run(|| UdpSocket::bind(own).and_then(|socket| socket.connect(own)));
        found.unwrap().map_err(|error| error.to_string())
    });
    let serve =
        |kind, is_ipv4| PORTS.map(|port| bound(kind, SocketAddr::new(Pod::address(number, is_ipv4), port)));
    let servers = |kind| netns.run(|| [true, false].map(|is_ipv4| serve(kind, is_ipv4))).unwrap();
    let (listeners, datagrams) = (servers(Type::STREAM), servers(Type::DGRAM));
    let datagrams = datagrams.map(|sockets| sockets.map(UdpSocket::from));
    listeners.iter().flatten().for_each(|listener| listener.listen(BACKLOG).unwrap());
    let here = Netns::current().unwrap();
    let link = netns::in_netns_async(here.as_fd(), || async { Netlink::open().unwrap().link(&name).await });
    let link = link.unwrap().unwrap();
    let link = PodLink { index: link.index, name: link.name, netns: link.peer_netns };
    Pod { number, netns, link, listeners, datagrams }
}

pub fn ip(arguments: &str) {
    run("ip", arguments);
}

/// What it says.
pub fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {failed}");
    String::from_utf8(output.stdout).unwrap()
}

/// The control group that the kernel's programs are attached to: an empty one.
pub struct Cgroup {
    path: std::path::PathBuf,
}

impl Cgroup {
    pub fn make() -> Self {
        let unified = std::path::PathBuf::from("/sys/fs/cgroup/unified");
        let root = if unified.is_dir() { unified } else { "/sys/fs/cgroup".into() };
        let path = root.join("nobody");
        std::fs::create_dir(&path).unwrap();
        Self { path }
    }

    /// A dataplane that has pods' links alone.
    pub fn options(&self) -> Options {
        Options {
            pin_root: "/sys/fs/bpf/orlop".into(),
            cgroup: self.path.clone(),
            uplinks: Vec::new(),
            uplink_hook: UplinkHook::Newest,
            uplink_acceleration: dataplane::Acceleration::Disabled,
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.path).unwrap();
    }
}
