//! What a client outside pays for a node port: a connection and a request through an uplink, the backend's pod on this node, beside the same
//! straight to the pod and beside kube-proxy's rules. Each way has links, a client and a pod of its own; all are measured in turn.
//!
//! The straight way has no program on its links. kube-proxy masquerades what comes in by a node port, we do not where the pod is here.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use dataplane::{Frontend, Protocol, Target};
use linux::netns::{self, Netns};

use super::peer::{Kind, NotMeasured, Published, Site, cell, services_around};
use super::{BLOCKS, Bench, CONNECTIONS, Pods, REQUESTS, V4, compare, median, ratio, shown};

/// Besides the one that is asked; nftables takes half a minute for ten times as many.
const SERVICES: u32 = 1_000;
const NODE_PORT: u16 = 30_080;
const STRAIGHT: u8 = 10;
const LED: u8 = 20;
/// Of the first peer; the others' follow, each as far from the one before.
const RULED: u8 = 30;

/// A node with rules.
struct Ruled {
    netns: Netns,
    pods: Pods,
    loaded: Result<(), NotMeasured>,
}

pub fn north_south() {
    let (straight, led) = (Pods::make("straight", STRAIGHT), Pods::make("led", LED));
    let mut bench = Bench::on(&["led0"]);
    bench.fill(V4, SERVICES, 2);
    let node_port = node(LED);
    let frontend = Frontend { address: node_port.ip(), port: node_port.port(), protocol: Protocol::Tcp };
    bench.set(frontend, &Target::all([led.server()]));
    let subnets = (RULED..).step_by(10);
    let peers: Vec<Ruled> =
        Kind::chosen().into_iter().zip(subnets).map(|(kind, subnet)| Ruled::make(kind, subnet)).collect();

    let mut ways = vec![(&straight, straight.server()), (&led, node_port)];
    let working = peers.iter().filter(|peer| peer.loaded.is_ok());
    ways.extend(working.map(|peer| (&peer.pods, node(peer.pods.subnet))));
    let connected = connections(&ways);
    let asked = requests(&ways);
    let line = |what: &str, times: &[Vec<Duration>]| {
        let [itself, ours, theirs @ ..] = times else { unreachable!("two ways at least") };
        let beside = |times: &[Duration]| format!("{}, {}", shown(median(times)), ratio(times, itself));
        let mut theirs = theirs.iter();
        let cells: Vec<String> = peers
            .iter()
            .map(|peer| {
                cell(&peer.loaded, |()| theirs.next().map_or_else(String::new, |times| beside(times)))
            })
            .collect();
        compare(what, ["-", &beside(ours)], &cells, &shown(median(itself)));
    };
    line(
        &format!(
            "a connection of a client outside through a node port to a pod of this node, {SERVICES} services"
        ),
        &connected,
    );
    line("a request and its answer on such a connection", &asked);

    drop(bench);
    peers.into_iter().for_each(Ruled::remove);
    [straight, led].into_iter().for_each(Pods::remove);
}

/// Where a node answers its client.
fn node(subnet: u8) -> SocketAddr {
    SocketAddr::from(([10, 9, subnet, 1], NODE_PORT))
}

impl Ruled {
    fn make(kind: Kind, subnet: u8) -> Self {
        let netns = netns::create(format!("/run/netns/{}", kind.name())).expect("make a namespace");
        let made = netns.run(|| {
            let pods = Pods::make(kind.name(), subnet);
            let address: IpAddr = Ipv4Addr::new(10, 9, subnet, 1).into();
            let server = Published {
                name: "server".to_owned(),
                vip: SocketAddr::new(V4.vip(1), 80),
                node_port: Some(NODE_PORT),
                endpoints: vec![pods.server()],
            };
            let site = Site { pods: V4.pods, node: address };
            let loaded = kind.load(&site, &services_around(V4, SERVICES, server)).map(drop);
            (pods, loaded)
        });
        let (pods, loaded) = made.expect("enter the namespace");
        Self { netns, pods, loaded }
    }

    fn remove(self) {
        let Self { netns, pods, .. } = self;
        netns.run(|| pods.remove()).expect("enter the namespace");
        netns::remove(netns.path()).expect("remove the namespace");
    }
}

fn connections(ways: &[(&Pods, SocketAddr)]) -> Vec<Vec<Duration>> {
    let mut times = vec![Vec::new(); ways.len()];
    for _ in 0..BLOCKS {
        let count = CONNECTIONS / 2 / BLOCKS;
        let mut sockets: Vec<_> = ways.iter().map(|(pods, _)| pods.sockets(count).into_iter()).collect();
        for _ in 0..count {
            for (way, (pods, to)) in ways.iter().enumerate() {
                let socket = sockets[way].next().expect("as many as asked for");
                times[way].push(pods.connect_to(socket, *to).0);
            }
        }
    }
    times
}

fn requests(ways: &[(&Pods, SocketAddr)]) -> Vec<Vec<Duration>> {
    let open = |(pods, to): &(&Pods, SocketAddr)| pods.connect_to(pods.sockets(1).swap_remove(0), *to).1;
    let mut exchanges: Vec<_> = ways.iter().map(open).collect();
    let mut times = vec![Vec::new(); ways.len()];
    for _ in 0..REQUESTS / 2 {
        for (times, exchange) in times.iter_mut().zip(&mut exchanges) {
            times.push(exchange.ask());
        }
    }
    times
}
