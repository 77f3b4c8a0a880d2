//! The process that owns the dataplane, as an agent does: opens or adopts it, writes what it is told, and leaves everything when it ends.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use dataplane::{Acceleration, Dataplane, Frontend, Masquerade, Options, Protocol, Target, UplinkHook};

use super::process::{Process, orders};
use super::{FAR_LINK, NODE, NODE_CGROUP, PIN_ROOT, POD_NETWORKS, UPLINK, Way};

pub const NAME: &str = "owner";

/// The owner, as the one who gives the orders sees it.
pub struct Owner(Process);

impl Owner {
    /// Returns once the dataplane is open, with what it found there.
    pub fn start() -> (Self, String) {
        let mut process = Process::start(NAME, &[]);
        let found = process.hear();
        (Self(process), found)
    }

    /// Makes a frontend lead to endpoints; [`Self::wait`] tells when it does.
    pub fn set(&mut self, way: &Way, [inside, outside]: [&[SocketAddr]; 2]) {
        let list = |endpoints: &[SocketAddr]| {
            let all: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
            all.join(",")
        };
        self.0.tell(&format!("set {} {} {} {}", way.at, way.is_node_port, list(inside), list(outside)));
    }

    pub fn wait(&mut self) {
        assert_eq!(self.0.hear(), "ok");
    }

    /// What was not told is wanted no more.
    pub fn retain(&mut self, ways: &[Way]) {
        let all: Vec<String> = ways.iter().map(|way| way.at.to_string()).collect();
        self.0.ask(&format!("retain {}", all.join(",")));
    }

    pub fn kill(self) {
        self.0.kill();
    }

    pub fn end(self) {
        self.0.end();
    }
}

pub fn play() {
    let options = Options {
        pin_root: PIN_ROOT.into(),
        cgroup: crate::cgroup_root().join(NODE_CGROUP),
        uplinks: [UPLINK, FAR_LINK].map(str::to_owned).into(),
        uplink_hook: UplinkHook::Newest,
        uplink_acceleration: Acceleration::Disabled,
    };
    let mut dataplane = Dataplane::open(&options).unwrap_or_else(|error| panic!("{error:?}"));
    let [pods, far_pods] = POD_NETWORKS.map(|network| network.parse().expect("a network"));
    let masquerade = Masquerade { pods, address: NODE, excluded: vec![pods, far_pods], overlay: None };
    dataplane.set_masquerade(&[masquerade]).expect("masquerade");
    println!("{}", dataplane.adopted());
    for order in orders() {
        let words: Vec<&str> = order.split(' ').collect();
        match words[..] {
            ["set", at, is_node_port, inside, outside] => {
                let target = Target {
                    inside: endpoints(inside),
                    outside: endpoints(outside),
                    own_address: is_node_port == "true",
                    ..Target::default()
                };
                dataplane.set(frontend(at), &target).expect("room");
            }
            ["retain", all] => {
                let keep: HashSet<Frontend> = all.split(',').map(frontend).collect();
                dataplane.retain(&keep).expect("remove what is stale");
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
