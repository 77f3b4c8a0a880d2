//! Rolling replacements under load: endpoints of two Services come and go while clients connect by four ways and others hold connections
//! open, and the process that owns the dataplane is killed and upgraded meanwhile. What counts is the connections that fail.
//!
//! ```text
//!  clients inside (sockets on the node)              clients outside (a host beyond the uplink)
//!        | cluster IPs: sockets are led                    | node ports: packets are led
//!        +--------------------- node ----------------------+
//!                        |             |
//!                 this node's pods   another node's pods
//! ```
//! Both Services have endpoints here and there. One has the policy Cluster for both kinds of traffic, the other one Local.
//!
//! A replacement is what an agent does in a rollout: the new endpoint listens and becomes ready; the earlier one is terminating, so new
//! connections go to it no more, but it serves; [`TERMINATING`] later its listener is closed. All is done twice, by two owners (`rolls/owner.rs`).

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane_abi::{LAYOUT_VERSION, map};
use linux::netns;

use super::{row, run, shown};

#[path = "rolls/clients.rs"]
mod clients;
#[path = "../../tests/bpf/earlier.rs"]
mod earlier;
#[path = "rolls/endpoints.rs"]
mod endpoints;
#[path = "rolls/owner.rs"]
mod owner;
#[path = "rolls/process.rs"]
mod process;

use clients::{Clients, Made, Outcome};
use endpoints::Endpoints;
use owner::Owner;

/// What the first argument of a process of the run is.
pub const ROLE: &str = "--role";

const CONNECTIONS: u64 = 1_000_000;
const REPLACEMENTS: u32 = 1_000;
/// By each of the four ways; half of them are silent until the end, of the others the kernel asks now and then whether they are still there.
const HELD: usize = 2_500;
const LOCAL_ENDPOINTS: usize = 6;
const FAR_ENDPOINTS: usize = 4;
/// How long an endpoint serves on at least: a client that has chosen it may be without a processor for a while, and asks again after a second.
const TERMINATING: Duration = Duration::from_secs(3);
/// The replacement in whose midst the owner is killed, and each so many later.
const KILL_EVERY: u32 = 100;
/// Changes that the owner has not done when it is killed.
const CHANGES_UNDER_WAY: u32 = 200;
/// The replacements after which there is an upgrade. That of the layout comes before the first kill: whoever is started finds programs on other
/// maps than ours, and replaces them.
const NEW_LAYOUT_AT: u32 = 50;
const _: () = assert!(NEW_LAYOUT_AT < KILL_EVERY);
const NEW_PROGRAMS_AT: u32 = 650;

const PIN_ROOT: &str = "/sys/fs/bpf/rolls";
/// The control group of what runs on the node.
const NODE_CGROUP: &str = "rolls";
const UPLINK: &str = "uplink";
const FAR_LINK: &str = "far";
const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
/// Of this node and of the other one.
const POD_NETWORKS: [&str; 2] = ["10.244.0.0/16", "10.245.0.0/16"];
const POD_PORT: u16 = 8080;

/// The pods' addresses are those of no link: whole networks are local in their namespaces.
const LINKS: &[&str] = &[
    "link add uplink type veth peer name eth0 netns outside",
    "addr add 192.0.2.1/24 dev uplink",
    "link set uplink up",
    "-n outside addr add 192.0.2.9/24 dev eth0",
    "-n outside link set eth0 up",
    "link add far type veth peer name eth0 netns far",
    "addr add 198.51.100.1/24 dev far",
    "link set far up",
    "-n far addr add 198.51.100.2/24 dev eth0",
    "-n far link set eth0 up",
    "-n far link set lo up",
    "-n far route add default via 198.51.100.1",
    "-n far route add local 10.245.0.0/16 dev lo",
    "route add 10.245.0.0/16 via 198.51.100.2",
    "link add pods type veth peer name eth0 netns pods",
    "addr add 203.0.113.1/24 dev pods",
    "link set pods up",
    "-n pods addr add 203.0.113.2/24 dev eth0",
    "-n pods link set eth0 up",
    "-n pods link set lo up",
    "-n pods route add default via 203.0.113.1",
    "-n pods route add local 10.244.0.0/16 dev lo",
    "route add 10.244.0.0/16 via 203.0.113.2",
];
const NAMESPACES: [&str; 3] = ["outside", FAR_LINK, "pods"];

/// Plays one of the parts.
pub fn play(arguments: &[String]) {
    match arguments.split_first().map(|(role, rest)| (role.as_str(), rest)) {
        Some((owner::NAME, _)) => owner::play(),
        Some((endpoints::NAME, _)) => endpoints::play(),
        Some((clients::NAME, rest)) => clients::play(rest),
        _ => panic!("there is no such part: {arguments:?}"),
    }
}

/// A Service with its endpoints, this node's first.
struct Service {
    name: &'static str,
    /// For both kinds of traffic.
    policy: &'static str,
    cluster_ip: SocketAddr,
    node_port: SocketAddr,
    endpoints: [Vec<SocketAddr>; 2],
}

struct Run {
    owner: Option<Owner>,
    endpoints: Endpoints,
    services: [Service; 2],
    /// Endpoints that nothing leads to any more, and since when.
    terminating: VecDeque<(Instant, SocketAddr)>,
    /// Addresses that were given so far, of this node's pods and of the other one's.
    given: [u32; 2],
    kills: u32,
}

pub fn rolls() {
    run_of("its owner alone", Owner::start_role);
    match std::env::var(owner::AGENT) {
        Ok(program) => {
            run_of("an agent with an API server", |services| Owner::start_agent(&program, services))
        }
        Err(_) => {
            row("the same of an agent with an API server", ["none", "not measured", "not measured", "-"])
        }
    }
}

fn run_of(whose: &str, start: impl FnOnce(&[Service]) -> Owner) {
    let namespaces =
        NAMESPACES.map(|name| netns::create(format!("/run/netns/{name}")).expect("make a namespace"));
    LINKS.iter().for_each(|line| run("ip", line));
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forward");
    let cgroup = super::cgroup_root().join(NODE_CGROUP);
    std::fs::create_dir(&cgroup).expect("make a control group");

    let mut run_ = Run::begin(start);
    let made = Arc::new(Made::default());
    let inside = run_.services.each_ref().map(|service| service.cluster_ip);
    let outside = run_.services.each_ref().map(|service| service.node_port);
    let own = cgroup.display().to_string();
    let nobodys = super::cgroup_root().join(super::NOBODY);
    std::fs::create_dir(&nobodys).expect("make a control group");
    let mut clients = [
        Clients::start(&own, "-", &inside, HELD, made.clone()),
        Clients::start(&nobodys.display().to_string(), "outside", &outside, HELD, made.clone()),
    ];
    let begin = Instant::now();
    clients.iter_mut().for_each(Clients::begin);
    run_.replace_all(&made);
    let took = begin.elapsed();
    let outcomes = clients.map(Clients::end);
    let kills = run_.kills;
    run_.end();

    let [inside, outside] = &outcomes;
    for (clients, outcome) in [("sockets on the node", inside), ("clients outside", outside)] {
        eprintln!("{clients}: {outcome:?}");
    }
    let Outcome { made, failed, slowest, held, broken } = outcomes[0].clone().and(&outcomes[1]);
    let what = format!(
        "{REPLACEMENTS} rolling replacements under {made} connections, both traffic policies, {whose} killed {kills} times and upgraded twice: connections that fail"
    );
    let rate = made as f64 / took.as_secs_f64();
    let ours = format!("{failed}; {rate:.0} a second, the slowest {}", shown(slowest));
    row(&what, ["none", &ours, "not measured", "-"]);
    let what = format!(
        "connections held open meanwhile, {} silent and as many with keep-alive after {} s: that break",
        held[0],
        clients::KEEP_ALIVE.as_secs()
    );
    let ours = format!("{} of the silent ones, {} of the others", broken[0], broken[1]);
    row(&what, ["none", &ours, "not measured", "-"]);

    dataplane::remove_all(PIN_ROOT.as_ref()).expect("remove the dataplane");
    for folder in [cgroup, nobodys] {
        std::fs::remove_dir(folder).expect("remove a control group");
    }
    for link in [UPLINK, FAR_LINK, "pods"] {
        run("ip", &format!("link del {link}"));
    }
    for namespace in namespaces {
        netns::remove(namespace.path()).expect("remove a namespace");
    }
}

impl Run {
    fn begin(start: impl FnOnce(&[Service]) -> Owner) -> Self {
        let service = |number: u8, policy| Service {
            name: if number == 0 { "one" } else { "another" },
            policy,
            cluster_ip: SocketAddr::from(([10, 96, 0, 10 + number], 80)),
            node_port: SocketAddr::new(NODE, 30_080 + u16::from(number)),
            endpoints: [Vec::new(), Vec::new()],
        };
        let mut run = Self {
            owner: None,
            endpoints: Endpoints::start(),
            services: [service(0, "Cluster"), service(1, "Local")],
            terminating: VecDeque::new(),
            given: [0; 2],
            kills: 0,
        };
        for service in 0..run.services.len() {
            for (place, count) in [LOCAL_ENDPOINTS, FAR_ENDPOINTS].into_iter().enumerate() {
                for _ in 0..count {
                    let endpoint = run.new_endpoint(place);
                    run.services[service].endpoints[place].push(endpoint);
                }
            }
        }
        run.owner = Some(start(&run.services));
        earlier::attach(&pins(), &[UPLINK, FAR_LINK]);
        run
    }

    /// A pod that listens, here or there.
    fn new_endpoint(&mut self, place: usize) -> SocketAddr {
        self.given[place] += 1;
        let number = self.given[place];
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 244 + place as u8, 1, 0)) + number);
        let endpoint = SocketAddr::new(address.into(), POD_PORT);
        self.endpoints.open(["pods", FAR_LINK][place], endpoint);
        endpoint
    }

    /// What a service's slices say now; returns when its owner says so.
    fn publish(&mut self, service: usize) {
        let owner = self.owner.as_mut().expect("it is at work");
        owner.publish(&self.services[service]);
        owner.wait();
    }

    /// In step with the connections that are made, so that they spread over all replacements.
    fn replace_all(&mut self, made: &Made) {
        for number in 1..=REPLACEMENTS {
            let due = CONNECTIONS * u64::from(number) / u64::from(REPLACEMENTS);
            // The clients tell by lines, which others hear: nothing to wait on but a moment.
            while made.count() < due {
                std::thread::sleep(Duration::from_millis(1));
            }
            self.replace(number);
            match number {
                NEW_LAYOUT_AT => self.upgrade(|| earlier::leave(&pins())),
                NEW_PROGRAMS_AT => self.upgrade(leave_other_programs),
                _ => {}
            }
        }
    }

    fn replace(&mut self, number: u32) {
        // In turn: which Service, and whether its pod here or there; three of five are here, as of the endpoints.
        let service = (number % 2) as usize;
        let place = usize::from(number / 2 % 5 >= 3);
        let next = self.new_endpoint(place);
        self.services[service].endpoints[place].push(next);
        self.publish(service);
        if number.is_multiple_of(KILL_EVERY) {
            self.kill_in_the_midst(service, place);
        }
        let earlier = self.services[service].endpoints[place].remove(0);
        self.publish(service);
        self.terminating.push_back((Instant::now(), earlier));
        while let Some((since, endpoint)) = self.terminating.front().copied() {
            if since.elapsed() < TERMINATING {
                break;
            }
            self.endpoints.close(endpoint);
            self.terminating.pop_front();
        }
    }

    /// The owner is told of change after change, and killed when it has done some. Whatever it leaves is a list that may be used.
    fn kill_in_the_midst(&mut self, service: usize, place: usize) {
        let mut owner = self.owner.take().expect("it is at work");
        for change in 0..CHANGES_UNDER_WAY {
            let kept = self.services[service].endpoints.clone();
            if change.is_multiple_of(2) {
                self.services[service].endpoints[place].pop();
            }
            owner.publish(&self.services[service]);
            self.services[service].endpoints = kept;
        }
        // Another number each time.
        let done = self.kills * 13 % CHANGES_UNDER_WAY;
        (0..done).for_each(|_| owner.wait());
        eprintln!("the owner is killed");
        self.owner = Some(owner.kill_and_start(CHANGES_UNDER_WAY - done, &self.services));
        self.kills += 1;
    }

    /// Ends the owner; `leave` makes what it leaves another build's.
    fn upgrade(&mut self, leave: fn()) {
        let owner = self.owner.take().expect("it is at work");
        eprintln!("the owner is upgraded");
        self.owner = Some(owner.replace(leave, &self.services));
        eprintln!("the upgrade is done");
    }

    fn end(self) {
        self.owner.expect("it is at work").end();
        self.endpoints.end();
    }
}

fn pins() -> PathBuf {
    Path::new(PIN_ROOT).join(format!("v{LAYOUT_VERSION}"))
}

/// The programs that are attached count elsewhere than ours: all of them are replaced in place.
fn leave_other_programs() {
    std::fs::remove_file(pins().join(map::COUNTERS)).expect("unpin a map");
}
