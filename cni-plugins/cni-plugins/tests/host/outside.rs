//! Another machine: a namespace behind a link of the host, which knows a way back to every container.

use std::net::IpAddr;

use linux::netlink::{AddressFlags, Netlink, NewAddress, Route, VethOptions, VethPeer};

use super::node::{Container, block_on};

/// The host's addresses on the link between both.
pub const HOST: [&str; 2] = ["198.51.100.1", "fd51::1"];
/// The other machine's.
pub const OUTSIDE: [&str; 2] = ["198.51.100.2", "fd51::2"];
const LINK: &str = "up0";

/// See the module.
pub struct Outside {
    pub machine: Container,
}

impl Outside {
    pub fn new() -> Self {
        use std::os::fd::AsFd;
        let machine = Container::new("outside");
        block_on(async {
            let host = Netlink::open().expect("a socket");
            let peer = VethPeer {
                name: "eth0".to_owned(),
                mtu: None,
                mac: None,
                netns: Some(machine.netns.as_fd()),
            };
            let veth = VethOptions {
                name: LINK.to_owned(),
                mtu: None,
                mac: None,
                master: None,
                group: None,
                up: true,
                peer,
            };
            host.add_veth(&veth).await.expect("a link");
            let inside = Netlink::open_in(&machine.netns).expect("a socket");
            let gateways = dress(&host, LINK, HOST).await;
            dress(&inside, "eth0", OUTSIDE).await;
            for gateway in gateways {
                let default = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
                let route =
                    Route { gateway: Some(gateway), ..Route::to(default.parse().expect("a network")) };
                inside.add_route(&route).await.expect("a route");
            }
        });
        Self { machine }
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        block_on(async {
            let host = Netlink::open().expect("a socket");
            let link = host.link(LINK).await.expect("the link");
            host.del_link(link.index).await.expect("it is deleted");
        });
    }
}

async fn dress(netlink: &Netlink, name: &str, addresses: [&str; 2]) -> [IpAddr; 2] {
    let link = netlink.link(name).await.expect("the link");
    netlink.set_link_up(link.index).await.expect("it goes up");
    for (address, prefix) in addresses.iter().zip([24, 64]) {
        let network = format!("{address}/{prefix}").parse().expect("a network");
        let new = NewAddress { flags: AddressFlags::Nodad, ..NewAddress::new(link.index, network) };
        netlink.add_address(&new).await.expect("an address");
    }
    addresses.map(|address| address.parse().expect("an address"))
}
