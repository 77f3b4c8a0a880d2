//! The process that owns the dataplane: opens or adopts it, programs what it is told, and leaves everything when it ends.
//!
//! Either this executable in another role, which is told what slices would say, or an agent with an API server (`agent/benches/owner.rs`, which
//! `cargo xtask` builds and names in [`AGENT`]).

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use dataplane::{Acceleration, Dataplane, Frontend, Masquerade, Options, Protocol, Target, UplinkHook};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::process::{Process, orders};
use super::{FAR_LINK, NODE, NODE_CGROUP, PIN_ROOT, POD_NETWORKS, Service, UPLINK};

pub const NAME: &str = "owner";
/// The program that has an agent own the dataplane.
pub const AGENT: &str = "ORLOP_BENCH_OWNER";

/// The owner, as the one who gives the orders sees it.
pub enum Owner {
    Role(Process),
    Agent {
        orders: Process,
        /// The agent's own.
        number: u32,
    },
}

impl Owner {
    /// Returns once the services are programmed, and nothing else.
    pub fn start_role(services: &[Service]) -> Self {
        let mut process = Process::start(NAME, &[]);
        publish_all(&mut process, services);
        process.ask("retain");
        Self::Role(process)
    }

    /// The same of an agent.
    pub fn start_agent(program: &str, services: &[Service]) -> Self {
        let mut command = Command::new(program);
        command.arg(NODE.to_string()).arg("/tmp/agent.log");
        command.args(["--bpf-pin-root", PIN_ROOT, "--dataplane-cgroup"]).arg(cgroup());
        command.args(["--uplink", UPLINK, "--uplink", FAR_LINK]);
        let mut orders = Process::start_command(command);
        publish_all(&mut orders, services);
        let number = start(&mut orders);
        Self::Agent { orders, number }
    }

    /// Makes a service lead to its endpoints; [`Self::wait`] tells when it does, of an agent when that can know.
    pub fn publish(&mut self, service: &Service) {
        self.process().tell(&order(service));
    }

    pub fn wait(&mut self) {
        assert_eq!(self.process().hear(), "ok");
    }

    /// Kills it, after some answers, while it has orders left; and starts it again.
    pub fn kill_and_start(self, left: u32, services: &[Service]) -> Self {
        match self {
            Self::Role(process) => {
                process.kill();
                Self::start_role(services)
            }
            Self::Agent { mut orders, number } => {
                kill(Pid::from_raw(number.cast_signed()), Signal::SIGKILL).expect("kill the agent");
                // Its API server goes on.
                (0..left).for_each(|_| assert_eq!(orders.hear(), "ok"));
                publish_all(&mut orders, services);
                let number = start(&mut orders);
                Self::Agent { orders, number }
            }
        }
    }

    /// Has it end in order, and starts it again after `meanwhile`.
    pub fn replace(self, meanwhile: fn(), services: &[Service]) -> Self {
        match self {
            Self::Role(process) => {
                process.end();
                meanwhile();
                Self::start_role(services)
            }
            Self::Agent { mut orders, .. } => {
                orders.ask("stop");
                meanwhile();
                let number = start(&mut orders);
                Self::Agent { orders, number }
            }
        }
    }

    pub fn end(self) {
        match self {
            Self::Role(process) | Self::Agent { orders: process, .. } => process.end(),
        }
    }

    fn process(&mut self) -> &mut Process {
        match self {
            Self::Role(process) | Self::Agent { orders: process, .. } => process,
        }
    }
}

fn publish_all(process: &mut Process, services: &[Service]) {
    services.iter().for_each(|service| process.ask(&order(service)));
}

/// The agent's number.
fn start(orders: &mut Process) -> u32 {
    orders.tell("start");
    orders.hear().parse().expect("a number")
}

fn order(service: &Service) -> String {
    let Service { name, policy, cluster_ip, node_port, endpoints } = service;
    let [local, far] = endpoints.each_ref().map(|endpoints| {
        let all: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
        all.join(",")
    });
    format!("publish {name} {cluster_ip} {node_port} {policy} {local} {far}")
}

fn cgroup() -> PathBuf {
    crate::cgroup_root().join(NODE_CGROUP)
}

pub fn play() {
    let options = Options {
        pin_root: PIN_ROOT.into(),
        cgroup: cgroup(),
        uplinks: [UPLINK, FAR_LINK].map(str::to_owned).into(),
        uplink_hook: UplinkHook::Newest,
        uplink_acceleration: Acceleration::Disabled,
    };
    let mut dataplane = Dataplane::open(&options).unwrap_or_else(|error| panic!("{error:?}"));
    let [pods, far_pods] = POD_NETWORKS.map(|network| network.parse().expect("a network"));
    let masquerade = Masquerade { pods, address: NODE, excluded: vec![pods, far_pods], overlay: None };
    dataplane.set_masquerade(&[masquerade]).expect("masquerade");
    let mut published = HashSet::new();
    for order in orders() {
        let words: Vec<&str> = order.split(' ').collect();
        match words[..] {
            ["publish", _, cluster_ip, node_port, policy, local, far] => {
                let all = format!("{local},{far}");
                let by_policy = if policy == "Local" { local } else { &all };
                // Where each address leads clients on the node, and those outside, as the agent decides it.
                for (at, inside) in [(cluster_ip, by_policy), (node_port, &all)] {
                    let target = Target {
                        inside: endpoints(inside),
                        outside: endpoints(by_policy),
                        own_address: at == node_port,
                        ..Target::default()
                    };
                    dataplane.set(frontend(at), &target).expect("room");
                    published.insert(frontend(at));
                }
            }
            // What was not told is wanted no more.
            ["retain"] => {
                dataplane.retain(&published).expect("remove what is stale");
                dataplane.retain_policies().expect("remove what is stale");
            }
            _ => panic!("the owner knows nothing of {order}"),
        }
        println!("ok");
    }
}

fn endpoints(list: &str) -> Arc<[SocketAddr]> {
    list.split(',').map(|endpoint| endpoint.parse().expect("an address")).collect()
}

fn frontend(at: &str) -> Frontend {
    let at: SocketAddr = at.parse().expect("an address");
    Frontend { address: at.ip(), port: at.port(), protocol: Protocol::Tcp }
}
