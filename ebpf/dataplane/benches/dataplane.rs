//! The load balancer beside what it replaces, in one private host: loading services, changing one, connecting through one, and
//! telling UDP sockets that their backend has gone. Started by `cargo xtask bench dataplane`, which prints what this prints.
//!
//! The peers are nftables, iptables and IPVS with what kube-proxy 1.36 makes for the same services (`peer`), each in a network
//! namespace of its own; [`peer::PEERS`] says which. Where nothing else is said, everything is on the loopback, so that nothing but the translation differs from a
//! connection to the endpoint itself.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dataplane::policy::{self, Change, Isolation, PodLink, PortRange, Ports, RulesetId};
use dataplane::{Acceleration, Dataplane, Frontend, Options, Protocol, Target, UplinkHook};
use linux::netns::{self, Netns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, setsockopt, socket, sockopt};

#[path = "dataplane/choices.rs"]
mod choices;
#[path = "dataplane/client_ports.rs"]
mod client_ports;
#[path = "dataplane/datagrams.rs"]
mod datagrams;
#[path = "dataplane/north_south.rs"]
mod north_south;
#[path = "dataplane/peer.rs"]
mod peer;
#[path = "dataplane/rolls.rs"]
mod rolls;

use peer::{Kind, NotMeasured, Peer, cell};

const SERVICES: u32 = 10_000;
const MANY_SERVICES: u32 = 50_000;
const LOADS: usize = 5;
const CHANGES: usize = 200_000;
const CONNECTIONS: usize = 20_000;
const REQUESTS: usize = 100_000;
/// Pairs are compared block by block: the spread of the blocks is that of the ratio.
const BLOCKS: usize = 40;

/// The addresses of one family.
#[derive(Clone, Copy)]
struct Family {
    name: &'static str,
    /// Of a server on the loopback.
    endpoint: IpAddr,
    /// Of services: those of [`service`] follow on it.
    vip: IpAddr,
    /// The network of the pods.
    pods: &'static str,
}

const V4: Family = Family {
    name: "IPv4",
    endpoint: IpAddr::V4(Ipv4Addr::new(10, 244, 0, 1)),
    vip: IpAddr::V4(Ipv4Addr::new(10, 96, 0, 0)),
    pods: "10.244.0.0/16",
};

const V6: Family = Family {
    name: "IPv6",
    endpoint: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 1)),
    vip: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0)),
    pods: "fd00:244::/48",
};

/// The service that is asked.
const OURS: u32 = 10;

impl Family {
    fn vip(&self, number: u32) -> IpAddr {
        add(self.vip, number)
    }
}

fn add(address: IpAddr, number: u32) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from(u32::from(address) + number).into(),
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) + u128::from(number)).into(),
    }
}

/// A connection to an address of no link is routed before it is translated by rules.
const ROUTES: [&str; 4] = [
    "addr add 10.244.0.1/32 dev lo",
    "route add default dev lo",
    "addr add fd00:244::1/128 dev lo nodad",
    "-6 route add default dev lo",
];

/// What can be measured alone: it is named on the command line.
const GROUPS: &[(&str, fn())] = &[
    // First, while the allocator holds nothing that others have given back.
    ("memory", memory),
    ("services", services),
    ("changes", || {
        many_endpoints();
        changes();
    }),
    ("datagrams", || {
        datagrams::in_one_namespace();
        datagrams::in_many_namespaces();
    }),
    ("policies", policies),
    ("choices", || {
        choices::schedulers();
        choices::maglev();
        choices::packets();
    }),
    ("north-south", north_south::north_south),
    ("client-ports", client_ports::hundred_services),
    ("rolls", rolls::rolls),
];

fn main() {
    harness::private_host::require();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((rolls::ROLE, arguments)) =
        arguments.split_first().map(|(first, rest)| (first.as_str(), rest))
    {
        return rolls::play(arguments);
    }
    let known = |name: &&String| GROUPS.iter().any(|(group, _)| group == name);
    if let Some(unknown) = arguments.iter().find(|name| !known(name)) {
        let groups: Vec<&str> = GROUPS.iter().map(|(name, _)| *name).collect();
        eprintln!("there is no group {unknown} of measurements, but {}", groups.join(", "));
        std::process::exit(2);
    }
    ROUTES.iter().for_each(|line| run("ip", line));
    let peers: Vec<&str> = Kind::chosen().into_iter().map(Kind::name).collect();
    println!("| what | aim | Orlop | {} | the endpoint itself |", peers.join(" | "));
    println!("|---|---|---|{}---|", "---|".repeat(peers.len()));
    let wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|argument| argument == name);
    GROUPS.iter().filter(|(name, _)| wanted(name)).for_each(|(_, measure)| measure());
    let _ = std::fs::remove_dir_all("/run/netns");
    ROUTES.iter().rev().for_each(|line| run("ip", &line.replace(" add ", " del ").replace(" nodad", "")));
}

fn services() {
    for family in [V4, V6] {
        let peers: Vec<_> = Kind::chosen().into_iter().map(|kind| Peer::load(kind, family)).collect();
        cold_load(family, &peers);
        connections(family, &peers);
        peers.into_iter().flatten().for_each(Peer::remove);
    }
}

/// What is measured, the aim, our figure, those of the peers, and that of the endpoint itself.
fn compare(what: &str, [aim, ours]: [&str; 2], peers: &[String], itself: &str) {
    println!("| {what} | {aim} | {ours} | {} | {itself} |", peers.join(" | "));
}

/// The same where nftables alone is run, or the others could do no more.
fn row(what: &str, [aim, ours, nftables, itself]: [&str; 4]) {
    let of_peer = |kind| match (kind, nftables) {
        (Kind::Nftables, _) | (_, "-" | "not at all") => nftables.to_owned(),
        _ => "not measured".to_owned(),
    };
    let peers: Vec<String> = Kind::chosen().into_iter().map(of_peer).collect();
    compare(what, [aim, ours], &peers, itself);
}

/// A dataplane of this process's own cgroup; it leaves nothing behind.
struct Bench(Option<Dataplane>);

impl Bench {
    fn open() -> Self {
        Self::of(cgroup_root(), &[])
    }

    /// On links alone: no socket is led.
    fn on(uplinks: &[&str]) -> Self {
        let nobody = cgroup_root().join(NOBODY);
        std::fs::create_dir(&nobody).expect("make a control group");
        Self::of(nobody, uplinks)
    }

    fn of(cgroup: PathBuf, uplinks: &[&str]) -> Self {
        let options = Options {
            pin_root: "/sys/fs/bpf/bench".into(),
            cgroup,
            uplinks: uplinks.iter().map(|name| (*name).to_owned()).collect(),
            uplink_hook: UplinkHook::Newest,
            uplink_acceleration: Acceleration::Disabled,
        };
        Self(Some(Dataplane::open(&options).unwrap_or_else(|error| panic!("{error:?}"))))
    }

    fn set(&mut self, frontend: Frontend, target: &Target) {
        self.0.as_mut().expect("open").set(frontend, target).expect("room");
    }

    fn fill(&mut self, family: Family, services: u32, endpoints: u32) -> Duration {
        let wanted: Vec<(Frontend, Target)> = (0..services)
            .map(|number| (service(family, number), target(family, number, endpoints)))
            .collect();
        let begin = Instant::now();
        let set = self.0.as_mut().expect("open").set_all(&wanted);
        set.into_iter().for_each(|set| set.expect("room"));
        begin.elapsed()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.0 = None;
        dataplane::remove_all("/sys/fs/bpf/bench".as_ref()).expect("remove the dataplane");
        let _not_made = std::fs::remove_dir(cgroup_root().join(NOBODY));
    }
}

/// The control group of nobody.
const NOBODY: &str = "nobody";

fn cgroup_root() -> PathBuf {
    let unified = PathBuf::from("/sys/fs/cgroup/unified");
    if unified.is_dir() { unified } else { "/sys/fs/cgroup".into() }
}

fn service(family: Family, number: u32) -> Frontend {
    Frontend { address: family.vip(256 + number), port: 80, protocol: Protocol::Tcp }
}

/// Endpoints where nobody is.
fn target(family: Family, service: u32, endpoints: u32) -> Target {
    let one = |number| SocketAddr::new(add(family.endpoint, 65_536 + service * endpoints + number), 8080);
    Target::all((0..endpoints).map(one).collect::<Vec<_>>())
}

/// The median of several loads from nothing.
fn loads(family: Family, services: u32, endpoints: u32) -> Duration {
    let times: Vec<Duration> = (0..LOADS).map(|_| Bench::open().fill(family, services, endpoints)).collect();
    median(&times)
}

fn cold_load(family: Family, peers: &[Result<Peer, NotMeasured>]) {
    let took = loads(family, SERVICES, 2);
    let of_peers: Vec<String> = peers.iter().map(|peer| cell(peer, |peer| shown(peer.took))).collect();
    let what = format!("{SERVICES} services with 2 endpoints each, from nothing, {}", family.name);
    compare(&what, ["30 ms", &shown(took)], &of_peers, "-");
}

fn many_endpoints() {
    let took = loads(V4, 5_000, 50);
    row("5,000 services with 250,000 endpoints, from nothing", ["300 ms", &shown(took), "not measured", "-"]);
}

/// What the process holds more than without services, the maps in its memory included; the frontends map, about 1 MiB of the kernel's
/// own, is not.
fn memory() {
    let mut bench = Bench::open();
    let before = resident();
    for number in 0..SERVICES {
        bench.set(service(V4, number), &target(V4, number, 10));
    }
    let mebibytes = (resident() - before) as f64 / f64::from(1 << 20);
    row(
        &format!("memory for {SERVICES} services with 100,000 endpoints"),
        ["64 MiB", &format!("{mebibytes:.1} MiB"), "not measured", "-"],
    );
}

/// Resident memory, in bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("read the own status");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("resident memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

fn changes() {
    let mut bench = Bench::open();
    bench.fill(V4, MANY_SERVICES, 2);
    let (mut times, begin) = (Vec::with_capacity(CHANGES), Instant::now());
    let mut random = Random(1);
    for _ in 0..CHANGES {
        let number = random.below(MANY_SERVICES);
        let target = target(V4, number, 1 + random.below(2));
        let begin = Instant::now();
        bench.set(service(V4, number), &target);
        times.push(begin.elapsed());
    }
    let rate = CHANGES as f64 / begin.elapsed().as_secs_f64();
    row(
        &format!("changes of a service's endpoints, of {MANY_SERVICES}: a second"),
        ["500,000", &format!("{rate:.0}"), "not measured", "-"],
    );
    times.sort();
    let p99 = times[times.len() * 99 / 100];
    row("until a change is in the kernel: p99", ["100 µs", &shown(p99), "not measured", "-"]);
}

fn connections(family: Family, peers: &[Result<Peer, NotMeasured>]) {
    let mut bench = Bench::open();
    bench.fill(family, MANY_SERVICES, 2);
    let listener = TcpListener::bind((family.endpoint, 0)).expect("listen");
    let direct = listener.local_addr().expect("its address");
    let vip = SocketAddr::new(family.vip(OURS), 80);
    let frontend = Frontend { address: vip.ip(), port: 80, protocol: Protocol::Tcp };
    bench.set(frontend, &Target::all([direct]));
    let ways = [(&listener, direct), (&listener, vip)];
    let [itself, ours] = alternate(CONNECTIONS, |way| connect(ways[way].0, ways[way].1));
    let of_peer = |peer: &Peer| {
        let times = peer
            .netns
            .run(|| (0..CONNECTIONS).map(|_| connect(&peer.listener, peer.vip)).collect::<Vec<_>>());
        shown(median(&times.expect("enter the namespace")))
    };
    let of_peers: Vec<String> = peers.iter().map(|peer| cell(peer, of_peer)).collect();
    let what = format!(
        "a connection through a cluster IP, {}, {MANY_SERVICES} services (peers: {SERVICES})",
        family.name
    );
    let figure = format!("{}, {}", shown(median(&ours)), ratio(&ours, &itself));
    compare(&what, ["1.02 times direct", &figure], &of_peers, &shown(median(&itself)));
    let [mut straight, mut through] = [direct, vip].map(|address| Exchange::open(&listener, address));
    let [itself, ours] = alternate(REQUESTS, |way| if way == 0 { straight.ask() } else { through.ask() });
    let of_peer = |peer: &Peer| {
        let times = peer.netns.run(|| {
            let mut exchange = Exchange::open(&peer.listener, peer.vip);
            (0..REQUESTS).map(|_| exchange.ask()).collect::<Vec<_>>()
        });
        shown(median(&times.expect("enter the namespace")))
    };
    let of_peers: Vec<String> = peers.iter().map(|peer| cell(peer, of_peer)).collect();
    let what = format!("a request and its answer on an open connection, {}", family.name);
    let figure = format!("{}, {}", shown(median(&ours)), ratio(&ours, &itself));
    compare(&what, ["1.01 times direct", &figure], &of_peers, &shown(median(&itself)));
}

/// Measures two ways in turn.
fn alternate(count: usize, mut measure: impl FnMut(usize) -> Duration) -> [Vec<Duration>; 2] {
    let mut times = [Vec::with_capacity(count), Vec::with_capacity(count)];
    for _ in 0..count {
        for (way, times) in times.iter_mut().enumerate() {
            times.push(measure(way));
        }
    }
    times
}

fn connect(listener: &TcpListener, address: SocketAddr) -> Duration {
    let begin = Instant::now();
    let stream = TcpStream::connect(address).expect("connect");
    let took = begin.elapsed();
    let (accepted, _) = listener.accept().expect("accept");
    // Its port may come back at once: a peer that chooses ports at random would hit many that wait for late packets, and ask again a second later.
    setsockopt(&accepted, sockopt::Linger, &AT_ONCE).expect("set SO_LINGER");
    drop((accepted, stream));
    took
}

/// A connection that is closed so leaves nothing that waits.
const AT_ONCE: libc::linger = libc::linger { l_onoff: 1, l_linger: 0 };

/// A connection with both its ends.
struct Exchange {
    client: TcpStream,
    server: TcpStream,
}

impl Exchange {
    fn open(listener: &TcpListener, address: SocketAddr) -> Self {
        let client = TcpStream::connect(address).expect("connect");
        let (server, _) = listener.accept().expect("accept");
        [&client, &server].iter().for_each(|end| end.set_nodelay(true).expect("set TCP_NODELAY"));
        Self { client, server }
    }

    fn ask(&mut self) -> Duration {
        let (begin, mut byte) = (Instant::now(), [0]);
        self.client.write_all(b"?").expect("ask");
        self.server.read_exact(&mut byte).expect("be asked");
        self.server.write_all(b"!").expect("answer");
        self.client.read_exact(&mut byte).expect("be answered");
        begin.elapsed()
    }
}

/// A client's pod and a server's, each behind a link of a node that routes between them.
struct Pods {
    /// Under which name, and in which network.
    name: &'static str,
    subnet: u8,
    client: Netns,
    listener: TcpListener,
}

impl Pods {
    /// On the calling thread's namespace, which is the node.
    fn make(name: &'static str, subnet: u8) -> Self {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forward");
        let [client, server] = [0, 1].map(|end| {
            let pod = format!("{name}{end}");
            let netns = netns::create(format!("/run/netns/{pod}")).expect("make a namespace");
            let net = format!("10.9.{}", subnet + end);
            run("ip", &format!("link add {pod} type veth peer name eth0 netns {pod}"));
            run("ip", &format!("addr add {net}.1/24 dev {pod}"));
            run("ip", &format!("link set {pod} up"));
            run("ip", &format!("-n {pod} addr add {net}.2/24 dev eth0"));
            run("ip", &format!("-n {pod} link set eth0 up"));
            run("ip", &format!("-n {pod} route add default via {net}.1"));
            netns
        });
        let address = (Ipv4Addr::new(10, 9, subnet + 1, 2), POD_PORT);
        let listener =
            server.run(|| TcpListener::bind(address).expect("listen")).expect("enter the namespace");
        Self { name, subnet, client, listener }
    }

    fn client(&self) -> IpAddr {
        Ipv4Addr::new(10, 9, self.subnet, 2).into()
    }

    fn server(&self) -> SocketAddr {
        self.listener.local_addr().expect("its address")
    }

    /// Of the client's pod and of the server's.
    fn links(&self) -> [PodLink; 2] {
        [0, 1].map(|end| {
            let name = format!("{}{end}", self.name);
            let index = std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).expect("the link");
            PodLink { index: index.trim().parse().expect("a number"), name, netns: None }
        })
    }

    /// Made before the time is taken: entering a namespace takes longer than connecting.
    fn sockets(&self, count: usize) -> Vec<OwnedFd> {
        // No connection waits at its end for packets that may be late: the next ones would have to look past it.
        let one = || {
            let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
            let socket = socket.expect("a socket");
            setsockopt(&socket, sockopt::Linger, &AT_ONCE).expect("set SO_LINGER");
            socket
        };
        let all = self.client.run(|| (0..count).map(|_| one()).collect());
        all.expect("enter the namespace")
    }

    fn connect(&self, socket: OwnedFd) -> (Duration, Exchange) {
        self.connect_to(socket, self.server())
    }

    /// To the server, by whatever address.
    fn connect_to(&self, socket: OwnedFd, to: SocketAddr) -> (Duration, Exchange) {
        let to = SockaddrStorage::from(to);
        let begin = Instant::now();
        nix::sys::socket::connect(socket.as_raw_fd(), &to).expect("connect");
        let took = begin.elapsed();
        let exchange = Exchange { client: socket.into(), server: self.listener.accept().expect("accept").0 };
        [&exchange.client, &exchange.server].iter().for_each(|end| end.set_nodelay(true).expect("no delay"));
        (took, exchange)
    }

    /// On the thread's namespace that made it.
    fn remove(self) {
        for end in [0, 1] {
            run("ip", &format!("link del {}{end}", self.name));
            netns::remove(format!("/run/netns/{}{end}", self.name)).expect("remove the namespace");
        }
    }
}

const POD_PORT: u16 = 8080;
/// Peers that a policy names besides the one that is there.
const POLICY_PEERS: u32 = 1_000;

/// What pods that policies select pay for it, on the way out of one and into the other; nftables as those write it that follow
/// connections and look peers up in sets.
fn policies() {
    let mut bench = Bench::open();
    let (open, ours) = (Pods::make("open", 10), Pods::make("ours", 20));
    let peer = netns::create("/run/netns/policed").expect("make a namespace");
    let theirs = peer.run(|| {
        let pods = Pods::make("theirs", 30);
        feed("nft", &["-f", "-"], &policy_rules(&pods));
        pods
    });
    let theirs = theirs.expect("enter the namespace");

    let [ingress, egress] = [1, 2].map(|number| RulesetId(NonZeroU32::new(number).expect("not 0")));
    let ports = Ports::new([PortRange { protocol: policy::Protocol::Tcp, first: POD_PORT, last: POD_PORT }]);
    let others = || (0..POLICY_PEERS).map(|number| add(V4.endpoint, number));
    let rules = |ruleset, peer: IpAddr| {
        let allow = |peer: IpAddr| Change::Allow { ruleset, network: peer.into(), ports: ports.clone() };
        others().chain([peer]).map(allow).collect::<Vec<_>>()
    };
    let dataplane = bench.0.as_mut().expect("open");
    let changes = [rules(ingress, ours.client()), rules(egress, ours.server().ip())].concat();
    dataplane.change_policies(&changes).expect("room");
    let [client, server] = ours.links();
    dataplane.isolate(&client, Isolation { ingress: None, egress: Some(egress) }).expect("attach");
    dataplane.isolate(&server, Isolation { ingress: Some(ingress), egress: None }).expect("attach");

    let between = |pods: [&Pods; 2]| {
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..BLOCKS {
            let sockets = pods.map(|pods| pods.sockets(CONNECTIONS / 2 / BLOCKS).into_iter());
            let [mut first, mut second] = sockets;
            while let (Some(one), Some(another)) = (first.next(), second.next()) {
                times[0].push(pods[0].connect(one).0);
                times[1].push(pods[1].connect(another).0);
            }
        }
        times
    };
    let asked = |pods: [&Pods; 2]| {
        let mut exchanges = pods.map(|pods| pods.connect(pods.sockets(1).swap_remove(0)).1);
        alternate(REQUESTS / 2, |way| exchanges[way].ask())
    };
    let figures = |[itself, ours]: [Vec<Duration>; 2], [other, theirs]: [Vec<Duration>; 2], what: &str| {
        let cells = [(&ours, &itself), (&theirs, &other)];
        let [ours, theirs] =
            cells.map(|(ours, itself)| format!("{}, {}", shown(median(ours)), ratio(ours, itself)));
        row(what, ["-", &ours, &theirs, &shown(median(&itself))]);
    };
    let what = format!(
        "a connection between pods that policies with {POLICY_PEERS} peers select (itself: none does)"
    );
    figures(between([&open, &ours]), between([&open, &theirs]), &what);
    figures(asked([&open, &ours]), asked([&open, &theirs]), "a request and its answer between them");

    let allow = |number: u32| {
        let ruleset = RulesetId(NonZeroU32::new(10 + number).expect("not 0"));
        Change::Allow { ruleset, network: V4.endpoint.into(), ports: ports.clone() }
    };
    let joins: Vec<Change> = (0..100).map(allow).collect();
    let begin = Instant::now();
    bench.0.as_mut().expect("open").change_policies(&joins).expect("room");
    row("a pod that 100 rulesets name is in the kernel", ["-", &shown(begin.elapsed()), "not measured", "-"]);

    drop(bench);
    [open, ours].into_iter().for_each(Pods::remove);
    peer.run(|| theirs.remove()).expect("enter the namespace");
    netns::remove(peer.path()).expect("remove the namespace");
}

/// Both pods are selected, and each rule names the other one among others.
fn policy_rules(pods: &Pods) -> String {
    let (client, server) = (pods.client(), pods.server().ip());
    let others: Vec<String> = (0..POLICY_PEERS).map(|number| add(V4.endpoint, number).to_string()).collect();
    let others = others.join(", ");
    format!(
        "table ip policed {{\n\
         set clients {{ type ipv4_addr; elements = {{ {others}, {client} }}; }}\n\
         set servers {{ type ipv4_addr; elements = {{ {others}, {server} }}; }}\n\
         chain forward {{ type filter hook forward priority 0; policy accept;\n\
         ct state established,related accept\n\
         ip saddr {client} jump egress\n\
         ip daddr {server} jump ingress\n\
         }}\n\
         chain egress {{ ip daddr @servers tcp dport {POD_PORT} return; drop; }}\n\
         chain ingress {{ ip saddr @clients tcp dport {POD_PORT} return; drop; }}\n\
         }}\n",
    )
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[sorted.len() / 2]
}

/// The ratio of the medians, and where nine tenths of the blocks' ratios lie.
fn ratio(ours: &[Duration], itself: &[Duration]) -> String {
    let of =
        |ours: &[Duration], itself: &[Duration]| median(ours).as_secs_f64() / median(itself).as_secs_f64();
    let size = ours.len() / BLOCKS;
    let mut blocks: Vec<f64> = ours.chunks(size).zip(itself.chunks(size)).map(|(a, b)| of(a, b)).collect();
    blocks.sort_by(f64::total_cmp);
    let (low, high) = (blocks[blocks.len() / 20], blocks[blocks.len() * 19 / 20]);
    format!("{:.3} times ({low:.3} to {high:.3})", of(ours, itself))
}

fn shown(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    match micros {
        _ if micros < 1e3 => format!("{micros:.1} µs"),
        _ if micros < 1e6 => format!("{:.1} ms", micros / 1e3),
        _ => format!("{:.1} s", micros / 1e6),
    }
}

/// Marsaglia's xorshift: the same changes in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32 % limit
    }
}

fn run(program: &str, arguments: &str) {
    let status = Command::new(program).args(arguments.split(' ')).status().expect("start a program");
    assert!(status.success(), "{program} {arguments}");
}

fn feed(program: &str, arguments: &[&str], input: &str) {
    let mut child =
        Command::new(program).args(arguments).stdin(Stdio::piped()).spawn().expect("start a program");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("feed it");
    assert!(child.wait().expect("wait").success(), "{program} {arguments:?}");
}
