//! What is measured beside ours: what kube-proxy makes for the same services, each kind in a network namespace of its own.
//!
//! What translates alone: those by which kube-proxy refuses and lets through besides would cost more. What a machine cannot load
//! is not measured, and says why.

use std::fmt;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use dataplane::Frontend;
use linux::netns::{self, Netns};

use super::{Family, ROUTES, SERVICES, run, service, target};

#[path = "peer/iptables.rs"]
mod iptables;
#[path = "peer/ipvs.rs"]
mod ipvs;
#[path = "peer/nftables.rs"]
mod nftables;

/// The service of a peer's server: our programs know nothing of it.
const SERVER: u32 = 20;

/// A service as its rules need it.
pub struct Published {
    pub name: String,
    pub vip: SocketAddr,
    pub node_port: Option<u16>,
    pub endpoints: Vec<SocketAddr>,
}

/// The node, as its rules need it.
pub struct Site {
    /// Pods of it are not masqueraded.
    pub pods: &'static str,
    /// Where node ports answer.
    pub node: IpAddr,
}

/// Names those that are measured, one word each; without it nftables and iptables. Not every kernel has IPVS.
pub const PEERS: &str = "ORLOP_BENCH_PEERS";

/// A mode of kube-proxy.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Nftables,
    Iptables,
    Ipvs,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Nftables, Self::Iptables, Self::Ipvs];

    pub fn chosen() -> Vec<Self> {
        let Ok(words) = std::env::var(PEERS) else { return vec![Self::Nftables, Self::Iptables] };
        let named = |word| Self::ALL.into_iter().find(|kind| kind.name() == word);
        words.split(' ').map(|word| named(word).unwrap_or_else(|| panic!("{PEERS}: {word}?"))).collect()
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Ipvs => "IPVS",
        }
    }

    /// Into the thread's namespace; gives how long that took.
    pub fn load(self, site: &Site, services: &[Published]) -> Result<Duration, NotMeasured> {
        match self {
            Self::Nftables => nftables::load(site, services),
            Self::Iptables => iptables::load(site, services),
            Self::Ipvs => ipvs::load(site, services),
        }
    }
}

/// Why there is no figure.
#[derive(Debug, Clone)]
pub struct NotMeasured(pub String);

impl fmt::Display for NotMeasured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not measured: {}", self.0)
    }
}

/// A peer's figure, or why there is none.
pub fn cell<T>(peer: &Result<T, NotMeasured>, figure: impl FnOnce(&T) -> String) -> String {
    peer.as_ref().map_or_else(ToString::to_string, figure)
}

/// So many services without a server, and one more at their middle: of rules that are looked at one after the other that is half of them.
pub fn services_around(family: Family, count: u32, one: Published) -> Vec<Published> {
    let others = |numbers: std::ops::Range<u32>| {
        numbers.map(move |number| {
            let Frontend { address, port, .. } = service(family, number);
            Published {
                name: number.to_string(),
                vip: SocketAddr::new(address, port),
                node_port: None,
                endpoints: target(family, number, 2).inside.to_vec(),
            }
        })
    };
    others(0..count / 2).chain([one]).chain(others(count / 2..count)).collect()
}

/// Rules, and a server on the loopback that they lead to.
pub struct Peer {
    pub netns: Netns,
    pub took: Duration,
    pub vip: SocketAddr,
    pub listener: TcpListener,
}

impl Peer {
    pub fn load(kind: Kind, family: Family) -> Result<Self, NotMeasured> {
        let netns = netns::create(format!("/run/netns/{}", kind.name())).expect("make a namespace");
        let listener = netns.run(|| {
            run("ip", "link set lo up");
            ROUTES.iter().for_each(|line| run("ip", line));
            TcpListener::bind((family.endpoint, 0)).expect("listen")
        });
        let listener = listener.expect("enter the namespace");
        let vip = SocketAddr::new(family.vip(SERVER), 80);
        let endpoints = vec![listener.local_addr().expect("its address")];
        let server = Published { name: "server".to_owned(), vip, node_port: None, endpoints };
        let site = Site { pods: family.pods, node: family.endpoint };
        let services = services_around(family, SERVICES, server);
        let loaded = netns.run(|| kind.load(&site, &services)).expect("enter the namespace");
        match loaded {
            Ok(took) => Ok(Self { netns, took, vip, listener }),
            Err(error) => {
                netns::remove(netns.path()).expect("remove the namespace");
                Err(error)
            }
        }
    }

    pub fn remove(self) {
        netns::remove(self.netns.path()).expect("remove the namespace");
    }
}

/// Has a program read rules, and times it.
fn feed(command: &mut std::process::Command, rules: &str) -> Result<Duration, NotMeasured> {
    use std::io::{Read, Write};
    use std::process::Stdio;
    let shown = format!("{:?}", command.get_program());
    let failed = |error: &dyn fmt::Display| NotMeasured(format!("{shown}: {error}"));
    let begin = Instant::now();
    let mut child =
        command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(|error| failed(&error))?;
    let written = child.stdin.take().expect("piped").write_all(rules.as_bytes());
    let mut said = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut said).map_err(|error| failed(&error))?;
    let status = child.wait().map_err(|error| failed(&error))?;
    let took = begin.elapsed();
    match written {
        Ok(()) if status.success() => Ok(took),
        _ => Err(failed(&said.lines().last().unwrap_or("it failed"))),
    }
}
