//! What the ways to choose an endpoint cost, how many flows move when one goes, and what services by packets cost.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{HashMap as BpfHashMap, Map, MapData};
use dataplane::{Frontend, Identity, Names, Protocol, Scheduler, Target};
use dataplane_abi::{LAYOUT_VERSION, NatKey, NatValue, map};
use linux::netns;

use super::{
    BLOCKS, Bench, CONNECTIONS, POD_PORT, Pods, REQUESTS, V4, alternate, connect, median, ratio, row, run,
    shown,
};

/// Endpoints of the services here, all one server.
const ENDPOINTS: u16 = 16;

/// Connections through a service of each scheduler, in turn with connections through one that chooses at random.
pub fn schedulers() {
    let mut bench = Bench::open();
    // One listener at all addresses: the endpoints differ in these.
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let port = listener.local_addr().expect("its address").port();
    let listener = {
        drop(listener);
        std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("listen")
    };
    let endpoints: Vec<SocketAddr> =
        (1..=ENDPOINTS).map(|number| SocketAddr::from(([127, 0, 1, number as u8], port))).collect();
    let mut service = |number: u32, scheduler| {
        let vip = SocketAddr::new(V4.vip(number), 80);
        let frontend = Frontend { address: vip.ip(), port: 80, protocol: Protocol::Tcp };
        bench.set(frontend, &Target { scheduler, ..Target::all(endpoints.clone()) });
        vip
    };
    let random = service(1, Scheduler::Random);
    let others = [
        ("in turn", Scheduler::RoundRobin),
        ("by the fewest connections", Scheduler::LeastConnection),
        ("by the client's hash", Scheduler::SourceHash),
    ];
    for (number, (name, scheduler)) in (2..).zip(others) {
        let vip = service(number, scheduler);
        let [itself, ours] = alternate(CONNECTIONS, |way| connect(&listener, [random, vip][way]));
        let what = format!("a connection to one of {ENDPOINTS} endpoints, chosen {name} (itself: at random)");
        row(
            &what,
            [
                "-",
                &format!("{}, {}", shown(median(&ours)), ratio(&ours, &itself)),
                "-",
                &shown(median(&itself)),
            ],
        );
    }
}

const ROLLS: u16 = 4;
const MAGLEV_ENDPOINTS: u16 = 10;
const CLIENT_PORTS: std::ops::Range<u16> = 20_000..20_400;
const ROLL_PAUSE: Duration = Duration::from_millis(50);

/// Flows of a host outside to a node port, led as if none was known, while endpoints are replaced one after the other: how many move from an
/// endpoint that stays.
pub fn maglev() {
    let outside = netns::create("/run/netns/outside").expect("make a namespace");
    let node: IpAddr = Ipv4Addr::new(192, 0, 2, 1).into();
    for line in [
        "link add uplink type veth peer name eth0 netns outside",
        "addr add 192.0.2.1/24 dev uplink",
        "link set uplink up",
        "-n outside addr add 192.0.2.9/24 dev eth0",
        "-n outside link set eth0 up",
    ] {
        run("ip", line);
    }
    let servers: Vec<UdpSocket> = (0..MAGLEV_ENDPOINTS + ROLLS)
        .map(|number| {
            let socket = UdpSocket::bind((node, 9000 + number)).expect("bind");
            socket.set_nonblocking(true).expect("set O_NONBLOCK");
            socket
        })
        .collect();
    let clients = outside.run(|| {
        CLIENT_PORTS.map(|port| UdpSocket::bind(("192.0.2.9", port)).expect("bind")).collect::<Vec<_>>()
    });
    let clients = clients.expect("enter the namespace");
    let mut rolled = Rolled { bench: Bench::on(&["uplink"]), node, servers, clients };
    let count = rolled.clients.len();
    let what = format!("{count} ports, {ROLLS} of {MAGLEV_ENDPOINTS} endpoints replaced one by one (Maglev)");
    let [going, coming] = rolled.away_and_back();
    row(
        &format!("{what}, each away for a while: flows of the others that move"),
        ["1.3 %", &format!("{going:.2} % when it goes, {coming:.2} % when it is back"), "not measured", "-"],
    );
    let moved = rolled.by_others();
    row(
        &format!("{what} by endpoints of another name: flows of the others that move"),
        ["1.3 %", &format!("{moved:.2} %"), "not measured", "-"],
    );
    drop(rolled);
    run("ip", "link del uplink");
    netns::remove(outside.path()).expect("remove the namespace");
}

/// A node port with its servers and the clients outside.
struct Rolled {
    bench: Bench,
    node: IpAddr,
    servers: Vec<UdpSocket>,
    clients: Vec<UdpSocket>,
}

/// An endpoint: the number of its name, and its server's.
type Named = (usize, usize);

impl Rolled {
    fn all() -> Vec<Named> {
        (0..usize::from(MAGLEV_ENDPOINTS)).map(|number| (number, number)).collect()
    }

    /// The name of the endpoint that each client port is led to.
    fn lead(&mut self, endpoints: &[Named]) -> HashMap<u16, usize> {
        let vip = SocketAddr::new(self.node, 30_053);
        let frontend = Frontend { address: vip.ip(), port: vip.port(), protocol: Protocol::Udp };
        let address = |server: usize| self.servers[server].local_addr().expect("its address");
        let names = endpoints
            .iter()
            .map(|(name, server)| (address(*server), Identity::of_pod("default", &format!("web-{name}"))));
        let names = Names::new(names).map(Arc::new);
        let list: Vec<SocketAddr> = endpoints.iter().map(|(_, server)| address(*server)).collect();
        self.bench.set(frontend, &Target { scheduler: Scheduler::Maglev, names, ..Target::all(list) });
        forget_flows();
        for client in &self.clients {
            client.send_to(b"?", vip).expect("send");
        }
        let name = |server| endpoints.iter().find(|(_, of)| *of == server).expect("an endpoint").0;
        led(&self.servers, self.clients.len())
            .into_iter()
            .map(|(port, server)| (port, name(server)))
            .collect()
    }

    /// One after the other goes, and comes back under its name with another address. Of a hundred flows that the others had before it went: how
    /// many each of the two steps leads elsewhere.
    fn away_and_back(&mut self) -> [f64; 2] {
        let (mut present, mut others, mut moved) = (Self::all(), 0, [0, 0]);
        for roll in 0..usize::from(ROLLS) {
            let before = self.lead(&present);
            let (name, _) = present.remove(roll);
            let away = self.lead(&present);
            std::thread::sleep(ROLL_PAUSE);
            present.insert(roll, (name, usize::from(MAGLEV_ENDPOINTS) + roll));
            let back = self.lead(&present);
            let of_others = || before.iter().filter(|(_, of)| **of != name).map(|(port, _)| port);
            others += of_others().count();
            for (moved, [one, next]) in moved.iter_mut().zip([[&before, &away], [&away, &back]]) {
                *moved += of_others().filter(|port| one[port] != next[port]).count();
            }
        }
        moved.map(|moved| percent(moved, others))
    }

    /// One after the other makes room for one of another name.
    fn by_others(&mut self) -> f64 {
        let (mut present, mut others, mut moved) = (Self::all(), 0, 0);
        let mut before = self.lead(&present);
        for roll in 0..usize::from(ROLLS) {
            std::thread::sleep(ROLL_PAUSE);
            let new = usize::from(MAGLEV_ENDPOINTS) + roll;
            present[roll] = (new, new);
            let after = self.lead(&present);
            let of_others = before.iter().filter(|(_, name)| **name != roll);
            others += of_others.clone().count();
            moved += of_others.filter(|(port, name)| after[port] != **name).count();
            before = after;
        }
        percent(moved, others)
    }
}

fn percent(part: usize, whole: usize) -> f64 {
    part as f64 * 100.0 / whole as f64
}

/// As on another node, or much later.
fn forget_flows() {
    let pin = format!("/sys/fs/bpf/bench/v{LAYOUT_VERSION}/{}", map::INBOUND);
    let data = MapData::from_pin(pin).expect("open the map");
    let mut flows: BpfHashMap<MapData, [u8; size_of::<NatKey>()], [u8; size_of::<NatValue>()]> =
        BpfHashMap::try_from(Map::LruHashMap(data)).expect("a map of flows");
    let keys: Vec<_> = flows.keys().collect::<Result<_, _>>().expect("read the map");
    keys.iter().for_each(|key| flows.remove(key).expect("remove a flow"));
}

/// Which server each client port reached.
fn led(servers: &[UdpSocket], clients: usize) -> HashMap<u16, usize> {
    let mut led = HashMap::new();
    while led.len() < clients {
        for (number, server) in servers.iter().enumerate() {
            while let Ok((_, peer)) = server.recv_from(&mut [0; 1]) {
                led.insert(peer.port(), number);
            }
        }
    }
    led
}

/// What a pod pays whose packets are led at its link, beside one that asks the endpoint itself.
pub fn packets() {
    let mut bench = Bench::on(&[]);
    let (direct, ours) = (Pods::make("direct", 10), Pods::make("led", 20));
    let vip = SocketAddr::new(V4.vip(1), POD_PORT);
    let frontend = Frontend { address: vip.ip(), port: vip.port(), protocol: Protocol::Tcp };
    bench.set(frontend, &Target::all([ours.server()]));
    let [client, _] = ours.links();
    bench.0.as_mut().expect("open").serve_packets(&client).expect("attach");
    let ways = [(&direct, direct.server()), (&ours, vip)];
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..BLOCKS {
        let mut sockets = ways.map(|(pods, _)| pods.sockets(CONNECTIONS / 2 / BLOCKS).into_iter());
        let [first, second] = &mut sockets;
        while let (Some(one), Some(another)) = (first.next(), second.next()) {
            times[0].push(ways[0].0.connect_to(one, ways[0].1).0);
            times[1].push(ways[1].0.connect_to(another, ways[1].1).0);
        }
    }
    let line = |what: &str, [itself, ours]: [Vec<Duration>; 2]| {
        let ours = format!("{}, {}", shown(median(&ours)), ratio(&ours, &itself));
        row(what, ["-", &ours, "not measured", &shown(median(&itself))]);
    };
    line("a connection of a pod whose packets are led at its link", times);
    let mut exchanges = ways.map(|(pods, to)| pods.connect_to(pods.sockets(1).swap_remove(0), to).1);
    line("a request and its answer of such a pod", alternate(REQUESTS / 2, |way| exchanges[way].ask()));
    drop((exchanges, bench));
    [direct, ours].into_iter().for_each(Pods::remove);
}
